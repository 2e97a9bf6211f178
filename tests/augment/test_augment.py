"""Augmentation on the device against timm and Pillow on the same images, and against itself in other batches."""

import math
from collections.abc import Sequence

import numpy as np
import pytest
import scipy.stats
import timm.data.auto_augment as timm_ops
import torch
import torchvision
from PIL import Image, ImageFilter, ImageOps
from timm.data import Mixup
from timm.data.random_erasing import RandomErasing
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils.data import Sampler

from ffcv_train.augment import draws, erasing, layers, mixing, operations, policy
from ffcv_train.config.schema import AugmentConfig
from ffcv_train.data.loading.batch import Batch
from ffcv_train.data.loading.plan import repeated_batches
from ffcv_train.models.normalise import IMAGENET_MEAN, IMAGENET_STD, Normaliser
from ffcv_train.training.augmenter import Augmenter
from tests.support.photographs import crops_of_photographs

SIDE = 64
KEYS = np.arange(4000)


@pytest.fixture(scope="module")
def photographs() -> Tensor:
    """uint8 [12, 3, 64, 64], channels last."""
    images = np.stack(crops_of_photographs(12, SIDE, SIDE, seed=3))
    return torch.from_numpy(images).permute(0, 3, 1, 2)


def as_pillow(image: Tensor) -> Image.Image:
    return Image.fromarray(image.permute(1, 2, 0).numpy())


def as_tensor(image: Image.Image) -> Tensor:
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)


OF_TIMM = (
    ("AutoContrast", operations.autocontrast),
    ("Equalize", operations.equalize),
    ("Invert", operations.invert),
    ("Rotate", operations.rotate),
    ("PosterizeIncreasing", operations.posterize),
    ("SolarizeIncreasing", operations.solarize),
    ("SolarizeAdd", operations.solarize_add),
    ("ColorIncreasing", operations.saturation),
    ("ContrastIncreasing", operations.contrast),
    ("BrightnessIncreasing", operations.brightness),
    ("SharpnessIncreasing", operations.sharpness),
    ("ShearX", operations.shear_x),
    ("ShearY", operations.shear_y),
    ("TranslateXRel", operations.translate_x),
    ("TranslateYRel", operations.translate_y),
)


def test_the_set_is_timms() -> None:
    assert [name for name, _ in OF_TIMM] == timm_ops._RAND_INCREASING_TRANSFORMS
    assert tuple(operation for _, operation in OF_TIMM) == policy.RAND_AUGMENT


@pytest.mark.parametrize(("name", "operation"), OF_TIMM)
@pytest.mark.parametrize("level", [0.0, 0.37, 0.9, 1.0])
@pytest.mark.parametrize("sign", [-1.0, 1.0])
def test_operations_equal_timms(
    photographs: Tensor, monkeypatch: pytest.MonkeyPatch, name: str, operation: operations.Operation, level: float,
    sign: float,
) -> None:  # fmt: skip
    monkeypatch.setattr(timm_ops, "_randomly_negate", lambda value: sign * value)
    level_to_arguments = timm_ops.LEVEL_TO_ARG[name]
    arguments = level_to_arguments(10 * level, timm_ops._HPARAMS_DEFAULT) if level_to_arguments else ()
    index = np.full(len(photographs), policy.OPERATIONS.index(operation))
    amounts = policy._amounts(index, np.full(len(index), level), np.full(len(index), sign))
    if operation is operations.posterize:
        arguments = (max(1, arguments[0]),)  # timm keeps no bit at full magnitude, which newer Pillows refuse
    if arguments:
        assert amounts[0] == pytest.approx(arguments[0])
    found = operation(photographs, torch.from_numpy(amounts).float())
    assert found.dtype == torch.uint8 and found.shape == photographs.shape
    for image, ours in zip(photographs, found, strict=True):
        theirs = as_tensor(
            timm_ops.NAME_TO_OP[name](
                as_pillow(image), *arguments, fillcolor=operations.FILL, resample=Image.Resampling.BILINEAR
            )
        )
        difference = (ours.int() - theirs.int()).abs()
        assert difference.float().mean() < 0.6
        # A point that lies on the image's border, but for rounding, is the one's inside and the other's outside.
        assert (difference > 1).float().mean() < (0.02 if name in ("Rotate", "ShearX", "ShearY") else 1e-9)


