"""benchmarks/corruptions.py: what it refuses, and what stands in for ImageMagick; the authors' code is not ours."""

import io
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from benchmarks import corruptions
from ffcv_train.system.errors import UserError


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    for file in corruptions.FILES.values():
        (tmp_path / "clone" / file).parent.mkdir(parents=True)
        (tmp_path / "clone" / file).write_text("import torch.nothing\nkept = 1\nimport collections\nlost = 1\n")
    return tmp_path / "clone"


def test_their_file_is_run_without_what_it_does_besides(clone: Path) -> None:
    found = corruptions.authors_functions(clone, "cifar")
    assert found["kept"] == 1 and "lost" not in found


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "clone hendrycks/robustness and give its folder"),
        ("import skimage_of_nobody", "needs skimage_of_nobody: pip install scikit-image"),
    ],
)
def test_what_is_missing_is_a_sentence(clone: Path, text: str | None, message: str) -> None:
    file = clone / corruptions.FILES["imagenet"]
    file.unlink()
    if text is not None:
        file.write_text(text)
    with pytest.raises(UserError, match=message):
        corruptions.authors_functions(clone, "imagenet")


def test_a_folder_without_photographs_is_a_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match="holds no JPEG or PNG"):
        corruptions.crops(tmp_path, 2, 32)
    monkeypatch.setattr(sys, "argv", ["corruptions", "--authors=x", f"--folder={tmp_path}", "--images=0"])
    with pytest.raises(UserError, match="--images must be at least 1"):
        corruptions.main()


def test_motion_is_one_sided_and_repeats_the_edge() -> None:
    pixels = np.zeros((9, 9, 3), np.uint8)
    pixels[:, 4:] = 200
    content = io.BytesIO()
    Image.fromarray(pixels).save(content, "PNG")
    picture = corruptions._Picture(content.getvalue())
    corruptions.motion_blur(picture, 2, 1, 0)
    moved = picture.pixels[:, :, 0]
    assert (moved == moved[0]).all() and (moved[0, 4:] == 200).all()
    assert moved[0, 0] < moved[0, 1] < moved[0, 2] < moved[0, 3] < 200
