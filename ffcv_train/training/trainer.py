"""The training loop: one step, one epoch, one run."""

import contextlib
import dataclasses
import itertools
import math
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NoReturn

import torch
from torch import nn

from ffcv_train.config.schema import RunConfig
from ffcv_train.data.loading.batch import Batch
from ffcv_train.data.loading.waiting import NoBatchError
from ffcv_train.data.open import open_data_sets, train_loader, val_loader
from ffcv_train.evaluation.predict import evaluate_batches, out_of_memory
from ffcv_train.losses.base import Criterion
from ffcv_train.models.opening import Checkpoint
from ffcv_train.system.distributed import Process, all_reduce_sum, barrier, from_rank_0
from ffcv_train.system.environment import peak_memory_gb
from ffcv_train.system.errors import UserError
from ffcv_train.system.resources import give_back_memory
from ffcv_train.system.signals import StopRequest
from ffcv_train.system.watch import at
from ffcv_train.training import describe, distill, parallel, schedules, setup
from ffcv_train.training.agreement import check_ranks_agree, what_ranks_share
from ffcv_train.training.learner import Learner
from ffcv_train.training.resume import check_run_is_free, claim_run, find_checkpoint
from ffcv_train.training.runlog import RunLog
from ffcv_train.training.state import Facts, TrainState, load_newest
from ffcv_train.training.status import Status

_AGREEMENT_STEPS = 5
"""Ranks agree on stopping this often: launchers kill what has not stopped within half a minute."""
_PATIENCE_SECONDS = 5.0
"""How long after a signal a batch is still waited for, so that the step can be finished"""


_ONE_SET = (
    "note: data.train_dataset and data.val_dataset are the same images, so that validation says what was learned by "
    "heart; ffcv-train write --cfg.val_fraction=0.1 keeps some apart"
)


class Stopped(Exception):  # noqa: N818 (not an error)
    """A signal ended the run after a complete step; its checkpoint is written."""

    def __init__(self, number: signal.Signals, checkpoint: Path) -> None:
        super().__init__(f"stopped by {number.name}; continue from {checkpoint} with --training.resume=auto")
        self.exit_status = 128 + number


