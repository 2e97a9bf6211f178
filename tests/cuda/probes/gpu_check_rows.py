"""Every row of `gpu-check` on the stub: a row does all that it does, but what kernels would have computed is right."""

import contextlib
import functools
import io
from typing import Any

import card
import torch
import values as stub_values
from torchvision.io import decode_jpeg

from ffcv_train.data.loading import device_decode
from ffcv_train.doctor.gpu import check, figures, kernels, loading, ranks, runs, speed, steps, values
from ffcv_train.training import state

MODULES = (figures, kernels, loading, ranks, runs, speed, steps, values)
RECIPES = ("deit_configs/deit_small_distilled_maxsup", "rn18_configs/rn18_16_epochs")
compile_network, find_recipes = torch.compile, kernels.distinct_recipes


def as_wanted(*tensors: Any) -> float:
    """No distance; results are read from the device all the same."""
    for tensor in tensors:
        for one in tensor if isinstance(tensor, list) else [tensor]:
            one.detach().cpu()
    return 0.0


def decoded_on_the_cpu(sources: list[torch.Tensor], mode: Any, device: torch.device) -> list[torch.Tensor]:
    """nvJPEG is no part of the stub."""
    return [image.pin_memory().to(device, non_blocking=True) for image in decode_jpeg(sources, mode)]


def replace() -> None:
    """Take numbers as right, and measure on small networks for a moment only."""
    stub_values.replace()
    for module in MODULES:
        for name in ("distance", "relative_distance", "total_distance"):
            if hasattr(module, name):
                setattr(module, name, as_wanted)
    torch.compile = lambda network, **more: compile_network(network, backend="eager", **more)
    kernels.distinct_recipes = lambda *arguments: {
        name: config for name, config in find_recipes(*arguments).items() if name in RECIPES
    }
    state.check_tensors = lambda *_, **__: None  # what no kernel has written need not be finite
    device_decode.decode_jpeg = decoded_on_the_cpu
    kernels._STEPS, kernels._REPLAYED_STEPS, steps._STEPS, steps._OPTIONS_STEPS = 3, 2, 1, 1
    cases = (speed.Case("resnet18", 32, "bf16"), speed.Case("cifar_resnet20", 32, "fp16", compiled=True))
    speeds = [check.Row(f"speed: {case}", "", functools.partial(speed.step, case=case)) for case in cases]
    check.ROWS = (*(row for row in check.ROWS if not row.name.startswith("speed: ")), *speeds)
    speed.LOADED, speed.PUBLISHED_A100, speed.FFCVS_SIDES = ("resnet18", 32), {"resnet18": 1e9}, (32,)
    speed.device_name = lambda device: "NVIDIA A100-PCIE-40GB"
    speed._ROUNDS, speed._SECONDS, speed._LOADER_SECONDS, speed._RAW_IMAGES = 1, 0.01, 0.1, 256
    speed.OF_PLAIN = speed.TOGETHER = 0
    speed.batch_size = lambda device: 32


def main() -> None:
    """Do so, and report."""
    replace()
    card.set_order("random")
    with contextlib.redirect_stdout(io.StringIO()):
        findings = check.check("cuda", card.arguments()["rows"], print, minutes=1000)
    assert findings is not None
    findings["missing"] = [name for name in card.counters() if name.startswith("missing")]
    card.report(findings)
