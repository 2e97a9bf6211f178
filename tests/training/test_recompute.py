"""Gradient checkpointing changes nothing but memory; BatchNorm over all ranks takes the place of each one."""

from pathlib import Path

import pytest
import timm
import torch
from torch import nn

from ffcv_train.models.factory import create_model
from ffcv_train.system.distributed import Process
from ffcv_train.system.errors import UserError
from ffcv_train.training.parallel import synchronise_batchnorm
from ffcv_train.training.recompute import recompute_blocks
from tests.support.runs import Betons, config, same_weights, train


def test_a_run_ends_with_the_same_weights(small_betons: Betons, tmp_path: Path) -> None:
    """Running statistics and averaged weights too; a run may be resumed with it or without."""
    more = ("--training.amp=off", "--training.ema_decay=0.8")
    plain = train(small_betons, tmp_path, "--logging.run=plain", *more)
    saving = train(small_betons, tmp_path, "--logging.run=saving", "--model.grad_checkpointing=1", *more)
    for key in ("model", "ema"):
        assert same_weights(plain / "final.pt", saving / "final.pt", key)


@pytest.mark.parametrize(
    ("arch", "side", "some"),
    [
        ("torchvision/resnet18", 32, "layer3.1"),
        ("timm/test_efficientnet", 32, "blocks.1.0"),
        ("timm/test_vit", 160, "blocks.3"),
        ("torchvision/swin_t", 32, "features.5.2"),
    ],
)
def test_gradients_and_statistics_are_the_same(arch: str, side: int, some: str) -> None:
    """With dropped paths and without; what is kept for the backward pass is less."""
    found = []
    for saving in (False, True):
        torch.manual_seed(0)
        model = create_model(arch, 3)
        for module in model.modules():
            if isinstance(module, nn.Dropout):
                module.p = 0.2
        if saving:
            assert some in recompute_blocks(model)
        kept = 0

        def count(tensor: torch.Tensor) -> torch.Tensor:
            nonlocal kept
            kept += tensor.numel()
            return tensor

        torch.manual_seed(1)
        images = torch.randn(2, 3, side, side)
        with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
            loss = model.train()(images).square().sum()
        # The backward pass keeps again what it computes again, a block at a time.
        loss.backward()
        assert model.eval()(images).shape == (2, 3)
        found.append((model, kept))
    (plain, much), (other, little) = found
    assert little < 0.75 * much
    for (name, a), b in zip(plain.named_parameters(), other.parameters(), strict=True):
        assert a.grad is not None and b.grad is not None and torch.equal(a.grad, b.grad), name
    assert all(torch.equal(a, b) for a, b in zip(plain.buffers(), other.buffers(), strict=True))
    assert plain.state_dict().keys() == other.state_dict().keys()


def test_what_does_not_fit_is_refused(small_betons: Betons, tmp_path: Path) -> None:
    from ffcv_train.training.setup import check_config

    with pytest.raises(UserError, match="do not go together"):
        check_config(config(small_betons, tmp_path, "--model.compile=1", "--model.grad_checkpointing=1"))
    with pytest.raises(UserError, match="Linear has no blocks that could be computed again"):
        recompute_blocks(nn.Linear(3, 3))


def test_batchnorm_of_all_ranks() -> None:
    """Every BatchNorm is replaced, by the same parameters and names; not run on GPUs here."""
    model = timm.create_model("test_resnet", num_classes=3)
    before = dict(model.named_parameters())
    keys = list(model.state_dict())
    norms = sum(isinstance(module, nn.BatchNorm2d) for module in model.modules())
    synchronise_batchnorm(model, Process(0, 2, 0, 2, torch.device("cuda", 0)))
    found = [module for module in model.modules() if isinstance(module, nn.SyncBatchNorm)]
    assert len(found) == norms > 0
    assert not any(isinstance(module, nn.BatchNorm2d) for module in model.modules())
    assert list(model.state_dict()) == keys
    assert all(parameter is before[name] for name, parameter in model.named_parameters())
    alone = timm.create_model("test_resnet", num_classes=3)
    synchronise_batchnorm(alone, Process(0, 1, 0, 1, torch.device("cpu")))
    assert not any(isinstance(module, nn.SyncBatchNorm) for module in alone.modules())
    with pytest.raises(UserError, match="needs GPUs"):
        synchronise_batchnorm(alone, Process(0, 2, 0, 2, torch.device("cpu")))
