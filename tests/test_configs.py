"""The YAML files: each loads, states its recipe in full and says where its numbers come from; no key goes unread."""

import ast
import dataclasses
import inspect
import re
from pathlib import Path

import pytest
import yaml

from ffcv_train.config.read import load_config
from ffcv_train.config.schema import ModelConfig, RunConfig
from ffcv_train.losses import CRITERIA, create_criterion
from ffcv_train.models.factory import create_model
from ffcv_train.training import schedules
from ffcv_train.training.setup import batch_sizes, check_config, scaled_lr

ROOT = Path(__file__).resolve().parents[1]
RECIPES = sorted(ROOT.glob("*_configs/*.yaml"))
CONFIGS = [*RECIPES, ROOT / "ffcv_train" / "cli" / "quickstart.yaml"]

# Keys that decide a result; a recipe states them even where they equal the default, which may change.
RECIPE_KEYS = {
    "model": {"arch"},
    "data": {"crop_scale", "flip"},
    "resolution": {"min_res", "max_res"},
    "lr": {"lr", "lr_schedule_type"},
    "loss": {"name"},
    "training": {"epochs", "optimizer", "momentum", "weight_decay", "amp"},
    "validation": {"resolution", "crop_ratio", "crop"},
}
HEAD = ("Command", "Data", "Hardware", "Time", "Expected", "Source", "Crop", "Status")


def by_name(file: Path) -> str:
    return str(file.relative_to(ROOT))


def load(file: Path, *arguments: str) -> RunConfig:
    return load_config(RunConfig, ["--config-file", str(file), *arguments])


def head(file: Path) -> dict[str, str]:
    """The comment block at the top: what stands after `# Name:`, up to the next name."""
    block = re.match(r"(?:#.*\n)+", file.read_text())
    assert block, f"{file} has no head"
    parts = re.split(r"^# (\w+):", block.group(), flags=re.MULTILINE)
    return {name: re.sub(r"\s*\n#\s*", " ", text).strip() for name, text in zip(parts[1::2], parts[2::2], strict=True)}


def teacher(file: Path) -> list[str]:
    """A teacher, or weights to start from, are the user's to give, as the command in the head says."""
    return re.findall(r"--(?:distill\.teacher|model\.weights)=\S+", file.read_text())


@pytest.mark.parametrize("file", CONFIGS, ids=by_name)
def test_loads_and_is_consistent(file: Path) -> None:
    config = load(file, *teacher(file))
    check_config(config)
    assert min(schedules.resolution(config.resolution, epoch) for epoch in range(config.training.epochs)) >= 8
    create_criterion(config.loss, 10, config.training.epochs)


@pytest.mark.parametrize("file", CONFIGS, ids=by_name)
def test_states_its_recipe(file: Path) -> None:
    content = yaml.safe_load(file.read_text())
    for section, keys in RECIPE_KEYS.items():
        assert keys <= content[section].keys(), f"{section}: {keys - content[section].keys()}"
    assert {"batch_size", "global_batch_size"} & content["training"].keys()
    if content["resolution"]["min_res"] != content["resolution"]["max_res"]:
        assert {"start_ramp", "end_ramp"} <= content["resolution"].keys()
    if content["loss"]["name"] in ("maxsup", "ls"):
        assert {"alpha_start", "alpha_end", "alpha_schedule"} <= content["loss"].keys()


@pytest.mark.parametrize("file", RECIPES, ids=by_name)
def test_alpha_grows_as_in_the_recipes_source(file: Path) -> None:
    """MaxSup's repository: 0.1 + epoch · 0.1/299 for DeiT's 300 epochs, LT and OOD, t/T for ConvNets on FFCV."""
    loss = load(file).loss
    to_the_end = file.parent.name == "deit_configs" or file.name in (
        "cifar10_lt_resnet32.yaml",
        "cifar10_resnet50.yaml",
    )
    assert loss.alpha_schedule == ("reach" if to_the_end and loss.name != "ce" else "approach")


@pytest.mark.parametrize("file", RECIPES, ids=by_name)
def test_head_says_what_to_expect(file: Path) -> None:
    parts = head(file)
    assert all(parts.get(name) for name in HEAD), [name for name in HEAD if not parts.get(name)]
    assert f"--config-file {file.relative_to(ROOT)}" in parts["Command"]
    assert "train_imagenet.py" in parts["Command"]
    assert re.search(r"\d\d\.\d+% top-1|^depends on the data set", parts["Expected"])
    assert ("FFCV's" in parts["Crop"]) == (load(file, *teacher(file)).validation.crop == "ffcv")
    assert "not run here" in parts["Status"] or "docs/results.md" in parts["Status"]


@pytest.mark.parametrize("arch", sorted({load(file).model.arch for file in CONFIGS}))
def test_architectures_exist(arch: str) -> None:
    create_model(ModelConfig(arch=arch), num_classes=10)


# FFCV's table: epochs → the first and last epoch of the ramp, from its YAML files.
FFCV_RAMPS = {16: (11, 13), 24: (17, 20), 32: (23, 27), 40: (29, 34), 56: (41, 48), 88: (65, 76)}


