"""The door to ffcv: its file format's types and the symbols of its native library.

Importing ffcv sets PyTorch's and numba's thread counts to 1 for the whole process; this module, the only one that
imports ffcv for reading, puts them back.
"""

import llvmlite.binding
import numba
import torch
from numba import types
from numba.core.typing import signature

_torch_threads, _numba_threads = torch.get_num_threads(), numba.get_num_threads()
import ffcv._libffcv  # noqa: E402
import ffcv.types  # noqa: E402

torch.set_num_threads(_torch_threads)
numba.set_num_threads(_numba_threads)

FORMAT_VERSION: int = ffcv.types.CURRENT_VERSION
HEADER = ffcv.types.HeaderType
FIELD_DESCRIPTION = ffcv.types.FieldDescType
ALLOCATION = ffcv.types.ALLOC_TABLE_TYPE
IMAGE_TYPE_ID = 2
INT_TYPE_ID = 1
MODE_JPG = 0
MODE_RAW = 1


def sample_dtype(type_ids: tuple[int, ...]) -> "ffcv.types.np.dtype":
    """The dtype of a row of the metadata table for fields of these FFCV type ids (fields f0, f1, …)."""
    handlers = [ffcv.types.TYPE_ID_HANDLER[type_id]() for type_id in type_ids]
    return ffcv.types.get_metadata_type(handlers)


# Called by name instead of through ctypes, because numba can cache to disk only code without process-bound addresses.
llvmlite.binding.load_library_permanently(ffcv._libffcv.__file__)

imdecode = types.ExternalFunction(
    "imdecode",
    signature(
        types.int32,
        types.uintp,  # input_buffer
        types.uint64,  # input_size
        types.uint32,  # source_height
        types.uint32,  # source_width
        types.uintp,  # output_buffer
        types.uint32,  # crop_height
        types.uint32,  # crop_width
        types.uint32,  # offset_x
        types.uint32,  # offset_y
        types.uint32,  # scale_num
        types.uint32,  # scale_denom
        types.boolean,  # enable_crop
        types.boolean,  # hflip
    ),
)
"""libffcv's JPEG decoder: RGB, `crop_height` × `crop_width` × 3 bytes to `output_buffer`; 0 on success."""
