"""What a run leaves behind, params.json, log.jsonl and TensorBoard events, and what it shows while it lasts."""

import contextlib
import fcntl
import numbers
import os
import shutil
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from ffcv_train.system.errors import UserError
from ffcv_train.system.files import disk_errors, parse_json, replace_text, sync_file, to_json_line, to_plain, write_json
from ffcv_train.system.progress import ProgressLine, duration
from ffcv_train.training.trackers import Tracking

if TYPE_CHECKING:
    from ffcv_train.training.events import EventFile


class RunLog:
    """The folder and the progress line of a run on rank 0; on the other ranks every method does nothing.

    Made by `RunLog.open`; used as a context manager, or ended with `close`.
    """

    def __init__(
        self, folder: Path, line: ProgressLine | None, events: "EventFile | None", lock: int | None = None
    ) -> None:
        self.folder = folder
        self._line = line
        self._events = events
        self._lock = lock
        self._tracking: Tracking | None = None
        self._start: tuple[float, float] | None = None  # time and training position (epochs) at the first progress
        self._images_per_s: float | None = None
        self._loss: float | None = None

    @classmethod
    def open(
        cls,
        folder: str | Path,
        run: str,
        *,
        enabled: bool = True,
        tensorboard: bool = True,
        resumed_epoch: int | None = None,
        plain_interval: float = 30.0,
    ) -> "RunLog":
        """Create or continue folder/run.

        `enabled` is true on rank 0 only. `resumed_epoch` is the first epoch (from 0) that this process trains where it
        continues a run: what log.jsonl and TensorBoard hold of that epoch and later ones is dropped. None starts a new
        run and refuses a folder that holds a run's log. `plain_interval`: seconds between progress lines where
        stdout is no terminal. Raises `UserError` where the folder cannot be written or another process trains into it.
        """
        path = Path(folder) / run
        if not enabled:
            return cls(path, None, None)
        log = path / "log.jsonl"
        with disk_errors(path):
            path.mkdir(parents=True, exist_ok=True)
            lock = _locked(path)
        if resumed_epoch is not None:
            _drop_epochs(log, resumed_epoch)
        elif log.exists() and log.stat().st_size:
            os.close(lock)  # an exception that somebody keeps must not keep the folder
            older = path / "previous.pt"
            if not (path / "last.pt").exists() and older.exists():
                raise UserError(
                    f"{path} holds a run's log and no last.pt, but the checkpoint before it; continue from that with "
                    f"--training.resume={older}"
                )
            if not (path / "last.pt").exists():
                raise UserError(
                    f"{path} holds a run's log but no last.pt to continue it from; move the folder away, or choose "
                    "another --logging.run"
                )
            raise UserError(
                f"{path} already holds a run's log; continue that run with --training.resume=auto, or choose another "
                "--logging.run"
            )
        with disk_errors(log):
            log.touch()
        events = _event_file(path, resumed_epoch) if tensorboard else None
        return cls(path, ProgressLine(plain_interval), events, lock)

    def params(self, record: Mapping[str, Any]) -> None:
        """Write params.json; one that is there already (of the run that is continued) becomes params.1.json, …"""
        if self._line is None:
            return
        path = self.folder / "params.json"
        with disk_errors(path):
            if path.exists():
                number = 1
                while (older := self.folder / f"params.{number}.json").exists():
                    number += 1
                # A copy: at no moment is the run without its params.json, by which it is found.
                shutil.copy2(path, older)
        write_json(path, record)

    def track(self, tracker: str, project: str, config: Mapping[str, Any]) -> None:
        """Show the numbers of later epochs on a page of `tracker` too, described by `config`; "none": on none."""
        if self._line is not None and tracker != "none":
            self._tracking = Tracking(tracker, project, self.folder, self.message)
            self._tracking.start(config)

    def epoch(self, record: Mapping[str, Any]) -> None:
        """Append a line to log.jsonl (on the disk when this returns), add its numbers to TensorBoard, print a summary.

        `record` holds `epoch` (from 0) and any of: train_loss, top_1, top_5, nll, ece (fractions and nats), lr,
        resolution, the criterion's scalars, images_per_s, data_wait (share, 0 to 1), peak_memory_gb, seconds. Numbers
        that are not finite become null in log.jsonl. In TensorBoard the keys of nested mappings are joined by a slash.
        """
        if self._line is None:
            return
        log = self.folder / "log.jsonl"
        with disk_errors(log), log.open("a", encoding="utf-8") as file:
            file.write(to_json_line(record))
            sync_file(file)
        with self._without_tensorboard_rather_than_not():
            if self._events is not None:
                self._events.add(int(record["epoch"]), _scalars(record))
        if self._tracking is not None:
            self._tracking.add(int(record["epoch"]), _scalars(record))
        self.message(epoch_summary(record))

    def progress(
        self,
        epoch: int,
        epochs: int,
        step: int,
        steps: int,
        *,
        images_per_s: float | None = None,
        loss: float | None = None,
        stage: str = "train",
    ) -> None:
        """Show that `step` of `steps` of `epoch` (from 0) of `epochs` is done, and when the run will be.

        Cheap enough for every step. `images_per_s` and `loss` keep their last value where None is passed. In a stage
        other than "train" the epoch's training counts as done.
        """
        if self._line is None:
            return
        self._images_per_s = self._images_per_s if images_per_s is None else images_per_s
        self._loss = self._loss if loss is None else loss
        position = epoch + (step / max(steps, 1) if stage == "train" else 1.0)
        if self._start is None:
            self._start = (time.monotonic(), position)
        if not self._line.due():
            return
        parts = []
        if self._images_per_s is not None:
            parts.append(f"{self._images_per_s:,.0f} images/s")
        if self._loss is not None:
            parts.append(f"loss {self._loss:.4f}")
        done = position - self._start[1]
        if done > 0:
            left = (time.monotonic() - self._start[0]) / done * (epochs - position)
            parts.append(f"ETA {duration(left)}")
        self._line.show(f"epoch {epoch + 1}/{epochs} {stage}", step, steps, "  ".join(parts))

    def message(self, text: str) -> None:
        """Print a line above the progress line."""
        if self._line is not None:
            self._line.print(text)

    @contextlib.contextmanager
    def _without_tensorboard_rather_than_not(self) -> Iterator[None]:
        """Its file may fill the last of a disk that still takes a checkpoint; log.jsonl has the same numbers."""
        try:
            yield
        except OSError as error:
            self._events = None
            reason = error.strerror or error
            self.message(f"note: cannot write TensorBoard's events in {self.folder}: {reason}; the run goes on without")

    def close(self) -> None:
        """End the progress line and the TensorBoard file; may be called twice."""
        if self._line is not None:
            self._line.close()
        with self._without_tensorboard_rather_than_not():
            if self._events is not None:
                self._events.close()
                self._events = None
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def __enter__(self) -> "RunLog":
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if self._tracking is not None:
            self._tracking.close(finished=kind is None)
        self.close()


