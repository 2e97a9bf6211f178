"""Write the logits, and on request the features, of every sample of a data set; --help describes every option."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from ffcv_train.cli.main import run

if __name__ == "__main__":
    run("logits")