@pytest.mark.parametrize("epochs", FFCV_RAMPS)
@pytest.mark.parametrize(
    ("arch", "devices", "batch", "lr", "decay"),
    [("resnet50", 8, 512, 1.7, 1e-4), ("resnet18", 1, 1024, 0.5, 5e-5)],
)
def test_ffcv_schedules(arch: str, devices: int, batch: int, lr: float, decay: float, epochs: int) -> None:
    short = arch.replace("resnet", "rn")
    config = load(ROOT / f"{short}_configs/{short}_{epochs}_epochs.yaml")
    assert config.model.arch == arch
    assert config.model.use_blurpool
    assert config.training.epochs == epochs
    assert (config.training.momentum, config.training.weight_decay) == (0.9, decay)
    assert (config.lr.lr_schedule_type, config.lr.lr_peak_epoch) == ("cyclic", 2)
    resolution = config.resolution
    assert (resolution.min_res, resolution.max_res, resolution.start_ramp, resolution.end_ramp) == (
        160,
        192,
        *FFCV_RAMPS[epochs],
    )
    assert config.validation.resolution == (256,)
    sizes = batch_sizes(config, devices)
    assert (sizes.per_device, sizes.global_batch) == (batch, devices * batch)
    assert scaled_lr(config, sizes) == pytest.approx(lr)
    assert scaled_lr(config, batch_sizes(config, 4 * devices)) == pytest.approx(4 * lr)


@pytest.mark.parametrize("name", ["maxsup", "ls", "ce"])
@pytest.mark.parametrize("recipe", ["rn50_200_cosine", "rn18_200_cosine", "rn50_90_step"])
def test_paper_recipes(recipe: str, name: str) -> None:
    """Batch and rate stay as published on any number of devices; the criteria differ in nothing else."""
    file = ROOT / f"{recipe[:4]}_configs/{recipe}_{name}.yaml"
    config = load(file)
    epochs, global_batch, lr = (200, 2048, 0.85) if "cosine" in recipe else (90, 512, 0.1)
    assert config.training.epochs == epochs
    assert config.training.weight_decay == 1e-4
    for devices in (1, 4, 8):
        sizes = batch_sizes(config, devices)
        assert sizes.global_batch == global_batch
        assert scaled_lr(config, sizes) == pytest.approx(lr)
    assert config.loss.name == name
    assert recipe.split("_")[2] == config.lr.lr_schedule_type
    reference = load(ROOT / f"{recipe[:4]}_configs/{recipe}_maxsup.yaml")
    assert dataclasses.replace(config, loss=reference.loss) == reference


@pytest.mark.parametrize("name", ["ce", "ls"])
def test_deit_criteria_differ_in_nothing_else(name: str) -> None:
    reference, config = (load(ROOT / f"deit_configs/deit_small_{loss}.yaml") for loss in ("maxsup", name))
    assert config.loss.name == name
    assert dataclasses.replace(config, loss=reference.loss) == reference


@pytest.mark.parametrize("devices", [1, 4, 8, 16])
def test_deit_rate_and_batch(devices: int) -> None:
    """0.0005 for 512 images, 1024 of them a step: the official script's linear rule."""
    for file in (ROOT / "deit_configs").glob("*.yaml"):
        config = load(file)
        sizes = batch_sizes(config, devices)
        assert sizes.global_batch == 1024
        assert scaled_lr(config, sizes) == pytest.approx(1e-3)


SECTIONS = {section.name: section.type for section in dataclasses.fields(RunConfig)}


def keys_read(tree: ast.AST) -> set[str]:
    """`section.key` of every option that a module reads.

    Seen are `….section.key`, and `x.key` where x is an argument of the section's type or was assigned `….section`
    in the same function.
    """
    read: set[str] = set()
    for scope in ast.walk(tree):
        if not isinstance(scope, ast.FunctionDef | ast.Module):
            continue
        names: dict[str, str] = {}
        for node in ast.walk(scope):
            if isinstance(node, ast.arg) and node.annotation is not None:
                kinds = ast.unparse(node.annotation).split(" | ")
                names.update((node.arg, section) for section, type_ in SECTIONS.items() if type_.__name__ in kinds)
            elif isinstance(node, ast.Assign):
                targets, values = node.targets[0], node.value
                pairs = (
                    zip(targets.elts, values.elts, strict=True)
                    if isinstance(targets, ast.Tuple) and isinstance(values, ast.Tuple)
                    else [(targets, values)]
                )
                for target, value in pairs:
                    if isinstance(target, ast.Name) and isinstance(value, ast.Attribute) and value.attr in SECTIONS:
                        names[target.id] = value.attr
        for node in ast.walk(scope):
            if isinstance(node, ast.Attribute):
                owner = node.value
                if isinstance(owner, ast.Attribute) and owner.attr in SECTIONS:
                    read.add(f"{owner.attr}.{node.attr}")
                elif isinstance(owner, ast.Name) and owner.id in names:
                    read.add(f"{names[owner.id]}.{node.attr}")
    return read


def test_every_key_is_read() -> None:
    """An option that nothing reads is a defect. Criteria receive `loss` options as arguments of their constructors."""
    read = {f"loss.{name}" for criterion in CRITERIA.values() for name in inspect.signature(criterion).parameters}
    for file in [*(ROOT / "ffcv_train").rglob("*.py"), *ROOT.glob("*.py")]:
        read |= keys_read(ast.parse(file.read_text()))
    keys = {f"{section}.{option.name}" for section, kind in SECTIONS.items() for option in dataclasses.fields(kind)}
    assert not keys - read


def test_an_unread_key_is_noticed() -> None:
    program = "def f(config: LrConfig, run): t = run.training; return config.lr, t.epochs, run.model.arch, x.seed"
    assert keys_read(ast.parse(program)) == {"lr.lr", "training.epochs", "model.arch"}
