"""`corruptions`: errors where images are noisy, blurred, snowed under or compressed, made here or prepared."""

import contextlib
import dataclasses
import importlib.util
import itertools
import time
from collections.abc import Generator, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ffcv_train.config.schema import RunConfig
from ffcv_train.data.kernels.corruptions import CORRUPTIONS, SEVERITIES, SMALL_SIDE, corrupt, read_frost
from ffcv_train.data.loading.batch import Batch
from ffcv_train.data.open import DataSet, val_loader
from ffcv_train.evaluation.extraction import outputs
from ffcv_train.evaluation.predict import out_of_memory, predict
from ffcv_train.evaluation.preprocessing import center_crops
from ffcv_train.evaluation.suites.kept import identity
from ffcv_train.evaluation.suites.subject import Examined, SuiteOptions, open_with_classes_of
from ffcv_train.metrics.classification import MetricSums
from ffcv_train.metrics.corruption import summarise_corruptions
from ffcv_train.system.class_names import difference
from ffcv_train.system.distributed import all_reduce_sum, share_of_cores
from ffcv_train.system.errors import UserError
from ffcv_train.system.files import parse_json, write_json
from ffcv_train.system.progress import ProgressLine

_SAVE_SECONDS = 30.0
_CIFAR_10 = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
MADE_ONLY = ("corruption_seed", "corruption_samples", "frost_images")
"""Of `SuiteOptions`: what nothing reads where corruptions are prepared"""
Key = tuple[str, int]
"""A corruption, and its severity from 1 to 5"""
_ALL: tuple[Key, ...] = tuple(itertools.product(CORRUPTIONS, range(1, SEVERITIES + 1)))


def check(options: SuiteOptions, data_set: DataSet, num_classes: int) -> None:
    """Raise `UserError` where the photographs of frost are missing, or a prepared folder is none."""
    if not options.corrupted_data:
        _frost(options)
        return
    for name in MADE_ONLY:
        if value := getattr(options, name):
            raise read_as_it_is(name, value, options.corrupted_data)
    folder = Path(options.corrupted_data)
    if (folder / "labels.npy").is_file():
        _check_cifar_10(folder, data_set, num_classes)
        for name in CORRUPTIONS:
            if not (folder / f"{name}.npy").is_file():
                raise UserError(f"{folder} lacks {name}.npy; unpack CIFAR-10-C whole")
        return
    for name, severity in _ALL:
        open_with_classes_of(data_set, str(_folder_of(folder, name, severity)), num_classes, options.classes)


def read_as_it_is(name: str, value: Any, folder: str) -> UserError:
    """What to say where the option `name`, one of `MADE_ONLY`, is given beside the prepared `folder`."""
    return UserError(
        f"--{name.replace('_', '-')} {value} is for corruptions that are made here, and those of --corrupted-data "
        f"{folder} are read as they are; leave one out"
    )


def _check_cifar_10(folder: Path, data_set: DataSet, num_classes: int) -> None:
    if num_classes != len(_CIFAR_10):
        raise UserError(
            f"{folder} holds CIFAR-10-C, and the network has {num_classes} classes, not 10; leave --corrupted-data out "
            "to make corruptions of the validation set"
        )
    if data_set.class_names not in (None, _CIFAR_10):
        told = difference(str(data_set.path), data_set.class_names or (), "CIFAR-10-C", _CIFAR_10)
        raise UserError(
            f"{folder} holds CIFAR-10-C, and {told}; if the network's classes are CIFAR-10's in this order under other "
            "names, give a data.val_dataset that has these (ffcv-train write --cfg.dataset=cifar10 makes one, a zip "
            f"takes them with --data.classes, a line each: {', '.join(_CIFAR_10)}) and pass "
            "--ignore-class-names"
        )


def run(examined: Examined) -> dict[str, Any]:
    """Errors per corruption and severity and their means, `clean` beside them."""
    options, prepared = examined.options, examined.options.corrupted_data
    side = examined.config.validation.resolution[0]
    sums = {key: MetricSums(examined.process.device) for key in _ALL}
    part = _Part(examined, sums)
    if not prepared:
        _made(examined, sums, part)
        source: dict[str, Any] = {"prepared": None, "seed": options.corruption_seed}
        source["crop_ratio"] = examined.config.validation.crop_ratio
        source["constants"] = "cifar" if side <= SMALL_SIDE else "imagenet"
    else:
        fill = _cifar_c if (Path(prepared) / "labels.npy").is_file() else _imagenet_c
        fill(examined, _whole_images(examined.config), sums, part)
        source = {"prepared": prepared, "seed": None, "constants": None, "crop_ratio": 1.0}
    for one in sums.values():
        one.reduce(all_reduce_sum)
    clean, of = MetricSums(), drawn(len(examined.data_set), options)
    clean.update(examined.outputs.logits[of], examined.outputs.labels[of])
    metrics = {key: one.compute() for key, one in sums.items()}
    found = {name: [metrics[name, severity] for severity in range(1, SEVERITIES + 1)] for name in CORRUPTIONS}
    plain = clean.compute()
    imagenet = examined.network.num_classes == 1000 and source["constants"] != "cifar"
    return {
        **source,
        "samples": metrics[_ALL[0]]["count"],
        "clean": {"error": 1 - plain["top_1"], "nll": plain["nll"], "ece": plain["ece"]},
        **summarise_corruptions(found, imagenet),
    }


