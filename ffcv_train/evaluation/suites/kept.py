"""Records of finished suites beside the output until it is written, so that a stop costs one suite, not all."""

import dataclasses
from pathlib import Path
from typing import Any

from ffcv_train import __version__
from ffcv_train.config.schema import RunConfig
from ffcv_train.data.open import DataSet
from ffcv_train.evaluation.suites.subject import Examined, SuiteOptions
from ffcv_train.models.network import Network
from ffcv_train.system.distributed import from_rank_0
from ffcv_train.system.files import parse_json, to_json_line, to_plain, write_json


def identity(network: Network, config: RunConfig, data_set: DataSet) -> dict[str, Any]:
    """What predictions on `data_set` depend on: version, data, weights, precision and crop; plain, alike on all ranks.

    The weights go by one sum of them.
    """
    normalise = network.normalise
    weights = (tensor.double().sum() for tensor in network.model.state_dict().values())
    about = {
        "version": __version__,
        "data": data_set.digest(),
        "network": repr(float(sum(weight.item() for weight in weights))),
        "precision": [config.training.amp, normalise.device.type],
        "normalisation": [normalise.mean, normalise.std],
        "crop": [
            config.validation.resolution[0],
            config.validation.crop_ratio,
            config.validation.crop,
            config.validation.interpolation,
            config.validation.batch_size,
        ],
    }
    plain: dict[str, Any] = to_plain(about)
    return plain


class KeptRecords:
    """The records that a stopped command left, and those of this one; nothing is kept where no file is named."""

    def __init__(self, examined: Examined) -> None:
        self._path = _path(examined.options)
        self._writes = examined.process.is_main
        self._about: dict[str, Any] = {}
        self._records: dict[str, Any] = {}
        if self._path is None:
            return
        found: dict[str, Any] = {}
        if self._writes:  # what it is compared with may be another on other hosts, such as the times of files
            self._about = identity(examined.network, examined.config, examined.data_set)
            self._about |= to_plain({"options": _asked(examined.options), "classes": examined.class_names})
            found = self._load(self._path)
        self._records = parse_json(from_rank_0(to_json_line(found)))

    def _load(self, path: Path) -> dict[str, Any]:
        try:
            content = parse_json(path.read_text(encoding="utf-8"))
            return dict(content["records"]) if content["about"] == self._about else {}
        except (OSError, ValueError, KeyError, TypeError):
            return {}

    def get(self, name: str) -> Any:
        """The record of suite `name`, None where it is not there; the same on every rank."""
        return self._records.get(name)

    def keep(self, name: str, record: dict[str, Any]) -> None:
        """Write the record of a suite. Raises `UserError` where the disk is full."""
        self._records[name] = record
        if self._path is not None and self._writes:
            write_json(self._path, {"about": self._about, "records": self._records})


def remove_kept(options: SuiteOptions) -> None:
    """Forget what `KeptRecords` wrote: the output has it."""
    path = _path(options)
    if path is not None:
        path.unlink(missing_ok=True)


def _path(options: SuiteOptions) -> Path | None:
    return Path(f"{options.part_file}_suites.part.json") if options.part_file else None


def _asked(options: SuiteOptions) -> dict[str, Any]:
    """All options, and when the files that they name were last written."""
    values = {key: value for key, value in dataclasses.asdict(options).items() if key not in ("suites", "part_file")}
    paths = [options.calibrate_on, options.train_set, options.corrupted_data, options.frost_images, options.classes]
    paths += [
        options.real_labels,
        options.train_subset,
        options.train_weights,
        *options.ood_data,
        *options.variant_data,
    ]
    return {**values, "written": [_when(path) for path in paths]}


def _when(path: str) -> list[int]:
    if not path:
        return []
    try:
        status = Path(path).stat()
        return [status.st_size, status.st_mtime_ns]
    except OSError:
        return []
