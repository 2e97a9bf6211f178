"""Fine-tuning: what is frozen, at which rate layers learn, and where a replaced head starts."""

import math
from pathlib import Path
from typing import Any

import pytest
import timm
import timm.optim
import torch
from torch import nn

from ffcv_train.config.read import load_config
from ffcv_train.config.schema import FinetuneConfig, ModelConfig, RunConfig
from ffcv_train.models.checkpoint import load_checkpoint
from ffcv_train.models.factory import create_model
from ffcv_train.models.network import build_network
from ffcv_train.models.weights import load_weights
from ffcv_train.system.errors import UserError
from ffcv_train.training.finetune import freeze, lr_scales
from ffcv_train.training.optim import parameter_groups
from ffcv_train.training.trainer import Trainer
from tests.support.photographs import ROOT
from tests.support.runs import ALONE, Betons, config, train


def network(arch: str) -> nn.Module:
    with torch.device("meta"):
        return create_model(ModelConfig(arch=arch), 7)


def moving(model: nn.Module) -> set[str]:
    return {name for name, parameter in model.named_parameters() if parameter.requires_grad}


@pytest.mark.parametrize("arch", ["vit_tiny_patch16_224", "timm/resnet18", "tf_efficientnet_lite0"])
def test_layer_decay_equals_timms(arch: str) -> None:
    model = network(arch)
    theirs = timm.optim.param_groups_layer_decay(model, 0.05, layer_decay=0.7)
    expected = {id(p): group["lr_scale"] for group in theirs for p in group["params"]}
    scales = lr_scales(model, FinetuneConfig(layer_decay=0.7))
    head: Any = model.get_classifier()
    own = {id(p) for p in head.parameters()}
    for name, parameter in model.named_parameters():
        wanted = 1.0 if id(parameter) in own else expected[id(parameter)]
        assert scales[name] == pytest.approx(wanted), name


def test_layers_of_torchvisions_networks_are_their_blocks() -> None:
    scales = lr_scales(network("vit_b_16"), FinetuneConfig(head_lr=10, layer_decay=0.5))
    assert scales["heads.head.weight"] == 10
    assert scales["encoder.ln.weight"] == scales["encoder.layers.encoder_layer_11.mlp.0.weight"] == 0.5
    assert scales["class_token"] == scales["conv_proj.weight"] == 0.5**13
    scales = lr_scales(network("resnet50"), FinetuneConfig(layer_decay=0.5))
    assert (scales["fc.weight"], scales["layer4.2.bn1.weight"], scales["conv1.weight"]) == (1.0, 0.5, 0.5**17)


def test_without_options_nothing_is_apart() -> None:
    model = network("resnet18")
    assert lr_scales(model, FinetuneConfig()) == {}
    assert freeze(model, FinetuneConfig()) == []
    assert len(moving(model)) == len(list(model.parameters()))


def test_groups_state_their_share() -> None:
    model = network("resnet18")
    groups = parameter_groups(model, 0.1, 0.0, lr_scales(model, FinetuneConfig(head_lr=10)))
    assert [(g["lr_scale"], g["weight_decay"]) for g in groups] == [(1.0, 0.1), (1.0, 0.0), (10, 0.1), (10, 0.0)]
    assert [tuple(p.shape) for g in groups[2:] for p in g["params"]] == [(7, 512), (7,)]


def test_up_to_a_stage() -> None:
    model = network("resnet18")
    norms = freeze(model, FinetuneConfig(freeze_up_to="layer2"))
    assert {name.split(".")[0] for name in moving(model)} == {"layer3", "layer4", "fc"}
    assert len(norms) == 1 + 4 + 5  # the stem's, layer1's, layer2's with its shortcut


def test_up_to_a_block_within_a_stage() -> None:
    model = network("vit_b_16")
    freeze(model, FinetuneConfig(freeze_up_to="encoder.layers.encoder_layer_10"))
    prefixes = ("encoder.layers.encoder_layer_11.", "encoder.ln.", "heads.")
    assert all(name.startswith(prefixes) for name in moving(model))
    assert {name.split(".")[0] for name in moving(model)} == {"encoder", "heads"}


@pytest.mark.parametrize(
    ("arch", "head"), [("resnet18", "fc"), ("efficientnet_b0", "classifier.1"), ("deit_tiny_patch16_224", "head")]
)
def test_all_but_the_head(arch: str, head: str) -> None:
    model = network(arch)
    norms = freeze(model, FinetuneConfig(freeze_up_to="body"))
    assert moving(model) == {f"{head}.weight", f"{head}.bias"}
    assert len(norms) == sum(isinstance(module, nn.BatchNorm2d) for module in model.modules())


