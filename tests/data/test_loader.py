import os
import shutil
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from ffcv.fields.rgb_image import get_center_crop
from PIL import Image
from torchvision import transforms
from torchvision.transforms.v2 import functional

from benchmarks.loading.tiny_set import write_tiny_set
from ffcv_train.data.format.beton import open_beton
from ffcv_train.data.kernels.crops import CenterCrop, RandomResizedCrop
from ffcv_train.data.kernels.decode import decode_samples
from ffcv_train.data.loading import waiting
from ffcv_train.data.loading.batch import Batch
from ffcv_train.data.loading.beton_loader import BetonLoader
from ffcv_train.data.open import check_fits
from ffcv_train.system.errors import UserError
from tests.support.limits import no_hang
from tests.support.photographs import Samples, crops_of_photographs, write_stock_beton

CPU = torch.device("cpu")


def make(path: Path, **options: object) -> BetonLoader:
    defaults = {
        "batch_size": 16,
        "crop": RandomResizedCrop(),
        "resolution": 48,
        "device": CPU,
        "order": "random",
        "num_workers": 2,
    }
    return BetonLoader(open_beton(path), **{**defaults, **options})  # type: ignore[arg-type]


def epoch(path: Path, number: int = 0, first: int = 0, **options: object) -> list[Batch]:
    loader = make(path, **options)
    loader.set_epoch(number, first)
    batches = list(loader)
    loader.close()
    return batches


def same(a: list[Batch], b: list[Batch]) -> bool:
    return len(a) == len(b) and all(
        torch.equal(x.images, y.images) and torch.equal(x.labels, y.labels) and torch.equal(x.indices, y.indices)
        for x, y in zip(a, b, strict=True)
    )


def images_by_sample(batches: list[Batch]) -> dict[int, torch.Tensor]:
    return {int(i): image for b in batches for i, image in zip(b.indices, b.images, strict=True)}


def test_batches_are_channels_last_uint8_with_the_files_labels(jpg_beton: Path) -> None:
    batches = epoch(jpg_beton)
    labels = open_beton(jpg_beton).labels
    assert len(batches) == 4
    for batch in batches:
        assert batch.images.shape == (16, 3, 48, 48) and batch.images.dtype == torch.uint8
        assert batch.images.is_contiguous(memory_format=torch.channels_last)
        assert batch.labels.tolist() == labels[batch.indices.numpy()].tolist()


SHAPES = [(60, 130), (131, 57), (97, 97), (33, 90), (48, 48), (20, 31), (1, 9)]


