"""torch.compile on the stub: how often networks are compiled while images grow, and one network by Inductor itself."""

from typing import Any

import card
import numpy as np
import torch
import values
from torch import nn
from torch._dynamo.testing import CompileCounter

from ffcv_train.config.read import load_config
from ffcv_train.config.schema import RunConfig
from ffcv_train.data.loading.batch import Batch
from ffcv_train.evaluation.predict import predict
from ffcv_train.system.distributed import Process
from ffcv_train.training import parallel, schedules, trainer

DEVICE = torch.device("cuda", 0)
BATCH = 8
FIXED = (*("--training.epochs=2", "--resolution.min_res=32", "--resolution.max_res=32", "--validation.resolution=32"),)
GROWING = (
    *("--training.epochs=3", "--resolution.min_res=32", "--resolution.max_res=48", "--resolution.step=16"),
    *("--resolution.start_ramp=0", "--resolution.end_ramp=1", "--validation.resolution=48"),
)
NETWORKS = {
    # A graph per side; criterion, clipping, averages, passes and scaler are outside of it.
    "resnet": (
        *("--model.arch=cifar_resnet18", "--training.clip_grad=1", "--training.ema_decay=0.5"),
        *("--training.accumulate=2", "--training.amp=fp16", *GROWING),
    ),
    "zipf": ("--model.arch=cifar_resnet18", "--loss.name=zipf", *FIXED),
    "transformer": ("--model.arch=cifar_deit_tiny", "--training.optimizer=adamw", "--lr.lr=5e-4", *FIXED),
}
compile_network = torch.compile


def run(arguments: tuple[str, ...], backend: Any) -> tuple[list[int], list[int]]:
    """The side of each epoch, and how many graphs there were at its end, two steps and an evaluation later."""
    torch._dynamo.reset()
    torch.compile = lambda network, **more: compile_network(network, backend=backend, fullgraph=True, **more)
    data = card.arguments()["beton"]
    common = [f"--data.train_dataset={data}", f"--data.val_dataset={data}", f"--logging.folder={card.folder()}"]
    common += ["--training.device=cuda", "--model.compile=1", f"--training.batch_size={BATCH}"]
    try:
        made = trainer.Trainer(load_config(RunConfig, [*common, *arguments]), Process(0, 1, 0, 1, DEVICE))
    finally:
        torch.compile = compile_network
    sides, graphs = [], []
    for epoch in range(made.config.training.epochs):
        side = schedules.resolution(made.config.resolution, epoch)
        images = torch.empty(BATCH, side, side, 3, dtype=torch.uint8, device=DEVICE).permute(0, 3, 1, 2)
        labels = torch.zeros(BATCH, dtype=torch.int64).to(DEVICE)
        batch = Batch(images, labels, labels, np.arange(BATCH))
        made.learner.wrapped.train()
        made.learner.criterion.start_epoch(epoch)
        made.learner.board.start_epoch()
        for step in range(2):
            made.train_step(epoch, step, iter([batch] * made.sizes.accumulate))
        for _ in predict(made.learner.network, [batch], flip=True):
            pass
        sides.append(side)
        graphs.append(getattr(backend, "frame_count", 0))
    return sides, graphs


def counted() -> dict[str, Any]:
    """Graphs of each network; `fullgraph` turns a break into an error."""
    found = {}
    for name, arguments in NETWORKS.items():
        sides, graphs = run(arguments, CompileCounter())
        found[name] = {"sides": sides, "graphs": graphs}
    return found


def by_inductor(mode: str) -> dict[str, int]:
    """What the third step of a small network launches, compiled by Inductor and Triton as the trainer does."""
    torch._dynamo.reset()
    torch._inductor.config.compile_threads = 1
    config = load_config(RunConfig, ["--model.compile=1", f"--model.compile_mode={mode}"])
    network = nn.Sequential(nn.Linear(16, 16), nn.GELU(), nn.LayerNorm(16), nn.Linear(16, 16), nn.Softmax(-1)).to(
        DEVICE
    )
    wrapped = parallel.wrap(network, config, Process(0, 1, 0, 1, DEVICE))
    optimizer = torch.optim.SGD(network.parameters(), 0.1, fused=True)

    def step() -> None:
        wrapped(torch.empty(BATCH, 16, device=DEVICE)).sum().backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    for _ in range(3):  # graphs are captured in the second
        counts = card.counted(step)
    return {"all": counts["launches"], **{key: counts.get(f"launches: {key}", 0) for key in ("Triton", "graphs")}}


def main() -> None:
    """Do both and report."""
    values.replace()
    trainer.setup.check_length = lambda config, data, sizes: 1000  # type: ignore[assignment]
    trainer.train_loader = trainer.val_loader = lambda *_: None
    inductor = {mode: by_inductor(mode) for mode in ("default", "reduce-overhead")}
    missing = [name for name in card.counters() if name.startswith("missing")]
    card.report({"counted": counted(), "inductor": inductor, "missing": missing})


main()
