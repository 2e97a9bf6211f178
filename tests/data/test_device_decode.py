"""data.decode=device, on a CPU: the same lines with torchvision's CPU decoder, against the host's path."""

import dataclasses
import io
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms.v2 import functional

from ffcv_train.config.read import load_config
from ffcv_train.config.schema import RunConfig
from ffcv_train.data.convert.write import WriteConfig
from ffcv_train.data.format.beton import open_beton
from ffcv_train.data.kernels.crops import CenterCrop, RandomResizedCrop
from ffcv_train.data.kernels.jpeg import ENTROPY, HEADER_FIELDS, parse_header, scans_are_whole
from ffcv_train.data.loading import device_decode
from ffcv_train.data.loading.batch import Batch
from ffcv_train.data.loading.beton_loader import BetonLoader
from ffcv_train.data.loading.device_decode import filter_matrix, pack, resize
from ffcv_train.data.write import write_dataset
from ffcv_train.system.errors import UserError
from ffcv_train.training.setup import check_config
from tests.support.photographs import Samples, crops_of_photographs

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def tiled_beton(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Photographs of 90 to 400 pixels a side: most as tiled JPEGs, the small ones as pixels."""
    images = crops_of_photographs(48, 90, 400, seed=3)
    path = tmp_path_factory.mktemp("tiled") / "photos.beton"
    config = WriteConfig(write_path=str(path), write_mode="smart", smart_threshold=100_000, num_workers=1)
    write_dataset(config, Samples(images, [i % 4 for i in range(48)]))
    assert set(open_beton(path).modes.tolist()) == {0, 1}
    return path


@pytest.fixture(scope="module")
def levels_beton(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Larger pale photographs with a smaller level behind each, from which most crops are cut."""
    images = [image // 2 + 64 for image in crops_of_photographs(32, 200, 400, seed=4)]
    path = tmp_path_factory.mktemp("levels") / "photos.beton"
    config = WriteConfig(write_path=str(path), write_mode="jpg", level=0.5, num_workers=1)
    write_dataset(config, Samples(images, [i % 4 for i in range(32)]))
    return path


def epoch(path: Path, decode: str, first: int = 0, **options: object) -> list[Batch]:
    defaults = {"crop": RandomResizedCrop(), "resolution": 64, "order": "random", "num_workers": 2, "seed": 5}
    loader = BetonLoader(open_beton(path), 16, device=CPU, decode=decode, **{**defaults, **options})  # type: ignore[arg-type]
    loader.set_epoch(2, first)
    try:
        return [Batch(batch.images.clone(), *batch[1:]) for batch in loader.epoch()]
    finally:
        loader.close()


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize("which", ["tiled_beton", "levels_beton", "jpg_beton"])
def test_batches_are_the_hosts_within_rounding(request: pytest.FixtureRequest, which: str, interpolation: str) -> None:
    path = request.getfixturevalue(which)
    crop = RandomResizedCrop(interpolation=interpolation)
    for host, device in zip(epoch(path, "host", crop=crop), epoch(path, "device", crop=crop), strict=True):
        assert device.images.shape == host.images.shape and device.images.dtype == torch.uint8
        assert device.images.is_contiguous(memory_format=torch.channels_last)
        assert torch.equal(device.labels, host.labels) and torch.equal(device.indices, host.indices)
        apart = (device.images.int() - host.images.int()).abs()
        # A crop or a flip that is another one is tens of levels apart.
        assert apart.float().mean(dim=(1, 2, 3)).max() <= 0.6
        # Strong colours are clamped before resizing there, and after it by the host.
        assert apart.max() <= 2 or which != "levels_beton"


def test_pages_give_what_the_page_cache_gives(tiled_beton: Path) -> None:
    def by_sample(order: str) -> dict[int, torch.Tensor]:
        batches = epoch(tiled_beton, "device", order=order)
        return {int(i): image for b in batches for i, image in zip(b.indices, b.images, strict=True)}

    first, second = by_sample("random"), by_sample("quasi_random")
    assert first.keys() == second.keys()
    assert all(torch.equal(first[sample], second[sample]) for sample in first)


def test_threads_and_resuming_change_nothing(tiled_beton: Path) -> None:
    whole = epoch(tiled_beton, "device", num_workers=1)
    resumed = epoch(tiled_beton, "device", first=1, num_workers=3)
    assert len(whole) == 3
    assert all(torch.equal(a.images, b.images) for a, b in zip(whole[1:], resumed, strict=True))


def test_images_in_pieces_are_the_same(tiled_beton: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = epoch(tiled_beton, "device")
    monkeypatch.setattr(device_decode, "_PIECE_BYTES", 12 * 300 * 300)
    assert all(torch.equal(a.images, b.images) for a, b in zip(whole, epoch(tiled_beton, "device"), strict=True))


@pytest.mark.parametrize("damage", ["cut short", "marker", "header"])
@pytest.mark.parametrize("decode", ["host", "device"])
def test_a_damaged_sample_is_named(tiled_beton: Path, tmp_path: Path, damage: str, decode: str) -> None:
    path = tmp_path / "damaged.beton"
    shutil.copy(tiled_beton, path)
    shutil.copy(f"{tiled_beton}.json", f"{path}.json")
    beton = open_beton(path)
    sample = int(np.flatnonzero(beton.modes == 0)[2])
    start, size = int(beton.ptrs[sample]), int(beton.sizes[sample])
    content = bytearray(path.read_bytes())
    jpeg = bytes(content[start : start + size])
    if damage == "cut short":
        content[start + size // 2 : start + size] = bytes(size - size // 2)
    elif damage == "marker":
        place = next(i for i in range(size // 2, size) if jpeg[i] == 0xFF and 0xD0 <= jpeg[i + 1] <= 0xD7)
        content[start + place + 1] = 0xD0 + (jpeg[place + 1] - 0xD0 + 3) % 8
    else:
        content[start + 2 : start + 8] = bytes(6)
    path.write_bytes(content)
    with pytest.raises(UserError, match=rf"sample {sample} .*(damaged JPEG|is not a JPEG).*--verify"):
        epoch(path, decode, crop=RandomResizedCrop(scale=(0.95, 1.0)))


@pytest.mark.parametrize("kind", [{}, {"progressive": True}, {"restart_marker_rows": 1}])
def test_scans_are_whole_where_they_are(kind: dict[str, object]) -> None:
    for image in crops_of_photographs(3, 40, 120):
        stream = io.BytesIO()
        Image.fromarray(image).save(stream, "JPEG", **kind)
        data = np.frombuffer(stream.getvalue(), np.uint8)
        header = np.zeros(HEADER_FIELDS, np.int64)
        assert parse_header(data, header)
        assert scans_are_whole(data, header)
        for length in (int(header[ENTROPY]) + 5, len(data) // 2 + 99, len(data) - 2, len(data) - 1):
            assert not scans_are_whole(data[:length].copy(), header)


def test_what_the_decoder_refuses_is_named(jpg_beton: Path, tmp_path: Path) -> None:
    path = tmp_path / "damaged.beton"
    shutil.copy(jpg_beton, path)
    shutil.copy(f"{jpg_beton}.json", f"{path}.json")
    beton = open_beton(path)
    start = int(beton.ptrs[7])
    content = bytearray(path.read_bytes())
    table = content.index(b"\xff\xc4", start)  # a Huffman table of codes that cannot be
    content[table + 5 : table + 21] = b"\xff" * 16
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"sample 7 .*is a damaged JPEG"):
        epoch(path, "device", order="random")


@pytest.mark.parametrize("side", [24, 96, 200])
@pytest.mark.parametrize("cubic", [False, True])
def test_resizing_is_torchvisions(side: int, cubic: bool) -> None:
    images = [torch.from_numpy(image).permute(2, 0, 1) for image in crops_of_photographs(6, 60, 180, seed=1)]
    generator = np.random.default_rng(0)
    boxes = []
    for image in images:
        tall, wide = generator.integers(20, [size + 1 for size in image.shape[1:]])
        limits = [image.shape[1] - tall + 1, image.shape[2] - wide + 1]
        boxes.append([*(int(generator.integers(0, limit)) for limit in limits), int(tall), int(wide)])
    flips = torch.tensor([True, False] * 3)
    within = [[*box, 0, 0, *box[2:]] for box in boxes]
    found = resize(pack(images), torch.tensor(within, dtype=torch.float32), side, flips, cubic)
    kind = functional.InterpolationMode.BICUBIC if cubic else functional.InterpolationMode.BILINEAR
    for number, (image, box) in enumerate(zip(images, boxes, strict=True)):
        wanted = functional.resized_crop(image.float(), *box, [side, side], kind, antialias=True)
        wanted = wanted.flip(2) if flips[number] else wanted
        assert (found[number].float() - wanted.clamp(0, 255)).abs().max() <= 0.51


def test_a_filter_reads_nothing_outside_of_the_crop() -> None:
    first, count, start, length = (torch.tensor([value]) for value in (3.0, 5.0, 0.25, 4.5))
    weights = filter_matrix(first, count, start, length, 16, 7, True)[0]
    assert weights[:, :3].abs().max() == weights[:, 8:].abs().max() == 0
    torch.testing.assert_close(weights.sum(dim=1), torch.ones(7))


def test_a_build_without_nvjpeg_is_refused(jpg_beton: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(*_: object, **__: object) -> None:
        raise RuntimeError("decode_jpegs_cuda: torchvision not compiled with nvJPEG support\nmore")

    monkeypatch.setattr(device_decode, "decode_jpeg", missing)
    with pytest.raises(UserError, match=r"needs nvJPEG.*not compiled with nvJPEG support\); use --data.decode=host"):
        epoch(jpg_beton, "device")


def test_evaluation_decodes_on_the_host(jpg_beton: Path) -> None:
    with pytest.raises(ValueError, match="random crops"):
        epoch(jpg_beton, "device", crop=CenterCrop(), order="sequential")


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (["--data.format=folder"], "data.decode=device is for .beton files, and data.format is folder"),
        (["--data.dct_scaling=1"], "data.dct_scaling=1 is the host's decoder's"),
    ],
)
def test_options_that_do_not_go_together_are_refused(options: list[str], told: str) -> None:
    config = load_config(RunConfig, ["--data.decode=device", *options])
    with pytest.raises(UserError, match=told):
        check_config(config)
    check_config(dataclasses.replace(config, data=dataclasses.replace(config.data, decode="host")))
