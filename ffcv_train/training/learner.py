"""What learns, and one step of it: network, criterion, optimizer, precision, augmentation."""

from collections.abc import Iterator, Sequence
from itertools import islice

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from ffcv_train.config.schema import RunConfig
from ffcv_train.data.format.beton import Beton
from ffcv_train.data.loading.batch import Batch
from ffcv_train.data.open import DataSets
from ffcv_train.losses import create_criterion
from ffcv_train.losses.base import Criterion
from ffcv_train.models.checkpoint import unwrap
from ffcv_train.models.factory import published_name
from ffcv_train.models.inspect.trace import trace
from ffcv_train.models.network import build_network
from ffcv_train.models.opening import Checkpoint
from ffcv_train.system.distributed import Process
from ffcv_train.system.errors import UserError
from ffcv_train.training import distill, finetune, parallel, schedules
from ffcv_train.training.augmenter import Augmenter
from ffcv_train.training.ema import WeightAverage
from ffcv_train.training.optim import create_optimizer
from ffcv_train.training.recompute import recompute_blocks
from ffcv_train.training.setup import BatchSizes, scaled_lr
from ffcv_train.training.status import StatusBoard

_ALONE = (
    "note: a batch has one image, so each BatchNorm normalises it by itself in training, and by running statistics in "
    "validation; raise --training.batch_size, or choose an architecture without BatchNorm"
)


