"""What a figure depends on besides the configuration: versions, device, code revision, command line."""

import contextlib
import importlib.metadata
import os
import platform
import resource
import shlex
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

import ffcv_train

PACKAGES = ("torch", "torchvision", "ffcv", "numba", "numpy", "timm")


def describe_environment(device: "torch.device | str" = "cpu") -> dict[str, Any]:
    """Versions, device, host, code revision, command line and the time of day, as JSON can say them."""
    import torch

    device = torch.device(device)
    cudnn = torch.backends.cudnn.version() if torch.cuda.is_available() else None
    return {
        "versions": {**versions(), "cuda": torch.version.cuda, "cudnn": None if cudnn is None else str(cudnn)},
        "device": device_name(device),
        "cpu_count": os.cpu_count(),
        "torch_threads": torch.get_num_threads(),
        "host": platform.node(),
        "git": git_revision(),
        "command": command_line(),
        "started": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
    }


def command_line() -> str:
    """The command that this process was started with."""
    return shlex.join([Path(sys.orig_argv[0]).name, *sys.orig_argv[1:]])


def versions() -> dict[str, str | None]:
    """Versions of Python and the packages that numbers depend on; None where there is none."""
    found: dict[str, str | None] = {"python": platform.python_version()}
    for package in PACKAGES:
        # Metadata, not an import: torch takes seconds, and ffcv changes the number of threads of torch.
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            found[package] = None
    return found


def device_name(device: "torch.device") -> str:
    """The GPU's name, or the processor's."""
    if device.type == "cuda":
        import torch

        return torch.cuda.get_device_name(device)
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def peak_memory_gb(device: "torch.device") -> float:
    """What this process has held at most: tensors on a GPU, or resident memory."""
    import torch

    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 1e9
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9


def git_revision() -> str | None:
    """The commit of this code, with `-dirty` where tracked files differ from it; None outside a repository."""
    root = Path(ffcv_train.__file__).resolve().parent.parent
    if not (root / ".git").exists():  # an installed copy may lie inside somebody else's repository
        return None
    command = ["git", "-C", str(root), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        answer = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return answer.stdout.strip() or None
