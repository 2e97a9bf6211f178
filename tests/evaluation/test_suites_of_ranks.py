"""Every suite on two ranks says what it says on one; ranks are threads that meet in sums of their tensors."""

import dataclasses
import itertools
import json
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from ffcv_train.config.read import load_config
from ffcv_train.config.schema import ModelConfig, RunConfig
from ffcv_train.data.kernels.corruptions import CORRUPTIONS
from ffcv_train.data.open import open_data_set
from ffcv_train.evaluation import collect as collecting
from ffcv_train.evaluation.suites import corruptions, kept
from ffcv_train.evaluation.suites.run import SUITES, run_suites
from ffcv_train.evaluation.suites.subject import Examined, SuiteOptions
from ffcv_train.models.factory import create_model
from ffcv_train.models.network import Network
from ffcv_train.models.normalise import Normaliser
from ffcv_train.system.distributed import Process
from tests.support.corruptions import frost_photographs
from tests.support.photographs import Samples, crops_of_photographs, write_stock_beton
from tests.support.ranks import from_thread_0, sum_over_threads
from tests.support.runs import Betons

CPU = torch.device("cpu")
NAMES = ("class0", "class1", "class2", "class3")
# Batches of one, so that a sample's logits do not depend on what is beside it.
OPTIONS = ["--validation.resolution=32", "--validation.crop_ratio=1", "--validation.batch_size=1"]


def resnet() -> nn.Module:
    torch.manual_seed(0)
    return create_model(ModelConfig(arch="cifar_resnet20"), 4).eval()


def records(options: SuiteOptions, val: Path, model: nn.Module, rank: int, ranks: int) -> dict[str, Any]:
    network = Network(model, 4, Normaliser((0.5,) * 3, (0.5,) * 3, CPU), None)
    config = load_config(RunConfig, [*OPTIONS, "--data.num_workers=1"])
    return run_suites(options, network, config, open_data_set(val), Process(rank, ranks, rank, ranks, CPU), NAMES)


def compare(found: Any, expected: Any, where: str = "") -> None:
    """Equal, numbers but for the rounding of threads that share a convolution otherwise."""
    if isinstance(expected, Mapping):
        assert found.keys() == expected.keys(), where
        for key in expected:
            compare(found[key], expected[key], f"{where}.{key}")
    elif isinstance(expected, Sequence) and not isinstance(expected, str):
        assert len(found) == len(expected), where
        for number, (one, other) in enumerate(zip(found, expected, strict=True)):
            compare(one, other, f"{where}.{number}")
    elif isinstance(expected, float):
        assert found == pytest.approx(expected, rel=1e-3, abs=1e-4), where
    else:
        assert found == expected, where


def test_two_ranks_say_what_one_says(small_betons: Betons, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    images = crops_of_photographs(5, 32, 32, seed=3)  # one rank has more than the other
    val = write_stock_beton(tmp_path / "five.beton", Samples(images, [0, 1, 2, 3, 0]), "raw", 4)
    (tmp_path / "frost").mkdir()
    for name, image in frost_photographs().items():
        Image.fromarray(image).save(tmp_path / "frost" / name, "PNG")
    random = np.random.default_rng(0)
    noise = [random.integers(0, 256, (32, 32, 3), dtype=np.uint8) for _ in range(5)]
    variant = write_stock_beton(tmp_path / "variant.beton", Samples(noise, [3, 1, 3, 1, 3]), "raw", 4)
    options = SuiteOptions(
        tuple(SUITES),
        calibrate_on=str(small_betons[0]),
        train_set=str(small_betons[0]),
        many_over=30,
        few_under=10,
        ood_data=(str(variant),),
        neighbour=2,
        frost_images=str(tmp_path / "frost"),
        variant_data=(str(variant),),
    )
    some = ("gaussian_noise", "frost", "jpeg_compression")
    monkeypatch.setattr(corruptions, "CORRUPTIONS", {name: CORRUPTIONS[name] for name in some})
    monkeypatch.setattr(corruptions, "_ALL", tuple(itertools.product(some, range(1, 6))))
    alone = records(options, val, resnet(), 0, 1)
    assert alone["corruptions"]["samples"] == 5 and list(alone) == list(SUITES)
    monkeypatch.setattr(collecting, "all_reduce_sum", meeting := sum_over_threads(2))
    monkeypatch.setattr(corruptions, "all_reduce_sum", meeting)
    models = [resnet(), resnet()]
    with ThreadPoolExecutor(2) as threads:
        both = list(threads.map(lambda rank: records(options, val, models[rank], rank, 2), range(2)))
    for found in both:
        compare(found, alone)


def test_ranks_go_on_after_the_same_suite(
    small_betons: Betons, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Though only rank 0 has the file, and files may have other times on another host."""
    options = SuiteOptions(("selective", "groups"), train_set=str(small_betons[0]), part_file=str(tmp_path / "m"))
    expected = records(dataclasses.replace(options, part_file=""), small_betons[1], resnet(), 0, 1)
    ran: list[tuple[str, int]] = []

    def recorded(name: str, run: Callable[[Examined], dict[str, Any]]) -> Callable[[Examined], dict[str, Any]]:
        def recording(examined: Examined) -> dict[str, Any]:
            ran.append((name, examined.process.rank))
            if name == stop_at[0]:
                raise KeyboardInterrupt
            return run(examined)

        return recording

    stop_at = ["groups"]
    for name in options.suites:
        monkeypatch.setitem(SUITES, name, recorded(name, SUITES[name]))
    monkeypatch.setattr(kept, "_when", lambda path: [threading.get_ident()])
    monkeypatch.setattr(collecting, "all_reduce_sum", sum_over_threads(2))
    numbers = threading.local()
    monkeypatch.setattr(kept, "from_rank_0", from_thread_0(2, lambda: numbers.rank))
    models = [resnet(), resnet()]

    def work(rank: int) -> dict[str, Any] | None:
        numbers.rank = rank
        try:
            return records(options, small_betons[1], models[rank], rank, 2)
        except KeyboardInterrupt:
            return None

    with ThreadPoolExecutor(2) as threads:
        assert list(threads.map(work, range(2))) == [None, None]
        assert [path.name for path in tmp_path.iterdir()] == ["m_suites.part.json"]
        content = json.loads((tmp_path / "m_suites.part.json").read_text())
        # Rank 0's thread may be another one now: what it wrote is said to be its own.
        monkeypatch.setattr(kept, "_when", lambda path: [content["about"]["options"]["written"][0][0] + numbers.rank])
        stop_at[0], ran[:] = "", []
        both = list(threads.map(work, range(2)))
    assert sorted(ran) == [("groups", 0), ("groups", 1)]
    for found in both:
        compare(found, expected)
    kept.remove_kept(options)
    assert not list(tmp_path.iterdir())
