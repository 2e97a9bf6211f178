"""Images as evaluation sees them: read, and cut as `config.validation` says."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ffcv_train.config.schema import RunConfig
from ffcv_train.data.kernels.crops import crop_parameters
from ffcv_train.data.kernels.cut import Cutter
from ffcv_train.data.open import center_crop_of
from ffcv_train.data.sources.archives import Blob
from ffcv_train.data.sources.image_file import ImageError, contiguous, decode_rgb
from ffcv_train.system.distributed import Process
from ffcv_train.system.errors import UserError


def center_crops(pixels: Sequence[np.ndarray], config: RunConfig, process: Process) -> Tensor:
    """uint8 [B, 3, R, R] on the device, of uint8 `pixels` [H, W, 3] each; as `config.validation` says."""
    cut = Cutter(crop_parameters(center_crop_of(config)))
    crops = [cut(image, config.validation.resolution[0]) for image in pixels]
    images = torch.from_numpy(np.stack(crops)).permute(0, 3, 1, 2)
    return images.to(process.device, memory_format=torch.channels_last)


def read_image(file: Path) -> np.ndarray:
    """uint8 [H, W, 3], RGB. Raises `UserError` naming the file."""
    try:
        return contiguous(decode_rgb(Blob(str(file)).read()))
    except ImageError as error:
        raise UserError(f"{file} {error}; remove it or replace it") from None
    except OSError as error:
        raise UserError(f"cannot read {file}: {error.strerror or error}; check the file and its rights") from None
