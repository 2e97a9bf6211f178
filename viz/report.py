"""Write one HTML page of a run, of several runs, or of a folder of compare.py; it opens without a network."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from ffcv_train.cli.main import run

if __name__ == "__main__":
    run("report")
