"""The classes of images without labels: what `predict` writes, a row per image."""

import contextlib
import csv
import importlib.util
import io
import json
from collections.abc import Generator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ffcv_train.config.schema import RunConfig
from ffcv_train.data.loading.image_worker import Failure
from ffcv_train.data.loading.pictures import Picture, cut_pictures
from ffcv_train.data.open import center_crop_of
from ffcv_train.evaluation import predict as predicting
from ffcv_train.models.network import Network
from ffcv_train.system.distributed import Process, share_of_cores
from ffcv_train.system.errors import UserError
from ffcv_train.system.files import replace_file
from ffcv_train.system.progress import ProgressLine

FORMATS = (".csv", ".jsonl", ".parquet")


@dataclass(frozen=True, eq=False)
class Predictions:
    """The likeliest classes of each image that could be read, and what the others lack."""

    indices: np.ndarray
    """int64 [N], which of the images asked for"""
    names: tuple[str, ...]
    """N names of those"""
    labels: np.ndarray
    """int64 [N, k], the likeliest first"""
    probabilities: np.ndarray
    """float64 [N, k], of plain softmax"""
    failures: tuple[str, ...]
    """A sentence for each image that is left out"""


def predict_pictures(
    network: Network,
    config: RunConfig,
    pictures: Sequence[Picture],
    top: int,
    process: Process,
    temperature: float = 1.0,
) -> Predictions:
    """The `top` likeliest classes of each of `pictures`, cut as validation does at its first side; with progress.

    `temperature` divides the logits. Raises `UserError` where no image can be read, or a logit is not finite.
    """
    side, top = config.validation.resolution[0], min(top, network.num_classes)
    workers = config.data.num_workers or share_of_cores(process)
    found: list[int] = []
    failures: list[str] = []
    labels: list[np.ndarray] = []
    probabilities: list[np.ndarray] = []
    line = ProgressLine()

    def batches() -> Generator[predicting.ImageBatch, None, None]:
        crop = center_crop_of(config)
        with contextlib.closing(cut_pictures(pictures, crop, side, workers)) as cuts:
            images: list[np.ndarray] = []
            for index, cut in enumerate(cuts):
                line.show(f"{side} px", index + 1, len(pictures), f"{len(failures)} left out" if failures else "")
                if isinstance(cut, Failure):
                    failures.append(cut.sentence)
                    line.print(f"left out: {cut.sentence}")
                    continue
                images.append(cut)
                found.append(index)
                if len(images) == config.validation.batch_size:
                    yield _Batch(images)
                    images = []
            if images:
                yield _Batch(images)

    try:
        with (
            predicting.out_of_memory(config, side),
            contextlib.closing(batches()) as stream,
            contextlib.closing(predicting.predict(network, stream)) as predictions,
        ):
            for prediction in predictions:
                best = likeliest(prediction.logits / temperature, top)
                odd = np.flatnonzero(~np.isfinite(best[1]).all(axis=1))
                if len(odd):
                    name = pictures[found[sum(len(some) for some in labels) + int(odd[0])]].name
                    raise UserError(
                        f"the network's logits of {name} are not finite; where half precision overflows pass "
                        "--training.amp=off, else its training diverged: take another checkpoint"
                    )
                labels.append(best[0])
                probabilities.append(best[1])
    finally:
        line.close()
    if not found:
        raise UserError(f"none of the {len(pictures)} images could be read; the first: {failures[0]}")
    return Predictions(
        np.array(found),
        tuple(pictures[index].name for index in found),
        np.concatenate(labels),
        np.concatenate(probabilities),
        tuple(failures),
    )


def likeliest(logits: Tensor, top: int) -> tuple[np.ndarray, np.ndarray]:
    """Labels (int64) and probabilities (float64) [B, top] of logits [B, K]; of equal ones the lower label first."""
    probabilities = torch.softmax(logits.double().cpu(), dim=1)
    order = torch.sort(logits.cpu(), dim=1, descending=True, stable=True).indices[:, :top]
    return order.numpy(), probabilities.gather(1, order).numpy()


def check_format(path: Path) -> None:
    """Raise `UserError` where predictions cannot be written to a file so named."""
    if path.suffix.lower() not in FORMATS:
        raise UserError(f"--output {path} must end in {', '.join(FORMATS[:-1])} or {FORMATS[-1]}")
    missing = [name for name in ("pandas", "pyarrow") if importlib.util.find_spec(name) is None]
    if path.suffix.lower() == ".parquet" and missing:
        raise UserError(
            f"--output {path} needs {' and '.join(missing)}; pip install pandas pyarrow, or write a .csv or .jsonl"
        )


def write_predictions(path: Path, predictions: Predictions, classes: Sequence[str]) -> None:
    """Write .csv or .parquet (path, then label_n, class_n, probability_n, from 1), or .jsonl; whole or not at all.

    A line of .jsonl is `{"path": …, "predictions": [{"label": …, "class": …, "probability": …}, …]}`. Raises
    `UserError`.
    """
    kind = path.suffix.lower()
    if kind == ".jsonl":
        lines = (json.dumps(record, ensure_ascii=False) + "\n" for record in _records(predictions, classes))
        replace_file(path, "".join(lines).encode(errors="surrogateescape"))
    elif kind == ".csv":
        text = io.StringIO(newline="")
        rows = csv.writer(text, lineterminator="\n")
        rows.writerow(_columns(predictions, classes))
        rows.writerows(zip(*_columns(predictions, classes).values(), strict=True))
        replace_file(path, text.getvalue().encode(errors="surrogateescape"))
    else:
        pandas: Any = importlib.import_module("pandas")
        content = io.BytesIO()
        columns = _columns(predictions, classes)
        # Parquet's texts are UTF-8, and names of files need not be.
        columns["path"] = [name.encode(errors="replace").decode() for name in columns["path"]]
        pandas.DataFrame(columns).to_parquet(content, index=False)
        replace_file(path, content.getvalue())


def _records(predictions: Predictions, classes: Sequence[str]) -> Generator[dict[str, Any], None, None]:
    rows = zip(predictions.names, predictions.labels.tolist(), predictions.probabilities.tolist(), strict=True)
    for name, labels, probabilities in rows:
        ranked = zip(labels, probabilities, strict=True)
        yield {
            "path": name,
            "predictions": [
                {"label": label, "class": classes[label], "probability": probability} for label, probability in ranked
            ],
        }


def _columns(predictions: Predictions, classes: Sequence[str]) -> dict[str, list[Any]]:
    columns: dict[str, list[Any]] = {"path": list(predictions.names)}
    for rank in range(predictions.labels.shape[1]):
        labels = predictions.labels[:, rank].tolist()
        columns[f"label_{rank + 1}"] = labels
        columns[f"class_{rank + 1}"] = [classes[label] for label in labels]
        columns[f"probability_{rank + 1}"] = predictions.probabilities[:, rank].tolist()
    return columns


class _Batch:
    """Images without labels, as a batch."""

    def __init__(self, images: Sequence[np.ndarray]) -> None:
        self.images = torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2)
        self.labels = self.indices = torch.arange(len(images))
