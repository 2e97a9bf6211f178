"""CIFAR-10 and CIFAR-100, as torchvision stores them."""

from ffcv_train.data.sources.source import ArraySource, Request, Source
from ffcv_train.system.errors import UserError


def cifar10(request: Request) -> Source:
    """torchvision's CIFAR-10."""
    return _cifar("CIFAR10", request)


def cifar100(request: Request) -> Source:
    """torchvision's CIFAR-100."""
    return _cifar("CIFAR100", request)


def _cifar(kind: str, request: Request) -> Source:
    if request.classes:
        raise UserError(f"--cfg.classes does not go with {kind}, whose label order is its own; leave it out")
    # Imported here: torchvision takes seconds, and only this source wants it.
    from torchvision import datasets

    try:
        data = getattr(datasets, kind)(request.data_dir, train=request.split == "train", download=request.download)
    except (RuntimeError, OSError) as error:
        advice = "check the network" if request.download else "add --cfg.download=1, or check --cfg.data_dir"
        raise UserError(f"{kind} is not in {request.data_dir}: {' '.join(str(error).split())}; {advice}") from None
    return ArraySource(f"{kind.lower()}/{request.split}", data.data, data.classes, data.targets)
