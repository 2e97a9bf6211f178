"""Write images into a .beton file, or check one; every option is described by --help and docs/options.md.

ffcv-train write --cfg.dataset=imagenet --cfg.split=train --cfg.data_dir=ImageNet --cfg.write_path=train.beton \
    --cfg.max_resolution=500 --cfg.write_mode=jpg
ffcv-train write --verify train.beton
ffcv-train write --make-zip ImageNet --output zips
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

from ffcv_train.config.read import load_config
from ffcv_train.data.convert.make_zip import (
    SPLITS,
    make_zips,
)
from ffcv_train.data.convert.write import (
    WriterRun,
    convert,
)
from ffcv_train.data.format.verify import verify
from ffcv_train.system.errors import UserError
from ffcv_train.system.files import expand_path

_DESCRIPTION = """Pack an image folder into archives that --data.format=zip trains on.

ffcv-train write --make-zip ImageNet --output zips

DIR holds train/ and val/ with a folder per class each, or class folders itself. train.zip holds train/CLASS/FILE,
train_map.txt a line CLASS/FILE, tab, label; val.zip holds val/FILE, val_map.txt a line FILE, tab, label; classes.txt
the class names in label order. Images are packed as they are.
"""


def _parse(argv: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="ffcv-train write",
        description=_DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--make-zip", type=expand_path, metavar="DIR", required=True, help="the image folder")
    parser.add_argument(
        "--output", type=expand_path, metavar="OUT", required=True, help="folder for archives and maps, made if needed"
    )
    parser.add_argument("--split", choices=SPLITS, help="pack this split alone; needed where DIR has class folders")
    parser.add_argument("--compress", action="store_true", help="deflate the images; JPEGs hardly shrink")
    return parser.parse_args(argv)


def main(argv: Sequence[str]) -> None:
    """Run the command line: `--verify F.beton`, `--make-zip DIR …`, or what to write, and how."""
    if argv and argv[0].split("=")[0] == "--verify":
        files = [*argv[0].split("=", 1)[1:], *argv[1:]]
        if len(files) != 1:
            raise UserError("--verify takes one .beton file and nothing else")
        verify(expand_path(files[0]))
        return
    if argv and argv[0].split("=")[0] == "--make-zip":
        options = _parse(argv)
        make_zips(Path(options.make_zip), Path(options.output), options.split, options.compress)
        return
    description = (
        "Write images into a .beton file. With --verify F.beton alone: check one, decoding every image. With "
        "--make-zip DIR --output OUT: pack an image folder into the zipped layout that --data.format=zip trains on."
    )
    convert(load_config(WriterRun, argv, description).cfg)
