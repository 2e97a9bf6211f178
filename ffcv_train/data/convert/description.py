"""The sidecar: what a .beton file was made of, and how."""

from array import array
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import PIL
import simplejpeg

from ffcv_train.data.convert.encoding import EncodedChunk
from ffcv_train.data.format.layout import pair_digest
from ffcv_train.data.format.pagefile import tables_crc
from ffcv_train.data.sources.source import Source
from ffcv_train.system.environment import versions

# Beyond this the list of files would make the sidecar unwieldy.
_MAX_LISTED_FILES = 2_000_000


@dataclass
class Written:
    """What the sidecar says of the samples: indices in the source, the CRC-32 of each, what is missing or damaged."""

    indices: "array[int]" = field(default_factory=lambda: array("q"))
    crcs: "array[int]" = field(default_factory=lambda: array("I"))
    skipped: list[tuple[int, str]] = field(default_factory=list)
    damaged: list[tuple[int, str]] = field(default_factory=list)

    def __len__(self) -> int:
        """Images done, skipped ones too."""
        return len(self.indices) + len(self.skipped)

    def add(self, chunk: EncodedChunk) -> None:
        """Enter what became of a task."""
        self.skipped += chunk.failures
        self.damaged += chunk.damaged
        self.indices.extend(sample.index for sample in chunk.samples)
        self.crcs.extend(sample.crc for sample in chunk.samples)

    def labels(self, source: Source) -> np.ndarray:
        """int64 [number of samples]"""
        return source.labels[np.asarray(self.indices)]

    def pair(self, source: Source) -> str:
        """The digest that file and sidecar both hold."""
        return pair_digest(self.labels(source), np.asarray(self.crcs), source.class_names)


def sidecar_of(
    beton: Path, split: str, settings: dict[str, Any], origin: dict[str, Any], source: Source, written: Written
) -> dict[str, Any]:
    """The sidecar of the finished file `beton`, as plain JSON; `origin` says where `source` was found."""
    sidecar: dict[str, Any] = {
        "format": 1,
        "num_samples": len(written.indices),
        "class_names": list(source.class_names),
        "named": source.named,
        "class_counts": np.bincount(written.labels(source), minlength=len(source.class_names)).tolist(),
        "split": split,
        "source": origin,
        "settings": settings,
        "skipped": [{"name": source.name(index), "reason": reason} for index, reason in written.skipped],
        "damaged": [{"name": source.name(index), "reason": reason} for index, reason in written.damaged],
        "versions": all_versions(),
        "checksums": {
            "algorithm": "crc32",
            "pair": written.pair(source),
            "tables": f"{tables_crc(beton):08x}",
            "samples": "".join(f"{crc:08x}" for crc in written.crcs),
        },
    }
    if len(written.indices) <= _MAX_LISTED_FILES:
        sidecar["files"] = [source.name(index) for index in written.indices]
    return sidecar


def all_versions() -> dict[str, str]:
    """Versions of all that decides the bytes of a file."""
    return {
        **versions(),
        "pillow": PIL.__version__,
        "simplejpeg": simplejpeg.__version__,
        "opencv": cv2.__version__,
    }
