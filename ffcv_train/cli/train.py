"""Train a classifier on .beton files; every option is described by --help and docs/options.md.

ffcv-train train --config-file rn50_configs/rn50_88_epochs.yaml \
    --data.train_dataset=train.beton --data.val_dataset=val.beton --logging.folder=runs
"""

import sys
from collections.abc import Sequence

from ffcv_train.cli.presets import load_run_config
from ffcv_train.system.distributed import process_group
from ffcv_train.training.trainer import Stopped, Trainer


def main(argv: Sequence[str]) -> None:
    """Parse, build, train."""
    config, taken, weights = load_run_config(argv, "Train a classifier on .beton files.")
    with process_group(config.training.device) as process:
        try:
            trainer = Trainer(config, process, weights=weights)
            trainer.notes += [taken] if taken else []
            folder = trainer.fit()
        except Stopped as stopped:
            if process.is_main:
                print(stopped, file=sys.stderr)
            sys.exit(stopped.exit_status)
        if process.is_main:
            print(f"done: {folder / 'final.pt'}")