class Learner:
    """A network and all that changes its weights, as `config` describes them, on the device of `process`.

    `model` and `criterion` stand in place of those that `config` describes; `weights` is what model.weights names,
    where it is open already. Between the making and `prepare` a
    checkpoint may fill what is here. Raises `UserError` for what does not fit together.
    """

    def __init__(
        self,
        config: RunConfig,
        process: Process,
        data: DataSets,
        sizes: BatchSizes,
        steps: int,
        model: nn.Module | None = None,
        criterion: Criterion | None = None,
        weights: Checkpoint | None = None,
    ) -> None:
        """`steps`: of an epoch."""
        self.config, self.process, self.sizes = config, process, sizes
        self._steps, self._peak_lr = steps, scaled_lr(config, sizes)
        parallel.set_up_device(config.training.amp, process.device)
        sides = schedules.sides(config.resolution, config.training.epochs)
        self.network, self.loaded = build_network(
            config, data.num_classes, process.device, sides, model, data.class_names, weights
        )
        self.model = self.network.model
        if config.model.sync_batchnorm:
            parallel.synchronise_batchnorm(self.model, process)
        if criterion is None:
            criterion = create_criterion(config.loss, data.num_classes, config.training.epochs, data.class_counts)
        self.criterion = criterion.to(process.device)
        self.frozen = finetune.freeze(self.model, config.finetune)
        alone = sizes.per_device == 1 and norms_of_one_image(self.model, self.frozen, min(sides))
        self.notes = [_ALONE] if alone else []
        if model is None and (name := published_name(config.model)):
            self.notes.append(
                f"note: model.arch={config.model.arch} is a name of published weights, but training starts from random "
                f"ones; --model.weights=timm:{name} starts from those"
            )
        scales = finetune.lr_scales(self.model, config.finetune)
        self.optimizer = create_optimizer(self.model, config.training, process.device, scales)
        self.scaler = torch.amp.GradScaler(process.device.type, enabled=config.training.amp == "fp16")
        beton = isinstance(data.train, Beton)
        self.augment = Augmenter(
            config.augment, self.network.normalise, data.num_classes, config.training.seed, on_device=beton
        )
        self.teacher = self._teacher(data, sides)
        decay = config.training.ema_decay
        self.ema = WeightAverage(self.model, decay) if decay else None
        self.board = StatusBoard(process)

    def prepare(self) -> None:
        """Compile and spread the network over the ranks where asked for; then `step` may be called."""
        # After the copy for the averaged weights: hooks are the trained network's alone.
        self.criterion.attach(self.model, schedules.resolution(self.config.resolution, 0))
        if self.config.model.grad_checkpointing:
            recompute_blocks(self.model, self.config.model.arch)
        self.wrapped = parallel.wrap(self.model, self.config, self.process)
        assert unwrap(self.wrapped) is self.model

    def step(self, epoch: int, step: int, batches: Iterator[Batch]) -> float:
        """One update of the weights from the next `accumulate` batches; returns the learning rate."""
        config = self.config.training
        lr = self.lr(epoch, step)
        for group in self.optimizer.param_groups:
            group["lr"] = lr * group.get("lr_scale", 1.0)
        # Dropout and the like depend on (seed, epoch, step, rank) alone, so a resumed run draws the same numbers.
        parallel.seed_generators(hash((config.seed, epoch, step, self.process.rank)) % 2**63, self.process.device)
        for number, batch in enumerate(islice(batches, self.sizes.accumulate), start=1):
            with parallel.gradients_stay_local(self.wrapped, number < self.sizes.accumulate):
                # Outside of autocast, which would blur images in 8 bits of precision.
                images, targets = self.augment(batch, epoch)
                with self.network.autocast():
                    loss = self.loss(images, targets)
                self.scaler.scale(loss / self.sizes.accumulate).backward()
            self.board.add(loss.detach())
        if config.clip_grad:
            self.scaler.unscale_(self.optimizer)
            nn.utils.clip_grad_norm_(self.model.parameters(), config.clip_grad)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad(set_to_none=True)
        if self.ema is not None:
            with torch.no_grad():
                self.ema.update()
        return lr

    def training_mode(self) -> None:
        """Set the network to training, but what is frozen: its statistics stay as the weights brought them."""
        self.wrapped.train()
        for module in self.frozen:
            module.eval()

    def lr(self, epoch: int, step: int) -> float:
        """The learning rate of a step, of which groups of parameters may have a share."""
        epochs = self.config.training.epochs
        return schedules.learning_rate(self.config.lr, self._peak_lr, epochs, epoch + step / self._steps)

    def loss(self, images: Tensor, targets: Tensor) -> Tensor:
        """The mean loss of a batch as the augmentation left it."""
        if self.teacher is None:
            return self.criterion(self.wrapped(images), targets)
        config = self.config.distill
        logits, imitated = self.wrapped(images)
        imitation = distill.distillation_loss(imitated, self.teacher(images), config.type, config.temperature)
        return (1 - config.weight) * self.criterion(logits, targets) + config.weight * imitation

    def _teacher(self, data: DataSets, sides: set[int]) -> distill.Teacher | None:
        config = self.config
        if config.distill.type == "none":
            return None
        distill.prepare_student(self.model, config.model.arch, config.distill)
        return distill.Teacher(
            config.distill,
            data.num_classes,
            data.class_names,
            sides,
            (self.network.normalise.mean, self.network.normalise.std),
            self.process.device,
            config.model.channels_last,
        )


def norms_of_one_image(model: nn.Module, frozen: Sequence[nn.Module], side: int) -> bool:
    """Whether BatchNorms that are not `frozen` see an image of `side` pixels alone, where a batch has one.

    Raises `UserError` where one of them sees a single value per channel, which leaves nothing to normalise by.
    """
    counts: dict[nn.Module, int] = {}

    def after(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        counts[module] = inputs[0][0].numel() // inputs[0].shape[1]

    trace(model, side, [m for m in model.modules() if isinstance(m, _BatchNorm) and m not in frozen], after)
    if 1 in counts.values():
        names = {module: name for name, module in model.named_modules()}
        name = next(names[module] for module, count in counts.items() if count == 1)
        raise UserError(
            f"training.batch_size is 1 per device, and the BatchNorm {name} sees one value of each channel in an image "
            f"of {side} pixels, so there is nothing to normalise by; raise --training.batch_size"
        )
    return bool(counts)
