"""The DeiT recipe: schedule, stochastic depth and distillation against timm and DeiT's definitions; training by it."""

import contextlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import timm.optim
import torch
from timm.scheduler.cosine_lr import CosineLRScheduler
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from ffcv_train.config.read import load_config
from ffcv_train.config.schema import DistillConfig, LrConfig, ModelConfig, RunConfig
from ffcv_train.losses import CRITERIA
from ffcv_train.models.class_names import imagenet_names
from ffcv_train.models.factory import create_model
from ffcv_train.models.normalise import Normaliser
from ffcv_train.system.errors import UserError
from ffcv_train.training import schedules
from ffcv_train.training.distill import Teacher, distillation_loss
from ffcv_train.training.optim import create_optimizer
from ffcv_train.training.trainer import Trainer
from tests.support.runs import ALONE, config, log, options, run_here, train

ROOT = Path(__file__).resolve().parents[2]
Betons = tuple[Path, Path]
DEIT = [
    *("--model.arch=cifar_deit_tiny", "--model.drop_path=0.1", "--resolution.min_res=32"),
    *("--training.optimizer=adamw", "--training.weight_decay=0.05", "--lr.lr=1e-3", "--lr.lr_schedule_type=cosine"),
    *("--lr.cosine_start=zero", "--lr.warmup_epochs=1", "--lr.warmup_lr=1e-6", "--training.epochs=2"),
    *("--augment.policy=rand_augment", "--augment.erase=0.25", "--augment.repeats=3"),
]


def test_rates_equal_timms_schedule() -> None:
    recipe = load_config(RunConfig, ["--config-file", str(ROOT / "deit_configs/deit_small_maxsup.yaml")])
    parameter = nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.AdamW([parameter], lr=1e-3)
    steps, epochs = 7, recipe.training.epochs
    theirs = CosineLRScheduler(
        optimizer,
        t_initial=epochs * steps,
        lr_min=recipe.lr.min_lr,
        warmup_t=5 * steps,
        warmup_lr_init=recipe.lr.warmup_lr,
        t_in_epochs=False,
    )
    for update in range(epochs * steps):
        theirs.step_update(update)
        rate = schedules.learning_rate(recipe.lr, 1e-3, epochs, update / steps)
        assert rate == pytest.approx(optimizer.param_groups[0]["lr"], rel=1e-9)


def test_warm_up_starts_at_warmup_lr() -> None:
    for kind in ("cosine", "step"):
        lr = LrConfig(lr_schedule_type=kind, warmup_epochs=4, warmup_lr=0.02)
        rates = [schedules.learning_rate(lr, 0.1, 20, epoch) for epoch in (0, 2, 4)]
        assert rates == pytest.approx([0.02, 0.06, 0.1])


def drop_rates(model: nn.Module) -> list[float]:
    return [module.drop_prob for module in model.modules() if type(module).__name__ == "DropPath"]


@pytest.mark.parametrize("arch", ["deit_tiny_patch16_224", "timm/convnext_atto"])
def test_stochastic_depth_equals_timms(arch: str) -> None:
    with torch.device("meta"):
        ours = create_model(ModelConfig(arch=arch, drop_path=0.1), 7)
        theirs = timm.create_model(arch.removeprefix("timm/"), num_classes=7, drop_path_rate=0.1)
    assert drop_rates(ours) == drop_rates(theirs) and max(drop_rates(ours)) == pytest.approx(0.1)


def test_stochastic_depth_of_torchvisions_networks() -> None:
    model = create_model(ModelConfig(arch="torchvision/convnext_tiny", drop_path=0.2), 7)
    rates = [module.p for module in model.modules() if type(module).__name__ == "StochasticDepth"]
    assert max(rates) == pytest.approx(0.2)
    for arch in ("resnet18", "cifar_resnet20", "timm/vgg11"):
        create_model(ModelConfig(arch=arch, drop_path=0.0), 7)
        with pytest.raises(UserError, match="has no stochastic depth"):
            create_model(ModelConfig(arch=arch, drop_path=0.1), 7)


