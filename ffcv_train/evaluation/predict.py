"""Evaluation without a criterion: logits of a model over batches, and the metrics of those logits."""

import contextlib
import dataclasses
import time
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import closing
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from ffcv_train.config.schema import RunConfig
from ffcv_train.data.loading.batch import Batch
from ffcv_train.data.loading.beton_loader import BetonLoader
from ffcv_train.data.loading.image_loader import ImageLoader
from ffcv_train.metrics.classification import MetricSums
from ffcv_train.models.checkpoint import unwrap
from ffcv_train.models.inspect.trace import evaluation_mode
from ffcv_train.models.network import Network
from ffcv_train.system.distributed import all_reduce_sum
from ffcv_train.system.errors import UserError
from ffcv_train.system.progress import ProgressLine


class ImageBatch(Protocol):
    """What the loader yields: images uint8 [B, 3, H, W], labels int64 [B], sample indices int64 [B]."""

    @property
    def images(self) -> Tensor: ...
    @property
    def labels(self) -> Tensor: ...
    @property
    def indices(self) -> Tensor: ...


class Prediction(NamedTuple):
    """A batch's logits."""

    logits: Tensor
    """float32 [B, K], of the images as they are"""
    flip_averaged: Tensor | None
    """float32 [B, K], mean of the logits of the images and of their mirror images; None unless asked for"""
    labels: Tensor
    """int64 [B]"""
    indices: Tensor
    """int64 [B], positions in the data set"""


def predict(network: Network, batches: Iterable[ImageBatch], flip: bool = False) -> Generator[Prediction, None, None]:
    """Yield the logits of each batch, in order, on its device, without gradients and with the model in `eval()` mode.

    With `flip`, the logits of the
    images and of their mirror images are averaged as well; that costs a second forward pass.
    """
    # The bare model: ranks may hold different numbers of batches, so that their forward passes must not wait for each
    # other, and another resolution must not recompile the training graph.
    network = dataclasses.replace(network, model=unwrap(network.model))
    device = network.device
    with evaluation_mode(network.model):
        for batch in batches:
            images = batch.images.to(device, non_blocking=True)
            # Not around the loop: a generator's open no_grad would leak into its consumer's code. Not inference_mode:
            # its tensors would be refused by a later backward pass through a caller's use of them.
            with torch.no_grad():
                logits = network.logits(network.normalise(images))
                averaged = (logits + network.logits(network.normalise(images.flip(3)))) / 2 if flip else None
            labels, indices = (t.to(device, non_blocking=True) for t in (batch.labels, batch.indices))
            yield Prediction(logits, averaged, labels, indices)


def evaluate_batches(
    network: Network,
    batches: Iterable[ImageBatch],
    *,
    tta: bool = False,
    all_reduce: Callable[[Tensor], Any] = all_reduce_sum,
    num_samples: int | None = None,
    observe: Callable[[Prediction], None] | None = None,
) -> dict[str, Any]:
    """Metrics of plain softmax of plain logits over all samples of all ranks.

    Each rank passes its own share of the data set, without padding; a share may be empty. `all_reduce(tensor)` sums a
    tensor over ranks in place; it is called after the last batch, as often on every rank. The result, the same on
    every rank, is that of `MetricSums.compute` of the single view and, with `tta`, under `flip_averaged` that of the
    logits averaged over both mirror images.

    `num_samples` is the data set's size: a different count raises `RuntimeError`. `observe` sees every batch of this
    rank.
    """
    sums = MetricSums(network.device)
    averaged_sums = MetricSums(network.device)
    # Closed at once on an error too: the model is back in its mode when the exception reaches the caller.
    with closing(predict(network, batches, flip=tta)) as predictions:
        for prediction in predictions:
            sums.update(prediction.logits, prediction.labels)
            if observe is not None:
                observe(prediction)
            if prediction.flip_averaged is not None:
                averaged_sums.update(prediction.flip_averaged, prediction.labels)
    sums.reduce(all_reduce)
    averaged_sums.reduce(all_reduce)
    metrics = sums.compute()
    if num_samples is not None and metrics["count"] != num_samples:
        raise RuntimeError(f"evaluated {metrics['count']} of {num_samples} samples")
    if tta:
        metrics["flip_averaged"] = averaged_sums.compute()
    return metrics


def shown(loader: BetonLoader | ImageLoader, line: ProgressLine | None, head: str) -> Generator[Batch, None, None]:
    """The loader's batches, with a progress line."""
    steps, start, images = len(loader), time.perf_counter(), 0
    try:
        with contextlib.closing(loader.epoch()) as batches:
            for step, batch in enumerate(batches, start=1):
                yield batch
                images += len(batch.labels)
                if line is not None:
                    line.show(head, step, steps, f"{images / (time.perf_counter() - start):,.0f} images/s per process")
    finally:
        if line is not None:
            line.close()


@contextlib.contextmanager
def out_of_memory(config: RunConfig, side: int) -> Iterator[None]:
    """Turn the GPU's lack of memory into a `UserError`."""
    try:
        yield
    except torch.cuda.OutOfMemoryError:
        raise UserError(
            f"the GPU has too little memory for batches of {config.validation.batch_size} images of {side} pixels; "
            "lower --validation.batch_size"
        ) from None
