"""Our 15 corruptions beside the authors' code, with the same random numbers: largest difference, numbers that differ.

    git clone https://github.com/hendrycks/robustness && pip install scikit-image
    python -m benchmarks.corruptions --authors robustness --folder photos --images 20 --json corruptions.json

Their two files are read as text and run as they are, but for names that today's NumPy and scikit-image no longer have,
and for Wand, in whose place ImageMagick's motion blur is written out. Glass blur of 224 px, which takes theirs seconds
an image, is compared on two of them.
"""

import argparse
import importlib
import io
import re
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
from PIL import Image

from benchmarks.options import check_folders, check_least, parser_of
from ffcv_train.cli.main import run_main
from ffcv_train.data.kernels.corruptions import CORRUPTIONS, SEVERITIES, Setting, apply, read_frost
from ffcv_train.system.errors import UserError
from ffcv_train.system.files import write_json

FILES = {
    "imagenet": "ImageNet-C/imagenet_c/imagenet_c/corruptions.py",
    "cifar": "ImageNet-C/create_c/make_cifar_c.py",
}
"""In a clone of hendrycks/robustness, by the set of constants"""
FROST = "ImageNet-C/imagenet_c/imagenet_c/frost"
SIDES = {"imagenet": 224, "cifar": 32}
_SLOW = 2
_NAMES = {
    "np.float_": "np.float64",
    "np.fromstring": "np.frombuffer",
    "multichannel=True": "channel_axis=-1",
    "scipy.ndimage.interpolation": "scipy.ndimage",
}


class _Picture:
    """In place of `wand.image.Image`: an image from the bytes of a file, and back."""

    def __init__(self, blob: bytes) -> None:
        self.pixels, self.wand = np.asarray(Image.open(io.BytesIO(blob))), self

    def make_blob(self) -> bytes:
        content = io.BytesIO()
        Image.fromarray(self.pixels).save(content, "PNG")
        return content.getvalue()


def motion_blur(picture: _Picture, radius: float, sigma: float, angle: float) -> None:
    """ImageMagick's MotionBlurImage, by the algorithm of its C source, rounded to nearest."""
    width = 2 * int(np.ceil(radius)) + 1
    weights = np.exp(-(np.arange(width) ** 2) / (2 * sigma**2))
    weights /= weights.sum()
    down, right = width * np.sin(np.radians(angle)), width * np.cos(np.radians(angle))
    length = np.hypot(down, right)
    pixels = picture.pixels.astype(np.float64)
    rows, columns = (np.arange(size) for size in pixels.shape[:2])
    total = np.zeros_like(pixels)
    for place, weight in enumerate(weights):
        y = np.clip(rows + int(np.ceil(place * down / length - 0.5)), 0, len(rows) - 1)
        x = np.clip(columns + int(np.ceil(place * right / length - 0.5)), 0, len(columns) - 1)
        total += weight * pixels[y][:, x]
    picture.pixels = np.floor(total + 0.5).astype(np.uint8)


def authors_functions(clone: Path, kind: str) -> dict[str, Any]:
    """What their file for `kind` defines. Raises `UserError` where it is not there, or needs what is not installed."""
    file = clone / FILES[kind]
    try:
        text = file.read_text(encoding="utf-8")
    except OSError as error:
        said = f"--authors {clone} has no {FILES[kind]} ({error.strerror})"
        raise UserError(f"{said}; clone hendrycks/robustness and give its folder") from None
    for old, new in _NAMES.items():
        text = text.replace(old, new)
    text = re.sub(r"wandlibrary\.MagickMotionBlurImage\.argtypes = .*?# angle\n", "", text, flags=re.DOTALL)
    text = re.sub(r"^(import torch.*|from pkg_resources .*)$", "", text, flags=re.MULTILINE)
    # Of the one, what follows converts CIFAR-10; the other opens photographs by a function of pkg_resources.
    text = text.split("import collections\n")[0]
    text = re.sub(r"'\./(frost\d\.\w+)'", r"resource_filename('', 'frost/\1')", text)
    found: dict[str, Any] = {
        "__name__": "authors",
        "resource_filename": lambda _, path: str(clone / FROST / Path(path).name),
    }
    try:
        exec(compile(text, str(file), "exec"), found)
    except ImportError as error:
        raise UserError(f"the authors' code needs {error.name}: pip install scikit-image") from None
    return found