_SUMMARY = {
    "train_loss": ("loss", "{:.4f}", 1),
    "top_1": ("top-1", "{:.2f}%", 100),
    "top_5": ("top-5", "{:.2f}%", 100),
    "nll": ("NLL", "{:.4f}", 1),
    "ece": ("ECE", "{:.4f}", 1),
    "resolution": ("side", "{:.0f} px", 1),
    "lr": ("lr", "{:.4g}", 1),
    "images_per_s": ("speed", "{:,.0f} images/s", 1),
    "data_wait": ("waiting for data", "{:.0f}%", 100),
}


def epoch_summary(record: Mapping[str, Any]) -> str:
    """One readable line of an epoch's record (as `RunLog.epoch` takes it); what is missing is left out."""
    content = to_plain(record)
    parts = [f"epoch {content['epoch'] + 1}"]
    for key, (name, form, scale) in _SUMMARY.items():
        if record.get(key) is not None:
            value = content[key]
            parts.append(f"{name} " + ("not finite" if value is None else form.format(value * scale)))
    if content.get("seconds") is not None:
        parts.append(duration(content["seconds"]))
    return "  ".join(parts)


def _locked(folder: Path) -> int:
    """A descriptor that keeps other processes from this folder until it is closed, or its process has ended."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        raise UserError(
            f"another process is training into {folder}; wait for it, or choose another --logging.run"
        ) from None
    except OSError:
        pass  # a file system without locks
    return descriptor


def _drop_epochs(log: Path, first: int) -> None:
    """Remove lines of epochs from `first` on from log.jsonl, and a last line that a crash cut off."""
    if not log.exists():
        return
    kept = []
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
    for number, line in enumerate(lines, start=1):
        try:
            keep = parse_json(line)["epoch"] < first
        except (ValueError, TypeError, KeyError):
            if number < len(lines):
                raise UserError(f"{log} line {number} is not the record of an epoch; move the file away") from None
            keep = False
        if keep:
            kept.append(line + "\n")
    # Also where only the last newline is missing, onto which the next record would be glued.
    if "".join(kept).encode() != log.read_bytes():
        replace_text(log, "".join(kept))


def _scalars(record: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, float]]:
    for key, value in record.items():
        is_number = isinstance(value, numbers.Real) and not isinstance(value, bool)
        is_number |= isinstance(value, torch.Tensor) and value.ndim == 0
        if isinstance(value, Mapping):
            yield from _scalars(value, f"{prefix}{key}/")
        elif is_number and key != "epoch":
            yield f"{prefix}{key}", float(value)


def _event_file(path: Path, resumed_epoch: int | None) -> "EventFile":
    try:
        from ffcv_train.training.events import EventFile
    except ImportError:
        raise UserError(
            "TensorBoard is not installed: pip install tensorboard, or pass --logging.tensorboard=0"
        ) from None
    with disk_errors(path):
        return EventFile(path, purge_step=resumed_epoch)
