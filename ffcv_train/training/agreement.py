"""Ranks that were started with different options, data or versions would train something that nobody asked for."""

from collections.abc import Mapping
from typing import Any

from ffcv_train import __version__
from ffcv_train.config.read import to_dict
from ffcv_train.config.schema import RunConfig
from ffcv_train.system.distributed import Process, from_all_ranks
from ffcv_train.system.environment import versions
from ffcv_train.system.errors import UserError
from ffcv_train.training.state import Facts

# What each rank may have its own way: where its files lie, how many threads read them. The rest of a run must be equal,
# the interval of the log too, for reports are collective.
_OWN = {
    "data": ("train_dataset", "val_dataset", "classes", "subset", "num_workers", "batches_ahead", "cache"),
    "model": ("weights",),
    "distill": ("teacher",),
    "logging": ("folder", "run", "tensorboard"),
}


def what_ranks_share(config: RunConfig, facts: Facts) -> dict[str, Any]:
    """Options, data sets, classes and versions, each under a name that tells a user what it is."""
    shared: dict[str, Any] = {
        f"{section}.{name}": value
        for section, values in to_dict(config).items()
        for name, value in values.items()
        if name not in _OWN.get(section, ())
    }
    shared |= {"training images": facts.samples, "classes": facts.num_classes}
    shared |= {f"class {label}": name for label, name in enumerate(facts.class_names or ())}
    shared |= {f"data.{name}_dataset, by its digest,": digest[:12] for name, digest in facts.data.items()}
    shared |= {"distill.teacher, by its digest,": facts.teacher[:12]}
    shared |= {f"the version of {name}": version for name, version in versions().items()}
    return shared | {"the version of ffcv_train": __version__}


def check_ranks_agree(process: Process, shared: Mapping[str, Any]) -> None:
    """Raise `UserError` on every rank where `shared` is not the same on all; collective."""
    everyone = from_all_ranks(process, dict(shared))
    first = everyone[0]
    for rank, other in enumerate(everyone):
        names = [name for name in {**first, **other} if first.get(name) != other.get(name)]
        if names:
            here, there = other.get(names[0]), first.get(names[0])
            more = f", and {len(names) - 1} more differ" if len(names) > 1 else ""
            raise UserError(
                f"rank {rank} has {names[0]} {_short(here)}, rank 0 has {_short(there)}{more}; start all ranks with "
                "the same options, data and versions"
            )


def _short(value: Any) -> str:
    return "none" if value is None else str(value)[:60]
