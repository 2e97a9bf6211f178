"""Records of finished suites beside the output until all are there, so that a stop costs one suite, not all."""

import dataclasses
from pathlib import Path
from typing import Any

from ffcv_train.evaluation.suites.subject import Examined, SuiteOptions
from ffcv_train.system.distributed import from_rank_0
from ffcv_train.system.files import parse_json, to_plain, write_json


def identity(examined: Examined) -> dict[str, Any]:
    """What the predictions on the validation set depend on: data, network, precision and crop, as plain values."""
    config, normalise = examined.config, examined.network.normalise
    weights = (tensor.double().sum() for tensor in examined.network.model.state_dict().values())
    return {
        "data": examined.data_set.digest(),
        "network": repr(float(sum(weight.item() for weight in weights))),
        "precision": [config.training.amp, str(normalise.device)],
        "normalisation": [list(normalise.mean), list(normalise.std)],
        "crop": [
            config.validation.resolution[0],
            config.validation.crop_ratio,
            config.validation.crop,
            config.validation.interpolation,
            config.validation.batch_size,
        ],
    }


class KeptRecords:
    """The records that a stopped command left, and those of this one; nothing is kept where no file is named."""

    def __init__(self, examined: Examined) -> None:
        options, process = examined.options, examined.process
        self._path = Path(f"{options.part_file}_suites.part.json") if options.part_file else None
        self._writes = process.is_main
        self._about = to_plain({**identity(examined), "options": _asked(options)}) if self._path is not None else {}
        self._records: dict[str, Any] = self._load() if self._path is not None else {}

    def _load(self) -> dict[str, Any]:
        assert self._path is not None
        text = None
        if self._writes:
            try:
                text = self._path.read_text(encoding="utf-8")
            except (OSError, ValueError):
                text = None
        text = from_rank_0(text)
        try:
            content = parse_json(text or "null")
            return dict(content["records"]) if content["about"] == self._about else {}
        except (ValueError, KeyError, TypeError):
            return {}

    def get(self, name: str) -> Any:
        """The record of suite `name`, None where it is not there; the same on every rank."""
        return self._records.get(name)

    def keep(self, name: str, record: dict[str, Any]) -> None:
        """Write the record of a suite that is not the last. Raises `UserError` where the disk is full."""
        self._records[name] = record
        if self._path is not None and self._writes:
            write_json(self._path, {"about": self._about, "records": self._records})

    def remove(self) -> None:
        """Forget the file: all records go into the output."""
        if self._path is not None and self._writes:
            self._path.unlink(missing_ok=True)


def _asked(options: SuiteOptions) -> dict[str, Any]:
    """All options, and when the files that they name were last written."""
    values = {key: value for key, value in dataclasses.asdict(options).items() if key not in ("suites", "part_file")}
    paths = [options.calibrate_on, options.train_set, options.corrupted_data, options.frost_images, options.classes]
    return {**values, "written": [_when(path) for path in (*paths, *options.ood_data, *options.variant_data)]}


def _when(path: str) -> list[int]:
    if not path:
        return []
    try:
        status = Path(path).stat()
        return [status.st_size, status.st_mtime_ns]
    except OSError:
        return []
