"""Distillation from a teacher, as DeiT has it (Touvron et al., arXiv:2012.12877)."""

import hashlib
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ffcv_train.config.read import from_dict
from ffcv_train.config.schema import DistillConfig, ModelConfig, RunConfig
from ffcv_train.models.class_names import imagenet_names
from ffcv_train.models.factory import check_resolution, create_model
from ffcv_train.models.network import place
from ffcv_train.models.normalise import IMAGENET_MEAN, IMAGENET_STD
from ffcv_train.models.opening import Checkpoint, open_checkpoint
from ffcv_train.models.preset import preset_of
from ffcv_train.models.published import local_file
from ffcv_train.models.weights import load_weights
from ffcv_train.system.class_names import check_same_classes, tidy, whole_numbers
from ffcv_train.system.errors import UserError


def distillation_loss(student: Tensor, teacher: Tensor, kind: str, temperature: float) -> Tensor:
    """The loss of the student's distillation head, 0-d float32; `student` and `teacher` are logits [B, K].

    `soft`: KL(teacher ‖ student) of softmaxes at `temperature` τ, times τ², mean over samples and classes, as DeiT's
    code has it (its paper's formula means over samples only). `hard`: cross-entropy with the teacher's arg max.
    """
    with torch.autocast(student.device.type, enabled=False):
        student, teacher = student.float(), teacher.float()
        if kind == "hard":
            return F.cross_entropy(student, teacher.argmax(dim=1))
        log_q, log_p = (F.log_softmax(z / temperature, dim=1) for z in (student, teacher))
        return F.kl_div(log_q, log_p, reduction="sum", log_target=True) * temperature**2 / student.numel()


class Teacher:
    """A frozen network that sees what the student sees, in its own normalisation."""

    def __init__(
        self,
        config: DistillConfig,
        num_classes: int,
        class_names: tuple[str, ...] | None,
        sides: set[int],
        student: tuple[tuple[float, ...], tuple[float, ...]],
        device: torch.device,
        channels_last: bool,
    ) -> None:
        """Load the teacher for a student of these classes, normalised by `student` (mean, std), on images of `sides`.

        Raises `UserError` for a teacher that does not fit.
        """
        checkpoint = _open(config)
        model_config, stated, names = _describe(config, checkpoint)
        if names is None and class_names is not None and len(class_names) == len(imagenet_names().keys):
            names = _imagenets_order(class_names)
        if names is not None and class_names is not None:
            advice = "choose a teacher of the same classes in the same order"
            check_same_classes(f"the teacher {config.teacher}", names, "the data set", class_names, advice)
        model = create_model(model_config, num_classes)
        report = load_weights(model, checkpoint, model_config.arch)
        if report.replaced:
            raise UserError(
                f"the teacher {config.teacher} has {report.file_classes} classes, the data set has {num_classes}; "
                "choose a teacher of the same classes"
            )
        for side in sorted(sides):
            check_resolution(model, side, f"the teacher {model_config.arch}")
        self.model = place(model.requires_grad_(False).eval(), device, channels_last=channels_last)
        mean, std = stated or (IMAGENET_MEAN, IMAGENET_STD)
        own, others = _columns(mean, std, device), _columns(*student, device)
        # What was normalised for the student, normalised for the teacher.
        self._scale = others[1] / own[1]
        self._shift = (others[0] - own[0]) / own[1]

    def __call__(self, images: Tensor) -> Tensor:
        """Logits [B, K] of images [B, 3, R, R] that are normalised for the student."""
        with torch.no_grad():
            return self.model((images * self._scale + self._shift).to(images.dtype))


def prepare_student(model: nn.Module, arch: str, config: DistillConfig) -> None:
    """Let a network with a distillation head return both heads' logits in training. Raises `UserError` without one."""
    enable = getattr(model, "set_distilled_training", None)
    if enable is None:
        raise UserError(
            f"distill.type={config.type} trains a distillation head, and {arch} has none; choose an architecture such "
            "as deit_small_distilled_patch16_224"
        )
    enable(True)


def check(config: DistillConfig) -> None:
    """Raise `UserError` for options that contradict each other."""
    for name in ("teacher", "teacher_arch"):
        if config.type == "none" and getattr(config, name):
            raise UserError(
                f"distill.{name}={getattr(config, name)} has no use; set --distill.type=soft or hard as well"
            )
    if config.type != "none" and not config.teacher:
        raise UserError(f"distill.type={config.type} needs a teacher; give its checkpoint with --distill.teacher")


def digest(config: DistillConfig) -> str:
    """A SHA-256 of the teacher's file: another one under its name teaches something else. "" where there is none."""
    if config.type == "none":
        return ""
    try:
        with local_file(config.teacher, config.teacher_arch).open("rb") as file:
            found = hashlib.sha256()
            while piece := file.read(1 << 24):
                found.update(piece)
            return found.hexdigest()
    except OSError:
        return ""  # said where it is opened


class _Description(NamedTuple):
    model: ModelConfig
    normalisation: tuple[tuple[float, ...], tuple[float, ...]] | None
    class_names: tuple[str, ...] | None


def _open(config: DistillConfig) -> Checkpoint:
    if config.teacher_arch:
        return open_checkpoint(config.teacher, config.teacher_arch)
    if not Path(config.teacher).is_file():
        raise UserError(f"the teacher {config.teacher} does not exist; a run writes last.pt, best.pt and final.pt")
    checkpoint = open_checkpoint(config.teacher)
    if not checkpoint.ours:
        raise UserError(
            f"{config.teacher} is not a checkpoint of this trainer; for a teacher of another program set "
            "--distill.teacher_arch"
        )
    return checkpoint


def _describe(config: DistillConfig, checkpoint: Checkpoint) -> _Description:
    if config.teacher_arch:
        preset = preset_of(checkpoint, config.teacher_arch)
        model = ModelConfig(arch=config.teacher_arch)
        return _Description(model, preset.normalisation if preset is not None else None, None)
    content = checkpoint.content
    normalisation = content["normalisation"]
    model = from_dict(RunConfig, content["config"], config.teacher).model
    names = content.get("class_names")
    stated = (tuple(normalisation["mean"]), tuple(normalisation["std"]))
    return _Description(model, stated, tuple(map(tidy, names)) if names is not None else None)


def _imagenets_order(class_names: tuple[str, ...]) -> tuple[str, ...] | None:
    """`class_names` as a teacher with ImageNet's weights has them in order; None where they are not ImageNet's."""
    if sorted(numbers := whole_numbers(class_names) or ()) == list(range(len(class_names))):
        return tuple(name for _, name in sorted(zip(numbers, class_names, strict=True)))
    imagenet = imagenet_names().keys
    return imagenet if set(class_names) == set(imagenet) else None


def _columns(mean: tuple[float, ...], std: tuple[float, ...], device: torch.device) -> tuple[Tensor, Tensor]:
    first, second = (torch.tensor(values, device=device).view(1, 3, 1, 1) for values in (mean, std))
    return first, second
