"""Writing a .beton file from Python: images from where a configuration says, or from any data set of images."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path

from ffcv_train.config.read import from_dict, to_dict
from ffcv_train.data.convert.write import WriteConfig, WriterRun, convert
from ffcv_train.data.sources.indexed import Indexed, IndexedSource
from ffcv_train.system.errors import UserError, speaking_of_arguments


def write_dataset(
    config: WriteConfig, data_set: Indexed | None = None, class_names: Sequence[str] | None = None
) -> Path:
    """Write a .beton file and its sidecar; both appear when they are complete and checked, or stay as they were.

    Images come from where `config` says, or from `data_set`, any `torch.utils.data.Dataset` of (Pillow image, label)
    with a length; `class_names`, in label order, are then its `classes` unless given (see `IndexedSource`). Returns
    the path of the file. Raises `UserError` for what does not fit or cannot be read, naming the sample; nothing is left
    behind. Worker processes start anew and import the main script, so call it below `if __name__ == "__main__":`.

    >>> pairs = [(Image.open("photo.jpg"), 0), (Image.open("photo.jpg").rotate(90), 1)]
    >>> config = WriteConfig(write_path="two.beton", write_mode="jpg")
    >>> write_dataset(config, pairs, ["upright", "lying"]).name  # doctest: +ELLIPSIS
    2 images, ...
    'two.beton'
    """
    if not isinstance(config, WriteConfig):
        raise TypeError(f"config must be a WriteConfig, not {type(config).__name__}")
    source = None
    with speaking_of_arguments():
        from_dict(WriterRun, to_dict(WriterRun(config)), "config")
        if data_set is None and class_names is not None:
            raise UserError("class_names belong to data_set; without it, classes names a file of them")
        if data_set is not None:
            for name in ("data_dir", "classes"):
                if getattr(config, name):
                    raise UserError(f"{name} is for images that config names, and data_set is given; leave it empty")
            config = dataclasses.replace(config, data_dir=type(data_set).__name__)
            source = IndexedSource(data_set, class_names)
            if not len(source):
                raise UserError("data_set holds no images")
        return convert(config, source)
