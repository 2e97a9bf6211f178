"""Data sets of every format that data.format names."""

from ffcv_train.data.beton import Beton, open_beton
from ffcv_train.data.image_set import ImageSet, open_image_set

DataSet = Beton | ImageSet


def open_data_set(path: str, kind: str) -> DataSet:
    """Open `path`, whose format is `kind` (data.format). Raises `UserError`."""
    return open_beton(path) if kind == "beton" else open_image_set(path, kind)