@pytest.fixture(scope="module")
def shapes_beton(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[np.ndarray]]:
    """Raw samples of many shapes, larger and smaller than what they are resized to."""
    photographs = [crop for side in (40, 140) for crop in crops_of_photographs(12, side // 2, side, seed=side)]
    source = crops_of_photographs(1, 200, 200)[0]
    photographs += [np.ascontiguousarray(source[:height, :width]) for height, width in SHAPES]
    samples = Samples(photographs, [0] * len(photographs))
    return write_stock_beton(tmp_path_factory.mktemp("shapes") / "shapes.beton", samples, "raw"), photographs


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize(
    ("side", "ratio", "resized"), [(48, 0.875, 54), (64, 0.9, 71), (33, 1.0, 33), (24, 24 / 29, 29)]
)
def test_centre_crops_equal_torchvisions(
    shapes_beton: tuple[Path, list[np.ndarray]], side: int, ratio: float, resized: int, interpolation: str
) -> None:
    path, photographs = shapes_beton
    crop = CenterCrop(ratio, interpolation)
    found = images_by_sample(epoch(path, crop=crop, order="sequential", resolution=side))
    mode = transforms.InterpolationMode(interpolation)
    steps = transforms.Compose([transforms.Resize(resized, mode), transforms.CenterCrop(side)])
    assert sorted(found) == list(range(len(photographs)))
    differences = []
    for index, image in enumerate(photographs):
        reference = np.asarray(steps(Image.fromarray(image)), int)
        differences.append(np.abs(found[index].permute(1, 2, 0).numpy() - reference).mean())
    # Pillow rounds, and for bicubic clips, between its two passes; we do once, at the end.
    assert np.mean(differences) <= 0.5 and max(differences) <= 1.5


def test_ffcv_s_centre_crops_are_at_hand(shapes_beton: tuple[Path, list[np.ndarray]]) -> None:
    path, photographs = shapes_beton
    for ratio in (0.875, 0.3, 224 / 250):
        crop = CenterCrop(ratio, rule="ffcv")
        found = images_by_sample(epoch(path, crop=crop, order="sequential"))
        for index, image in enumerate(photographs):
            top, left, height, width = get_center_crop(*image.shape[:2], None, ratio)
            if height == 0:
                continue  # no image in FFCV
            tensor = torch.from_numpy(image).permute(2, 0, 1)
            reference = functional.resized_crop(tensor, top, left, height, width, [48, 48], antialias=True)
            assert (found[index].int() - reference.int()).abs().max() <= 1


def test_jpeg_samples_look_like_their_originals(jpg_beton: Path, raw_beton: Path) -> None:
    jpg, raw = images_by_sample(epoch(jpg_beton)), images_by_sample(epoch(raw_beton))
    assert jpg.keys() == raw.keys()
    differences = [float((jpg[i].float() - raw[i].float()).abs().mean()) for i in jpg]
    assert max(differences) < 6  # JPEG at quality 95, same crop and flip


def test_draws_do_not_depend_on_workers_batches_ranks_or_order(jpg_beton: Path) -> None:
    reference = epoch(jpg_beton, 3)
    assert same(reference, epoch(jpg_beton, 3, num_workers=1, batches_ahead=1))
    assert not same(reference, epoch(jpg_beton, 4))
    assert not same(reference, epoch(jpg_beton, 3, seed=1))
    images = images_by_sample(reference)
    ranks = [epoch(jpg_beton, 3, batch_size=8, rank=rank, world_size=2) for rank in range(2)]
    for whole, *shares in zip(reference, *ranks, strict=True):
        assert torch.equal(whole.images, torch.cat([share.images for share in shares]))
    for options in ({"batch_size": 5}, {"order": "quasi_random"}, {"order": "quasi_random", "num_workers": 1}):
        other = images_by_sample(epoch(jpg_beton, 3, **options))
        assert len(other) >= 64
        assert all(torch.equal(other[i], images[i]) for i in other.keys() & images.keys())


@pytest.mark.parametrize("order", ["random", "quasi_random"])
def test_starting_within_an_epoch_yields_its_rest(jpg_beton: Path, order: str) -> None:
    assert same(epoch(jpg_beton, 1, order=order)[2:], epoch(jpg_beton, 1, first=2, order=order))


def test_quasi_random_ranks_share_no_sample(jpg_beton: Path) -> None:
    ranks = [epoch(jpg_beton, batch_size=8, rank=r, world_size=3, order="quasi_random") for r in range(3)]
    seen = [i for batches in ranks for i in images_by_sample(batches)]
    assert len(seen) == len(set(seen)) == 48


@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_evaluation_yields_every_sample_once(jpg_beton: Path, world_size: int) -> None:
    ranks = [epoch(jpg_beton, order="sequential", rank=r, world_size=world_size) for r in range(world_size)]
    assert sorted(i for batches in ranks for b in batches for i in b.indices.tolist()) == list(range(67))


def test_resolution_changes_at_once_and_without_compiling(jpg_beton: Path) -> None:
    loader = make(jpg_beton)
    list(loader)
    signatures = len(decode_samples.signatures)
    for side in (32, 96, 40, 128):
        loader.set_resolution(side)
        first = images_by_sample(list(loader))
        assert {image.shape for image in first.values()} == {(3, side, side)}
        fresh = images_by_sample(epoch(jpg_beton, resolution=side))
        assert all(torch.equal(first[i], fresh[i]) for i in first)
    assert len(decode_samples.signatures) == signatures
    loader.close()


def test_batches_stay_what_they_were_while_the_loader_goes_on(jpg_beton: Path) -> None:
    loader = make(jpg_beton, batches_ahead=1)
    kept = []
    for batch in loader:
        kept.append((batch, batch.images.clone()))
        time.sleep(0.02)
    loader.close()
    assert all(torch.equal(batch.images, copy) for batch, copy in kept)


def test_buffers_of_dropped_batches_are_used_again(jpg_beton: Path) -> None:
    loader = make(jpg_beton, batches_ahead=2)
    kept, seen = [], set()
    for number in range(8):
        loader.set_epoch(number)
        for position, batch in enumerate(loader):
            seen.add(batch.images.data_ptr())
            if number == 3 and position < 2:
                part = batch.images[3:, :1]
                kept.append((part, part.clone()))
    # Two ahead, two staged, the consumer's last one, and the two of which it keeps a part.
    assert len(seen) <= 7
    assert all(torch.equal(part, copy) for part, copy in kept)
    loader.close()


@pytest.mark.parametrize("order", ["random", "quasi_random"])
def test_a_damaged_image_raises_with_its_name_and_the_loader_can_go_on(
    jpg_beton: Path, tmp_path: Path, order: str
) -> None:
    path = tmp_path / "damaged.beton"
    shutil.copy(jpg_beton, path)
    shutil.copy(f"{jpg_beton}.json", f"{path}.json")
    beton = open_beton(path)
    with path.open("r+b") as file:
        file.seek(int(beton.ptrs[29] + beton.sizes[29] // 2))
        file.write(b"\xff\xd9" * 20)
    loader = make(path, order=order, batch_size=67)
    for _ in range(2):
        with no_hang(), pytest.raises(UserError, match=r"sample 29 \(photo29.jpg\).*damaged JPEG"):
            list(loader)
    loader.close()


def test_images_beyond_4_gib_are_read(tmp_path: Path) -> None:
    path = tmp_path / "large.beton"
    write_tiny_set(path, 600, 7, image_bytes=1 << 23)  # holes, which take no disk
    beton = open_beton(path)
    with path.open("r+b") as file:
        for index in (40, 599):
            file.seek(int(beton.ptrs[index]))
            file.write(bytes([index % 256, 1, 2]))
    images = images_by_sample(epoch(path, batch_size=10, resolution=1))
    assert len(images) == 600 and int(beton.ptrs[599]) > 4 << 30
    for index, image in images.items():
        assert image.flatten().tolist() == ([index % 256, 1, 2] if index in (40, 599) else [0, 0, 0])


def test_a_jpeg_of_another_size_than_its_row_is_refused(jpg_beton: Path, tmp_path: Path) -> None:
    path = tmp_path / "swapped.beton"
    content = bytearray(jpg_beton.read_bytes())
    beton = open_beton(jpg_beton)
    start, size = int(beton.ptrs[5]), int(beton.sizes[5])
    frame = content.index(b"\xff\xc0", start, start + size)
    content[frame + 5 : frame + 7] = (int(beton.heights[5]) - 1).to_bytes(2, "big")
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"sample 5 .*not a JPEG of the height and width"):
        epoch(path, batch_size=67)


def test_leaving_early_frees_the_loader_and_closing_ends_its_threads(jpg_beton: Path) -> None:
    before = set(threading.enumerate())
    for order in ("random", "quasi_random", "sequential"):
        loader = make(jpg_beton, order=order)
        for _ in range(3):
            iterator = loader.epoch()
            next(iterator)
            with pytest.raises(RuntimeError, match="iterated already"):
                next(loader.epoch())
            iterator.close()
        assert len(list(loader)) >= 4
        loader.close()
    assert not set(threading.enumerate()) - before


def test_fifty_epochs_leave_no_memory_behind(jpg_beton: Path) -> None:
    import psutil

    loader = make(jpg_beton, order="quasi_random")
    process = psutil.Process()
    for number in range(60):
        loader.set_epoch(number)
        for _ in loader:
            pass
        if number == 9:
            before = process.memory_info().rss
    assert process.memory_info().rss - before < 20e6
    loader.close()


def test_a_stalled_source_is_reported(jpg_beton: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(waiting, "_STALL_SECONDS", 0.1)
    loader = make(jpg_beton)
    decode, deadline = loader._decode, time.monotonic() + 120
    with pytest.warns(RuntimeWarning, match="no batch from") as said:

        def stalls(*arguments: Any) -> Any:
            while not said and time.monotonic() < deadline:
                time.sleep(0.01)
            return decode(*arguments)

        monkeypatch.setattr(loader, "_decode", stalls)
        next(loader.epoch())
    loader.close()


def test_too_few_samples_for_a_batch_are_refused(jpg_beton: Path) -> None:
    with pytest.raises(UserError, match="67 samples, fewer than one global batch of 128"):
        make(jpg_beton, batch_size=64, world_size=2)


def cut_off(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def write_into(path: Path) -> None:
    with path.open("r+b") as file:
        file.seek(-20, os.SEEK_END)
        file.write(b"other")


def put_in_its_place(path: Path) -> None:
    other = path.with_name("other")
    other.write_bytes(bytes(path.stat().st_size))
    other.replace(path)


@pytest.mark.parametrize("order", ["random", "quasi_random"])
@pytest.mark.parametrize(
    ("change", "said"),
    [
        (cut_off, r"has \d+ bytes and had \d+ while it was being read; put a new file in its place by mv"),
        (write_into, "was written to while it was being read; put a new file in its place by mv"),
        (put_in_its_place, None),
        (Path.unlink, None),
    ],
)
def test_a_file_that_changes_while_it_is_read(
    jpg_beton: Path, tmp_path: Path, order: str, change: Callable[[Path], None], said: str | None
) -> None:
    path = tmp_path / "changing.beton"
    for suffix in ("", ".json"):
        shutil.copy(f"{jpg_beton}{suffix}", f"{path}{suffix}")
    loader = make(path, order=order, num_workers=1)
    whole = images_by_sample(list(loader))
    batches = loader.epoch()
    seen = [next(batches)]
    loader._pool.submit(int).result()  # nothing is being decoded, for which it would be too late
    change(path)
    if said is None:
        seen += batches
        assert all(torch.equal(image, whole[index]) for index, image in images_by_sample(seen).items())
    else:
        with pytest.raises(UserError, match=said):
            list(batches)
            list(loader)  # the file's only page is read once an epoch
    loader.close()


def test_memory_is_checked_before_training(jpg_beton: Path) -> None:
    beton = open_beton(jpg_beton)
    check_fits(beton, beton.file_size)
    with pytest.raises(UserError, match="in_memory=0"):
        check_fits(beton, beton.file_size - 1)