@pytest.mark.parametrize(
    ("arch", "own"), [("torchvision/swin_t", 0.2), ("torchvision/convnext_tiny", 0.1), ("timm/nest_tiny", 0.5)]
)
def test_zero_is_no_stochastic_depth_and_unset_the_librarys(arch: str, own: float) -> None:
    for wish, expected in ((-1.0, own), (0.0, 0.0), (0.17, 0.17)):
        with torch.device("meta"):
            model = create_model(ModelConfig(arch=arch, drop_path=wish), 7)
        rates = drop_rates(model) + [m.p for m in model.modules() if type(m).__name__ == "StochasticDepth"]
        assert max(rates, default=0.0) == pytest.approx(expected)


def test_deits_groups_equal_timms() -> None:
    recipe = load_config(RunConfig, ["--config-file", str(ROOT / "deit_configs/deit_small_maxsup.yaml")])
    model = timm.create_model("deit_small_patch16_224")
    groups = create_optimizer(model, recipe.training, "cpu").param_groups
    theirs: list[dict[str, Any]] = timm.optim.param_groups_weight_decay(
        model, 0.05, no_weight_decay_list=model.no_weight_decay()
    )
    of = {group["weight_decay"]: {id(p) for p in group["params"]} for group in theirs}
    assert {group["weight_decay"]: {id(p) for p in group["params"]} for group in groups} == of
    assert all(group["betas"] == (0.9, 0.999) and group["eps"] == 1e-8 for group in groups)


def softmax(z: np.ndarray) -> np.ndarray:
    e = np.exp(z - z.max(axis=1, keepdims=True))
    return e / e.sum(axis=1, keepdims=True)


@pytest.mark.parametrize("temperature", [1.0, 3.0])
def test_distillation_equals_deits_definition(temperature: float) -> None:
    rng = np.random.default_rng(0)
    student, teacher = rng.normal(0, 3, (8, 10)), rng.normal(0, 3, (8, 10))
    p, q = softmax(teacher / temperature), softmax(student / temperature)
    soft = (p * np.log(p / q)).sum() * temperature**2 / student.size
    hard = -np.log(softmax(student)[np.arange(8), teacher.argmax(axis=1)]).mean()
    for kind, expected in (("soft", soft), ("hard", hard)):
        found = distillation_loss(torch.tensor(student), torch.tensor(teacher), kind, temperature)
        assert float(found) == pytest.approx(expected, rel=1e-5)
        half = distillation_loss(torch.tensor(student).bfloat16(), torch.tensor(teacher), kind, temperature)
        assert half.dtype == torch.float32


def test_a_teacher_sees_images_in_its_own_normalisation(small_betons: Betons, tmp_path: Path) -> None:
    run = train(small_betons, tmp_path, "--logging.run=teacher", "--data.mean=0.1,0.2,0.3", "--data.std=0.5,0.6,0.7")
    settings = DistillConfig(type="hard", teacher=str(run / "final.pt"))
    student = ((0.4, 0.5, 0.6), (0.2, 0.25, 0.3))
    teacher = Teacher(settings, 4, None, {32}, student, torch.device("cpu"), channels_last=True)
    images = torch.randint(0, 256, (6, 3, 32, 32), dtype=torch.uint8)
    formats = (torch.device("cpu"), torch.float32, torch.channels_last)
    expected = teacher.model(Normaliser((0.1, 0.2, 0.3), (0.5, 0.6, 0.7), *formats)(images))
    torch.testing.assert_close(teacher(Normaliser(*student, *formats)(images)), expected, rtol=1e-4, atol=1e-4)
    assert not any(parameter.requires_grad for parameter in teacher.model.parameters())


