"""CIFAR-10 and CIFAR-100, as torchvision stores them."""

from ffcv_train.data.sources.source import ArraySource, Source, SourceOptions
from ffcv_train.system.errors import UserError


def cifar10(options: SourceOptions) -> Source:
    """torchvision's CIFAR-10."""
    return _cifar("CIFAR10", options)


def cifar100(options: SourceOptions) -> Source:
    """torchvision's CIFAR-100."""
    return _cifar("CIFAR100", options)


def _cifar(kind: str, options: SourceOptions) -> Source:
    if options.classes:
        raise UserError(f"--cfg.classes does not go with {kind}, whose label order is its own; leave it out")
    # Imported here: torchvision takes seconds, and only this source wants it.
    from torchvision import datasets

    try:
        data = getattr(datasets, kind)(options.data_dir, train=options.split == "train", download=options.download)
    except (RuntimeError, OSError) as error:
        advice = "check the network" if options.download else "add --cfg.download=1, or check --cfg.data_dir"
        raise UserError(f"{kind} is not in {options.data_dir}: {' '.join(str(error).split())}; {advice}") from None
    return ArraySource(f"{kind.lower()}/{options.split}", data.data, data.classes, data.targets)
