"""What augmentation costs per image: our operations on whole batches beside timm's and DeiT III's on Pillow images.

    python -m benchmarks.augment --folder photos --side 224 --json augment.json

Photographs are cut to --side first, which is not counted. In each round every contender has its turn once. On a CPU
times are the process's CPU time with one thread; on a GPU ours are time of day around a synchronised device, and the
others are not measured. Normalisation is measured as what erasing and mixing are added to. Medians [quartiles].
"""

import json
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median, quantiles

import numpy as np
import torch
from PIL import Image, ImageOps
from timm.data.random_erasing import RandomErasing

from benchmarks.options import check_folders, check_least, parser_of
from ffcv_train.augment import erasing, mixing, policy
from ffcv_train.augment.pillow_policy import policy as pillow_policy
from ffcv_train.cli.main import run_main
from ffcv_train.config.schema import AugmentConfig
from ffcv_train.data.sources.walk import is_image_file
from ffcv_train.models.normalise import IMAGENET_MEAN, IMAGENET_STD, Normaliser
from ffcv_train.system.environment import describe_environment
from ffcv_train.system.errors import UserError

Work = Callable[[int], object]


def main() -> None:
    """Parse, measure, print, write."""
    parser = parser_of(__doc__)
    parser.add_argument("--folder", type=Path, required=True, help="folder with photographs, searched in depth")
    parser.add_argument("--side", type=int, default=224, help="side of the images in pixels (224)")
    parser.add_argument("--batch", type=int, default=128, help="images (128)")
    parser.add_argument("--rounds", type=int, default=9, help="rounds (9)")
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"), help="where to compute (cpu)")
    parser.add_argument("--json", type=Path, help="file for the measurements")
    options = parser.parse_args()
    check_least(options, side=8, batch=8, rounds=2)
    if options.device == "cuda" and not torch.cuda.is_available():
        raise UserError("--device=cuda, but PyTorch sees no GPU; use --device=cpu")
    check_folders(options)
    torch.set_num_threads(1)
    pillows = photographs(options.folder, options.batch, options.side)
    device = torch.device(options.device)
    contenders = ours(pillows, device)
    if options.device == "cpu":
        contenders |= theirs(pillows)
    times = measure(contenders, options.rounds, device)
    rows = {name: [1e3 * second / options.batch for second in seconds] for name, seconds in times.items()}
    for name, values in rows.items():
        low, _, high = quantiles(values, n=4)
        print(f"{name:<36} {median(values):8.4f} ms/image [{low:.4f}, {high:.4f}]")
    if options.json is not None:
        settings = {"side": options.side, "batch": options.batch, "rounds": options.rounds}
        content = {**settings, "ms_per_image": rows, **describe_environment(device)}
        options.json.write_text(json.dumps(content, indent=1) + "\n")


def photographs(folder: Path, count: int, side: int) -> list[Image.Image]:
    """`count` photographs, cut to squares of `side` pixels; the folder's are taken again where it has fewer."""
    files = sorted(path for path in folder.rglob("*") if is_image_file(path))[:count]
    if not files:
        raise UserError(f"--folder: {folder} holds no images")
    cut = [ImageOps.fit(Image.open(file).convert("RGB"), (side, side)) for file in files]
    return [cut[i % len(cut)] for i in range(count)]


def ours(pillows: list[Image.Image], device: torch.device) -> dict[str, Work]:
    """Batches on the device; a number says which epoch's draws are taken."""
    images = torch.from_numpy(np.stack([np.asarray(image) for image in pillows])).to(device).permute(0, 3, 1, 2)
    keys, side, labels = np.arange(len(pillows)), pillows[0].width, torch.arange(len(pillows), device=device)
    normalise = Normaliser(IMAGENET_MEAN, IMAGENET_STD, device, torch.bfloat16, torch.channels_last)
    normalised = normalise(images)

    def of_policy(name: str) -> Work:
        config = AugmentConfig(policy=name)
        return lambda epoch: policy.apply(images, policy.plan(config, 0, epoch, keys))

    def mixed(config: AugmentConfig) -> Work:
        def work(epoch: int) -> object:
            mixture = mixing.draw(config, side, 0, epoch, keys)
            assert mixture is not None
            return mixing.mix(normalised, mixture), mixing.mixed_targets(labels, mixture, 1000)

        return work

    def erased(epoch: int) -> object:
        return erasing.erase(normalised.clone(), erasing.boxes(0.25, side, 0, epoch, keys), 0, epoch, keys)

    return {
        "normalisation": lambda epoch: normalise(images),
        "rand_augment": of_policy("rand_augment"),
        "three_augment": of_policy("three_augment"),
        "erasing, probability 0.25": erased,
        "Mixup and CutMix": mixed(AugmentConfig(mixup=0.8, cutmix=1.0)),
    }


def theirs(pillows: list[Image.Image]) -> dict[str, Work]:
    """What worker processes of zip and folder do image by image, and timm's random erasing."""
    rand, three = (pillow_policy(AugmentConfig(policy=name)) for name in ("rand_augment", "three_augment"))
    erase = RandomErasing(probability=0.25, mode="pixel", device="cpu")
    tensors = [torch.randn(3, *image.size) for image in pillows]
    return {
        "timm: RandAugment on Pillow": lambda epoch: [rand(image) for image in pillows],
        "3-Augment on Pillow": lambda epoch: [three(image) for image in pillows],
        "timm: erasing, probability 0.25": lambda epoch: [erase(image.clone()) for image in tensors],
    }


def measure(contenders: dict[str, Work], rounds: int, device: torch.device) -> dict[str, list[float]]:
    """Seconds of each contender in each round, the first, which warms up, left out."""
    clock = time.process_time if device.type == "cpu" else time.perf_counter
    times: dict[str, list[float]] = {name: [] for name in contenders}
    for epoch in range(rounds + 1):
        for name, work in contenders.items():
            start = clock()
            work(epoch)
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            if epoch:
                times[name].append(clock() - start)
    return times


if __name__ == "__main__":
    run_main(main)