def test_three_augments_operations_equal_pillows(photographs: Tensor) -> None:
    amount = torch.full((len(photographs),), 128.0)
    gray, solarised = operations.grayscale(photographs, amount), operations.solarize(photographs, amount)
    for image, ours, inverted in zip(photographs, gray, solarised, strict=True):
        assert torch.equal(ours, as_tensor(as_pillow(image).convert("L").convert("RGB")))
        assert torch.equal(inverted, as_tensor(ImageOps.solarize(as_pillow(image))))


@pytest.mark.parametrize("sigma", [0.1, 0.7, 2.0])
def test_blur_is_gaussian_and_near_pillows(photographs: Tensor, sigma: float) -> None:
    found = operations.gaussian_blur(photographs, torch.full((len(photographs),), sigma))
    reach = np.arange(-6, 7)
    kernel = np.exp(-0.5 * (reach / sigma) ** 2)
    kernel /= kernel.sum()
    padded = np.pad(photographs[0, 1].numpy().astype(float), 6, mode="edge")
    rows = np.apply_along_axis(np.convolve, 1, padded, kernel, "valid")
    exact = np.apply_along_axis(np.convolve, 0, rows, kernel, "valid")
    assert np.abs(found[0, 1].numpy() - exact).max() < 0.51
    pillows = as_tensor(as_pillow(photographs[0]).filter(ImageFilter.GaussianBlur(sigma)))
    assert (found[0].int() - pillows.int()).abs().float().mean() < 1.5


def test_each_sample_has_its_own_strength(photographs: Tensor) -> None:
    amounts = torch.linspace(0.2, 1.8, len(photographs))
    for operation in (operations.brightness, operations.contrast, operations.sharpness, operations.gaussian_blur):
        together = operation(photographs, amounts)
        for i in range(len(photographs)):
            assert torch.equal(together[i : i + 1], operation(photographs[i : i + 1], amounts[i : i + 1]))


def test_rand_augment_draws_as_timm_does() -> None:
    config = AugmentConfig(policy="rand_augment", magnitude=7.0, magnitude_std=0.5)
    found = policy.plan(config, 0, 0, KEYS)
    assert len(found) == 2
    for layer in found:
        applied = layer.operations >= 0
        assert abs(applied.mean() - 0.5) < 0.04
        counts = np.bincount(layer.operations[applied], minlength=15)
        assert len(counts) == 15 and scipy.stats.chisquare(counts).pvalue > 1e-3
        turned = layer.operations == policy.OPERATIONS.index(operations.rotate)
        degrees = layer.amounts[turned]
        assert abs((degrees < 0).mean() - 0.5) < 0.2
        assert scipy.stats.kstest(np.abs(degrees) / 3, "norm", (7.0, 0.5)).pvalue > 1e-3
    both = (found[0].operations >= 0) & (found[1].operations >= 0)
    assert abs(both.mean() - 0.25) < 0.04, "the layers must draw apart"


def test_three_augment_draws() -> None:
    config = AugmentConfig(policy="three_augment", color_jitter=0.3)
    first, *jitter = policy.plan(config, 0, 0, KEYS)
    one_of = [
        policy.OPERATIONS.index(op) for op in (operations.grayscale, operations.solarize, operations.gaussian_blur)
    ]
    counts = [(first.operations == operation).sum() for operation in one_of]
    assert sum(counts) == len(KEYS) and scipy.stats.chisquare(counts).pvalue > 1e-3
    sigma = first.amounts[first.operations == one_of[2]]
    assert 0.1 <= sigma.min() < 0.15 and 1.95 < sigma.max() <= 2.0
    orders = np.stack([layer.operations for layer in jitter])
    assert len(np.unique(orders, axis=1).T) == 6 and (np.sort(orders[:, 0]) == np.sort(orders, axis=0).T).all()
    factors = np.concatenate([layer.amounts for layer in jitter])
    assert scipy.stats.kstest(factors, "uniform", (0.7, 0.6)).pvalue > 1e-3
    assert len(policy.plan(AugmentConfig(policy="three_augment", color_jitter=0.0), 0, 0, KEYS)) == 1
    assert policy.plan(AugmentConfig(), 0, 0, KEYS) == []


