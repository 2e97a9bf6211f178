"""Write images into a .beton file, or check one; every option is described by --help and docs/options.md.

python write_dataset.py --cfg.dataset=imagenet --cfg.split=train --cfg.data_dir=ImageNet --cfg.write_path=train.beton \
    --cfg.max_resolution=500 --cfg.write_mode=jpg
python write_dataset.py --verify train.beton
python write_dataset.py --make-zip ImageNet --output zips
"""

import sys

from ffcv_train.errors import run_main


def main() -> None:
    """Parse and run."""
    # Imported here: each worker process imports this file when it starts, and needs nothing of it.
    from ffcv_train.data.writer import command

    command(sys.argv[1:])


if __name__ == "__main__":
    run_main(main)
