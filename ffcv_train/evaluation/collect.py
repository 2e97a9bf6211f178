"""Every sample's logits and features in memory, in the data set's order, the same on every rank."""

import contextlib
from dataclasses import dataclass

import torch
from torch import Tensor

from ffcv_train.config.schema import RunConfig
from ffcv_train.data.open import DataSet
from ffcv_train.evaluation.extraction import outputs
from ffcv_train.models.inspect.last_layer import LastLayer
from ffcv_train.models.network import Network
from ffcv_train.system.distributed import Process, all_reduce_sum
from ffcv_train.system.errors import UserError
from ffcv_train.system.resources import available_bytes

_BYTES_AT_ONCE = 1 << 28


@dataclass(frozen=True, eq=False)
class Collected:
    """What a network makes of a data set, on the CPU."""

    logits: Tensor
    """float32 [N, K], finite"""
    labels: Tensor
    """int64 [N]"""
    features: Tensor | None
    """float32 [N, D], finite, or None where no last layer was given"""

    @property
    def correct(self) -> Tensor:
        """bool [N]; of equal logits the first is the prediction."""
        return self.logits.argmax(dim=1) == self.labels


def collect(
    network: Network,
    config: RunConfig,
    data_set: DataSet,
    process: Process,
    layer: LastLayer | None = None,
    head: str = "",
) -> Collected:
    """Centre crops of the first of validation.resolution through the network, each sample once, on every rank.

    With `layer`, the features that it reads come along. Raises `UserError` where memory is too small, or a number is
    not finite.
    """
    widths = [network.num_classes] + ([layer.weight.shape[1]] if layer is not None else [])
    _check_memory(data_set, sum(widths), process)
    rows = [torch.zeros(len(data_set), width) for width in widths]
    labels = torch.zeros(len(data_set), dtype=torch.int64)
    count = torch.zeros((), dtype=torch.int64, device=process.device)
    with contextlib.closing(outputs(network, config, data_set, process, layer, head)) as batches:
        for batch in batches:
            places = batch.indices.cpu()
            labels[places] = batch.labels.cpu()
            for target, values in zip(rows, (batch.logits, batch.features), strict=False):
                assert values is not None
                target[places] = values.cpu()
            count += len(places)
    if int(all_reduce_sum(count)) != len(data_set):
        raise RuntimeError(f"evaluated {int(count)} of {len(data_set)} samples")
    if process.world_size > 1:
        # Each rank has zeros where another has the sample: sums are exact.
        for tensor in (*rows, labels):
            _share(tensor, process.device)
    for tensor, what in zip(rows, ("logits", "features"), strict=False):
        if not bool(torch.isfinite(tensor.sum(dim=1)).all()):
            raise UserError(f"the network's {what} of {data_set.path} are not finite; its training diverged")
    return Collected(rows[0], labels, rows[1] if layer is not None else None)


def _share(tensor: Tensor, device: torch.device) -> None:
    rows = max(1, _BYTES_AT_ONCE // (tensor.element_size() * max(1, tensor[0].numel())))
    for part in tensor.split(rows):
        part.copy_(all_reduce_sum(part.to(device)))


def _check_memory(data_set: DataSet, width: int, process: Process) -> None:
    needed, available = 4 * len(data_set) * width * process.local_world_size, available_bytes()
    if needed > available:
        raise UserError(
            f"the outputs of {len(data_set):,} samples of {data_set.path} take {needed / 2**30:.1f} GiB of memory, and "
            f"{available / 2**30:.1f} GiB are available; give a smaller data set, or fewer processes"
        )
