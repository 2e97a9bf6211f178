"""Rows: whole runs: between devices, and where memory ends."""

import contextlib
import gc
import io
from collections.abc import Iterator
from typing import Any

import torch

from ffcv_train.doctor.gpu.bench import CPU, Bench, exact_float32, on_device
from ffcv_train.doctor.gpu.figures import Figure, NotJudged, distance, total_distance
from ffcv_train.system.distributed import Process
from ffcv_train.system.errors import UserError
from ffcv_train.training.trainer import Trainer

_STEPS = 2
# Of the way: rounding switches rectified units, and AdamW's steps follow signs. A CPU's two kernels are 0.004 apart.
_MOVED = 0.05
_SPARE = 48 << 20  # bytes: little enough for any batch of many images


def resume(bench: Bench) -> list[Figure]:
    """A run that goes on from a CPU on the device and from there on a CPU again, with AdamW and averaged weights."""
    options = ("--training.optimizer=adamw", "--lr.lr=1e-3", "--training.ema_decay=0.5", "--training.batch_size=16")
    config = bench.config(*options)
    batches = bench.batches(config, 3 * _STEPS)
    path = bench.folder / "runs" / "moving" / "last.pt"
    path.parent.mkdir(parents=True, exist_ok=True)
    lost = 0.0
    start: list[torch.Tensor] = []
    before: list[torch.Tensor] = []
    ends = {}
    for way, devices in (("moving", (CPU, bench.device, CPU)), ("staying", (CPU,) * 3)):
        for part, device in enumerate(devices):
            more = (f"--training.resume={path}",) if part else ()
            with bench.trainer(bench.config(*options, *more), device) as run, exact_float32():
                if part:
                    lost = max(lost, _lost(run, before))
                else:
                    start = [parameter.detach().cpu().clone() for parameter in run.learner.model.parameters()]
                for step in range(part * _STEPS, (part + 1) * _STEPS):
                    run.train_step(0, step, iter([on_device(batches[step], device)]))
                run.state.step = (part + 1) * _STEPS
                run.state.save(path, write=True)
                before = _everything(run)
        ends[way] = before[: len(start)]
    return [
        Figure("lost in a checkpoint", lost, most=0),
        Figure("share of the way apart", total_distance(ends["moving"], ends["staying"], start), most=_MOVED),
    ]


def _everything(run: Trainer) -> list[torch.Tensor]:
    """Weights, averaged weights and the optimizer's state, on the CPU."""
    assert run.learner.ema is not None
    state = [value for own in run.learner.optimizer.state.values() for value in own.values()]
    tensors = [*run.learner.model.parameters(), *run.learner.ema.module.parameters(), *state]
    return [tensor.detach().to("cpu", copy=True) for tensor in tensors]


def _lost(run: Trainer, before: list[torch.Tensor]) -> float:
    """How far a run that was resumed lies from the one that wrote the checkpoint."""
    now = _everything(run)
    assert len(now) == len(before)
    return max(distance(a, b) for a, b in zip(now, before, strict=True))


def out_of_memory(bench: Bench) -> list[Figure]:
    """The sentences that say so, and that the device goes on afterwards."""
    if not bench.on_gpu:
        raise NotJudged("a CPU's memory ends otherwise")
    options = ("--training.epochs=1", "--lr.lr_peak_epoch=0", "--validation.every=1")
    large = ("--resolution.min_res=224", "--resolution.max_res=224", "--training.batch_size=256")
    training = _told(bench, "training", *options, "--model.arch=resnet18", *large)
    wide = ("--validation.resolution=512", "--validation.batch_size=256")
    validation = _told(bench, "validation", *options, "--training.batch_size=256", *wide)
    for told, wanted in ((training, "images at once"), (validation, "--validation.batch_size")):
        if "the GPU has too little memory" not in told or wanted not in told:
            raise RuntimeError(f"no sentence that names what to lower, but: {told}")
    with bench.trainer(bench.config()) as run:
        run.train_step(0, 0, iter([on_device(bench.batches(bench.config(), 1)[0], bench.device)]))
        bench.synchronize()
    return [Figure("sentences", 2, least=2)]


def _told(bench: Bench, part: str, *options: str) -> str:
    """What a run says whose device has little memory left when `part` begins."""
    run = Trainer(bench.config(*options, f"--logging.run=small_{part}"), Process(0, 1, 0, 1, bench.device))
    own = run.validate

    def validate(model: torch.nn.Module, epoch: int) -> dict[str, Any]:
        with _little_memory(bench.device):
            return own(model, epoch)

    try:
        with contextlib.redirect_stdout(io.StringIO()):
            if part == "training":
                with _little_memory(bench.device):
                    run.fit()
            else:
                run.validate = validate  # type: ignore[method-assign]
                run.fit()
        return "nothing"
    except UserError as error:
        return str(error)
    finally:
        del run
        gc.collect()
        torch.cuda.empty_cache()


@contextlib.contextmanager
def _little_memory(device: torch.device) -> Iterator[None]:
    """PyTorch's allocator gets no more than what it has, and a little."""
    torch.cuda.empty_cache()
    total = torch.cuda.mem_get_info(device)[1]
    torch.cuda.set_per_process_memory_fraction((torch.cuda.memory_reserved(device) + _SPARE) / total, device)
    try:
        yield
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0, device)
