"""Tabulate and draw how far apart features lie: d_within, d_total and R² of Kornblith et al. (arXiv:2010.16402)."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from ffcv_train.cli.main import run

if __name__ == "__main__":
    run("features")