def test_streams() -> None:
    numbers = draws.uniforms(1, 2, KEYS, draws.POLICY, 3)
    assert scipy.stats.kstest(numbers.ravel(), "uniform").pvalue > 1e-3
    assert np.abs(np.corrcoef(numbers.T) - np.eye(3)).max() < 0.06
    for other in (
        draws.uniforms(2, 1, KEYS, draws.POLICY, 3),
        draws.uniforms(1, 3, KEYS, draws.POLICY, 3),
        draws.uniforms(1, 2, KEYS, draws.MIXING, 3),
        draws.uniforms(1, 2, KEYS + 1, draws.POLICY, 3),
    ):
        assert abs(np.corrcoef(numbers.ravel(), other.ravel())[0, 1]) < 0.04
    assert np.array_equal(draws.uniforms(1, 2, KEYS[::-1], draws.POLICY, 3), numbers[::-1])
    assert scipy.stats.kstest(draws.beta(numbers[:, 0], 0.8), "beta", (0.8, 0.8)).pvalue > 1e-3


def test_boxes_are_as_timm_draws_them() -> None:
    found = erasing.boxes(0.25, 224, 0, 0, KEYS)
    erased = found[found[:, 2] > 0]
    assert abs(len(erased) / len(KEYS) - 0.25) < 0.03
    top, left, height, width = erased.T
    assert (top >= 0).all() and (left >= 0).all() and (top + height <= 224).all() and (left + width <= 224).all()
    torch.manual_seed(0)
    theirs, reference = [], RandomErasing(probability=1.0, mode="const", device="cpu")
    for _ in range(800):
        (rows, columns) = (reference(torch.ones(3, 224, 224))[0] == 0).nonzero().T
        theirs.append((rows.min(), columns.min(), rows.max() - rows.min() + 1, columns.max() - columns.min() + 1))
    for ours, of_timm in zip(erased.T, np.array(theirs).T, strict=True):
        assert scipy.stats.ks_2samp(ours, of_timm).pvalue > 1e-3


def test_erased_is_noise_and_the_rest_is_untouched(photographs: Tensor) -> None:
    keys = np.arange(len(photographs))
    normalise = Normaliser(IMAGENET_MEAN, IMAGENET_STD, torch.device("cpu"), torch.float32, torch.channels_last)
    before = normalise(photographs)
    found = erasing.boxes(1.0, SIDE, 0, 0, keys)
    after = erasing.erase(before.clone(), found, 0, 0, keys)
    noise = []
    for image, erased, (top, left, height, width) in zip(before, after, found, strict=True):
        inside = torch.zeros(SIDE, SIDE, dtype=torch.bool)
        inside[top : top + height, left : left + width] = True
        assert height and torch.equal(image[:, ~inside], erased[:, ~inside])
        noise.append(erased[:, inside].flatten())
    assert scipy.stats.kstest(torch.cat(noise).numpy(), "norm").pvalue > 1e-3
    again = erasing.erase(before.clone()[[5, 2]], found[[5, 2]], 0, 0, keys[[5, 2]])
    assert torch.equal(again, after[[5, 2]])
    assert erasing.erase(before.half(), found, 0, 0, keys).dtype == torch.float16


@pytest.mark.parametrize("mode", ["batch", "pair"])
@pytest.mark.parametrize(("mixup", "cutmix"), [(0.8, 0.0), (0.0, 1.0), (0.8, 1.0)])
def test_mixing_equals_timms(
    photographs: Tensor, monkeypatch: pytest.MonkeyPatch, mixup: float, cutmix: float, mode: str
) -> None:
    keys, labels = np.arange(len(photographs)) + 7, torch.arange(len(photographs)) % 5
    mixture = mixing.draw(AugmentConfig(mixup=mixup, cutmix=cutmix, mix_mode=mode), SIDE, 0, 0, keys)
    assert mixture is not None
    images = photographs.float()
    ours, targets = mixing.mix(images, mixture), mixing.mixed_targets(labels, mixture, 5)

    # timm's own mixing, with our numbers in place of those that it draws.
    half = len(keys) // 2
    boxes = iter(mixture.boxes[:half][mixture.boxes[:half, 2] > 0])

    def given(shape: object, lam: float, **options: object) -> tuple[tuple, float]:
        top, left, bottom, right = next(boxes)
        return (top, bottom, left, right), 1 - (bottom - top) * (right - left) / SIDE**2

    monkeypatch.setattr("timm.data.mixup.cutmix_bbox_and_lam", given)
    reference = Mixup(mixup, cutmix, mode=mode, label_smoothing=0.0, num_classes=5)
    cut = mixture.boxes[:half, 2] > 0
    shares = mixture.share.astype(np.float32)
    monkeypatch.setattr(reference, "_params_per_elem", lambda count: (shares[:half], cut))
    monkeypatch.setattr(reference, "_params_per_batch", lambda: (float(shares[0]), bool(cut[0])))
    expected, expected_targets = reference(images.clone(), labels)
    torch.testing.assert_close(ours, expected, rtol=1e-5, atol=1e-3)
    torch.testing.assert_close(targets, expected_targets.float())
    torch.testing.assert_close(targets.sum(dim=1), torch.ones(len(keys)))