def _whole_images(config: RunConfig) -> RunConfig:
    """`config` with centre crops of the whole side, for images that were cut when they were made.

    ImageNet-C's are centre crops of 224 pixels, which its authors' test takes as they are; to cut them again would make
    errors that no published one can be compared with. One of another side is scaled to the resolution.
    """
    return dataclasses.replace(config, validation=dataclasses.replace(config.validation, crop_ratio=1.0))


def drawn(num_samples: int, options: SuiteOptions) -> np.ndarray:
    """Which of `num_samples` samples count: bool [N], true everywhere unless corruption_samples says fewer."""
    chosen = np.full(num_samples, not 0 < options.corruption_samples < num_samples)
    if not chosen.any():
        random = np.random.default_rng(options.corruption_seed)
        chosen[random.choice(num_samples, options.corruption_samples, replace=False)] = True
    return chosen


def _made(examined: Examined, sums: Mapping[Key, MetricSums], part: "_Part") -> None:
    """All corruptions of each batch while it is there: the data set is read once. `part` counts batches."""
    process, config = examined.process, examined.config
    side, network = config.validation.resolution[0], examined.network
    frost, chosen = _frost(examined.options), torch.from_numpy(drawn(len(examined.data_set), examined.options))
    line = ProgressLine() if process.is_main else None
    with contextlib.ExitStack() as stack:
        stack.enter_context(out_of_memory(config, side))
        loader = stack.enter_context(contextlib.closing(val_loader(config, examined.data_set, side, process)))
        first = part.load()
        loader.set_epoch(0, first)
        pool = stack.enter_context(ThreadPoolExecutor(config.data.num_workers or share_of_cores(process)))
        if line is not None:
            stack.enter_context(contextlib.closing(line))
        steps = len(loader)

        def corrupted() -> Generator[Any, None, None]:
            with contextlib.closing(loader.epoch()) as batches:
                for step, whole in enumerate(batches, start=first + 1):
                    batch = _rows(whole, chosen[whole.indices.cpu()])
                    for number, key in enumerate(_ALL):
                        if line is not None:
                            done = (step - 1) * len(_ALL) + number
                            line.show("corruptions", done, steps * len(_ALL), f"{key[0]}, severity {key[1]}")
                        if len(batch.labels):
                            yield _corrupted(batch, key, examined.options.corruption_seed, frost, pool)
                    # Its predictions are all taken: the next batch is asked for.
                    part.save(step)

        predictions = stack.enter_context(contextlib.closing(predict(network, corrupted())))
        for key, prediction in zip(itertools.cycle(_ALL), predictions, strict=False):
            sums[key].update(prediction.logits, prediction.labels)


def _rows(batch: Batch, which: torch.Tensor) -> Batch:
    """The samples of `batch` for which `which`, bool [B] on the CPU, is true; the batch itself where it is for all."""
    if which.all():
        return batch
    on_device = which.to(batch.images.device)
    images, labels, indices = (part[on_device] for part in (batch.images, batch.labels, batch.indices))
    return Batch(images, labels, indices, batch.keys[which.numpy()])


def _corrupted(batch: Batch, key: Key, seed: int, frost: Iterable[np.ndarray], pool: ThreadPoolExecutor) -> Batch:
    pixels = batch.images.permute(0, 2, 3, 1).cpu().numpy()
    indices = batch.indices.tolist()
    photographs = list(frost)

    def one(place: int) -> np.ndarray:
        return corrupt(np.ascontiguousarray(pixels[place]), *key, (seed, indices[place]), photographs)

    images = np.stack(list(pool.map(one, range(len(pixels)))))
    return batch._replace(images=torch.from_numpy(images).permute(0, 3, 1, 2))


class _Part:
    """This rank's sums so far in a file beside the output, so that hours of corruptions survive a stop."""

    def __init__(self, examined: Examined, sums: Mapping[Key, MetricSums]) -> None:
        options = examined.options
        self._sums, self._saved, self._path = sums, time.monotonic(), _part_path(examined)
        self._about = {
            **identity(examined.network, examined.config, examined.data_set),
            "seed": options.corruption_seed,
            "samples": options.corruption_samples,
            "prepared": str(Path(options.corrupted_data).resolve()) if options.corrupted_data else None,
            "frost": str(Path(options.frost_images).resolve()) if options.frost_images else None,
            # Sums of before are of prepared images that were cut again.
            **({"images": "whole"} if options.corrupted_data else {}),
        }

    def load(self) -> int:
        """How much is done, by what `save` counts; the sums are filled in."""
        if self._path is None or not self._path.is_file():
            return 0
        try:
            content = parse_json(self._path.read_text(encoding="utf-8"))
            if content["about"] != self._about:
                return 0
            for (name, severity), one in self._sums.items():
                kept = content["sums"][f"{name} {severity}"]
                one.integers.copy_(torch.tensor(kept["integers"], dtype=torch.int64))
                one.reals.copy_(torch.tensor(kept["reals"], dtype=torch.float64))
            return int(content["done"])
        except (OSError, ValueError, KeyError, TypeError, RuntimeError):
            for one in self._sums.values():
                one.integers.zero_()
                one.reals.zero_()
            return 0

    def save(self, done: int) -> None:
        """Write the sums of the first `done` batches, or of the first `done` of `_ALL`, now and then."""
        if self._path is None or time.monotonic() - self._saved < _SAVE_SECONDS:
            return
        kept = {f"{name} {severity}": one for (name, severity), one in self._sums.items()}
        content = {name: {"integers": one.integers.tolist(), "reals": one.reals.tolist()} for name, one in kept.items()}
        write_json(self._path, {"about": self._about, "done": done, "sums": content})
        self._saved = time.monotonic()