class Trainer:
    """Everything a run consists of, built and checked; `fit` runs it.

    `model` and `criterion` stand in place of those that `config` describes; `weights` is what model.weights names,
    where it is open already.
    """

    def __init__(
        self,
        config: RunConfig,
        process: Process,
        model: nn.Module | None = None,
        criterion: Criterion | None = None,
        weights: Checkpoint | None = None,
    ) -> None:
        setup.check_config(config)
        self.config, self.process = config, process
        self.data = open_data_sets(config)
        self.sizes = setup.batch_sizes(config, process.world_size)
        self.peak_lr = setup.scaled_lr(config, self.sizes)
        self.steps = setup.check_length(config, self.data, self.sizes)
        facts = Facts(
            self.data.num_classes,
            self.data.class_names,
            self.sizes.global_batch,
            self.data.samples,
            self.data.digests(),
            distill.digest(config.distill),
        )
        check_ranks_agree(process, what_ranks_share(config, facts))
        self.learner = learner = Learner(config, process, self.data, self.sizes, self.steps, model, criterion, weights)
        self.state = TrainState(
            config,
            facts,
            self.steps,
            learner.network.normalise.mean,
            learner.network.normalise.std,
            learner.model,
            learner.optimizer,
            learner.scaler,
            learner.criterion,
            learner.ema,
        )
        self.finished = False
        self.notes: list[str] = [f"note: {note}" for note in self.data.notes]
        if facts.data["train"] == facts.data["val"]:
            self.notes.append(_ONE_SET)
        self.run = self._resume()
        learner.prepare()
        self.train_loader = train_loader(config, self.data.train, self.sizes.per_device, process, self.data.weights)
        self.val_loader = val_loader(config, self.data.val, config.validation.resolution[0], process)

    @property
    def epoch(self) -> int:
        """How many epochs are trained."""
        return self.state.epoch

    @property
    def step(self) -> int:
        """How many steps of the epoch after them are done."""
        return self.state.step

    def fit(self) -> Path:
        """Train to the last epoch and return the run's folder.

        Raises `Stopped` after a SIGTERM or SIGINT and `UserError` on a loss that is not finite.
        """
        logging = self.config.logging
        if not self.run:
            self.run = from_rank_0(claim_run(self.config) if self.process.is_main else "")
        folder = Path(logging.folder) / self.run
        if self.finished:
            return folder
        resumed = self.state.epoch if self.state.epoch or self.state.step else None
        first_logged = self.state.unfinished["epoch"] if self.state.unfinished else resumed
        with (
            RunLog.open(
                logging.folder,
                self.run,
                enabled=self.process.is_main,
                tensorboard=logging.tensorboard,
                resumed_epoch=first_logged,
            ) as log,
            StopRequest() as stop,
            contextlib.closing(self.train_loader),
            contextlib.closing(self.val_loader),
        ):
            self.log, self.folder, self.stop = log, folder, stop
            self._announce(resumed)
            if self.state.unfinished:
                self._complete(self.state.unfinished)
            for epoch in range(self.state.epoch, self.config.training.epochs):
                try:
                    record = self.train_epoch(epoch, stop)
                except torch.cuda.OutOfMemoryError:
                    raise UserError(
                        f"the GPU has too little memory for {self.sizes.per_device} images at once; "
                        "raise --training.accumulate, or lower --training.batch_size"
                    ) from None
                self._finish_epoch(epoch, record)
            self._save("final.pt", whole=False)
            barrier()
        return folder

    def train_epoch(self, epoch: int, stop: StopRequest) -> dict[str, Any]:
        """Train the rest of epoch `epoch`, from step `self.state.step`, and return its record for the log."""
        side = schedules.resolution(self.config.resolution, epoch)
        give_back_memory()
        self.train_loader.set_resolution(side)
        self.train_loader.set_epoch(epoch, self.state.step * self.sizes.accumulate)
        self.learner.criterion.start_epoch(epoch)
        self.learner.training_mode()
        passes = self.state.step * self.sizes.accumulate
        self.learner.board.start_epoch(self.state.mean_loss * passes, passes)
        first, start, waited = self.state.step, time.perf_counter(), self.train_loader.wait_seconds
        interval = self.config.logging.interval
        lr = self.learner.lr(epoch, max(first - 1, 0))
        with contextlib.closing(self.train_loader.epoch(lambda: stop.age > _PATIENCE_SECONDS)) as batches:
            for step in range(first, self.steps):
                try:
                    lr = self.train_step(epoch, step, batches)
                except NoBatchError as error:
                    self._stop_without_batch(epoch, stop, error)
                self.state.step = step + 1
                status = None
                if self.state.step % min(interval, _AGREEMENT_STEPS) == 0:
                    status = self.learner.board.read(stop)
                    self.learner.board.post(stop.signal is not None)
                    self._act_on(status, epoch, step, lr)
                self.log.progress(
                    epoch,
                    self.config.training.epochs,
                    self.state.step,
                    self.steps,
                    images_per_s=(self.state.step - first) * self.sizes.global_batch / (time.perf_counter() - start),
                    loss=status.loss if status and self.state.step % interval < _AGREEMENT_STEPS else None,
                )
                # Alone, a process stops at once; ranks stop together, at the report in which all see the wish.
                alone = self.process.world_size == 1
                if (alone and stop.signal) or (status and status.stop):
                    self._stop(epoch, stop.signal or signal.SIGTERM)
        # The last report of the epoch, which waits for its last step.
        self.learner.board.post(stop.signal is not None)
        status = self.learner.board.read(stop)
        seconds = time.perf_counter() - start
        assert status is not None
        self._act_on(status, epoch, self.steps - 1, lr)
        self._check_weights(epoch, lr)
        self.learner.criterion.end_epoch()
        waited = self.train_loader.wait_seconds - waited
        return {
            "epoch": epoch,
            "train_loss": status.loss,
            "lr": lr,
            "resolution": side,
            **self.learner.criterion.scalars(),
            "images_per_s": (self.steps - first) * self.sizes.global_batch / seconds if self.steps > first else None,
            "data_wait": min(1.0, waited / seconds),
            "peak_memory_gb": peak_memory_gb(self.process.device),
            "seconds": seconds,
            "stop": status.stop,
        }

    def train_step(self, epoch: int, step: int, batches: Iterator[Batch]) -> float:
        """One update of the weights from the next batches; returns the learning rate."""
        return self.learner.step(epoch, step, batches)

    def validate(self, model: nn.Module, epoch: int) -> dict[str, Any]:
        """Metrics of `model` on the whole validation set, the same on every rank; `epoch` is for the progress line."""
        validation = self.config.validation
        with out_of_memory(self.config, validation.resolution[0]):
            metrics = evaluate_batches(
                dataclasses.replace(self.learner.network, model=model),
                self._shown(epoch),
                tta=validation.lr_tta,
                all_reduce=all_reduce_sum,
                num_samples=len(self.data.val),
            )
        metrics.pop("bins")
        metrics.get("flip_averaged", {}).pop("bins", None)
        return metrics

    def _shown(self, epoch: int) -> Iterator[Batch]:
        """The validation batches, with a progress line; a signal ends them, for a resumed run validates anew."""
        alone = self.process.world_size == 1
        with contextlib.closing(self.val_loader.epoch(lambda: self.stop.age > _PATIENCE_SECONDS)) as batches:
            for step in itertools.count(1):
                try:
                    batch = next(batches, None)
                except NoBatchError:
                    if not alone:
                        raise
                    batch = None
                if alone and self.stop.signal:
                    raise Stopped(self.stop.signal, self.folder / "last.pt")
                if batch is None:
                    return
                at(f"the validation of epoch {epoch + 1}, batch {step}", waits=False)
                yield batch
                self.log.progress(epoch, self.config.training.epochs, step, len(self.val_loader), stage="validate")

    def _finish_epoch(self, epoch: int, record: dict[str, Any]) -> None:
        self._agree_on_statistics()
        stop = record.pop("stop")
        state = self.state
        # The epoch's work is safe before its line stands in the log, and before a validation, which can outlast the
        # grace that comes with a signal: a run that is resumed here makes up for both.
        state.epoch, state.step, state.mean_loss, state.unfinished = epoch + 1, 0, 0.0, record
        self._save("last.pt")
        if stop:
            barrier()
            raise Stopped(signal.SIGTERM, self.folder / "last.pt")
        self._complete(record)

    def _complete(self, record: dict[str, Any]) -> None:
        """Validate the epoch that was trained last, where that is due, keep the network if it is the best; log it."""
        if not setup.validation_is_due(self.config, record["epoch"]):
            self.log.epoch(record)
            self.state.unfinished = None
            return
        epoch, start = record["epoch"], time.perf_counter()
        record = {**record, **self.validate(self.learner.model, epoch)}
        if self.learner.ema is not None:
            record["ema"] = self.validate(self.learner.ema.module, epoch)
        record["val_seconds"] = time.perf_counter() - start
        for what, metrics in (("", record), ("averaged ", record.get("ema"))):
            if metrics is not None and not math.isfinite(metrics["nll"]):
                self.log.message(
                    f"note: validation of the {what}weights after epoch {epoch + 1} gives logits that are not finite, "
                    "though the training loss is; BatchNorm's running statistics or half precision may overflow: lower "
                    "--lr.lr, raise --training.batch_size, or set --training.amp=off"
                )
        top_1 = record["ema"]["top_1"] if self.learner.ema is not None else record["top_1"]
        if top_1 > self.state.best_top_1:
            self.state.best_top_1 = top_1
            self._save("best.pt", whole=False)
        self.log.epoch(record)
        self.state.unfinished = None
        self._save("last.pt")

    def _act_on(self, status: Status | None, epoch: int, step: int, lr: float) -> None:
        if status is not None and not status.finite:
            raise UserError(
                f"the loss is not finite (epoch {epoch + 1} of {self.config.training.epochs}, at or before step "
                f"{step}, lr {lr:.4g}); lower --lr.lr or warm up longer; "
                f"the last checkpoint in {self.folder} is untouched"
            )

    def _check_weights(self, epoch: int, lr: float) -> None:
        # The last update of an epoch shows in no loss before the checkpoint is written.
        norms = torch._foreach_norm([p.detach() for p in self.learner.model.parameters()])
        if not torch.stack([norm.float() for norm in norms]).isfinite().all():
            raise UserError(
                f"the weights are not finite after epoch {epoch + 1} (lr {lr:.4g}); lower --lr.lr or warm up longer; "
                f"the last checkpoint in {self.folder} is untouched"
            )

    def _stop(self, epoch: int, number: signal.Signals) -> NoReturn:
        self.state.epoch = epoch
        self.state.mean_loss = self.learner.board.loss_sum() / (self.state.step * self.sizes.accumulate)
        lr = self.learner.lr(epoch, self.state.step - 1)
        status = Status(self.state.mean_loss, math.isfinite(self.state.mean_loss), True)
        self._act_on(status, epoch, self.state.step - 1, lr)
        self._check_weights(epoch, lr)
        self._agree_on_statistics()
        self._save("last.pt")
        barrier()
        raise Stopped(number, self.folder / "last.pt")

    def _stop_without_batch(self, epoch: int, stop: StopRequest, error: NoBatchError) -> NoReturn:
        """Stop after the last complete step, where no other rank and no gradient of half a step is in the way."""
        number, last = stop.signal or signal.SIGTERM, self.folder / "last.pt"
        half = any(parameter.grad is not None for parameter in self.learner.model.parameters())
        if self.process.world_size == 1 and not half:
            if self.state.step:
                self._stop(epoch, number)
            if last.exists():
                raise Stopped(number, last) from None
        where = f"; {last} is untouched" if last.exists() else ""
        raise UserError(f"rank {self.process.rank} got {number.name} while there was {error}{where}") from None

    def _save(self, name: str, whole: bool = True) -> None:
        self.state.save(self.folder / name, write=self.process.is_main, whole=whole)

    def _resume(self) -> str:
        """Load the checkpoint that training.resume asks for, if any; return the run's name, "" for a new one."""
        logging = self.config.logging
        # On a file system that is slow to agree, other ranks may not see it yet.
        path = from_rank_0(find_checkpoint(self.config) if self.process.is_main else None)
        if path is None:
            if self.config.training.resume:
                self.notes.append(f"no checkpoint of this configuration in {logging.folder}: a new run starts")
            return logging.run
        run = from_rank_0(logging.run or path.resolve().parent.name)
        check_run_is_free(Path(logging.folder) / run, path)
        auto = self.config.training.resume == "auto"
        note = load_newest(self.state, path, self.process.rank, fall_back=auto)
        if note is not None:
            self.notes.append(note)
        threads = torch.get_num_threads()
        if self.process.device.type == "cpu" and self.state.threads != threads:
            self.notes.append(
                f"resumed with {threads} CPU threads, after {self.state.threads}: sums are rounded in another order, "
                f"so the weights will not be bit-equal to an uninterrupted run's; OMP_NUM_THREADS={self.state.threads} "
                "would keep them so"
            )
        check_ranks_agree(self.process, {"checkpoint's epoch": self.epoch, "checkpoint's step": self.step})
        done = self.epoch >= self.config.training.epochs and not self.state.unfinished
        self.finished = from_rank_0(done and (path.parent / "final.pt").is_file())
        return run

    def _agree_on_statistics(self) -> None:
        """Give every rank the mean of the ranks' running statistics, so that all evaluate the same network."""
        if self.learner.ema is not None:
            self.learner.ema.copy_counters()
        models = [self.learner.model] + ([self.learner.ema.module] if self.learner.ema is not None else [])
        parallel.average_buffers(models, self.process.world_size)

    def _announce(self, resumed: int | None) -> None:
        """What the run is, to its folder and to the user."""
        params = describe.params(self.config, self.process, self.data, self.sizes, self.peak_lr, self.state)
        self.log.params(params)
        self.log.track(self.config.logging.tracker, self.config.logging.project, params["config"])
        notes = [f"weights: {self.learner.loaded}"] if self.learner.loaded else []
        notes += self.learner.notes
        still = sum(not p.requires_grad for p in self.learner.model.parameters())
        if still:
            notes.append(f"frozen: {still} of {len(list(self.learner.model.parameters()))} parameters' tensors")
        self.log.message(f"run {self.folder}")
        for line in describe.lines(params, self.config, [*notes, *self.notes], resumed, self.state):
            self.log.message(line)
