"""Parameter groups by shape, and the optimizers built on them."""

from typing import Any

import pytest
import timm
import timm.optim
import torch
import torchvision
from torch import nn

from ffcv_train.config.schema import ModelConfig, TrainingConfig
from ffcv_train.models.factory import create_model
from ffcv_train.system.errors import UserError
from ffcv_train.training.optim import create_optimizer, parameter_groups


class Small(nn.Module):
    """Names that say nothing of what they hold: a norm not called bn, a matrix called so."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.thing = nn.BatchNorm2d(4)
        self.bn_projection = nn.Linear(4, 2)


def names(model: nn.Module, group: dict) -> set[str]:
    ids = {id(parameter) for parameter in group["params"]}
    return {name for name, parameter in model.named_parameters() if id(parameter) in ids}


def test_groups_go_by_shape_not_by_name() -> None:
    model = Small()
    decayed, others = parameter_groups(model, 0.1, 0.02)
    assert names(model, decayed) == {"conv.weight", "bn_projection.weight"}
    assert names(model, others) == {"conv.bias", "thing.weight", "thing.bias", "bn_projection.bias"}
    assert (decayed["weight_decay"], others["weight_decay"]) == (0.1, 0.02)


def test_frozen_parameters_and_empty_groups_are_left_out() -> None:
    model = Small()
    for name, parameter in model.named_parameters():
        parameter.requires_grad = name == "conv.weight"
    (only,) = parameter_groups(model, 0.1, 0.0)
    assert names(model, only) == {"conv.weight"}


def test_shared_parameters_stand_once() -> None:
    model = nn.Sequential(nn.Linear(3, 3, bias=False), nn.Linear(3, 3, bias=False))
    model[1].weight = model[0].weight
    (only,) = parameter_groups(model, 0.1, 0.0)
    assert len(only["params"]) == 1


@pytest.mark.parametrize(
    ("arch", "kept"),
    [
        ("vit_b_16", {"class_token", "encoder.pos_embedding"}),
        ("swin_t", {"features.1.0.attn.relative_position_bias_table"}),
        ("convnext_tiny", {"features.1.0.layer_scale"}),
    ],
)
def test_embeddings_and_tokens_of_torchvisions_networks_do_not_decay(arch: str, kept: set[str]) -> None:
    with torch.device("meta"):
        model = create_model(ModelConfig(arch=f"torchvision/{arch}"), 7)
    decayed, others = parameter_groups(model, 0.1, 0.02)
    assert kept <= names(model, others)
    assert all(name.endswith("weight") for name in names(model, decayed))


@pytest.mark.parametrize("arch", ["vit_tiny_patch16_224", "swin_tiny_patch4_window7_224", "resnet18"])
def test_groups_of_timm_models_equal_timms(arch: str) -> None:
    with torch.device("meta"):
        model = timm.create_model(arch)
    exempt: Any = getattr(model, "no_weight_decay", tuple)
    theirs = timm.optim.param_groups_weight_decay(model, 0.05, no_weight_decay_list=exempt())
    expected = {group["weight_decay"]: names(model, group) for group in theirs}
    assert {group["weight_decay"]: names(model, group) for group in parameter_groups(model, 0.05, 0.0)} == expected


def test_resnet50_decays_every_kernel_and_the_head() -> None:
    with torch.device("meta"):
        model = torchvision.models.resnet50()
    decayed, others = parameter_groups(model, 1e-4, 0.0)
    assert (len(decayed["params"]), len(others["params"])) == (54, 107)
    assert sum(p.numel() for g in (decayed, others) for p in g["params"]) == 25_557_032


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_decay_shrinks_what_it_should(optimizer: str) -> None:
    model = Small()
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    config = TrainingConfig(optimizer=optimizer, weight_decay=0.5, momentum=0.0)
    built = create_optimizer(model, config, "cpu")
    for group in built.param_groups:
        assert group["lr"] == 0
        group["lr"] = 0.1
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    built.step()
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.detach(), before[name] * (0.95 if parameter.ndim > 1 else 1.0))


def test_options_reach_the_optimizers() -> None:
    sgd = create_optimizer(Small(), TrainingConfig(momentum=0.8, nesterov=True), "cpu")
    assert isinstance(sgd, torch.optim.SGD)
    assert (sgd.defaults["momentum"], sgd.defaults["nesterov"]) == (0.8, True)
    adamw = create_optimizer(Small(), TrainingConfig(optimizer="adamw", momentum=0.8, beta2=0.95), "cpu")
    assert isinstance(adamw, torch.optim.AdamW)
    assert adamw.defaults["betas"] == (0.8, 0.95)


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_fused_on_gpus_only(optimizer: str) -> None:
    config = TrainingConfig(optimizer=optimizer)
    assert create_optimizer(Small(), config, torch.device("cuda", 0)).defaults["fused"]
    assert not create_optimizer(Small(), config, torch.device("cpu")).defaults["fused"]


@pytest.mark.parametrize(
    "config", [TrainingConfig(nesterov=True, momentum=0.0), TrainingConfig(optimizer="adamw", momentum=1.0)]
)
def test_values_that_an_optimizer_refuses_are_named(config: TrainingConfig) -> None:
    with pytest.raises(UserError, match=rf"training\.optimizer={config.optimizer} refuses"):
        create_optimizer(Small(), config, "cpu")


def test_a_model_with_nothing_to_train_is_refused() -> None:
    with pytest.raises(UserError, match="no trainable parameter"):
        create_optimizer(Small().requires_grad_(False), TrainingConfig(), "cpu")


@pytest.mark.parametrize("nesterov", [False, True])
@pytest.mark.parametrize("overflowing", [{0}, {0, 1, 4}, {2}])
def test_fused_sgd_survives_steps_that_the_scaler_skips(overflowing: set[int], nesterov: bool) -> None:
    """PyTorch's own fused kernel, as a GPU in fp16 uses it, beside the multi-tensor one, step for step."""
    weights = []
    for device in ("cuda", "cpu"):  # of which the first means fused
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(40, 30), nn.Linear(30, 5))
        optimizer = create_optimizer(model, TrainingConfig(nesterov=nesterov), device)
        scaler = torch.amp.GradScaler("cpu", init_scale=8.0)
        for step in range(8):
            optimizer.param_groups[0]["lr"] = optimizer.param_groups[1]["lr"] = 0.1
            loss = model(torch.randn(16, 40, generator=torch.Generator().manual_seed(step))).square().mean()
            scaler.scale(loss * (float("inf") if step in overflowing else 1)).backward()
            # What is not initialised shall not be 0 by chance.
            dirty = [torch.full_like(p, 1e30) for p in model.parameters() for _ in range(20)]
            del dirty
            scaler.step(optimizer)
            scaler.update()
            optimizer.zero_grad()
        weights.append([p.detach().clone() for p in model.parameters()])
    assert optimizer.param_groups[0]["fused"] is None
    for fused, multi_tensor in zip(*weights, strict=True):
        assert torch.allclose(fused, multi_tensor, rtol=0, atol=1e-6)