def remove_part(examined: Examined) -> None:
    """Forget this rank's sums: the record stands elsewhere."""
    path = _part_path(examined)
    if path is not None:
        path.unlink(missing_ok=True)


def _part_path(examined: Examined) -> Path | None:
    options, process = examined.options, examined.process
    if not options.part_file:
        return None
    return Path(f"{options.part_file}_corruptions.{process.rank}of{process.world_size}.json")


def _frost(options: SuiteOptions) -> list[np.ndarray]:
    """Of --frost-images, or of the package imagecorruptions where it is installed; it is not imported."""
    folder = Path(options.frost_images) if options.frost_images else None
    if folder is None:
        found = importlib.util.find_spec("imagecorruptions")
        if found is None or not found.submodule_search_locations:
            raise UserError(
                "the corruption frost needs its authors' photographs, which are not part of this project; pip install "
                "--no-deps imagecorruptions, or name their folder with --frost-images DIR"
            )
        folder = Path(found.submodule_search_locations[0]) / "frost"
    try:
        return read_frost(folder)
    except OSError as error:
        raise UserError(
            f"{folder} lacks a photograph of frost ({error}); it must hold frost1.png to frost3.png, frost4.jpg and "
            "frost5.jpg"
        ) from None


def _folder_of(folder: Path, name: str, severity: int) -> Path:
    """Of ImageNet-C: corruptions lie in the folder itself, or in those of their kinds (noise, blur, …)."""
    for found in (folder / name, *sorted(folder.glob(f"*/{name}"))):
        if (found / str(severity)).is_dir():
            return found / str(severity)
    raise UserError(
        f"{folder} has no folder {name}/{severity}; give ImageNet-C, unpacked, or CIFAR-10-C with its labels.npy"
    )


def _imagenet_c(examined: Examined, config: RunConfig, sums: Mapping[Key, MetricSums], part: _Part) -> None:
    options, num_classes = examined.options, examined.network.num_classes
    first = part.load()
    for done, (name, severity) in enumerate(_ALL[first:], start=first + 1):
        path = str(_folder_of(Path(options.corrupted_data), name, severity))
        data_set = open_with_classes_of(examined.data_set, path, num_classes, options.classes)
        head = f"{name} {severity}"
        with contextlib.closing(outputs(examined.network, config, data_set, examined.process, None, head)) as batches:
            for batch in batches:
                sums[name, severity].update(batch.logits, batch.labels)
        part.save(done)


def _cifar_c(examined: Examined, config: RunConfig, sums: Mapping[Key, MetricSums], part: _Part) -> None:
    """`<corruption>.npy` uint8 [5 N, 32, 32, 3], the severities one after the other, and `labels.npy` [5 N]."""
    folder, process = Path(examined.options.corrupted_data), examined.process
    labels = np.load(folder / "labels.npy", mmap_mode="r")
    count, size = len(labels) // SEVERITIES, config.validation.batch_size
    line = ProgressLine() if process.is_main else None
    first = part.load()
    for done, (name, severity) in enumerate(_ALL[first:], start=first + 1):
        images = np.load(folder / f"{name}.npy", mmap_mode="r")
        if len(images) != len(labels):
            raise UserError(f"{folder / name}.npy has {len(images)} images, labels.npy {len(labels)}; unpack it again")
        start = count * (severity - 1)
        places = np.arange(start + process.rank, start + count, process.world_size)

        def batches(images: np.ndarray = images, places: np.ndarray = places) -> Generator[Batch, None, None]:
            for part in np.split(places, range(size, len(places), size)):
                cut = center_crops([np.ascontiguousarray(images[place]) for place in part], config, process)
                yield Batch(cut, torch.from_numpy(labels[part].astype(np.int64)), torch.from_numpy(part), part)

        with contextlib.closing(predict(examined.network, batches())) as predictions:
            for prediction in predictions:
                sums[name, severity].update(prediction.logits, prediction.labels)
        part.save(done)
        if line is not None:
            line.show("CIFAR-10-C", done, len(_ALL), name)
    if line is not None:
        line.close()
