"""A run from its first step to its last on the stub, through the commands: stopped, resumed, evaluated, examined."""

import contextlib
import io
import json
import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import card
import torch
import values

from ffcv_train.cli import doctor, evaluate, logits, train
from ffcv_train.config.read import load_config
from ffcv_train.config.schema import RunConfig
from ffcv_train.models.checkpoint import load_checkpoint
from ffcv_train.system.distributed import Process
from ffcv_train.system.errors import UserError
from ffcv_train.training.trainer import Trainer

FOLDER = card.folder()


def options(*more: str) -> list[str]:
    """A run of two epochs of six steps, on images that grow."""
    arguments = card.arguments()
    return [
        *("--model.arch=cifar_resnet20", "--training.epochs=2", "--lr.lr_peak_epoch=1", "--training.batch_size=16"),
        *("--resolution.min_res=24", "--resolution.max_res=32", "--resolution.end_ramp=1", "--resolution.step=8"),
        *("--validation.resolution=32", "--validation.batch_size=16", "--logging.tensorboard=0"),
        *(f"--data.train_dataset={arguments['train']}", f"--data.val_dataset={arguments['val']}"),
        *("--data.num_workers=1", "--training.device=cuda", f"--logging.folder={FOLDER}", *more),
    ]


def sentence(action: Callable[[], Any]) -> str:
    """What the user is told, or how else it ended."""
    try:
        action()
    except UserError as error:
        return str(error)
    except SystemExit as error:
        return f"status {error.code}"
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return "nothing"


@contextlib.contextmanager
def patched(owner: Any, name: str, value: Any) -> Iterator[None]:
    """`owner.name` is `value` for a while."""
    before = getattr(owner, name)
    setattr(owner, name, value)
    try:
        yield
    finally:
        setattr(owner, name, before)


def records(run: str) -> list[dict[str, Any]]:
    """The epochs that a run logged."""
    return [json.loads(line) for line in (FOLDER / run / "log.jsonl").read_text().splitlines()]


def stopped_and_resumed() -> dict[str, Any]:
    """SIGTERM after step 2 of the second epoch, then the rest."""
    own_step = Trainer.train_step

    def step(self: Trainer, epoch: int, number: int, batches: Any) -> float:
        lr = own_step(self, epoch, number, batches)
        if (epoch, number) == (1, 1):
            os.kill(os.getpid(), signal.SIGTERM)
        return lr

    more = ("--logging.run=parts", "--training.resume=auto", "--training.ema_decay=0.5", "--training.amp=fp16")
    with patched(Trainer, "train_step", step):
        first = sentence(lambda: train.main(options(*more)))
    state = load_checkpoint(FOLDER / "parts" / "last.pt")
    second = sentence(lambda: train.main(options(*more)))
    return {
        "first": first,
        "at": [state["epoch"], state["step"]],
        "second": second,
        "epochs": [record["epoch"] for record in records("parts")],
        "counts": [record["count"] for record in records("parts")],
        "peak_memory_gb": records("parts")[-1]["peak_memory_gb"],
    }


def evaluated() -> dict[str, Any]:
    """eval.py and logits.py on the run's checkpoint."""
    checkpoint, output = f"--checkpoint={FOLDER / 'parts' / 'final.pt'}", FOLDER / "metrics.json"
    told = sentence(lambda: evaluate.main([checkpoint, f"--output={output}"]))
    report = json.loads(output.read_text())
    rows = FOLDER / "logits.pt"
    card.reset_counters()
    wrote = sentence(lambda: logits.main([checkpoint, f"--output={rows}"]))
    return {
        "told": [told, wrote],
        "count": report["results"][0]["count"],
        "device": report["device"],
        "rows": rows.is_file() and len(torch.load(rows, weights_only=True, mmap=True)["logits"]),
        "tf32": [torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32],
    }


def examined() -> dict[str, Any]:
    """The doctor's report."""
    output = FOLDER / "doctor.json"
    told = sentence(lambda: doctor.main(options("--seconds=0.2", f"--json={output}")))
    return {"told": told, "keys": sorted(json.loads(output.read_text())) if output.is_file() else []}


def out_of_memory() -> dict[str, str]:
    """What is said where the device is too small, in training and in validation."""

    def told(run: str, at_validation: bool) -> str:
        card.set_memory(card.MEMORY)
        torch.cuda.empty_cache()

        def shrink(self: Trainer, *arguments: Any) -> Any:
            torch.cuda.empty_cache()
            card.set_memory(torch.cuda.memory_reserved() + (8 << 20))
            return own(self, *arguments)

        method = "validate" if at_validation else "train_step"
        own = getattr(Trainer, method)
        try:
            # Activations of more than what is left.
            batches = ("--training.batch_size=48", "--validation.batch_size=50", "--validation.resolution=128")
            with patched(Trainer, method, shrink):
                return sentence(lambda: train.main(options(f"--logging.run={run}", "--training.epochs=1", *batches)))
        finally:
            card.set_memory(card.MEMORY)

    return {"training": told("small", False), "validation": told("smaller", True)}


def optimizer_moves() -> dict[str, Any]:
    """AdamW's counters of steps after a checkpoint of a CPU was resumed on the device, and of the device on a CPU."""
    devices = {}
    for first, then in (("cpu", "cuda"), ("cuda", "cpu")):
        more = [f"--logging.run=adamw_{first}", "--training.optimizer=adamw", "--lr.lr=1e-3", "--training.resume=auto"]
        more += ["--training.epochs=1", "--lr.lr_peak_epoch=0", "--training.batch_size=48"]
        train.main(options(*more, f"--training.device={first}"))
        (FOLDER / f"adamw_{first}" / "final.pt").unlink()
        config = load_config(RunConfig, options(*more))
        device = torch.device("cuda", 0) if then == "cuda" else torch.device("cpu")
        trainer = Trainer(config, Process(0, 1, 0, 1, device))
        state = [tensor for own in trainer.learner.optimizer.state.values() for tensor in own.values()]
        devices[f"{first} to {then}"] = sorted({str(tensor.device) for tensor in state})
        trainer.train_loader.close()
        trainer.val_loader.close()
    return devices


def main() -> None:
    """Do all and report."""
    values.replace()
    with contextlib.redirect_stdout(io.StringIO()):
        found = {
            "run": stopped_and_resumed(),
            "evaluated": evaluated(),
            "examined": examined(),
            "out_of_memory": out_of_memory(),
            "optimizer": optimizer_moves(),
        }
    found["missing"] = [name for name in card.counters() if name.startswith("missing")]
    card.report(found)


if __name__ == "__main__":
    Path(FOLDER).mkdir(exist_ok=True)
    main()
