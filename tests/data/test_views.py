"""Several views of each sample from one decode: the draws, the pixels, and what they must not depend on."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms.v2 import functional

from ffcv_train import CenterCrop, Loader, RandomResizedCrop, ViewBatch
from ffcv_train.data.convert.write import WriteConfig
from ffcv_train.data.format.beton import open_beton
from ffcv_train.data.kernels.crops import crop_parameters, draw_boxes
from ffcv_train.data.kernels.level import level_of
from ffcv_train.data.loading import beton_loader
from ffcv_train.data.write import write_dataset
from tests.support.photographs import Samples, crops_of_photographs, decode_rgb

SIDE = 64
CROP = RandomResizedCrop()
LARGE, SMALL = RandomResizedCrop((0.3, 1.0)), RandomResizedCrop((0.05, 0.14), interpolation="bicubic")
LIST = [(SIDE, LARGE), (SIDE, LARGE), (24, SMALL), (24, SMALL), (40, dataclasses.replace(SMALL, flip=1.0))]
# Pale, so that no colour lies outside of the RGB cube, where references clamp before they resize.
IMAGES = [image // 2 + 64 for image in crops_of_photographs(40, 90, 400, seed=3)]


@pytest.fixture(scope="module")
def betons(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The same photographs as tiled JPEGs and, the small ones, pixels; with a level; as JPEGs without tiles."""
    folder = tmp_path_factory.mktemp("views")
    kinds: dict[str, dict[str, Any]] = {
        "tiled": {"write_mode": "smart", "smart_threshold": 100_000},
        "levels": {"write_mode": "jpg", "level": 0.65},
        "whole": {"write_mode": "jpg", "tiles": 0},
    }
    paths = {kind: folder / f"{kind}.beton" for kind in kinds}
    for kind, path in paths.items():
        config = WriteConfig(write_path=str(path), num_workers=1, **kinds[kind])
        write_dataset(config, Samples(IMAGES, [index % 4 for index in range(len(IMAGES))]))
    assert set(open_beton(paths["tiled"]).modes.tolist()) == {0, 1}
    return paths


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The photographs as PNG files, of one class, so that they stand in the same order."""
    root = tmp_path_factory.mktemp("files")
    for index, image in enumerate(IMAGES):
        path = root / "photographs" / f"{index:03d}.png"
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(image).save(path)
    return root


def epoch(data: Path, number: int = 1, first: int = 0, **arguments: Any) -> list[Any]:
    defaults: dict[str, Any] = {"crop": CROP, "resolution": SIDE, "device": "cpu", "num_workers": 2, "seed": 7}
    if isinstance(arguments.get("views"), list):
        del defaults["crop"], defaults["resolution"]
    with Loader(data, **{"batch_size": 8, **defaults, **arguments}) as loader:
        loader.set_epoch(number, first)
        return [copied(batch) for batch in loader]


def copied(batch: Any) -> Any:
    images = batch.images
    return batch._replace(images=[i.clone() for i in images] if isinstance(images, list) else images.clone())


def pixels_of(batches: Sequence[Any]) -> dict[int, list[torch.Tensor]]:
    """The views of each sample."""
    found = {}
    for batch in batches:
        views = batch.images if isinstance(batch.images, list) else batch.images.unbind(1)
        for place, key in enumerate(batch.keys.tolist()):
            found[key] = [view[place] for view in views]
    return found


def same(one: dict[int, list[torch.Tensor]], other: dict[int, list[torch.Tensor]]) -> bool:
    return all(
        torch.equal(a, b) for key in one.keys() & other.keys() for a, b in zip(one[key], other[key], strict=True)
    )


@pytest.mark.parametrize("kind", ["tiled", "levels", "whole", "folder"])
def test_the_first_view_is_the_image_of_a_loader_without(kind: str, betons: dict[str, Path], folder: Path) -> None:
    data = betons.get(kind, folder)
    for crop in (CROP, RandomResizedCrop((0.3, 1.0), interpolation="bicubic", dct_scaling=True)):
        alone = epoch(data, crop=crop)
        for views in (1, 3):
            several = epoch(data, crop=crop, views=views)
            assert len(alone) == len(several) == 5
            for one, more in zip(alone, several, strict=True):
                assert isinstance(more, ViewBatch)
                assert more.images.shape == (8, views, 3, SIDE, SIDE) and more.images.dtype == torch.uint8
                assert torch.equal(more.images[:, 0], one.images)
                assert torch.equal(more.labels, one.labels) and torch.equal(more.indices, one.indices)
                assert np.array_equal(more.keys, one.keys)
                assert more.boxes is None and more.flips is None


def test_layout(betons: dict[str, Path]) -> None:
    with Loader(betons["tiled"], 8, crop=CROP, resolution=SIDE, device="cpu", views=2) as loader:
        images = next(iter(loader)).images
    assert all(view.is_contiguous(memory_format=torch.channels_last) for view in images.unbind(1))
    both = images.transpose(0, 1).flatten(0, 1)
    assert both.data_ptr() == images.data_ptr() and torch.equal(both, torch.cat([images[:, 0], images[:, 1]]))
    with Loader(betons["tiled"], 8, views=LIST, device="cpu") as loader:
        listed = next(iter(loader)).images
    assert [tuple(view.shape) for view in listed] == [(8, 3, side, side) for side, _ in LIST]
    assert all(view.is_contiguous(memory_format=torch.channels_last) for view in listed)


@pytest.mark.parametrize("kind", ["tiled", "whole", "folder"])
@pytest.mark.parametrize("views", [3, LIST], ids=["number", "list"])
def test_views_are_their_boxes_of_the_whole_image(kind: str, views: Any, betons: dict[str, Path], folder: Path) -> None:
    """Against torchvision on the whole image, decoded by OpenCV."""
    data = betons.get(kind, folder)
    beton = open_beton(data) if kind != "folder" else None
    crops = [(SIDE, CROP)] * views if isinstance(views, int) else views
    seen, flipped = 0, 0
    for batch in epoch(data, views=views, boxes=True):
        assert batch.boxes.shape == (8, len(crops), 4) and batch.boxes.dtype == torch.int64
        assert batch.flips.shape == (8, len(crops)) and batch.flips.dtype == torch.bool
        pixels = pixels_of([batch])
        for place, index in enumerate(batch.indices.tolist()):
            image = IMAGES[index] if beton is None or beton.modes[index] else decode_rgb(stored(beton, index))
            tensor = torch.from_numpy(np.ascontiguousarray(image)).permute(2, 0, 1)
            for view, (side, crop) in enumerate(crops):
                top, left, height, width = batch.boxes[place, view].tolist()
                assert 0 <= top <= top + height <= image.shape[0] and 0 <= left <= left + width <= image.shape[1]
                mode = functional.InterpolationMode(crop.interpolation)
                reference = functional.resized_crop(
                    tensor.float(), top, left, height, width, [side, side], mode, antialias=True
                ).clamp(0, 255)
                reference = reference.flip(-1) if batch.flips[place, view] else reference
                apart = (pixels[int(batch.keys[place])][view].float() - reference).abs()
                assert apart.max() <= 2 and apart.mean() < 0.6
                seen, flipped = seen + 1, flipped + int(batch.flips[place, view])
    assert seen == 40 * len(crops) and 0.3 < flipped / seen < 0.7


def stored(beton: Any, index: int) -> np.ndarray:
    with Path(beton.path).open("rb") as file:
        file.seek(int(beton.ptrs[index]))
        return np.frombuffer(file.read(int(beton.sizes[index])), np.uint8)


@pytest.mark.parametrize("kind", ["tiled", "levels", "whole"])
def test_one_decode_gives_what_decodes_of_their_own_give(kind: str, betons: dict[str, Path]) -> None:
    """Each view bit-equal to that of a list of which the others are so small that they enlarge no region."""
    reduced = RandomResizedCrop((0.2, 1.0), dct_scaling=True)
    views = [*LIST, (16, reduced), (24, reduced)]
    together = pixels_of(epoch(betons[kind], views=views))
    nothing = (1, RandomResizedCrop((1e-9, 1e-9), (1.0, 1.0)))
    for place in range(len(views)):
        others = [views[place] if view == place else nothing for view in range(place + 1)]
        alone = pixels_of(epoch(betons[kind], views=others))
        assert all(torch.equal(together[key][place], alone[key][place]) for key in together)


def test_each_view_takes_the_level_that_serves_it(betons: dict[str, Path]) -> None:
    """With a level, a view is what a loader of that view alone cuts from it, whatever the others need."""
    path, (large, small) = betons["levels"], (160, 32)
    beton = open_beton(path)
    crop = RandomResizedCrop((0.3, 0.9))
    batches = epoch(path, views=[(small, crop), (large, crop)], boxes=True)
    mixed = 0
    for batch in batches:
        for place, index in enumerate(batch.indices.tolist()):
            rows = round(0.65 * int(beton.heights[index])) / int(beton.heights[index])
            shortest = batch.boxes[place, :, 2:].amin(dim=1) * rows
            mixed += int(shortest[0] > small and shortest[1] < large)
    assert mixed > 5
    for side, view in ((small, 0), (large, 1)):
        plain = pixels_of(epoch(path, views=[(side, crop)] * 2))
        found = pixels_of(batches)
        assert all(torch.equal(found[key][view], plain[key][view]) for key in found)
    assert len(level_of(stored(beton, 0)))


def test_draws_are_told_and_each_view_has_its_own(betons: dict[str, Path]) -> None:
    beton = open_beton(betons["tiled"])
    parameters = np.stack([crop_parameters(crop) for _, crop in LIST])
    for batch in epoch(betons["tiled"], 4, views=LIST, boxes=True):
        heights, widths = beton.heights[batch.indices.numpy()], beton.widths[batch.indices.numpy()]
        drawn = draw_boxes(heights, widths, batch.keys, 7, 4, parameters)
        assert np.array_equal(drawn[..., :4], batch.boxes.numpy())
        assert np.array_equal(drawn[..., 4] != 0, batch.flips.numpy())
        assert batch.flips[:, 4].all()
    keys, same_crop = np.arange(5000), np.tile(crop_parameters(CROP), (3, 1))
    drawn = draw_boxes(np.full(5000, 300), np.full(5000, 400), keys, 0, 0, same_crop)
    # A correlation of 5,000 independent pairs is above 0.07 once in a million.
    for column in range(5):
        table = np.corrcoef(drawn[..., column].T)
        assert np.abs(table - np.eye(3)).max() < 0.07


@pytest.mark.parametrize(("kind", "views"), [("tiled", 2), ("tiled", LIST), ("folder", LIST)])
def test_nothing_depends_on_workers_batches_ranks_or_where_one_begins(
    kind: str, views: Any, betons: dict[str, Path], folder: Path
) -> None:
    data = betons.get(kind, folder)
    whole = epoch(data, views=views, boxes=True)
    reference = pixels_of(whole)
    assert len(reference) == 40
    resumed = epoch(data, first=3, views=views, boxes=True, num_workers=1, batches_ahead=1)
    assert [batch.keys.tolist() for batch in resumed] == [batch.keys.tolist() for batch in whole[3:]]
    assert all(
        torch.equal(a.boxes, b.boxes) and torch.equal(a.flips, b.flips) for a, b in zip(whole[3:], resumed, strict=True)
    )
    assert same(reference, pixels_of(resumed))
    shares = [epoch(data, views=views, batch_size=4, rank=rank, world_size=2) for rank in (0, 1)]
    for global_batch, *own in zip(whole, *shares, strict=True):
        assert global_batch.keys.tolist() == [key for share in own for key in share.keys.tolist()]
    assert all(same(reference, pixels_of(share)) for share in shares)
    assert same(reference, pixels_of(epoch(data, views=views, batch_size=5)))
    if kind == "tiled":
        assert same(reference, pixels_of(epoch(data, views=views, order="quasi_random")))
    in_order = epoch(data, views=views, batch_size=7, order="sequential")
    assert [len(batch.labels) for batch in in_order] == [7, 7, 7, 7, 7, 5]
    assert same(reference, pixels_of(in_order))
    assert not same(reference, pixels_of(epoch(data, 2, views=views)))


@pytest.mark.parametrize("kind", ["tiled", "levels"])
def test_repetitions_of_a_sample_are_decoded_once_and_stay_what_they_were(
    kind: str, betons: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    for views in (None, 2):
        options: dict[str, Any] = {"repeats": 3, "batch_size": 12, **({} if views is None else {"views": views})}
        batches = epoch(betons[kind], **options)
        with monkeypatch.context() as patch:
            patch.setattr(beton_loader, "_CHUNK", 1)  # a task each
            apart = epoch(betons[kind], **options)
        assert len(batches) == 3
        for one, other in zip(batches, apart, strict=True):
            assert np.array_equal(one.keys, other.keys) and len(np.unique(one.keys % 40)) == 4
            assert torch.equal(one.images, other.images)


def test_the_resolution_of_a_number_of_views_changes(betons: dict[str, Path]) -> None:
    with Loader(betons["tiled"], 8, crop=CROP, resolution=24, device="cpu", seed=7, views=2, boxes=True) as loader:
        for side in (24, SIDE, 32):
            loader.set_resolution(side)
            loader.set_epoch(1)
            fresh = epoch(betons["tiled"], views=2, resolution=side)
            assert same(pixels_of([copied(batch) for batch in loader]), pixels_of(fresh))
    said = "resolution=32, but the views in the list have resolutions of their own"
    with Loader(betons["tiled"], 8, views=LIST, device="cpu") as loader, pytest.raises(ValueError, match=said):
        loader.set_resolution(32)


@pytest.mark.parametrize(
    ("arguments", "error", "said"),
    [
        ({"views": 0}, ValueError, "views must be at least 1"),
        ({"views": True}, TypeError, "views must be a whole number"),
        ({"views": 2.0}, TypeError, "views must be a number, or a list"),
        ({"views": "2"}, TypeError, "views must be a number, or a list"),
        ({"views": []}, TypeError, "views must be a number, or a list"),
        ({"views": [(24, CenterCrop())]}, TypeError, r"views\[0\] must be \(resolution, RandomResizedCrop\)"),
        ({"views": [(24, CROP), 24]}, TypeError, r"views\[1\] must be"),
        ({"views": [(24, CROP), (0, CROP)]}, ValueError, r"views\[1\]\[0\] must be at least 1"),
        ({"views": LIST, "crop": CROP}, ValueError, "leave crop out"),
        ({"views": LIST, "resolution": 24}, ValueError, "leave resolution out"),
        ({"views": 2, "crop": CenterCrop(), "resolution": 24}, ValueError, "views=2 are random crops"),
        ({"views": 2, "resolution": 24}, TypeError, "crop must be a RandomResizedCrop"),
        ({"views": 2, "crop": CROP}, TypeError, "resolution must be a whole number"),
        ({"boxes": True, "crop": CROP, "resolution": 24}, ValueError, "boxes=True .* views=1"),
    ],
)
def test_wrong_arguments_are_named(
    betons: dict[str, Path], arguments: dict[str, Any], error: type[Exception], said: str
) -> None:
    with pytest.raises(error, match=said):
        Loader(betons["tiled"], 8, device="cpu", **arguments)


def test_the_device_decodes_one_view(betons: dict[str, Path]) -> None:
    with pytest.raises(ValueError, match="decode='device' makes one view of each sample; leave decode at 'host'"):
        beton_loader.BetonLoader(
            open_beton(betons["tiled"]), 8, crop=CROP, resolution=24, device=torch.device("cpu"), order="random",
            num_workers=1, views=2, decode="device",
        )  # fmt: skip
