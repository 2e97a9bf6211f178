"""The loaders' copies to the device: streams, events, pinned buffers and their reuse, under four schedules."""

from pathlib import Path
from typing import Any

import cv2
import pytest

from tests.cuda.stub_run import findings
from tests.support.photographs import Samples


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory, jpg_beton: Path, photo_samples: Samples) -> Any:
    folder = tmp_path_factory.mktemp("folder")
    for number, (image, label) in enumerate(zip(photo_samples.images, photo_samples.labels, strict=True)):
        place = folder / f"class{label}"
        place.mkdir(exist_ok=True)
        cv2.imwrite(str(place / f"{number:03d}.jpg"), image)
    return findings(tmp_path_factory, "loaders", {"beton": str(jpg_beton), "folder": str(folder)})


@pytest.mark.parametrize("order", ["early", "late", "random", "overtaking"])
@pytest.mark.parametrize("loader", ["beton", "pages", "device", "folder"])
def test_batches_are_the_cpus_whenever_the_device_works(found: Any, loader: str, order: str) -> None:
    assert found[loader]["batches"] == 24
    assert found[loader]["as it is"][order] == 0


@pytest.mark.parametrize("fault", ["record_stream", "wait_event", "event of the slot"])
@pytest.mark.parametrize("loader", ["beton", "pages"])
def test_what_guards_a_buffer_is_needed(found: Any, loader: str, fault: str) -> None:
    assert found[loader]["planted"][fault] > 0


@pytest.mark.parametrize("fault", ["record_stream", "wait_event"])
@pytest.mark.parametrize("loader", ["folder", "device"])
def test_other_batches_too_are_made_beside_the_step(found: Any, loader: str, fault: str) -> None:
    # On the stream of the step neither is needed, and nothing overlaps.
    assert found[loader]["planted"][fault] > 0


@pytest.mark.parametrize("loader", ["beton", "pages", "folder"])
def test_every_copy_is_of_pinned_memory(found: Any, loader: str) -> None:
    assert found[loader]["pageable"] == 0
    assert found[loader]["copies"] == 3 * found[loader]["batches"]  # images, labels, indices
