"""Evaluation: exact counts at any world size, flip averaging, and a model left as it was."""

import functools
import math
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import nn

from ffcv_train.evaluation.predict import evaluate_batches, predict
from ffcv_train.metrics.classification import MetricSums
from ffcv_train.models.inspect.trace import evaluation_mode
from ffcv_train.models.network import AMP_DTYPES, Network
from ffcv_train.models.normalise import Normaliser
from ffcv_train.system.distributed import process_group
from tests.support.runs import free_port

SAMPLES, CLASSES = 997, 7


@dataclass(frozen=True)
class Batch:
    images: torch.Tensor
    labels: torch.Tensor
    indices: torch.Tensor


def data(count: int = SAMPLES) -> Batch:
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (count, 3, 8, 8), dtype=torch.uint8, generator=generator)
    labels = torch.randint(0, CLASSES, (count,), generator=generator)
    return Batch(images.contiguous(memory_format=torch.channels_last), labels, torch.arange(count))


def batches(whole: Batch, size: int, rank: int = 0, world_size: int = 1) -> Iterator[Batch]:
    """A rank's share as the loader gives it: every world_size-th sample, the last batch smaller, nothing padded."""
    for share in torch.arange(len(whole.labels))[rank::world_size].split(size):
        if len(share):
            yield Batch(whole.images[share], whole.labels[share], whole.indices[share])


def network() -> nn.Module:
    torch.manual_seed(1)
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Dropout(), nn.Flatten())
    model.append(nn.Linear(8 * 36, CLASSES))
    return model


def run(model: nn.Module, whole: Batch, size: int = 100, **options: object) -> dict:
    return evaluate_batches(as_network(model), batches(whole, size), **options)  # type: ignore[arg-type]


def as_network(model: nn.Module, amp_dtype: torch.dtype | None = None) -> Network:
    return Network(model, CLASSES, Normaliser((0.5,) * 3, (0.25,) * 3), amp_dtype)


def direct_logits(model: nn.Module, images: torch.Tensor) -> torch.Tensor:
    with torch.no_grad(), evaluation_mode(model):
        return model((images.float() / 255 - 0.5) / 0.25)


def test_equals_metrics_of_direct_logits() -> None:
    model, whole = network(), data()
    found = run(model, whole, tta=True, num_samples=SAMPLES)
    views = [direct_logits(model, whole.images), direct_logits(model, whole.images.flip(3))]
    for logits, metrics in ((views[0], found), ((views[0] + views[1]) / 2, found["flip_averaged"])):
        sums = MetricSums()
        sums.update(logits, whole.labels)
        expected = sums.compute()
        for key in ("count", "top_1", "top_5"):
            assert metrics[key] == expected[key], key
        for key in ("nll", "ece"):
            assert metrics[key] == pytest.approx(expected[key], rel=1e-5), key
    assert found["count"] == SAMPLES
    assert found["nll"] != found["flip_averaged"]["nll"]
    assert "flip_averaged" not in found["flip_averaged"]


def test_flip_averaging_is_a_mean_of_logits() -> None:
    class LeftHalf(nn.Module):
        """Logits that only the left half of the image decides on."""

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            left = images[..., :4].mean(dim=(1, 2, 3))
            return torch.stack([left, -left], dim=1)

    image = torch.zeros(1, 3, 8, 8, dtype=torch.uint8)
    image[..., :4] = 255
    batch = Batch(image, torch.tensor([0]), torch.tensor([41]))
    (found,) = predict(Network(LeftHalf(), 2, Normaliser((0.0,) * 3, (0.25,) * 3), None), [batch], flip=True)
    torch.testing.assert_close(found.logits, torch.tensor([[4.0, -4.0]]))
    assert found.flip_averaged is not None
    torch.testing.assert_close(found.flip_averaged, torch.tensor([[2.0, -2.0]]))
    assert found.indices.tolist() == [41]


def test_the_single_view_does_not_depend_on_flip_averaging() -> None:
    model, whole = network(), data(50)
    plain, both = run(model, whole), run(model, whole, tta=True)
    assert "flip_averaged" not in plain
    both.pop("flip_averaged")
    assert plain == both


def test_result_does_not_depend_on_the_batch_size() -> None:
    model, whole = network(), data()
    results = [run(model, whole, size) for size in (1000, 64, 7)]
    for other in results[1:]:
        assert (other["count"], other["top_1"]) == (results[0]["count"], results[0]["top_1"])
        assert other["nll"] == pytest.approx(results[0]["nll"], rel=1e-6)


