"""Outputs of a whole data set on every rank; two ranks are two threads here that meet in a sum of their tensors."""

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import nn

from ffcv_train.config.read import load_config
from ffcv_train.config.schema import ModelConfig, RunConfig
from ffcv_train.data.open import open_data_set
from ffcv_train.evaluation import collect as collecting
from ffcv_train.evaluation.collect import Collected, collect
from ffcv_train.models.factory import create_model
from ffcv_train.models.inspect.last_layer import need_last_layer
from ffcv_train.models.network import Network
from ffcv_train.models.normalise import Normaliser
from ffcv_train.system.distributed import Process
from ffcv_train.system.errors import UserError
from tests.support.ranks import sum_over_threads
from tests.support.runs import Betons

CPU = torch.device("cpu")


def resnet() -> nn.Module:
    torch.manual_seed(0)
    return create_model(ModelConfig(arch="cifar_resnet20"), 4)


def collected(small_betons: Betons, model: nn.Module, rank: int = 0, ranks: int = 1) -> Collected:
    network = Network(model, 4, Normaliser((0.5,) * 3, (0.5,) * 3, CPU), None)
    words = ["--validation.resolution=32", "--validation.batch_size=7", "--data.num_workers=1"]
    layer = need_last_layer(model, 32, "cifar_resnet20", "features")
    process = Process(rank, ranks, rank, ranks, CPU)
    return collect(network, load_config(RunConfig, words), open_data_set(small_betons[1]), process, layer)


def test_two_ranks_have_all_that_one_has(small_betons: Betons, monkeypatch: pytest.MonkeyPatch) -> None:
    alone = collected(small_betons, resnet())
    assert alone.labels.tolist() == [i % 4 for i in range(50)]
    monkeypatch.setattr(collecting, "all_reduce_sum", sum_over_threads(2))
    monkeypatch.setattr(collecting, "_BYTES_AT_ONCE", 64)  # in many parts
    models = [resnet(), resnet()]
    with ThreadPoolExecutor(2) as threads:
        both = list(threads.map(lambda rank: collected(small_betons, models[rank], rank, 2), range(2)))
    for found in both:
        assert found.labels.equal(alone.labels)
        assert alone.features is not None and found.features is not None
        # Batches of other sizes may round otherwise.
        torch.testing.assert_close(found.logits, alone.logits, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(found.features, alone.features, rtol=1e-4, atol=1e-4)


def test_what_cannot_be_examined_is_said(small_betons: Betons, monkeypatch: pytest.MonkeyPatch) -> None:
    spoilt = resnet()
    with torch.no_grad():
        spoilt.fc.bias[1] = torch.nan  # type: ignore[union-attr, operator]
    with pytest.raises(UserError, match=r"logits of .*val.beton are not finite; its training diverged"):
        collected(small_betons, spoilt)
    monkeypatch.setattr(collecting, "available_bytes", lambda: 1000)
    with pytest.raises(UserError, match=r"50 samples of .* GiB of memory, and .* are available"):
        collected(small_betons, resnet())
