"""Rows: numbers that the device computes are those of the CPU, in float64 where that is the better judge."""

import contextlib

import numpy as np
import torch
from torch import Tensor, nn

from ffcv_train.augment import erasing, mixing, policy
from ffcv_train.augment import operations as ops
from ffcv_train.config.schema import AugmentConfig, LossConfig
from ffcv_train.data.open import open_data_set, val_loader
from ffcv_train.doctor.gpu.bench import CPU, Bench, exact_float32, on_device
from ffcv_train.doctor.gpu.figures import Figure, distance, relative_distance
from ffcv_train.evaluation.predict import evaluate_batches
from ffcv_train.losses import CRITERIA, create_criterion
from ffcv_train.losses.zipf import Zipf
from ffcv_train.models.factory import create_model
from ffcv_train.models.inspect.dense_head import DenseHead
from ffcv_train.models.network import Network
from ffcv_train.models.normalise import IMAGENET_MEAN, IMAGENET_STD, Normaliser
from ffcv_train.system.distributed import Process
from ffcv_train.training.parallel import set_up_device

_CLASSES, _BATCH = 1000, 64
_BORDER_SHARE = 1e-3  # of pixels: an edge that falls within the last bit of a coordinate


def augmentation(bench: Bench) -> list[Figure]:
    """Every operation of the policies alone, so that no second one magnifies a level of the first."""
    config = bench.config("--resolution.min_res=96", "--resolution.max_res=96")
    (batch,) = bench.batches(config, 1)
    keys, images = batch.keys, batch.images
    there = on_device(batch, bench.device).images
    drawn = policy.plan(AugmentConfig(policy="rand_augment", operations=1, magnitude=7), 3, 0, np.arange(4000))[0]
    assert isinstance(drawn, policy.Layer)
    worst, beyond = 0.0, 0.0
    for kind, operation in enumerate(policy.OPERATIONS):
        # What RandAugment does not draw are factors, radii and shifts of up to two pixels, or reads no amount.
        known = drawn.amounts[drawn.operations == kind][: len(keys)]
        amounts = np.resize(known, len(keys)) if len(known) else np.linspace(0.1, 2, len(keys), dtype=np.float32)
        layer = policy.Layer(np.full(len(keys), kind), amounts.astype(np.float32))
        wanted, found = (policy.apply(x, [layer]) for x in (images, there))
        if operation in ops.GEOMETRIC:
            apart = (found.cpu().int() - wanted.int()).abs()
            beyond = max(beyond, distance((apart > 1).double().mean(), torch.zeros(())))
        else:
            worst = max(worst, distance(found, wanted))
    mixed = _mixed(images, batch.labels, keys, CPU), _mixed(there, batch.labels.to(bench.device), keys, bench.device)
    return [
        Figure("levels of 255 apart", worst, most=1),
        Figure("share of pixels more than a level apart, geometric", beyond, most=_BORDER_SHARE),
        Figure("mixed images apart", distance(mixed[1][0], mixed[0][0]), most=1e-5),
        Figure("mixed targets apart", distance(mixed[1][1], mixed[0][1]), most=1e-6),
        Figure("erased boxes differing", float(distance(mixed[1][2], mixed[0][2]) > 0), most=0),
    ]


def _mixed(images: Tensor, labels: Tensor, keys: np.ndarray, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """Mixed images and targets, and where random erasing has changed its input."""
    config, side = AugmentConfig(mixup=0.8, cutmix=1.0, mix_mode="pair"), images.shape[-1]
    x = Normaliser(IMAGENET_MEAN, IMAGENET_STD, device)(images)
    mixture = mixing.draw(config, side, 3, 0, keys)
    assert mixture is not None
    erased = erasing.erase(x.clone(), erasing.boxes(0.5, side, 3, 0, keys), 3, 0, keys)
    return mixing.mix(x, mixture), mixing.mixed_targets(labels, mixture, _CLASSES), (erased != x).any(dim=1)


def criteria(bench: Bench) -> list[Figure]:
    """Loss and gradient of each criterion in float32 on the device against float64 on the CPU."""
    found = []
    set_up_device("off", bench.device)  # as a run does: a criterion is float32 where its network may be TF32
    for name, criterion in CRITERIA.items():
        losses, gradients = [], []
        for soft in (False, True)[: 1 + criterion.takes_soft_targets]:
            wanted, got = (_loss(name, soft, *where) for where in ((CPU, torch.float64), (bench.device, torch.float32)))
            losses.append(relative_distance(got[0], wanted[0]))
            gradients.append(relative_distance(got[1], wanted[1]))
        found.append(Figure(f"{name}: loss", max(losses), most=1e-5))
        found.append(Figure("gradient", max(gradients), most=1e-5))
    return found


def _loss(name: str, soft: bool, device: torch.device, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """The loss [] and its gradient [B, K] in the second epoch."""
    generator = torch.Generator().manual_seed(0)
    # Rounded to float32: both see the same numbers.
    logits = (4 * torch.randn(_BATCH, _CLASSES, generator=generator)).to(device, dtype).requires_grad_()
    labels = torch.randint(0, _CLASSES, (_BATCH,), generator=generator)
    votes = torch.randint(0, _CLASSES, (_BATCH, 49), generator=generator)
    targets = nn.functional.one_hot(labels, _CLASSES).float().lerp(torch.full((_BATCH, _CLASSES), 1e-3), 0.25)
    criterion = create_criterion(LossConfig(name=name), _CLASSES, 2, range(1, 1 + _CLASSES)).to(device, dtype)
    if isinstance(criterion, Zipf):
        criterion.head = DenseHead("", nn.Identity(), True, 0, top_classes=votes.to(device))
    aims = targets.to(device, dtype) if soft else labels.to(device)
    loss = logits.sum() * 0
    for epoch in range(2):
        criterion.start_epoch(epoch)
        loss = criterion(logits, aims)
        criterion.end_epoch()
    loss.backward()
    assert logits.grad is not None
    return loss, logits.grad


def evaluation(bench: Bench) -> list[Figure]:
    """Metrics of a network in float32, single view and flip-averaged."""
    config = bench.config()
    torch.manual_seed(0)
    model = create_model(config.model, _CLASSES).eval()
    reports, logits = {}, {}
    data_set = open_data_set(bench.beton)
    with exact_float32():
        for device in (CPU, bench.device):
            network = Network.on(device, model, _CLASSES, config, (IMAGENET_MEAN, IMAGENET_STD))
            side = config.validation.resolution[0]
            with contextlib.closing(val_loader(config, data_set, side, Process(0, 1, 0, 1, device))) as loader:
                reports[device] = evaluate_batches(network, loader, tta=True, num_samples=len(data_set))
                first = next(iter(loader))
                with torch.no_grad():
                    logits[device] = network.logits(network.normalise(first.images)).cpu()
    wanted, got = reports[CPU], reports[bench.device]
    return [
        Figure("images", got["count"], least=wanted["count"], most=wanted["count"]),
        Figure("logits apart", relative_distance(logits[bench.device], logits[CPU]), most=1e-4),
        *(
            Figure(f"{name} apart", abs(got[name] - wanted[name]), most=bound)
            for name, bound in (("top_1", 1 / wanted["count"]), ("top_5", 1 / wanted["count"]), ("nll", 1e-4))
        ),
        Figure("flip-averaged nll apart", abs(got["flip_averaged"]["nll"] - wanted["flip_averaged"]["nll"]), most=1e-4),
    ]
