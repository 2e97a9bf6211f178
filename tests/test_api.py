"""The library's face: what it exports, what importing it costs."""

import subprocess
import sys
from pathlib import Path

import pytest

import ffcv_train

ROOT = Path(__file__).resolve().parents[1]
NAMES = [
    "write_dataset",
    "train",
    "load_network",
    "evaluate",
    "create_model",
    "WriteConfig",
    "Stopped",
    "Classifier",
    "Batch",
    "CRITERIA",
    "CenterCrop",
    "Criterion",
    "LabelSmoothing",
    "Loader",
    "MaxSup",
    "MetricSums",
    "Normaliser",
    "RandomResizedCrop",
    "RunConfig",
    "UserError",
    "ViewBatch",
    "load_config",
    "maxsup",
    "open_data_set",
]


def test_exported_names() -> None:
    """A name that is added or taken away is a decision: this list, docs/api.md and the changelog say so."""
    assert sorted(ffcv_train.__all__) == sorted([*NAMES, "__version__"])
    assert dir(ffcv_train) == sorted(ffcv_train.__all__)


@pytest.mark.parametrize("name", NAMES)
def test_every_name_is_there_and_described(name: str) -> None:
    value = getattr(ffcv_train, name)
    assert name == "CRITERIA" or value.__name__ == name
    assert name == "CRITERIA" or value.__module__ == f"ffcv_train.{ffcv_train._MODULE_OF[name]}"
    assert name == "CRITERIA" or value.__doc__


def test_unknown_name_lists_what_there_is() -> None:
    with pytest.raises(AttributeError, match=r"no 'Loadr'; it offers .*Loader"):
        ffcv_train.Loadr  # noqa: B018


def test_importing_is_light() -> None:
    """Neither `import ffcv_train` nor a name that needs neither loads PyTorch or numba."""
    program = (
        "import sys, ffcv_train; from ffcv_train import UserError, RunConfig, __version__\n"
        "assert not {'torch', 'numba', 'ffcv', 'cv2'} & set(sys.modules), sys.modules.keys()\n"
        "from ffcv_train import MaxSup; assert 'torch' in sys.modules and 'numba' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", program], cwd=ROOT, check=True)
