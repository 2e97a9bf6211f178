"""Decoding on the device: a batch of JPEGs that threads have cut, decoded, cropped, resized and mirrored there.

On a GPU torchvision's decoder, nvJPEG, works; on a CPU its TurboJPEG does. Resizing is Pillow's and torchvision's
antialiased filter, as two matrix products per sample: what is a loop over few pixels on a CPU is a product with a
banded matrix here, and costs a GPU less than the loop's launch.
"""

import warnings
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from torchvision.io import ImageReadMode, decode_jpeg, encode_jpeg

from ffcv_train.augment.draws import to_device
from ffcv_train.data.kernels.pieces import BOX_WIDTH, COLUMNS, END, FLIP, RAW, ROWS, TOP
from ffcv_train.system.errors import UserError

_PIECE_BYTES = 128 << 20
"""Of pixels in float32 that are resized at once"""
_MULTIPLE = 16


class DamagedSampleError(Exception):
    """The decoder refused a sample."""

    def __init__(self, position: int, jpeg: Tensor) -> None:
        super().__init__(position)
        self.position = position
        """in the batch"""
        self.jpeg = jpeg.numpy().tobytes()


def check_decoder(device: torch.device) -> None:
    """Raise `UserError` where `device` decodes no JPEG."""
    # Its successor, TorchCodec, would be one more library; this one is there.
    warnings.filterwarnings("ignore", message="The image decoding and encoding capabilities of TorchVision")
    sample = encode_jpeg(torch.zeros(3, 16, 16, dtype=torch.uint8))
    try:
        _decoded([sample], device)
    except RuntimeError as error:
        reason = str(error).splitlines()[0]
        raise UserError(
            f"data.decode=device needs nvJPEG, and this build of torchvision decodes nothing on {device} ({reason}); "
            "use --data.decode=host"
        ) from None


def decode_batch(
    buffers: Sequence[np.ndarray], pieces: Sequence[np.ndarray], side: int, device: torch.device, cubic: bool
) -> Tensor:
    """uint8 [B, 3, side, side], channels last, on `device`, of what `cut_samples` has left in tasks' buffers.

    `buffers` are uint8, `pieces` float64 [n, FIELDS], one of each per task. Raises `DamagedSampleError` with the
    position in the batch.
    """
    table = np.concatenate(list(pieces))
    sources = [part for buffer, own in zip(buffers, pieces, strict=True) for part in _parts(buffer, own)]
    images: list[Tensor] = [torch.empty(0)] * len(table)
    coded = np.flatnonzero(table[:, RAW] == 0)
    for place, image in zip(coded, _decode([sources[place] for place in coded], coded, device), strict=True):
        if tuple(image.shape) != (3, table[place, ROWS], table[place, COLUMNS]):
            raise DamagedSampleError(int(place), sources[place])
        images[place] = image
    for place in np.flatnonzero(table[:, RAW]):
        pixels = to_device(sources[place].numpy(), device)
        images[place] = pixels.view(int(table[place, ROWS]), int(table[place, COLUMNS]), 3).permute(2, 0, 1)
    result = torch.empty(len(table), 3, side, side, dtype=torch.uint8, device=device, memory_format=torch.channels_last)
    boxes = to_device(table[:, TOP : BOX_WIDTH + 1].astype(np.float32), device)
    flips = to_device(table[:, FLIP] != 0, device)
    # Wide ones together, so that few pixels are padding.
    order = np.argsort(table[:, COLUMNS], kind="stable")
    rows = to_device(order, device)
    for start, end in _spans(table[order]):
        own = rows[start:end]
        sheet = pack([images[place] for place in order[start:end]])
        result.index_copy_(0, own, resize(sheet, boxes.index_select(0, own), side, flips.index_select(0, own), cubic))
    return result


