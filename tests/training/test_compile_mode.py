"""model.compile_mode: how the network is compiled, and what it does not go with."""

from typing import Any

import pytest
import torch
from torch import nn

from ffcv_train.config.read import load_config
from ffcv_train.config.schema import RunConfig
from ffcv_train.system.errors import UserError
from ffcv_train.training.parallel import wrap
from ffcv_train.training.setup import check_config
from tests.support.runs import ALONE


@pytest.mark.parametrize(("mode", "passed"), [("default", None), ("reduce-overhead", "reduce-overhead")])
def test_the_network_is_compiled_in_the_mode(monkeypatch: pytest.MonkeyPatch, mode: str, passed: str | None) -> None:
    asked: list[dict[str, Any]] = []

    def compile_(network: nn.Module, **how: Any) -> nn.Module:
        asked.append(how)
        return network

    monkeypatch.setattr(torch, "compile", compile_)
    network = nn.Linear(2, 2)
    config = load_config(RunConfig, ["--model.compile=1", f"--model.compile_mode={mode}"])
    check_config(config)
    assert wrap(network, config, ALONE) is network
    assert asked == [{"dynamic": False, "mode": passed}]


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ((), r"model.compile_mode=reduce-overhead has no use without model.compile; set it to 1 as well"),
        (("--model.compile=1", "--training.accumulate=2"), r"loses gradients with training.accumulate=2"),
    ],
)
def test_what_cuda_graphs_do_not_go_with_is_refused(options: tuple[str, ...], told: str) -> None:
    with pytest.raises(UserError, match=told):
        check_config(load_config(RunConfig, ["--model.compile_mode=reduce-overhead", *options]))
