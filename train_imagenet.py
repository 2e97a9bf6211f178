"""Train a classifier on .beton files; every option is described by --help and docs/options.md.

python train_imagenet.py --config-file rn50_configs/rn50_88_epochs.yaml \
    --data.train_dataset=train.beton --data.val_dataset=val.beton --logging.folder=runs
"""

import sys

from ffcv_train.config import RunConfig, load_config
from ffcv_train.distributed import process_group
from ffcv_train.errors import run_main
from ffcv_train.trainer import Stopped, Trainer


def main() -> None:
    """Parse, build, train."""
    config = load_config(RunConfig, sys.argv[1:], "Train a classifier on .beton files.")
    with process_group(config.training.device) as process:
        try:
            folder = Trainer(config, process).fit()
        except Stopped as stopped:
            if process.is_main:
                print(stopped, file=sys.stderr)
            sys.exit(stopped.exit_status)
        if process.is_main:
            print(f"done: {folder / 'final.pt'}")


if __name__ == "__main__":
    run_main(main)