def test_a_batch_shares_its_draw() -> None:
    """λ and box are one for the whole batch, and those of its first sample alone."""
    config = AugmentConfig(mixup=0.8, cutmix=1.0)
    drawn = [mixing.draw(config, 224, 0, 0, KEYS[start : start + 4]) for start in range(0, 4000, 4)]
    assert all(len(np.unique(m.share)) == len(np.unique(m.boxes, axis=0)) == 1 for m in drawn if m)
    alone = [mixing.draw(config, 224, 0, 0, KEYS[start : start + 1]) for start in range(0, 4000, 4)]
    assert [m.share[0] for m in drawn if m] == [m.share[0] for m in alone if m]
    cut = np.array([m.boxes[0, 2] > 0 for m in drawn if m])
    assert len(cut) == 1000 and abs(cut.mean() - 0.5) < 0.06
    share = np.array([m.share[0] for m in drawn if m])
    assert scipy.stats.kstest(share[~cut], "beta", (0.8, 0.8)).pvalue > 1e-4


def test_mixing_draws() -> None:
    config = AugmentConfig(mixup=0.8, cutmix=1.0, mix_switch=0.3, mix_mode="pair")
    mixture = mixing.draw(config, 224, 0, 0, KEYS)
    assert mixture is not None
    assert np.array_equal(mixture.share, mixture.share[::-1]) and np.array_equal(mixture.boxes, mixture.boxes[::-1])
    half = len(KEYS) // 2
    cut = mixture.boxes[:half, 2] > 0
    assert abs(cut.mean() - 0.3) < 0.04
    assert scipy.stats.kstest(mixture.share[:half][~cut], "beta", (0.8, 0.8)).pvalue > 1e-4
    height = mixture.boxes[:half, 2] - mixture.boxes[:half, 0]
    width = mixture.boxes[:half, 3] - mixture.boxes[:half, 1]
    assert np.allclose(mixture.share[:half][cut], 1 - (height * width)[cut] / 224**2)
    rarely = mixing.draw(AugmentConfig(mixup=0.8, mix_prob=0.25, mix_mode="pair"), 224, 0, 0, KEYS)
    assert rarely is not None and abs((rarely.share < 1).mean() - 0.25) < 0.04
    assert mixing.draw(AugmentConfig(), 224, 0, 0, KEYS) is None
    assert mixing.draw(AugmentConfig(mixup=0.8, mix_prob=0.0), 224, 0, 0, KEYS) is None


def batch_of(photographs: Tensor, keys: np.ndarray) -> Batch:
    rows = torch.from_numpy(keys % len(photographs))
    return Batch(photographs[rows], rows % 5, rows, keys)


@pytest.mark.parametrize("chosen", ["rand_augment", "trivial_augment", "auto_augment", "augmix"])
def test_a_sample_is_augmented_alike_in_any_batch(photographs: Tensor, chosen: str) -> None:
    config = AugmentConfig(policy=chosen, erase=0.5)
    normalise = Normaliser(IMAGENET_MEAN, IMAGENET_STD, torch.device("cpu"), torch.float32, torch.channels_last)
    augment = Augmenter(config, normalise, 5, seed=1)
    keys = np.arange(48)
    untouched = photographs.clone()
    whole, labels = augment(batch_of(photographs, keys), 3)
    assert torch.equal(photographs, untouched) and labels.dtype == torch.int64
    some = np.array([40, 3, 17])
    part, _ = augment(batch_of(photographs, some), 3)
    torch.testing.assert_close(part, whole[some], rtol=0, atol=1e-6)
    other_epoch, _ = augment(batch_of(photographs, keys), 4)
    changed = (other_epoch != whole).flatten(1).any(dim=1)
    assert changed.float().mean() > 0.5
    repeated = whole[:12].ne(whole[12:24]).flatten(1).any(dim=1)
    assert repeated.float().mean() > 0.5, "repetitions of an image are augmented differently"
    elsewhere = Augmenter(config, normalise, 5, seed=1, on_device=False)
    assert not torch.equal(elsewhere(batch_of(photographs, keys), 3)[0], whole)


