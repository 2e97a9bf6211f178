"""The sidecar of a .beton file: JSON, of which what is as long as the data set is read when somebody asks for it."""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import msgspec

from ffcv_train.system.errors import UserError
from ffcv_train.system.files import parse_json

_HELD_BYTES = 1 << 20
"""What takes more of the file stays there: names and checksums of the samples, else held by every rank"""


def open_sidecar(file: Path) -> "Sidecar":
    """What `file` says. Raises `OSError`, or `ValueError` where it holds no JSON object."""
    # The stamp first: what is put in the file's place meanwhile must not pass for it.
    stamp = _stamp(file)
    return Sidecar(file, stamp, (), file.read_bytes())


class Sidecar(Mapping[str, Any]):
    """The JSON object `content`, which lies in `path` under `keys`.

    Long lists and texts are read anew each time they are asked for, long objects are `Sidecar`s themselves; reading
    raises `UserError` where the file is no longer the one that was opened, or where such a value is damaged.
    """

    def __init__(
        self, path: Path, stamp: tuple[int, ...], keys: tuple[str, ...], content: "bytes | msgspec.Raw"
    ) -> None:
        self._path, self._stamp, self._keys = path, stamp, keys
        self._held: dict[str, Any] = {}
        self._left: dict[str, type] = {}
        for key, value in _entries(content).items():
            view = memoryview(value)
            if len(view) <= _HELD_BYTES:
                self._held[key] = parse_json(bytes(view))
            elif bytes(view[:1]) == b"{":
                self._held[key] = Sidecar(path, stamp, (*keys, key), value)
            else:
                self._left[key] = list if bytes(view[:1]) == b"[" else str

    def may_list_texts(self, key: str) -> bool:
        """Whether a value, if there is one, is a list of texts; of a long one, whether it is a list."""
        value = self._held.get(key, [])
        is_list = isinstance(value, list) and all(isinstance(text, str) for text in value)
        return is_list if key not in self._left else self._left[key] is list

    def __getitem__(self, key: str) -> Any:
        return self._held[key] if key not in self._left else self._read(key)

    def __iter__(self) -> Iterator[str]:
        return iter((*self._held, *self._left))

    def __len__(self) -> int:
        return len(self._held) + len(self._left)

    def _read(self, key: str) -> Any:
        advice = "copy it and its .beton file again, or make them again"
        try:
            if _stamp(self._path) != self._stamp:
                raise UserError(f"{self._path} was replaced or written to since it was opened; start again")
            content: bytes | msgspec.Raw = self._path.read_bytes()
            for outer in self._keys:
                content = _entries(content)[outer]
            return parse_json(bytes(_entries(content)[key]))
        except OSError as error:
            raise UserError(f"cannot read {self._path}: {error.strerror or error}; {advice}") from None
        except (ValueError, KeyError):
            raise UserError(f"{self._path} is damaged at {key!r}; {advice}") from None


def _stamp(path: Path) -> tuple[int, ...]:
    status = path.stat()
    return status.st_size, status.st_mtime_ns, status.st_ino


def _entries(content: "bytes | msgspec.Raw") -> "Mapping[str, bytes | msgspec.Raw]":
    """The values of a JSON object, undecoded."""
    try:
        return msgspec.json.decode(content, type=dict[str, msgspec.Raw])
    except (msgspec.DecodeError, RecursionError):
        # Python's JSON says more than the standard allows: half surrogates, which stand for bytes that are no UTF-8.
        found = parse_json(bytes(content))
        if not isinstance(found, dict):
            raise ValueError("not a JSON object") from None
        return {key: json.dumps(value).encode() for key, value in found.items()}
