"""What we share with ffcv: the layout of its files, and the TurboJPEG library that its native one brings.

The package itself is not imported: `import ffcv` compiles numba code for seconds at every start and sets PyTorch's
thread count to 1 for the whole process. The tests compare this layout with ffcv's own.
"""

import importlib.util
from pathlib import Path
from typing import Any

import llvmlite.binding
import numpy as np
from numba import types
from numba.extending import intrinsic

from ffcv_train.errors import UserError

FORMAT_VERSION = 2
IMAGE_TYPE_ID = 2
INT_TYPE_ID = 1
MODE_JPG = 0
MODE_RAW = 1

HEADER = np.dtype(
    [
        ("version", "<u2"),
        ("num_fields", "<u2"),
        ("page_size", "<u4"),
        ("num_samples", "<u8"),
        ("alloc_table_ptr", "<u8"),
    ],
    align=True,
)
FIELD_DESCRIPTION = np.dtype([("type_id", "<u1"), ("name", "<u1", 16), ("arguments", "<u1", (1024,))], align=True)
IMAGE = np.dtype([("mode", "<u1"), ("width", "<u2"), ("height", "<u2"), ("data_ptr", "<u8")])
SAMPLE = np.dtype([("f0", IMAGE), ("f1", "<i8")], align=True)
"""A row of the sample table of a file with the fields image and label."""
ALLOCATION = np.dtype([("sample_id", "<u8"), ("ptr", "<u8"), ("size", "<u8")])


def _library() -> Path:
    package = importlib.util.find_spec("ffcv")
    folders = package.submodule_search_locations if package is not None else None
    found = [path for folder in folders or () for path in Path(folder).glob("_libffcv*") if path.suffix != ".py"]
    if not found:
        raise UserError("ffcv is not installed for this Python; run make setup, or pip install -r requirements.txt")
    return found[0]


# Called by name instead of through ctypes, because numba can cache to disk only code without process-bound addresses.
llvmlite.binding.load_library_permanently(str(_library()))


@intrinsic
def _address_of(typing_context: Any, array: Any) -> Any:
    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        view = context.make_array(signature.args[0])(context, builder, arguments[0])
        return builder.ptrtoint(view.data, context.get_value_type(types.uintp))

    return types.uintp(array), codegen


address_of: Any = _address_of
"""In compiled code, the address of a contiguous array's first byte; `array.ctypes` would cost an allocation."""