def test_erasing_draws_anew_in_every_epoch(photographs: Tensor) -> None:
    normalise = Normaliser(IMAGENET_MEAN, IMAGENET_STD, torch.device("cpu"), torch.float32, torch.channels_last)
    augment = Augmenter(AugmentConfig(erase=1.0), normalise, 5, seed=0)
    keys = np.arange(12)
    corners = []
    for epoch in (3, 4):
        images, _ = augment(batch_of(photographs, keys), epoch)
        top, left = erasing.boxes(1.0, SIDE, 0, epoch, keys)[:, :2].T
        corners.append(images[keys, 0, top, left])
    assert (corners[0] != corners[1]).all()


def test_mixed_batches_have_soft_targets(photographs: Tensor) -> None:
    normalise = Normaliser(IMAGENET_MEAN, IMAGENET_STD, torch.device("cpu"), torch.bfloat16, torch.channels_last)
    augment = Augmenter(AugmentConfig(mixup=0.8, cutmix=1.0), normalise, 5, seed=0)
    images, targets = augment(batch_of(photographs, np.arange(9)), 0)
    assert images.dtype == torch.bfloat16 and targets.dtype == torch.float32 and targets.shape == (9, 5)
    torch.testing.assert_close(targets.sum(dim=1), torch.ones(9))
    assert targets[4, 4] == 1, "the middle of an odd batch is its own partner"


