"""Replaces what the program decides by values that kernels would have computed, by values that copies bring.

The stub's kernels do nothing, so sums, norms and comparisons on the device are whatever lay in the memory. Streams,
events, collectives and the host's reading of results stay as they are.
"""

import copy
import itertools
import pickle
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from ffcv_train.losses import zipf
from ffcv_train.metrics.classification import MetricSums
from ffcv_train.models.inspect.dense_head import DenseHead, find_dense_head
from ffcv_train.training import status
from ffcv_train.training.trainer import Trainer


def replace() -> None:
    """Do so in this process."""
    MetricSums.update = _count_samples  # type: ignore[method-assign]
    Trainer._check_weights = lambda self, epoch, lr: None  # type: ignore[method-assign]
    status.StatusBoard.post = _post  # type: ignore[method-assign]
    zipf.find_dense_head = _find_on_the_cpu
    dist.broadcast_object_list = _broadcast_object_list
    dist.all_gather_object = _all_gather_object


def _count_samples(self: MetricSums, logits: torch.Tensor, labels: torch.Tensor) -> None:
    """Of the sums, the number of samples only."""
    self.counted = getattr(self, "counted", 0) + len(logits)  # type: ignore[attr-defined]
    self.integers.copy_(torch.tensor([self.counted] + [0] * (len(self.integers) - 1)))
    self.reals.copy_(torch.zeros(len(self.reals), dtype=torch.float64))


_post_unchanged, _all_reduce = status.StatusBoard.post, status.all_reduce_sum


def _post(self: status.StatusBoard, stop: bool) -> None:
    """Report a loss of 0.5 and the wish to stop: the report itself goes all the way."""

    def all_reduce(report: torch.Tensor) -> torch.Tensor:
        values = torch.tensor([0.5, 1.0, float(stop)], dtype=torch.float64).pin_memory()
        return _all_reduce(report.copy_(values, non_blocking=True))

    status.all_reduce_sum = all_reduce
    try:
        _post_unchanged(self, stop)
    finally:
        status.all_reduce_sum = _all_reduce


def _find_on_the_cpu(model: nn.Module, side: int) -> DenseHead | None:
    """What the search finds on a copy with plain numbers, for the network itself."""
    plain = copy.deepcopy(model).to("cpu")
    generator = torch.Generator().manual_seed(0)
    for parameter in plain.parameters():
        parameter.data = 0.05 * torch.randn(parameter.shape, generator=generator)
    for module in plain.modules():
        if isinstance(module, nn.modules.batchnorm._NormBase):
            module.reset_parameters()
    head = find_dense_head(plain, side)
    assert head is not None
    own = dict(model.named_modules())
    names = {module: name for name, module in plain.named_modules()}
    head.module = own[head.name]
    head.layers = [(own[names[layer]], spatial) for layer, spatial in head.layers]
    return head


_numbers = itertools.count()


def _broadcast_object_list(objects: list[Any], src: int = 0, *_: Any, **__: Any) -> None:
    """By the store, for the length of what NCCL carries is a sum on the device."""
    store, key = dist.distributed_c10d._get_default_store(), f"broadcast{next(_numbers)}"
    if dist.get_rank() == src:
        store.set(key, pickle.dumps(list(objects)))
    objects[:] = pickle.loads(store.get(key))


def _all_gather_object(gathered: list[Any], own: Any, *_: Any, **__: Any) -> None:
    store, key = dist.distributed_c10d._get_default_store(), f"gather{next(_numbers)}"
    store.set(f"{key}.{dist.get_rank()}", pickle.dumps(own))
    gathered[:] = [pickle.loads(store.get(f"{key}.{rank}")) for rank in range(dist.get_world_size())]
