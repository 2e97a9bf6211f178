"""Builds the CUDA stub for the PyTorch that is installed, once per version of both."""

import hashlib
import platform
import re
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path

SOURCES = Path(__file__).parent / "stub"
RUNTIME_SOURCES = ("device.cpp", "runtime.cpp", "graphs.cpp", "libraries.cpp", "collectives.cpp")
RUNTIME = "libcudastub.so"
DRIVER = "libcuda.so.1"
# A C++ library's own templates must not take the place of other libraries'.
EXPORTS = "{ global: cuda*; __cuda*; cublas*; cudnn*; nccl*; nvrtc*; cu[A-Z]*; local: *; };\n"
_FLAGS = ("-std=c++17", "-O1", "-Wall", "-Wextra", "-Wno-unused-parameter", "-fvisibility=hidden", "-shared", "-fPIC")
_IMPORTERS = ("libtorch_cuda.so", "libc10_cuda.so", "libtorch_python.so", "libtorch_cuda_linalg.so")

# The real library's own are as good: they read tables or switch a profiler.
_LEFT_TO_CUDA = {"cudaGetErrorName", "cudaGetErrorString", "cudaProfilerStart", "cudaProfilerStop"}
_OBJECT = re.compile(r"cudnnCreate\w+Descriptor")
_SETTING = re.compile(
    r"cudnn(Backend)?(Set|Destroy|Get|Finalize)|cublas(Set|Destroy|Lt(Matmul(Desc|Pref)|MatrixLayout))"
)
_COMPUTE = re.compile(r"cudnn|cublas")


def unavailable() -> str:
    """Why the stub cannot be had on this machine, in one sentence; empty where it can."""
    if sys.platform != "linux" or platform.machine() != "x86_64":
        return f"the CUDA stub is for Linux on x86-64, and this is {sys.platform} on {platform.machine()}"
    version = (_site_packages() / "torch" / "version.py").read_text()
    if not re.search(r"^cuda: .* = '", version, re.MULTILINE):
        return "the CUDA stub needs PyTorch's CUDA build, and another one is installed"
    missing = [tool for tool in ("g++", "nm", "readelf") if shutil.which(tool) is None]
    if missing:
        return f"the CUDA stub is built with g++, nm and readelf, and {' and '.join(missing)} is not installed"
    return ""


def build(cache: Path) -> Path:
    """The folder of the stub, for LD_LIBRARY_PATH; made in `cache` where it is not there yet."""
    folder = cache / _digest()
    if folder.is_dir():
        return folder
    cache.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=cache) as name:
        made = Path(name) / "built"
        made.mkdir()
        (made / "imports.inc").write_text(_imports())
        headers = _site_packages() / "triton" / "backends" / "nvidia" / "include"
        sources = [str(SOURCES / source) for source in RUNTIME_SOURCES]
        _compile("-I", str(headers), "-I", str(made), *sources, *_named(made, RUNTIME), "-lrt")
        _compile(str(SOURCES / "driver.cpp"), *_named(made, DRIVER))
        # Programs that are linked to NVRTC ask for a version of its functions, which is named like the library.
        _compile(str(SOURCES / "nvrtc.cpp"), *_named(made, _nvrtc(), version=_nvrtc()))
        try:
            made.rename(folder)
        except OSError:  # another process was faster
            if not folder.is_dir():
                raise
    return folder


def _named(folder: Path, library: str, version: str = "") -> list[str]:
    script = folder / f"{library}.exports"
    script.write_text(f"{version} {EXPORTS}")
    return ["-o", str(folder / library), f"-Wl,-soname,{library}", f"-Wl,--version-script={script}"]


def preloaded(folder: Path) -> str:
    """LD_PRELOAD for a program that is to run on the stub in `folder`."""
    return f"{folder / RUNTIME}:{folder / _nvrtc()}"


def _nvrtc() -> str:
    """The name under which PyTorch asks for NVRTC."""
    needed = subprocess.run(
        ["readelf", "-d", str(_site_packages() / "torch" / "lib" / "libtorch_cuda.so")],
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    found = re.search(r"\[(libnvrtc\.so[\d.]*)\]", needed)
    if found is None:
        raise RuntimeError("PyTorch's CUDA library does not name the NVRTC library that it needs")
    return found[1]


def _compile(*arguments: str) -> None:
    done = subprocess.run(["g++", *_FLAGS, *arguments], capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"the CUDA stub does not compile:\n{done.stderr}")


def _digest() -> str:
    content = hashlib.sha256((_site_packages() / "torch" / "version.py").read_bytes())
    for file in [Path(__file__), *sorted(SOURCES.iterdir())]:
        content.update(file.name.encode() + file.read_bytes())
    return content.hexdigest()[:16]


def _imports() -> str:
    """A line for each function that PyTorch imports and no source file defines; libraries.cpp says what they do."""
    written = "".join(path.read_text() for path in SOURCES.glob("*.cpp"))
    lines = []
    for function in sorted(_imported() - _LEFT_TO_CUDA):
        if re.search(rf"\b{function}\b", written):
            continue
        kinds = {"OBJECT": _OBJECT, "SETTING": _SETTING, "COMPUTE": _COMPUTE}
        kind = next((kind for kind, pattern in kinds.items() if pattern.match(function)), "MISSING")
        lines.append(f"{kind}({function})\n")
    return "".join(lines)


def _imported() -> set[str]:
    libraries = [str(_site_packages() / "torch" / "lib" / name) for name in _IMPORTERS]
    listed = subprocess.run(["nm", "-D", "--undefined-only", *libraries], capture_output=True, text=True, check=True)
    return set(re.findall(r" U ((?:__cuda|cuda|cublas|cudnn|nccl)\w+)", listed.stdout))


def _site_packages() -> Path:
    return Path(sysconfig.get_paths()["purelib"])
