"""What the rows of the check work with: a device, synthetic images, small runs."""

import contextlib
import io
import math
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from rich.console import Console
from torch import nn

from ffcv_train.config.read import load_config
from ffcv_train.config.schema import RunConfig
from ffcv_train.data.convert.write import WriteConfig, convert
from ffcv_train.data.loading.batch import Batch
from ffcv_train.data.open import open_data_set, train_loader
from ffcv_train.data.sources.indexed import IndexedSource
from ffcv_train.system.distributed import Process
from ffcv_train.system.progress import ProgressLine
from ffcv_train.training.trainer import Trainer

CLASSES = 8
IMAGES = 256
CPU = torch.device("cpu")


@dataclass(frozen=True)
class Bench:
    """`device`, and `folder`, which the rows may fill and which holds what `prepare` made."""

    device: torch.device
    folder: Path
    deadline: float = math.inf
    """When no more shall be begun, of `time.monotonic`"""

    @property
    def on_gpu(self) -> bool:
        """Whether a GPU is checked."""
        return self.device.type == "cuda"

    @property
    def out_of_time(self) -> bool:
        """Whether the time that the user gives is used up."""
        return time.monotonic() >= self.deadline

    @property
    def amp(self) -> str:
        """The mixed precision that recipes name, or fp16 on a card that only emulates it."""
        emulated = self.on_gpu and not torch.cuda.is_bf16_supported(including_emulation=False)
        return "fp16" if emulated else "bf16"

    @property
    def images(self) -> Path:
        """A folder of JPEGs, a folder per class."""
        return self.folder / "images"

    @property
    def beton(self) -> Path:
        """The same images as tiled JPEGs of a .beton."""
        return self.folder / "images.beton"

    def data_options(self) -> list[str]:
        """The options that name the synthetic images, and where runs lie."""
        data = [f"--data.train_dataset={self.beton}", f"--data.val_dataset={self.beton}", "--data.num_workers=2"]
        return [*data, f"--logging.folder={self.folder / 'runs'}", "--logging.tensorboard=0"]

    def options(self, *more: str) -> list[str]:
        """A run on the synthetic images of two epochs of a small network; later options win."""
        return [
            *(*self.data_options(), "--training.amp=off", "--model.arch=cifar_resnet20"),
            *("--resolution.min_res=32", "--resolution.max_res=32"),
            *("--validation.resolution=32", "--validation.batch_size=64", "--training.batch_size=32"),
            *("--training.epochs=2", "--lr.lr_peak_epoch=1", "--lr.lr=0.05", *more),
        ]

    def config(self, *more: str) -> RunConfig:
        """The configuration of `options`."""
        return load_config(RunConfig, self.options(*more))

    @contextlib.contextmanager
    def trainer(
        self,
        config: RunConfig,
        device: torch.device | None = None,
        model: nn.Module | None = None,
        process: Process | None = None,
    ) -> Iterator[Trainer]:
        """A run in training mode, at its start; of `process`, or of one alone on `device`, or the bench's."""
        made = Trainer(config, process or Process(0, 1, 0, 1, device or self.device), model)
        try:
            made.learner.training_mode()
            made.learner.criterion.start_epoch(0)
            made.learner.board.start_epoch()
            yield made
        finally:
            made.train_loader.close()
            made.val_loader.close()

    def batches(self, config: RunConfig, count: int) -> list[Batch]:
        """The first batches of the first epoch of `config`, on the CPU."""
        process = Process(0, 1, 0, 1, CPU)
        data_set = open_data_set(config.data.train_dataset)
        with contextlib.closing(train_loader(config, data_set, config.training.batch_size, process)) as loader:
            loader.set_resolution(config.resolution.max_res)
            with contextlib.closing(loader.epoch()) as batches:
                return [batch for _, batch in zip(range(count), batches, strict=False)]

    def synchronize(self) -> None:
        """Wait for the device."""
        if self.on_gpu:
            torch.cuda.synchronize(self.device)


def on_device(batch: Batch, device: torch.device) -> Batch:
    """A copy of `batch` on `device`."""
    return Batch(batch.images.to(device), batch.labels.to(device), batch.indices.to(device), batch.keys)


@contextlib.contextmanager
def same_kernels() -> Iterator[None]:
    """cuDNN computes the same each time for a while: what differs then is not its choice."""
    cudnn = torch.backends.cudnn
    before = (cudnn.deterministic, cudnn.benchmark)
    cudnn.deterministic, cudnn.benchmark = True, False
    try:
        yield
    finally:
        cudnn.deterministic, cudnn.benchmark = before


@contextlib.contextmanager
def exact_float32() -> Iterator[None]:
    """Float32 is float32 for a while, no TF32, and cuDNN chooses without a search."""
    backends = torch.backends
    before = (backends.cudnn.allow_tf32, torch.get_float32_matmul_precision(), backends.cudnn.benchmark)
    backends.cudnn.allow_tf32, backends.cudnn.benchmark = False, False
    torch.set_float32_matmul_precision("highest")
    try:
        yield
    finally:
        backends.cudnn.allow_tf32, backends.cudnn.benchmark = before[0], before[2]
        torch.set_float32_matmul_precision(before[1])


def prepare(device: torch.device, folder: Path, deadline: float = math.inf) -> Bench:
    """Make the synthetic images in `folder`; the same ones everywhere."""
    bench = Bench(device, folder, deadline)
    for label in range(CLASSES):
        (bench.images / f"class{label}").mkdir(parents=True)
    for number in range(IMAGES):
        place = bench.images / f"class{number % CLASSES}" / f"{number:03d}.jpg"
        Image.fromarray(picture(number, *_size(number))).save(place, quality=90)
    write(WriteConfig(data_dir=str(bench.images), write_path=str(bench.beton), write_mode="jpg", num_workers=1))
    return bench


def write(config: WriteConfig, source: IndexedSource | None = None) -> None:
    """Write a .beton, in silence."""
    convert(config, source, ProgressLine(console=Console(file=io.StringIO())))


def picture(number: int, height: int, width: int) -> np.ndarray:
    """Image `number`, uint8 [height, width, 3]: soft colours that its class shifts, and some noise."""
    generator = np.random.default_rng(number)
    coarse = generator.integers(0, 256, (height // 24 + 2, width // 24 + 2, 3), np.uint8)
    soft = np.asarray(Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC), np.float32)
    tint = np.array([(number % CLASSES >> bit & 1) * 80 for bit in range(3)], np.float32)
    noise = generator.normal(0, 4, soft.shape)
    return np.clip(0.7 * soft + tint + noise, 0, 255).astype(np.uint8)


def _size(number: int) -> tuple[int, int]:
    sides = np.random.default_rng([1, number]).integers(64, 257, 2)
    return int(sides[0]), int(sides[1])