class DeitSampler(Sampler[int]):
    """DeiT's RASampler, written from its definition; `order` in place of its shuffled indices."""

    def __init__(self, order: Tensor, repeats: int, rank: int, world_size: int) -> None:
        self.order, self.repeats, self.rank, self.world_size = order, repeats, rank, world_size

    def __iter__(self):  # type: ignore[no-untyped-def]
        n = len(self.order)
        per_rank = math.ceil(n * self.repeats / self.world_size)
        repeated = torch.repeat_interleave(self.order, self.repeats).tolist()
        repeated += repeated[: per_rank * self.world_size - len(repeated)]
        selected = math.floor(n // 256 * 256 / self.world_size)
        return iter(repeated[self.rank : per_rank * self.world_size : self.world_size][:selected])


@pytest.mark.parametrize("world_size", [1, 2, 3, 4, 8])
@pytest.mark.parametrize("repeats", [1, 3])
def test_repeated_augmentation_is_deits(world_size: int, repeats: int) -> None:
    n, batch_size = 1536, 64
    order = np.random.default_rng(0).permutation(n)
    keys = []
    for rank in range(world_size):
        batches = repeated_batches(order, repeats, batch_size, rank, world_size, len(order))
        theirs = list(DeitSampler(torch.from_numpy(order), repeats, rank, world_size))
        assert [int(key) % n for batch in batches for key in batch] == theirs[: len(batches) * batch_size]
        assert len(batches) == n // (batch_size * world_size)
        keys += [key for batch in batches for key in batch]
    assert len(set(keys)) == len(keys), "each repetition has a key of its own"
    counts = np.bincount(np.array(keys) % n)
    assert set(counts[counts > 0]) == {repeats} and max(keys) < repeats * n


def operations_of(steps: Sequence[layers.Step]) -> set[int]:
    """Every operation that some sample gets."""
    found: set[int] = set()
    for step in steps:
        if isinstance(step, layers.MixedChains):
            found |= operations_of([layer for chain in step.chains for layer in chain])
        else:
            found |= set(step.operations.tolist()) - {-1}
    return found


TRIVIAL = (
    ("Identity", None), ("ShearX", operations.shear_x), ("ShearY", operations.shear_y),
    ("TranslateX", operations.translate_x_pixels), ("TranslateY", operations.translate_y_pixels),
    ("Rotate", operations.rotate), ("Brightness", operations.brightness), ("Color", operations.saturation),
    ("Contrast", operations.contrast), ("Sharpness", operations.sharpness), ("Posterize", operations.posterize),
    ("Solarize", operations.solarize), ("AutoContrast", operations.autocontrast), ("Equalize", operations.equalize),
)  # fmt: skip


def test_trivial_augment_is_torchvisions() -> None:
    """The same operations, strengths and signs; each is drawn as often, and applied to the whole batch's share."""
    space = torchvision.transforms.TrivialAugmentWide()._augmentation_space(31)
    assert [name for name, _ in TRIVIAL] == list(space)
    for (name, operation), (ours, strengths, signed) in zip(TRIVIAL, policy.TRIVIAL_AUGMENT, strict=True):
        theirs, theirs_signed = space[name]
        assert (ours, signed) == (operation, theirs_signed)
        wanted = np.broadcast_to(theirs.numpy(), 31) if ours and name not in ("AutoContrast", "Equalize") else 0
        # torchvision cuts translations to whole pixels when it applies them.
        np.testing.assert_allclose(
            strengths, np.floor(wanted + 1e-4) if name.startswith("Translate") else wanted, atol=1e-5
        )
    (layer,) = policy.plan(AugmentConfig(policy="trivial_augment"), 0, 0, KEYS)
    counts = np.unique(layer.operations, return_counts=True)[1]
    assert len(counts) == 14 and scipy.stats.chisquare(counts).pvalue > 1e-3
    degrees = layer.amounts[layer.operations == policy.OPERATIONS.index(operations.rotate)]
    assert scipy.stats.chisquare(np.unique(np.round(np.abs(degrees) / 4.5), return_counts=True)[1]).pvalue > 1e-3
    assert abs((degrees < 0).mean() - 0.5) < 0.1
    factors = layer.amounts[layer.operations == policy.OPERATIONS.index(operations.contrast)]
    assert factors.min() == pytest.approx(0.01) and factors.max() == pytest.approx(1.99)


@pytest.mark.parametrize("axis", [3, 2])
def test_translations_in_pixels_equal_pillows(photographs: Tensor, axis: int) -> None:
    operation = operations.translate_x_pixels if axis == 3 else operations.translate_y_pixels
    moved = operation(photographs, torch.full((len(photographs),), 5.0))
    kept = torch.arange(SIDE - 5)
    assert torch.equal(moved.index_select(axis, kept), photographs.index_select(axis, kept + 5))
    assert torch.equal(
        moved.index_select(axis, kept[:5] + SIDE - 5).permute(0, 2, 3, 1)[0, 0, 0],
        torch.tensor(operations.FILL, dtype=torch.uint8),
    )


def test_auto_augment_is_timms(monkeypatch: pytest.MonkeyPatch) -> None:
    """The pairs, probabilities and strengths of its policy for ImageNet, and how often each is drawn."""
    monkeypatch.setattr(timm_ops, "_randomly_negate", lambda value: value)
    names = {name: operation for name, operation in OF_TIMM if not name.endswith("Increasing")}
    names |= {"PosterizeOriginal": operations.posterize, "Solarize": operations.solarize}
    names |= {"Color": operations.saturation, "Contrast": operations.contrast, "Sharpness": operations.sharpness}
    theirs = timm_ops.auto_augment_policy_original({})
    assert len(theirs) == len(policy.AUTO_AUGMENT) == 25
    for pair, ours in zip(theirs, policy.AUTO_AUGMENT, strict=True):
        for one, (operation, share, magnitude) in zip(pair, ours, strict=True):
            assert (names[one.name], one.prob) == (operation, share)
            arguments = one.level_fn(one.magnitude, one.hparams) if one.level_fn else (0,)
            assert policy._original_amount(operation, magnitude) == pytest.approx(arguments[0])
    first, second = policy.plan(AugmentConfig(policy="auto_augment"), 0, 0, KEYS)
    for number, layer in enumerate((first, second)):
        for operation in (operations.rotate, operations.equalize):
            share = np.mean([pair[number][1] if pair[number][0] is operation else 0 for pair in policy.AUTO_AUGMENT])
            assert abs((layer.operations == policy.OPERATIONS.index(operation)).mean() - share) < 0.03
    turned = first.amounts[first.operations == policy.OPERATIONS.index(operations.rotate)]
    assert set(np.round(np.abs(turned)).tolist()) == {9.0, 24.0, 27.0}
    assert abs((turned < 0).mean() - 0.5) < 0.1


def test_augmix_draws_as_timm_does() -> None:
    names = dict(OF_TIMM)
    assert tuple(names[name] for name in timm_ops._AUGMIX_TRANSFORMS) == policy.AUGMIX
    (mixture,) = policy.plan(AugmentConfig(policy="augmix", magnitude=3.0), 0, 0, KEYS)
    assert mixture.weights.shape == (len(KEYS), 3)
    np.testing.assert_allclose(mixture.weights.sum(1), 1, rtol=1e-5)
    for weights in mixture.weights.T:  # the marginals of Dirichlet(1, 1, 1)
        assert scipy.stats.kstest(weights, "beta", (1, 2)).pvalue > 1e-3
    assert scipy.stats.kstest(mixture.share, "uniform").pvalue > 1e-3
    for chain in mixture.chains:
        applied = np.stack([layer.operations >= 0 for layer in chain])
        depths = applied.sum(0)
        assert applied[0].all() and scipy.stats.chisquare(np.bincount(depths)[1:]).pvalue > 1e-3
        counts = np.unique(chain[0].operations, return_counts=True)[1]
        assert len(counts) == 13 and scipy.stats.chisquare(counts).pvalue > 1e-3
        degrees = chain[0].amounts[chain[0].operations == policy.OPERATIONS.index(operations.rotate)]
        assert scipy.stats.kstest(np.abs(degrees) / 9, "uniform").pvalue > 1e-3


def test_augmix_mixes_as_timm_does(photographs: Tensor) -> None:
    """timm's own mixing of what our operations make of each image."""
    keys = np.arange(len(photographs))
    (mixture,) = policy.plan(AugmentConfig(policy="augmix", magnitude=3.0), 0, 0, keys)
    found = policy.apply(photographs, [mixture])
    chains = [policy.apply(photographs, chain) for chain in mixture.chains]
    for i, image in enumerate(photographs):
        made = iter(chains)
        reference = timm_ops.AugMixAugment([lambda _, made=made, i=i: as_pillow(next(made)[i])], depth=1)
        expected = reference._apply_basic(as_pillow(image), mixture.weights[i], mixture.share[i])
        assert (found[i].int() - as_tensor(expected).int()).abs().max() <= 1
    assert (found != photographs).flatten(1).any(1).float().mean() > 0.5


class NothingMadeOfHostNumbers(TorchFunctionMode):
    """Refuses tensors of Python numbers on another device: there the host waits for the copy."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        made = func in (torch.tensor, torch.as_tensor) and str((kwargs or {}).get("device", "cpu")) != "cpu"
        number = func is Tensor.__setitem__ and not isinstance(args[2], Tensor)
        filled = number and isinstance(args[1], Tensor) and args[1].dtype == torch.bool  # by a kernel, without a copy
        if made or (number and not filled):
            raise AssertionError("a copy from pageable memory")
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize(
    ("chosen", "count"),
    [("rand_augment", 15), ("three_augment", 6), ("trivial_augment", 13), ("auto_augment", 10), ("augmix", 13)],
)
def test_the_host_does_not_wait_for_the_device(chosen: str, count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a device without values, where asking for one fails."""

    def to_device(values: np.ndarray, device: torch.device) -> Tensor:
        return torch.empty_like(torch.from_numpy(values), device=device)

    for module in (operations, layers, mixing):
        monkeypatch.setattr(module, "to_device", to_device)
    config = AugmentConfig(policy=chosen, mixup=0.8, cutmix=1.0)
    images = torch.empty(400, 3, 32, 32, dtype=torch.uint8, device="meta")
    labels = torch.empty(400, dtype=torch.int64, device="meta")
    steps = policy.plan(config, 1, 2, KEYS[:400])
    assert len(operations_of(steps)) == count
    mixture = mixing.draw(config, 32, 1, 2, KEYS[:400])
    assert mixture is not None
    with NothingMadeOfHostNumbers():
        with pytest.raises(AssertionError, match="pageable"):
            torch.ones(3, 3, device="meta")[1, 1] = 5.0
        images = policy.apply(images, steps)
        mixing.mix(images.float(), mixture)
        mixing.mixed_targets(labels, mixture, 10)
    assert images.shape == (400, 3, 32, 32)