def evaluate_on_rank(rank: int, store: str, port: int) -> None:
    """One process of a real gloo group of three; the first two then evaluate as a group of two."""
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": "3", "LOCAL_RANK": str(rank), "LOCAL_WORLD_SIZE": "3"}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    torch.set_num_threads(1)
    whole, report = data(), {}
    with process_group("cpu"):
        model = nn.parallel.DistributedDataParallel(network())
        pair = dist.new_group([0, 1])
        for world_size in (3, 2):
            if rank >= world_size:
                continue
            reduction = {"all_reduce": functools.partial(dist.all_reduce, group=pair)} if world_size == 2 else {}
            seen = [p.indices for p in predict(as_network(model), batches(whole, 64, rank, world_size))]
            for name, content in (("whole", whole), ("one", data(1))):
                report[f"{name} {world_size}"] = evaluate_batches(
                    as_network(model),
                    batches(content, 64, rank, world_size),
                    tta=True,
                    num_samples=len(content.labels),
                    **reduction,
                )
            report[f"indices {world_size}"] = torch.cat(seen)
    torch.save(report, Path(store) / f"{rank}.pt")


@pytest.fixture(scope="module")
def reports(tmp_path_factory: pytest.TempPathFactory) -> list[dict]:
    store = tmp_path_factory.mktemp("ranks")
    mp.spawn(evaluate_on_rank, (str(store), free_port()), nprocs=3)
    return [torch.load(store / f"{rank}.pt") for rank in range(3)]


@pytest.mark.parametrize("world_size", [2, 3])
def test_every_sample_counts_once_at_any_world_size(world_size: int, reports: list[dict]) -> None:
    # 997 samples are shared unevenly among 2 and among 3, and no share is a multiple of the batch size.
    indices = torch.cat([report[f"indices {world_size}"] for report in reports[:world_size]])
    assert torch.equal(indices.sort().values, torch.arange(SAMPLES))
    single = run(network(), data(), 64, tta=True)
    for report in reports[:world_size]:
        metrics = report[f"whole {world_size}"]
        assert metrics["count"] == SAMPLES
        for a, b in ((metrics, single), (metrics["flip_averaged"], single["flip_averaged"])):
            assert (a["top_1"], a["top_5"]) == (b["top_1"], b["top_5"])
            assert a["nll"] == pytest.approx(b["nll"], rel=1e-6)
            assert a["ece"] == pytest.approx(b["ece"], rel=1e-4)
            assert a["bins"]["count"] == b["bins"]["count"]
        assert report[f"one {world_size}"]["count"] == 1  # the other ranks' shares are empty


def test_a_wrong_count_is_an_error() -> None:
    with pytest.raises(RuntimeError, match="evaluated 996 of 997"):
        run(network(), data(996), num_samples=997)


def test_modes_come_back() -> None:
    model = network()
    model.train()
    model[1].eval()  # a frozen batch norm
    before = [module.training for module in model.modules()]
    statistics = model[1].running_mean.clone()
    run(model, data(10))
    assert [module.training for module in model.modules()] == before
    assert torch.equal(model[1].running_mean, statistics)

    # After an error, and after a consumer that leaves early, too.
    with pytest.raises((IndexError, RuntimeError)):
        run(model, Batch(data(10).images, torch.full((10,), CLASSES), torch.arange(10)))
    assert [module.training for module in model.modules()] == before
    predictions = predict(as_network(model), batches(data(10), 2))
    next(predictions)
    assert not model.training
    predictions.close()
    assert [module.training for module in model.modules()] == before


def test_gradients_stay_on_for_the_consumer() -> None:
    model = network()
    for prediction in predict(as_network(model), batches(data(4), 2)):
        assert torch.is_grad_enabled()
        assert not prediction.logits.requires_grad
        (prediction.logits * torch.ones(1, requires_grad=True)).sum().backward()  # no inference tensor


def test_wrappers_are_not_run() -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("compiled")

    model = network()
    compiled = torch.compile(model, backend=refuse)
    assert run(compiled, data(10)) == run(model, data(10))


@pytest.mark.parametrize("amp", ["bf16", "off"])
def test_mixed_precision(amp: str) -> None:
    seen: list[torch.dtype] = []
    model = network()
    model[-1].register_forward_hook(lambda *args: seen.append(args[2].dtype))
    with torch.autocast("cpu", dtype=torch.bfloat16):  # what is around does not matter
        found = evaluate_batches(as_network(model, AMP_DTYPES[amp]), batches(data(100), 100))
    assert seen == [torch.bfloat16 if amp == "bf16" else torch.float32]
    exact = run(model, data(100))
    assert found["nll"] == pytest.approx(exact["nll"], rel=0 if amp == "off" else 0.02)
    assert math.isfinite(found["ece"])


def test_logits_are_float32_and_in_order() -> None:
    whole = data(23)
    found = list(predict(as_network(network(), torch.bfloat16), batches(whole, 5), flip=True))
    assert torch.equal(torch.cat([p.indices for p in found]), whole.indices)
    assert torch.equal(torch.cat([p.labels for p in found]), whole.labels)
    assert {(p.logits.dtype, p.flip_averaged.dtype) for p in found if p.flip_averaged is not None} == {
        (torch.float32, torch.float32)
    }
