"""The one schema of options: frozen dataclasses, a section each."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any


def option(
    default: Any,
    help: str,
    *,
    choices: Sequence[Any] | None = None,
    min: float | None = None,
    max: float | None = None,
    length: int | None = None,
    path: bool = False,
    beyond: str = "",
) -> Any:
    """A dataclass field with its help text and the values that it accepts (bounds are inclusive).

    `~` and environment variables in a `path` are replaced; `beyond` is what to say of a value above `max`.
    """
    metadata = {
        "help": help,
        "choices": choices,
        "min": min,
        "max": max,
        "length": length,
        "path": path,
        "beyond": beyond,
    }
    return field(default=default, metadata=metadata)


_PIXEL_RANGE = "for pixels in [0, 1]: constants of pixels in [0, 255], as FFCV's, ÷ 255"


@dataclass(frozen=True)
class ModelConfig:
    """The network."""

    arch: str = option(
        "resnet50", "torchvision or timm classifier, cifar_resnet18, 20, 32, 50, or cifar_deit_tiny[_distilled]"
    )
    num_classes: int = option(0, "number of classes; 0 takes it from the data set's sidecar", min=0)
    weights: str = option(
        "",
        "file to start from: ours, torchvision's, timm's, any state dict, safetensors; or weights by name: timm:NAME, "
        "torchvision:NAME, hf:ORG/NAME[@REVISION][/FILE]",
        path=True,
    )
    use_blurpool: bool = option(False, "low-pass filter before every strided convolution of 16 channels or more")
    channels_last: bool = option(True, "memory format of weights and activations")
    compile: bool = option(False, "torch.compile the model; recompiles once per training resolution")
    compile_mode: str = option(
        "default",
        "compile: reduce-overhead replays forward and backward as CUDA graphs, a launch each",
        choices=("default", "reduce-overhead"),
    )
    drop_path: float = option(
        -1.0, "stochastic depth: rate of the last block, rising from 0; -1: the architecture's own", min=-1.0, max=0.99
    )
    grad_checkpointing: bool = option(
        False, "compute the blocks' activations again in the backward pass: less memory, about a third more time"
    )
    sync_batchnorm: bool = option(False, "BatchNorm over the images of all GPUs instead of each one's own")


@dataclass(frozen=True)
class DataConfig:
    """The data sets and how samples are drawn from them."""

    train_dataset: str = option("", "what to train on: a .beton file, or what data.format says", path=True)
    val_dataset: str = option("", "what to validate on, as train_dataset", path=True)
    format: str = option(
        "beton", "zip: X.zip with X_map.txt beside it; folder: one folder per class", choices=("beton", "zip", "folder")
    )
    classes: str = option(
        "", "zip, folder: file of class names in label order, a line each, or a .beton with them", path=True
    )
    sampling: str = option(
        "uniform",
        "how training samples are drawn: uniform (each once an epoch), class_balanced (each class as often), or a file "
        "of a weight per sample",
        path=True,
    )
    subset: str = option(
        "", "file of the samples to train on, a number from 0 on each line; empty: all of train_dataset", path=True
    )
    cache: bool = option(False, "zip: hold the archives in memory, once per machine")
    num_workers: int = option(
        0, "decoding threads (processes for zip and folder); 0 shares the cores among the local ranks", min=0
    )
    decode: str = option(
        "host", "device: the GPU decodes and resizes training crops (nvJPEG)", choices=("host", "device")
    )
    in_memory: bool = option(True, "1: page cache, true random order; 0: read pages, quasi-random order")
    batches_ahead: int = option(3, "batches decoded ahead of the step", min=1)
    crop_scale: tuple[float, ...] = option((0.08, 1.0), "area range of the random crop", min=0.0, max=1.0, length=2)
    crop_ratio: tuple[float, ...] = option((3 / 4, 4 / 3), "aspect-ratio range of the random crop", min=0.01, length=2)
    flip: float = option(0.5, "probability of a horizontal flip", min=0.0, max=1.0)
    interpolation: str = option("bilinear", "antialiased filter of training crops", choices=("bilinear", "bicubic"))
    dct_scaling: bool = option(False, "decode training crops of twice the target or more at a reduced scale")
    mean: tuple[float, ...] = option(
        (),
        "per-channel mean in [0, 1]; empty: the weights' own, else ImageNet's",
        length=3,
        min=0.0,
        max=1.0,
        beyond=_PIXEL_RANGE,
    )
    std: tuple[float, ...] = option(
        (), "per-channel standard deviation, as mean", length=3, min=1e-6, max=1.0, beyond=_PIXEL_RANGE
    )


@dataclass(frozen=True)
class AugmentConfig:
    """What is done to training images besides crop and flip."""

    policy: str = option(
        "none",
        "rand_augment, auto_augment (ImageNet's), augmix, trivial_augment (wide), or DeiT III's three_augment",
        choices=("none", "rand_augment", "auto_augment", "augmix", "trivial_augment", "three_augment"),
    )
    magnitude: float = option(
        9.0, "rand_augment: strength of an operation, of 10; augmix: the largest, usually 3", min=0.0, max=10.0
    )
    magnitude_std: float = option(0.5, "rand_augment: standard deviation of the strength", min=0.0)
    operations: int = option(2, "rand_augment: operations per image, each applied with probability 0.5", min=1)
    color_jitter: float = option(
        0.3, "three_augment: largest change of brightness, contrast and saturation", min=0.0, max=1.0
    )
    erase: float = option(0.0, "probability of random erasing, by noise", min=0.0, max=1.0)
    repeats: int = option(1, "repeated augmentation: crops of an image in a row; an epoch has N/repeats images", min=1)
    mixup: float = option(0.0, "Mixup: λ is drawn from Beta(this, this); 0: no Mixup", min=0.0)
    cutmix: float = option(0.0, "CutMix: λ is drawn from Beta(this, this); 0: no CutMix", min=0.0)
    mix_prob: float = option(1.0, "probability that a batch, or pair, is mixed at all", min=0.0, max=1.0)
    mix_switch: float = option(0.5, "probability of CutMix where both are on", min=0.0, max=1.0)
    mix_mode: str = option(
        "batch", "batch: one λ and box for a device's batch, as DeiT; pair: one per pair", choices=("batch", "pair")
    )


@dataclass(frozen=True)
class DistillConfig:
    """Distillation from a teacher (DeiT)."""

    type: str = option("none", "soft: divergence from the teacher; hard: its arg max", choices=("none", "soft", "hard"))
    teacher: str = option("", "the teacher's checkpoint", path=True)
    teacher_arch: str = option("", "the teacher's architecture, where its checkpoint is not ours")
    weight: float = option(0.5, "share of the teacher in the loss", min=0.0, max=1.0)
    temperature: float = option(1.0, "soft: temperature of both softmaxes", min=1e-3)


@dataclass(frozen=True)
class FinetuneConfig:
    """What training from `model.weights` does apart."""

    head_lr: float = option(1.0, "rate of the head's layers, as a multiple of the others'", min=0.0)
    layer_decay: float = option(
        1.0, "rate of a layer as a share of the next one's, from the head down to the stem (BEiT's)", min=0.01, max=1.0
    )
    freeze: tuple[str, ...] = option(
        (), "modules or parameters that keep their values, by name, * is a wildcard; BatchNorm keeps its statistics"
    )
    freeze_up_to: str = option("", "all up to the end of this module is frozen, such as layer2; body: all but the head")


@dataclass(frozen=True)
class LrConfig:
    """The learning-rate schedule."""

    lr: float = option(0.5, "peak learning rate, for reference_batch where that is set", min=0.0)
    reference_batch: int = option(
        0, "global batch that lr is stated for: lr is scaled by global batch / this; 0: lr is used as it is", min=0
    )
    lr_schedule_type: str = option("cyclic", "schedule", choices=("cyclic", "cosine", "step"))
    lr_peak_epoch: float = option(2.0, "cyclic: epoch at which the rate peaks", min=0.0)
    step_ratio: float = option(0.1, "step: factor at each step", min=0.0)
    step_length: int = option(30, "step: epochs between steps", min=1)
    step_epochs: tuple[int, ...] = option((), "step: epochs of the steps, instead of step_length", min=0)
    warmup_epochs: float = option(0.0, "cosine, step: epochs of linear warm-up", min=0.0)
    warmup_lr: float = option(0.0, "cosine, step: rate at the start of the warm-up; 0: 1e-4 of what it joins", min=0.0)
    min_lr: float = option(0.0, "cosine: rate at the end", min=0.0)
    cosine_start: str = option(
        "warmup", "cosine: begins after the warm-up, or at epoch 0 as in timm", choices=("warmup", "zero")
    )


@dataclass(frozen=True)
class ResolutionConfig:
    """Progressive resizing: the side of training images in pixels."""

    min_res: int = option(160, "side up to start_ramp", min=8)
    max_res: int = option(160, "side from end_ramp on", min=8)
    start_ramp: int = option(0, "epoch at which the side starts to grow", min=0)
    end_ramp: int = option(0, "epoch from which the side is max_res", min=0)
    step: int = option(32, "sides are multiples of this", min=1)


@dataclass(frozen=True)
class LossConfig:
    """The criterion; a hyperparameter that the chosen criterion has no use for is ignored."""

    name: str = option("maxsup", "criterion: ce, ls, maxsup, logit_penalty, ols, zipf, … (docs/losses.md has all)")
    alpha_start: float = option(0.1, "maxsup, ls, ablations: weight of the penalty at the start", min=0.0)
    alpha_end: float = option(0.2, "maxsup, ls, ablations: weight at the end, reached linearly", min=0.0)
    alpha_schedule: str = option(
        "approach",
        "epoch t of T: approach t/T, as MaxSup's ConvNets; reach t/(T − 1), as its DeiT: the last epoch has alpha_end",
        choices=("approach", "reach"),
    )
    beta: float = option(6e-4, "logit_penalty: weight of half the squared norm of the logits", min=0.0)
    hard_weight: float = option(0.5, "ols: weight of cross-entropy with the target", min=0.0)
    soft_weight: float = option(0.5, "ols: weight of cross-entropy with the class's mean prediction", min=0.0)
    zipf_weight: float = option(0.1, "zipf: weight of the divergence from Zipf's law", min=0.0)
    focal_gamma: float = option(2.0, "focal: power of 1 − q_gt by which easy samples count less; 0: ce", min=0.0)
    weight_beta: float = option(
        0.9999,
        "weighted_ce, ldam: classes weigh (1 − β)/(1 − β^n); 0: alike, 1: by inverse frequency",
        min=0.0,
        max=1.0,
    )
    ldam_margin: float = option(0.5, "ldam: margin of the rarest class, in logits", min=0.0)
    ldam_scale: float = option(1.0, "ldam: factor of logits and margins; its authors have 30 on cosines", min=1e-3)
    drw_from: float = option(
        0.8, "ldam: share of the epochs after which classes are weighted; 0: always, 1: never", min=0.0, max=1.0
    )
    bce_smoothing: float = option(0.0, "bce: label smoothing of its targets", min=0.0, max=1.0)
    bce_threshold: float = option(0.0, "bce: targets above this are 1, the others 0; 0: as they are", min=0.0, max=1.0)
    bce_sum_classes: bool = option(False, "bce: sum over the classes instead of their mean")


@dataclass(frozen=True)
class TrainingConfig:
    """The optimisation."""

    epochs: int = option(30, "number of epochs", min=1)
    batch_size: int = option(512, "images per device and forward pass", min=1)
    global_batch_size: int = option(
        0, "images per optimizer step over all devices; sets batch_size, 0: leaves it", min=0
    )
    accumulate: int = option(1, "forward passes per optimizer step", min=1)
    optimizer: str = option("sgd", "optimizer", choices=("sgd", "adamw", "lamb", "lion", "muon"))
    momentum: float = option(0.9, "momentum of SGD and Muon, beta1 of the others", min=0.0, max=1.0)
    beta2: float = option(0.999, "beta2 of AdamW, LAMB, Lion, and of Muon's AdamW", min=0.0, max=1.0)
    nesterov: bool = option(False, "Nesterov momentum (SGD, Muon)")
    weight_decay: float = option(1e-4, "weight decay of matrices and kernels", min=0.0)
    norm_weight_decay: float = option(0.0, "weight decay of one-dimensional parameters: norms and biases", min=0.0)
    clip_grad: float = option(0.0, "largest norm of the gradient; 0: no clipping", min=0.0)
    amp: str = option("bf16", "mixed precision", choices=("bf16", "fp16", "off"))
    ema_decay: float = option(0.0, "decay of the averaged weights per step; 0: none", min=0.0, max=1.0)
    seed: int = option(0, "seed of initialisation, order, crops and flips", min=0)
    device: str = option("auto", "auto takes the GPU where there is one", choices=("auto", "cpu", "cuda"))
    resume: str = option("", "auto: the newest checkpoint in logging.folder, if any; or a checkpoint's path", path=True)


@dataclass(frozen=True)
class ValidationConfig:
    """Evaluation during and after training."""

    batch_size: int = option(512, "images per device", min=1)
    resolution: tuple[int, ...] = option((224,), "sides of validation images; training reports the first", min=8)
    crop_ratio: float = option(224 / 256, "side of the centre crop / shorter side of the image", min=0.01, max=1.0)
    crop: str = option(
        "torchvision", "whose centre crop: Resize and CenterCrop, or FFCV's", choices=("torchvision", "ffcv")
    )
    interpolation: str = option("bilinear", "antialiased filter of centre crops", choices=("bilinear", "bicubic"))
    lr_tta: bool = option(True, "also report flip-averaged metrics")
    every: int = option(1, "epochs between validations; the last epoch always validates", min=1)


@dataclass(frozen=True)
class LoggingConfig:
    """Where a run writes."""

    folder: str = option("runs", "runs lie in folder/run", path=True)
    run: str = option("", "name of the run's folder; empty: date, time and architecture")
    tensorboard: bool = option(True, "write TensorBoard events")
    tracker: str = option(
        "none",
        "a page of the run's numbers as well, where that is installed",
        choices=("none", "wandb", "trackio", "mlflow"),
    )
    project: str = option("ffcv_train", "tracker: the project, or experiment, that the page belongs to")
    interval: int = option(
        50, "steps between losses shown; whether they are finite is checked every 5 steps, or as often", min=1
    )


@dataclass(frozen=True)
class RunConfig:
    """A whole run, one dataclass per section of the YAML file."""

    model: ModelConfig = ModelConfig()
    data: DataConfig = DataConfig()
    augment: AugmentConfig = AugmentConfig()
    distill: DistillConfig = DistillConfig()
    finetune: FinetuneConfig = FinetuneConfig()
    lr: LrConfig = LrConfig()
    resolution: ResolutionConfig = ResolutionConfig()
    loss: LossConfig = LossConfig()
    training: TrainingConfig = TrainingConfig()
    validation: ValidationConfig = ValidationConfig()
    logging: LoggingConfig = LoggingConfig()
