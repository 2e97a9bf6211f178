"""`ffcv-train train` on the stub."""

import values

from ffcv_train.cli.main import run
from ffcv_train.training import status

if __name__ == "__main__":
    values.replace()
    status._PATIENCE_SECONDS = 0.5
    run("train")