@pytest.mark.parametrize("kind", ["soft", "hard"])
def test_distilled_training(small_betons: Betons, tmp_path: Path, kind: str) -> None:
    teacher = train(small_betons, tmp_path, "--logging.run=teacher", "--training.epochs=1")
    more = [*DEIT, "--model.arch=cifar_deit_tiny_distilled", f"--distill.type={kind}", "--training.epochs=1"]
    more += ["--distill.weight=0.3"]
    more += [f"--distill.teacher={teacher / 'final.pt'}", "--augment.mixup=0.8"]
    trainer = Trainer(config(small_betons, tmp_path, *more, "--logging.run=student"), ALONE)
    assert trainer.learner.teacher is not None
    images, labels = torch.randn(6, 3, 32, 32), torch.arange(6) % 4
    torch.manual_seed(0)
    loss = trainer.learner.loss(images, labels).detach()
    torch.manual_seed(0)
    logits, imitated = trainer.learner.wrapped(images)
    imitation = distillation_loss(imitated, trainer.learner.teacher(images), kind, 1.0)
    assert loss.item() == pytest.approx(0.7 * trainer.learner.criterion(logits, labels).item() + 0.3 * imitation.item())
    before = {name: value.clone() for name, value in trainer.learner.model.state_dict().items()}
    run = trainer.fit()
    after = trainer.learner.model.state_dict()
    for name in ("head.weight", "head_dist.weight", "dist_token"):
        assert not torch.equal(before[name], after[name])
    assert log(run)[-1]["count"] == 50
    foreign = tmp_path / "weights.pt"
    torch.save(torch.load(teacher / "final.pt", weights_only=True)["model"], foreign)
    by_arch = [f"--distill.teacher={foreign}", "--distill.teacher_arch=cifar_resnet20"]
    Trainer(config(small_betons, tmp_path, *more, *by_arch, "--logging.run=other"), ALONE)


