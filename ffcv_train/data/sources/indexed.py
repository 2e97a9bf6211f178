"""Any indexable data set of (Pillow image, label), such as torchvision's, as a source."""

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
from PIL import Image

from ffcv_train.data.sources.class_files import names_of_labels
from ffcv_train.data.sources.image_file import ImageError, rgb_of
from ffcv_train.data.sources.source import Source
from ffcv_train.system.class_names import tidy
from ffcv_train.system.errors import UserError


class Indexed(Protocol):
    """What `torch.utils.data.Dataset` is where it has a length; no subclass of it is asked for."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Any: ...


class IndexedSource(Source):
    """Samples (image, label) of `data_set`: Pillow images or uint8 [H, W, 3] RGB pixels, and whole numbers from 0.

    Labels are those of its attribute `targets` (or `labels`) where that lists one per sample, as torchvision's do;
    otherwise each sample is read once more for its label. Class names are `class_names`, or its `classes`, or the
    labels themselves. Samples are read in this process. Raises `UserError` where labels and names do not fit.
    """

    def __init__(self, data_set: Indexed, class_names: Sequence[str] | None = None) -> None:
        self._data_set = data_set
        self.kind = type(data_set).__name__
        labels = self._labels()
        if labels.ndim != 1 or not np.issubdtype(labels.dtype, np.integer) or (len(labels) and labels.min() < 0):
            raise UserError(f"the labels of {self.kind} must be whole numbers from 0, one per sample")
        if class_names is None:
            class_names = getattr(data_set, "classes", None)
        if class_names is None:
            super().__init__(names_of_labels(labels, self.name), labels, named=False)
            return
        names = [tidy(str(name)) for name in class_names]
        if len(labels) and labels.max() >= len(names):
            raise UserError(f"{self.kind} has the label {labels.max()}, but class_names has {len(names)} names")
        super().__init__(names, labels)

    def _labels(self) -> np.ndarray:
        for name in ("targets", "labels"):
            listed = getattr(self._data_set, name, None)
            if listed is not None and not callable(listed) and len(listed) == len(self._data_set):
                return np.asarray(listed)
        return np.asarray([int(self._data_set[index][1]) for index in range(len(self._data_set))], np.int64)

    def name(self, index: int) -> str:
        return f"{self.kind}[{index}]"

    def place(self, index: int) -> np.ndarray:
        image = self._data_set[index][0]
        if isinstance(image, Image.Image):
            try:
                return rgb_of(image)
            except ImageError as error:
                raise UserError(f"{self.name(index)} {error}") from None
        if isinstance(image, np.ndarray) and image.dtype == np.uint8 and image.ndim == 3 and image.shape[2] == 3:
            return np.ascontiguousarray(image)
        raise UserError(
            f"{self.name(index)} is {type(image).__name__}, not a Pillow image or uint8 [height, width, 3] pixels; "
            "make the data set without transforms that end in tensors"
        )