@pytest.mark.parametrize(("name", "expected"), [("lamb", "Lamb"), ("lion", "Lion"), ("muon", "Muon")])
def test_timm_s_optimizers_step_as_timm_makes_them(name: str, expected: str) -> None:
    """The same weights after steps as of timm's own factory with the same groups."""
    built = []
    for ours in (True, False):
        torch.manual_seed(0)
        model = timm.create_model("test_resnet", num_classes=4)
        if ours:
            config = TrainingConfig(optimizer=name, momentum=0.9, beta2=0.99, weight_decay=0.05)
            optimizer = create_optimizer(model, config, "cpu")
        else:
            more: dict[str, Any] = {"momentum": 0.9} if name == "muon" else {}
            optimizer = timm.optim.create_optimizer_v2(
                model, opt=name, lr=0.01, weight_decay=0.05, betas=(0.9, 0.99), fallback_list=["fc.*"], **more
            )
        assert type(optimizer).__name__ == expected
        for step in range(3):
            torch.manual_seed(step)
            for group in optimizer.param_groups:
                group["lr"] = 0.01
            optimizer.zero_grad()
            model(torch.randn(4, 3, 64, 64)).square().sum().backward()
            optimizer.step()
        built.append(model.state_dict())
    assert not torch.equal(built[0]["fc.weight"], timm.create_model("test_resnet", num_classes=4).fc.weight)
    for key, value in built[0].items():
        torch.testing.assert_close(value, built[1][key], msg=key)


def test_muon_leaves_the_head_and_what_does_not_decay_to_adamw() -> None:
    model = timm.create_model("test_vit", num_classes=4)
    optimizer = create_optimizer(model, TrainingConfig(optimizer="muon", momentum=0.95, nesterov=True), "cpu")
    assert (optimizer.defaults["momentum"], optimizer.defaults["nesterov"]) == (0.95, True)
    fallback = {name for group in optimizer.param_groups if group["use_fallback"] for name in names(model, group)}
    others = {name for group in optimizer.param_groups if not group["use_fallback"] for name in names(model, group)}
    assert {"head.weight", "head.bias", "pos_embed", "cls_token", "norm.weight"} <= fallback
    assert {"patch_embed.proj.weight", "blocks.0.attn.qkv.weight"} <= others
    assert all(name.endswith("weight") for name in others)


@pytest.mark.parametrize("name", ["lamb", "lion", "muon"])
def test_values_out_of_range_are_refused(name: str) -> None:
    with pytest.raises(UserError, match=rf"training\.optimizer={name} refuses training.momentum=1"):
        create_optimizer(Small(), TrainingConfig(optimizer=name, momentum=1.0), "cpu")