def test_a_run_is_continued_under_its_own_teacher_alone(small_betons: Betons, tmp_path: Path) -> None:
    """Another file under the teacher's name teaches something else; the same file may have moved."""
    teacher = tmp_path / "teacher.pt"
    weights = create_model(ModelConfig(arch="cifar_resnet20"), 4).state_dict()
    torch.save(weights, teacher)
    more = [*DEIT, "--model.arch=cifar_deit_tiny_distilled", "--distill.type=hard", "--training.epochs=1"]
    more += ["--distill.teacher_arch=cifar_resnet20", "--logging.run=r", "--training.resume=auto"]
    run = train(small_betons, tmp_path, *more, f"--distill.teacher={teacher}")
    moved = teacher.rename(tmp_path / "moved.pt")
    assert train(small_betons, tmp_path, *more, f"--distill.teacher={moved}") == run
    torch.save({key: value + 1 for key, value in weights.items()}, teacher)
    with pytest.raises(UserError, match=r"was trained with another teacher than .*teacher\.pt; give that one's file"):
        train(small_betons, tmp_path, *more, f"--distill.teacher={teacher}")


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--distill.type=hard"], "needs a teacher"),
        (["--distill.teacher=x.pt"], "has no use"),
        (["--augment.cutmix=1", "--training.batch_size=1"], "a batch of one image has no partner"),
        (["--distill.teacher_arch=resnet50"], "distill.teacher_arch=resnet50 has no use"),
        (["--training.ema_decay=0.99996"], "averages weights over about 25,000 steps, and this run has"),
        (["--lr.reference_batch=65536"], "lr.warmup_lr=1e-06 is above lr.lr=0.001, which is 2.44e-07 for"),
        (["--distill.type=hard", "--distill.teacher=x.pt"], "cifar_deit_tiny has none"),
        (
            ["--model.arch=cifar_deit_tiny_distilled", "--distill.type=hard", "--distill.teacher=x.pt"],
            r"x.pt does not exist; a run writes last.pt, best.pt and final.pt$",
        ),
        (["--loss.name=zipf", "--augment.mixup=0.8"], "loss.name=zipf is not defined for mixed targets"),
        (["--resolution.min_res=26", "--resolution.step=2"], "does not take images of 26 x 26"),
    ],
)
def test_what_is_refused(small_betons: Betons, tmp_path: Path, more: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        Trainer(config(small_betons, tmp_path, *DEIT, *more), ALONE)


def test_a_teacher_of_other_classes_is_refused(small_betons: Betons, tmp_path: Path) -> None:
    run = train(small_betons, tmp_path, "--logging.run=t", "--training.epochs=1", "--model.num_classes=6")
    settings = DistillConfig(type="hard", teacher=str(run / "final.pt"))
    with pytest.raises(UserError, match="has 6 classes, the data set has 4"):
        Teacher(settings, 4, None, {32}, ((0.5,) * 3, (0.5,) * 3), torch.device("cpu"), channels_last=False)


def test_a_teacher_of_other_class_order_is_refused(small_betons: Betons, tmp_path: Path) -> None:
    run = train(small_betons, tmp_path, "--logging.run=t", "--training.epochs=1")
    settings = DistillConfig(type="hard", teacher=str(run / "final.pt"))
    names = tuple(reversed(torch.load(run / "final.pt", weights_only=True)["class_names"]))
    with pytest.raises(UserError, match="calls label 0 'class0', the data set calls it 'class3'"):
        Teacher(settings, 4, names, {32}, ((0.5,) * 3, (0.5,) * 3), torch.device("cpu"), channels_last=False)


@pytest.mark.parametrize("named", ["numbers", "wordnet"])
def test_a_foreign_teacher_of_imagenet_has_its_order(tmp_path: Path, named: str) -> None:
    """Folders 0 … 999 stand in the order of text, in which an ImageNet teacher's tenth class is the data's third."""
    torch.save(create_model(ModelConfig(arch="cifar_resnet20"), 1000).state_dict(), tmp_path / "teacher.pt")
    settings = DistillConfig(type="hard", teacher=str(tmp_path / "teacher.pt"), teacher_arch="cifar_resnet20")
    in_order = tuple(map(str, range(1000))) if named == "numbers" else imagenet_names().keys
    other = tuple(sorted(in_order)) if named == "numbers" else in_order[::-1]
    student = ((0.5,) * 3, (0.5,) * 3)
    with pytest.raises(UserError, match="choose a teacher of the same classes in the same order"):
        Teacher(settings, 1000, other, {32}, student, torch.device("cpu"), channels_last=False)
    Teacher(settings, 1000, in_order, {32}, student, torch.device("cpu"), channels_last=False)


@pytest.mark.parametrize("loss", [name for name, criterion in CRITERIA.items() if criterion.takes_soft_targets])
def test_every_criterion_trains_on_mixed_targets(small_betons: Betons, tmp_path: Path, loss: str) -> None:
    more = ["--augment.mixup=0.8", "--augment.cutmix=1", f"--loss.name={loss}", "--training.epochs=1"]
    run = train(small_betons, tmp_path, *more, "--lr.lr_peak_epoch=0", "--resolution.min_res=32")
    assert np.isfinite(log(run)[-1]["train_loss"])


def test_deit_by_the_real_script(small_betons: Betons, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    more = ("--training.ema_decay=0.9", "--logging.run=r", "--validation.every=2", "--validation.lr_tta=0")
    run_here("train_imagenet.py", *options(small_betons, tmp_path, *DEIT, *more))
    assert "cifar_deit_tiny, 5.4 M parameters" in capsys.readouterr().out
    first, second = log(tmp_path / "r")
    assert second["train_loss"] < first["train_loss"] and second["ema"]["count"] == 50


class NoWaits(TorchDispatchMode):
    """Refuses the operations for which the host would wait for a GPU: those that read values."""

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        assert func.overloadpacket not in (torch.ops.aten._local_scalar_dense, torch.ops.aten.nonzero), func
        return func(*args, **(kwargs or {}))


def test_a_step_never_waits_for_the_device(small_betons: Betons, tmp_path: Path) -> None:
    """With all that a step can have; by SGD, as AdamW reads its counters where it is not fused, on a CPU."""
    more = [*DEIT, "--training.optimizer=sgd", "--augment.erase=1", "--augment.mixup=0.8", "--augment.cutmix=1"]
    more += ["--training.clip_grad=1", "--training.ema_decay=0.7", "--training.amp=bf16"]
    trainer = Trainer(config(small_betons, tmp_path, *more), ALONE)
    with contextlib.closing(trainer.train_loader.epoch()) as batches, NoWaits():
        trainer.train_step(0, 0, batches)
        trainer.learner.board.post(False)
