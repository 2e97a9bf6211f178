"""What we share with ffcv: the layout of its files, and the TurboJPEG library that its native one brings.

The package itself is not imported: `import ffcv` compiles numba code for seconds at every start and sets PyTorch's
thread count to 1 for the whole process. The tests compare this layout with ffcv's own.
"""

import importlib.util
from pathlib import Path
from typing import Any

import llvmlite.binding
from numba import types
from numba.extending import intrinsic

from ffcv_train.system.errors import UserError


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
