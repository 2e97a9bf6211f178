"""Where an image's bytes lie: a whole file, or a range of a zip or tar archive.

The parent process reads an archive's directory once; workers get byte ranges, so that none of them needs the directory.
Worker processes import this: nothing heavy here.
"""

import struct
import tarfile
import zipfile
import zlib
from collections.abc import Iterator
from io import BufferedReader
from pathlib import Path
from typing import NamedTuple

from ffcv_train.system.errors import UserError
from ffcv_train.system.files import open_regular

_LOCAL_HEADER = struct.Struct("<4s22xHH")


class Blob(NamedTuple):
    """An image's bytes in `path`: the whole file (`size` −1), or `size` bytes from `offset`."""

    path: str
    offset: int = 0
    size: int = -1

    def file_size(self) -> int:
        """Bytes of the whole file; raises `OSError`."""
        return Path(self.path).stat().st_size

    def read(self) -> bytes:
        """The bytes; raises `OSError` where they cannot be had."""
        if self.size < 0:
            with open_regular(self.path) as whole:
                return whole.readall()
        with BufferedReader(open_regular(self.path)) as file:
            file.seek(self.offset)
            data = file.read(self.size)
        if len(data) != self.size:
            raise OSError(f"{self.path} ends within it")
        return data


class ZipBlob(NamedTuple):
    """A member of a zip archive; `offset` is that of its local header, `size` that of its data as stored."""

    path: str
    offset: int
    size: int
    deflated: bool
    full_size: int
    crc: int

    def read(self) -> bytes:
        """The member's bytes, unpacked and compared with their checksum; raises `OSError` where they cannot be had."""
        with BufferedReader(open_regular(self.path)) as file:
            file.seek(self.offset)
            header = file.read(_LOCAL_HEADER.size)
            if len(header) != _LOCAL_HEADER.size or not header.startswith(b"PK\3\4"):
                raise OSError(f"{self.path} has no member at byte {self.offset}")
            _, name_length, extra_length = _LOCAL_HEADER.unpack(header)
            file.seek(name_length + extra_length, 1)
            data = file.read(self.size)
        if self.deflated:
            try:
                data = zlib.decompressobj(-zlib.MAX_WBITS).decompress(data, self.full_size + 1)
            except zlib.error as error:
                raise OSError(f"{self.path} is damaged at byte {self.offset}: {error}") from None
        if len(data) != self.full_size or zlib.crc32(data) != self.crc:
            raise OSError(f"{self.path} is damaged at byte {self.offset}: its checksum does not fit")
        return data


def index_zip(path: Path) -> dict[str, ZipBlob]:
    """The members of a zip archive by name, stored or deflated; raises `UserError`."""
    try:
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
    except (OSError, zipfile.BadZipFile, ValueError, NotImplementedError, IndexError, struct.error) as error:
        # The last four from a directory whose names, versions or fields make no sense.
        raise UserError(f"cannot read the archive {path}: {error}; is it complete?") from None
    index = {}
    for member in members:
        if member.is_dir():
            continue
        if member.flag_bits & 1 or member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise UserError(
                f"{member.filename} in {path} is encrypted, or packed in another way than stored or deflated; "
                f"pack the archive again with zip -0"
            )
        deflated = member.compress_type == zipfile.ZIP_DEFLATED
        index[member.filename] = ZipBlob(
            str(path), member.header_offset, member.compress_size, deflated, member.file_size, member.CRC
        )
    return index


def index_tar(path: Path) -> Iterator[tuple[str, Blob]]:
    """The regular files of an uncompressed tar archive, in its order; raises `UserError`."""
    try:
        with BufferedReader(open_regular(path)) as file, tarfile.open(fileobj=file, mode="r:") as archive:
            for member in archive:
                if member.isreg():
                    yield member.name, Blob(str(path), member.offset_data, member.size)
                archive.members = []  # type: ignore[attr-defined]  # tarfile would keep every member in memory
            end = archive.offset
        # tarfile takes a header that is cut off or damaged for the end; the end is a block of zeros.
        complete = Blob(str(path), end, tarfile.BLOCKSIZE).read() == bytes(tarfile.BLOCKSIZE)
    except (OSError, tarfile.TarError) as error:
        raise UserError(
            f"cannot read the shard {path}: {error}; is it complete, and an uncompressed tar file?"
        ) from None
    if not complete:
        raise UserError(f"the shard {path} is damaged at byte {end}; copy or download it again")
