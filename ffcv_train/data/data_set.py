"""Data sets of every format that data.format names."""

from pathlib import Path

from ffcv_train.data.beton import Beton, open_beton
from ffcv_train.data.image_set import ImageSet, open_image_set
from ffcv_train.errors import UserError

DataSet = Beton | ImageSet


def open_data_set(path: str, kind: str) -> DataSet:
    """Open `path`, whose format is `kind` (data.format), or a .beton file that is named so. Raises `UserError`."""
    if kind != "beton":
        named_so = path.endswith(".beton") and Path(path).is_file()
        return open_beton(path) if named_so else open_image_set(path, kind)
    other = "folder" if Path(path).is_dir() else "zip" if path.endswith(".zip") and Path(path).is_file() else ""
    if other:
        raise UserError(
            f"the data set {path} is a {other} of images; train from it with --data.format={other}, or convert it with "
            "write_dataset.py and give the .beton file"
        )
    return open_beton(path)
