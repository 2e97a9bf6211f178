"""The network on its device."""

import torch

from ffcv_train.training.parallel import seed_generators


def test_seeding_draws_what_pytorchs_own_seeding_draws() -> None:
    torch.manual_seed(7)
    expected = torch.rand(5)
    seed_generators(7, torch.device("cpu"))
    assert torch.equal(torch.rand(5), expected)