def pack(images: Sequence[Tensor]) -> Tensor:
    """uint8 [B, H, 3, W] of images uint8 [3, h, w]: rows of three planes, zeros to the right and below."""
    height, width = (-(-max(image.shape[axis] for image in images) // _MULTIPLE) * _MULTIPLE for axis in (1, 2))
    sheet = images[0].new_zeros(len(images), height, 3, width)
    for place, image in zip(sheet, images, strict=True):
        place[: image.shape[1], :, : image.shape[2]] = image.transpose(0, 1)
    return sheet


def resize(sheet: Tensor, boxes: Tensor, side: int, flips: Tensor, cubic: bool = False) -> Tensor:
    """uint8 [B, 3, side, side] of crops of `sheet` (see `pack`).

    `boxes` (float32 [B, 8]) are the top, left, height and width of the pixels that may be read, and the crop's within
    them. As torchvision's `resized_crop(antialias=True)` in floating point, rounded once; mirrored where `flips`
    (bool [B]) says so. The products are float32, or TF32 where PyTorch may take it.
    """
    batch, height, _, width = sheet.shape
    top, left, tall, wide, y, x, box_height, box_width = boxes.unbind(1)
    across = filter_matrix(left, wide, x, box_width, width, side, cubic)
    across = torch.where(flips.view(-1, 1, 1), across.flip(1), across)
    down = filter_matrix(top, tall, y, box_height, height, side, cubic)
    rows = torch.bmm(sheet.to(torch.float32).view(batch, height * 3, width), across.transpose(1, 2))
    pixels = torch.bmm(down, rows.view(batch, height, 3 * side))
    return (pixels + 0.5).clamp_(0, 255).to(torch.uint8).view(batch, side, 3, side).permute(0, 2, 1, 3)


def filter_matrix(
    first: Tensor, count: Tensor, start: Tensor, length: Tensor, size: int, side: int, cubic: bool
) -> Tensor:
    """float32 [B, side, size]: row i weighs the `size` input pixels for output pixel i of a crop, along one axis.

    The crop is `length` pixels from `start` on, counted from pixel `first`; only `count` pixels from there on are read
    (all float32 [B]). Pillow's definition: a triangle, or Keys' cubic with a = −0.5, as wide as a step of the output
    and at least one pixel, normalised.
    """
    first, count, start, length = (values.view(-1, 1, 1) for values in (first, count, start, length))
    step = length / side
    centre = (torch.arange(side, device=first.device) + 0.5).view(1, -1, 1) * step + first + start
    pixel = torch.arange(size, device=first.device).view(1, 1, -1)
    x = ((pixel + 0.5 - centre) / step.clamp_min(1.0)).abs()
    if cubic:
        near, far = (1.5 * x - 2.5) * x * x + 1, ((-0.5 * x + 2.5) * x - 4) * x + 2
        weights = torch.where(x < 1, near, torch.where(x < 2, far, 0.0))
    else:
        weights = (1 - x).clamp_min(0.0)
    weights = torch.where((pixel >= first) & (pixel < first + count), weights, 0.0)
    return weights / weights.sum(dim=2, keepdim=True)


def _parts(buffer: np.ndarray, pieces: np.ndarray) -> list[Tensor]:
    """Each piece's bytes, as tensors over the buffer."""
    whole = torch.from_numpy(buffer)
    ends = pieces[:, END].astype(np.int64).tolist()
    return [whole[start:end] for start, end in zip([0, *ends[:-1]], ends, strict=True)]


def _spans(table: np.ndarray) -> list[tuple[int, int]]:
    """Consecutive samples, by increasing width, whose padded pixels fit `_PIECE_BYTES` as float32."""
    spans, start, tallest = [], 0, 0
    for place, (rows, columns) in enumerate(table[:, [ROWS, COLUMNS]].astype(np.int64).tolist()):
        tallest = max(tallest, rows)
        if place > start and (place + 1 - start) * tallest * columns * 12 > _PIECE_BYTES:
            spans.append((start, place))
            start, tallest = place, rows
    return [*spans, (start, len(table))]


def _decode(sources: list[Tensor], places: np.ndarray, device: torch.device) -> list[Tensor]:
    if not sources:
        return []
    try:
        return _decoded(sources, device)
    except torch.cuda.OutOfMemoryError:
        raise
    except RuntimeError:
        # It does not say which.
        for source, place in zip(sources, places.tolist(), strict=True):
            try:
                _decoded([source], device)
            except RuntimeError:
                raise DamagedSampleError(place, source) from None
        raise


def _decoded(sources: list[Tensor], device: torch.device) -> list[Tensor]:
    """uint8 [3, h, w] of each JPEG (uint8 [N], on the CPU)."""
    return decode_jpeg(sources, ImageReadMode.RGB, device=device)
