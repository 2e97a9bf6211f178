"""Draw penultimate features on the plane of three class templates (Müller et al., arXiv:1906.02629), side by side."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from ffcv_train.cli.main import run

if __name__ == "__main__":
    run("projection")