def test_a_tail_at_the_tests_resolution_moves_the_classifier_and_the_last_norm() -> None:
    """FixRes's recipe, on the network that it names."""
    recipe = load_config(RunConfig, ["--config-file", str(ROOT / "finetune_configs/fixres_resnet50.yaml")])
    model = network(recipe.model.arch)
    norms = freeze(model, recipe.finetune)
    assert moving(model) == {f"{name}.{leaf}" for name in ("layer4.2.bn3", "fc") for leaf in ("weight", "bias")}
    kept = {module for module in model.modules() if isinstance(module, nn.BatchNorm2d)} - {*norms}
    assert kept == {model.get_submodule("layer4.2.bn3")}
    side = recipe.resolution.max_res
    assert recipe.resolution.min_res == side and recipe.validation.resolution == (side,)


def test_by_name() -> None:
    model = network("resnet18")
    norms = freeze(model, FinetuneConfig(freeze=("layer1", "*.bn2", "conv1.weight")))
    still = {name for name, parameter in model.named_parameters() if not parameter.requires_grad}
    assert "bn1.weight" not in still
    assert {"conv1.weight", "layer1.0.conv1.weight", "layer4.1.bn2.bias"} <= still
    assert len(norms) == 4 + 6


@pytest.mark.parametrize("options", [{"freeze": ("layer9",)}, {"freeze_up_to": "layer9"}])
def test_a_name_that_is_nobodys(options: dict) -> None:
    with pytest.raises(UserError, match=r"layer9 .*; its parts are conv1, bn1, .*, layer1, "):
        freeze(network("resnet18"), FinetuneConfig(**options))


def test_frozen_random_weights_are_refused(small_betons: tuple[Path, Path], tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"set model\.weights too"):
        Trainer(config(small_betons, tmp_path, "--finetune.freeze_up_to=body"), ALONE)


def test_a_replaced_head_starts_at_zero(tmp_path: Path) -> None:
    torch.save(create_model(ModelConfig(arch="cifar_resnet20"), 10).state_dict(), tmp_path / "ten.pt")
    model = create_model(ModelConfig(arch="cifar_resnet20"), 4)
    report = load_weights(model, tmp_path / "ten.pt")
    logits = model(torch.randn(3, 3, 32, 32))
    assert torch.equal(logits, torch.zeros(3, 4))
    assert nn.functional.cross_entropy(logits, torch.tensor([0, 1, 3])).item() == pytest.approx(math.log(4))
    assert str(report).endswith(
        "; new head at zero, as the file's has 10 classes: fc.weight, fc.bias; cross-entropy starts at ln 4 = 1.386"
    )


def test_a_head_that_zeros_would_kill_keeps_its_numbers(tmp_path: Path) -> None:
    """The gradient of SqueezeNet's last ReLU is 0 where its convolution gives zeros."""
    torch.save(create_model(ModelConfig(arch="squeezenet1_1"), 10).state_dict(), tmp_path / "ten.pt")
    model = create_model(ModelConfig(arch="squeezenet1_1"), 4)
    report = load_weights(model, tmp_path / "ten.pt")
    model.eval()(torch.randn(2, 3, 64, 64)).sum().backward()
    head: Any = model.get_submodule("classifier.1")
    assert head.weight.grad.abs().sum() > 0
    assert "at random" in str(report)


def test_a_linear_probe_moves_the_head_alone(small_betons: tuple[Path, Path], tmp_path: Path) -> None:
    """Not one bit of the body changes, running statistics included; the head's rate is its multiple."""
    source = create_model(ModelConfig(arch="cifar_resnet20"), 10)
    torch.save(source.state_dict(), tmp_path / "ten.pt")
    options = ("--finetune.freeze_up_to=body", "--finetune.head_lr=3", "--training.epochs=1", "--lr.lr_peak_epoch=0.5")
    trainer = Trainer(config(small_betons, tmp_path, f"--model.weights={tmp_path / 'ten.pt'}", *options), ALONE)
    run = trainer.fit()
    state, before = load_checkpoint(run / "final.pt")["model"], source.state_dict()
    changed = {n for n in before if before[n].shape == state[n].shape and not torch.equal(before[n], state[n])}
    assert changed == set()
    assert state["fc.weight"].abs().sum() > 0
    steps = trainer.steps
    rate = trainer.learner.lr(0, steps - 1)
    assert [group["lr"] for group in trainer.learner.optimizer.param_groups] == [pytest.approx(3 * rate)] * 2


def test_a_kept_head_of_other_classes_is_said(small_betons: Betons, tmp_path: Path) -> None:
    first = train(small_betons, tmp_path, "--logging.run=first", "--training.epochs=1", "--resolution.end_ramp=0")
    content = torch.load(first / "final.pt", weights_only=True)
    for names, said in (
        (["class1", "class0", "class2", "class3"], "the file calls label 0 'class1', the data calls it 'class0'"),
        (["class0", "class1", "class2", "class3"], ""),
        (None, ""),
    ):
        torch.save(content | {"class_names": names}, tmp_path / "other.pt")
        options = config(small_betons, tmp_path, "--logging.run=second", f"--model.weights={tmp_path / 'other.pt'}")
        _, loaded = build_network(options, 4, torch.device("cpu"), {32}, None, [f"class{i}" for i in range(4)])
        assert (said in loaded) and ("other classes' rows" in loaded) == bool(said)