def stand_in_for_wand() -> None:
    """Make `import wand` in their code find `_Picture` and `motion_blur`."""
    for name in ("wand", "wand.image", "wand.api", "wand.color"):
        sys.modules[name] = ModuleType(name)
    sys.modules["wand"].color = sys.modules["wand.color"]  # type: ignore[attr-defined]
    sys.modules["wand.image"].Image = _Picture  # type: ignore[attr-defined]
    library = type("Library", (), {"MagickMotionBlurImage": staticmethod(motion_blur)})
    sys.modules["wand.api"].library = library  # type: ignore[attr-defined]


def theirs(function: Callable[[Image.Image, int], Any], image: Image.Image, severity: int, seed: int) -> np.ndarray:
    """Their corruption of `image`, uint8 [S, S, 3], with NumPy's old generator seeded."""
    noise = importlib.import_module("skimage.util.noise")  # not among our requirements

    class Drawn:
        """skimage's noise draws from a generator of its own; theirs drew from NumPy's global one."""

        random = staticmethod(np.random.random)

    np.random.seed(seed)
    own, noise.np.random.default_rng = np.random.default_rng, lambda rng=None: Drawn()
    try:
        return np.asarray(function(image, severity)).astype(np.uint8)
    finally:
        noise.np.random.default_rng = own


def crops(folder: Path, count: int, side: int) -> list[Image.Image]:
    """The central squares of `count` of the folder's images, spread over their sorted names, as `side` pixels."""
    files = sorted(file for file in folder.rglob("*") if file.suffix.lower() in (".jpg", ".jpeg", ".png"))
    if not files:
        raise UserError(f"--folder {folder} holds no JPEG or PNG; give a folder of photographs")
    squares = []
    for place in np.linspace(0, len(files) - 1, min(count, len(files))).astype(int):
        image = Image.open(files[place]).convert("RGB")
        short = min(image.size)
        left, top = ((length - short) // 2 for length in image.size)
        square = image.crop((left, top, left + short, top + short))
        squares.append(square.resize((side, side), Image.Resampling.BILINEAR))
    return squares


def main() -> None:
    """Parse, compare, print."""
    parser = parser_of(__doc__)
    parser.add_argument("--authors", type=Path, required=True, help="a clone of hendrycks/robustness")
    parser.add_argument("--folder", type=Path, required=True, help="folder of photographs")
    parser.add_argument("--images", type=int, default=20, help="how many of them [20]")
    parser.add_argument("--json", type=Path, help="write all figures to this file")
    options: argparse.Namespace = parser.parse_args()
    check_least(options, images=1)
    check_folders(options)
    stand_in_for_wand()
    functions = {kind: authors_functions(options.authors, kind) for kind in FILES}
    frost = read_frost(options.authors / FROST)
    rows = []
    for kind, side in SIDES.items():
        images = crops(options.folder, options.images, side)
        for name in CORRUPTIONS:
            some = images[:_SLOW] if (name, kind) == ("glass_blur", "imagenet") else images
            off = []
            for number, image in enumerate(some):
                for severity in range(1, SEVERITIES + 1):
                    seed = 100 * number + severity
                    setting = Setting(kind, severity - 1, np.random.RandomState(seed), frost)
                    expected = theirs(functions[kind][name], image, severity, seed).astype(int)
                    off.append(np.abs(apply(np.asarray(image), name, setting) - expected))
            worst, share = int(np.max(off)), float(np.mean(np.array(off) > 0))
            rows.append({"corruption": name, "side": side, "images": len(some), "largest": worst, "differing": share})
            print(f"{name:18} {side:3} px  {len(some):3} images  largest {worst}  differing {share:.3%}", flush=True)
    if options.json is not None:
        write_json(options.json, {"rows": rows})


if __name__ == "__main__":
    run_main(main)
