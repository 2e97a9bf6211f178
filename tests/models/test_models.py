"""Networks by name, BlurPool, and weights from every kind of file."""

import argparse
import copy
import gzip
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import timm
import torch
import torch.distributed as dist
import torch.nn.functional as F
import torchvision
from torch import Tensor, nn
from torch.distributed.tensor import Shard, distribute_tensor, init_device_mesh

from ffcv_train.config.schema import ModelConfig
from ffcv_train.models.blurpool import apply_blurpool, with_filters
from ffcv_train.models.factory import check_resolution, create_model, find_arch
from ffcv_train.models.weights import find_prefix, load_weights, read_state_dict
from ffcv_train.system.errors import UserError

CIFAR = ModelConfig(arch="cifar_resnet20")


# Networks


@torch.no_grad()
@pytest.mark.parametrize(
    ("arch", "library", "side"),
    [
        ("cifar_resnet20", "cifar", 8),
        ("cifar_resnet32", "cifar", 33),
        ("cifar_resnet18", "cifar", 16),
        ("cifar_resnet50", "cifar", 16),
        ("resnet18", "torchvision", 32),
        ("mobilenet_v2", "torchvision", 64),
        ("squeezenet1_1", "torchvision", 64),
        ("googlenet", "torchvision", 64),
        ("inception_v3", "torchvision", 96),
        ("timm/resnet18.a1_in1k", "timm", 32),
        ("resnet10t", "timm", 32),
        ("tf_efficientnet_lite0", "timm", 64),
        ("vit_tiny_patch16_224", "timm", 224),
    ],
)
def test_networks_by_name_give_logits_in_training_and_evaluation(arch: str, library: str, side: int) -> None:
    assert find_arch(arch)[0] == library
    model = create_model(ModelConfig(arch=arch), 7)
    check_resolution(model, side, arch)
    images = torch.zeros(2, 3, side, side)
    assert model.train()(images).shape == (2, 7)
    assert model.eval()(images).shape == (2, 7)


def test_a_name_that_both_libraries_have_is_torchvisions() -> None:
    assert find_arch("resnet50") == ("torchvision", "resnet50")
    assert find_arch("timm/resnet50") == ("timm", "resnet50")
    assert find_arch("torchvision/resnet50") == ("torchvision", "resnet50")


@pytest.mark.parametrize(
    ("arch", "near"),
    [
        ("resnet5o", "resnet50"),
        ("cifar_resnet21", "cifar_resnet20"),
        ("deit_smal_patch16_224", "deit_small_patch16_224"),
        ("torchvision/deit_tiny_patch16_224", "deit_tiny_patch16_224"),
        ("hf-hub:timm/resnet50.a1_in1k", "resnet50"),
        ("", "timm.list_models"),
        ("fcn_resnet50", "resnet50"),
    ],
)
def test_unknown_names_suggest_near_ones(arch: str, near: str) -> None:
    with pytest.raises(UserError, match=rf"^model\.arch={arch} is no classifier.*{near}"):
        create_model(ModelConfig(arch=arch), 10)


def test_no_classes_is_an_error() -> None:
    with pytest.raises(UserError, match=r"model\.num_classes"):
        create_model(CIFAR, 0)


@pytest.mark.parametrize(("depth", "parameters"), [(20, 269_722), (32, 464_154)])
def test_cifar_networks_have_the_papers_size(depth: int, parameters: int) -> None:
    """He et al., table 6: 0.27 M and 0.46 M, no parameters in shortcuts."""
    model = create_model(ModelConfig(arch=f"cifar_resnet{depth}"), 10)
    assert sum(parameter.numel() for parameter in model.parameters()) == parameters
    assert sum(isinstance(m, nn.Conv2d | nn.Linear) for m in model.modules()) == depth


def test_shortcut_takes_every_second_pixel_and_pads_channels() -> None:
    block = create_model(CIFAR, 10).layer2[0].eval()  # type: ignore[union-attr, index]
    nn.init.zeros_(block.bn2.weight)
    images = torch.rand(2, 16, 7, 9)
    expected = torch.zeros(2, 32, 4, 5)
    expected[:, 8:24] = images[:, :, ::2, ::2]
    torch.testing.assert_close(block(images), expected)


def test_cifar_resnet18_keeps_the_side_until_its_second_stage() -> None:
    model = create_model(ModelConfig(arch="cifar_resnet18"), 10)
    sizes = []
    model.layer1.register_forward_hook(lambda module, args, output: sizes.append(tuple(output.shape)))  # type: ignore[union-attr]
    model(torch.zeros(1, 3, 32, 32).expand(2, -1, -1, -1))
    assert sizes == [(2, 64, 32, 32)]


# Resolutions


@pytest.mark.parametrize("arch", ["deit_tiny_patch16_224", "cifar_deit_tiny"])
def test_transformers_take_other_sides_and_are_timms_at_their_own(arch: str) -> None:
    model = create_model(ModelConfig(arch=arch), 10).eval()
    own = 32 if arch.startswith("cifar") else 224
    with torch.no_grad():
        assert model(torch.randn(1, 3, own // 2, own // 2)).shape == (1, 10)
        if own == 224:
            theirs = timm.create_model(arch, num_classes=10).eval()
            theirs.load_state_dict(model.state_dict())
            images = torch.randn(2, 3, own, own)
            assert torch.equal(model(images), theirs(images))


@pytest.mark.parametrize(
    ("arch", "side"), [("deit_tiny_patch16_224", 150), ("inception_v3", 32), ("vit_b_32", 224 + 1)]
)
def test_a_refused_side_is_named(arch: str, side: int) -> None:
    model = create_model(ModelConfig(arch=arch), 10)
    with pytest.raises(UserError, match=rf"^{arch} does not take images of {side} x {side} pixels \(.+\); change"):
        check_resolution(model, side, arch)


def test_checking_a_side_leaves_the_model_as_it_is() -> None:
    model = create_model(ModelConfig(arch="cifar_resnet20", use_blurpool=True), 10).train()
    model.layer1.eval()  # type: ignore[union-attr]
    flags = [module.training for module in model.modules()]
    before = copy.deepcopy(model.state_dict())
    check_resolution(model, 32)
    with pytest.raises(UserError, match="CifarResNet does not take images of 0 x 0"):
        check_resolution(model, 0)
    assert [module.training for module in model.modules()] == flags
    torch.testing.assert_close(model.state_dict(), before, rtol=0, atol=0)


def test_a_model_that_needs_real_numbers_is_asked_with_them() -> None:
    class Reads(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(3, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.fc(x.mean(dim=(2, 3))) * (1 if x.sum().item() == 0 else 2)

    check_resolution(Reads(), 8)


def test_what_returns_no_logits_is_no_classifier() -> None:
    with pytest.raises(UserError, match=r"Sequential is no image classifier: it returns \(1, 4, 8, 8\)"):
        check_resolution(nn.Sequential(nn.Conv2d(3, 4, 1)), 8)


# BlurPool


def blurred_reference(images: Tensor) -> Tensor:
    """[1 2 1] ⊗ [1 2 1] / 16 as nine shifted sums."""
    height, width = images.shape[2:]
    padded = F.pad(images, (1, 1, 1, 1))
    weights = (1, 2, 1)
    shifted = [
        weights[i] * weights[j] * padded[:, :, i : i + height, j : j + width] for i in range(3) for j in range(3)
    ]
    return torch.stack(shifted).sum(dim=0) / 16


@pytest.mark.parametrize("size", [(8, 8), (7, 9)])
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize(
    ("kernel", "options"),
    [
        (3, {"stride": 2, "padding": 1}),
        (1, {"stride": 2}),
        (1, {"stride": (3, 1), "groups": 4, "bias": False}),
        (1, {"stride": 2, "padding": 1}),
    ],
)
def test_blurpool_is_a_blur_before_the_convolution(
    kernel: int, options: dict[str, Any], size: tuple[int, int], memory_format: torch.memory_format
) -> None:
    plain = nn.Conv2d(16, 8, kernel, **options)
    blurred = nn.Sequential(copy.deepcopy(plain))
    assert apply_blurpool(blurred) == ["0"]
    images = torch.randn(2, 16, *size).to(memory_format=memory_format).requires_grad_()
    ours, reference = blurred(images), plain(blurred_reference(images))
    torch.testing.assert_close(ours, reference)
    torch.testing.assert_close(
        torch.autograd.grad(ours.square().sum(), images)[0], torch.autograd.grad(reference.square().sum(), images)[0]
    )


def test_blurpool_takes_strided_convolutions_of_sixteen_channels() -> None:
    model = nn.Sequential(
        nn.Conv2d(15, 16, 3, stride=2), nn.Conv2d(16, 16, 3), nn.Conv2d(16, 16, 3, stride=(1, 2)), nn.MaxPool2d(2)
    )
    assert apply_blurpool(model) == ["2"]


def test_blurpool_in_resnet50_is_where_ffcv_has_it() -> None:
    with torch.device("meta"):
        names = apply_blurpool(torchvision.models.resnet50())
    stages = ("layer2.0", "layer3.0", "layer4.0")
    assert names == [f"{stage}.{layer}" for stage in stages for layer in ("conv2", "downsample.0")]


@pytest.mark.parametrize("arch", ["cifar_resnet20", "nf_regnet_b0", "tf_efficientnet_lite0", "davit_tiny"])
def test_blurpool_changes_the_output_and_the_keys(arch: str) -> None:
    """Among them timm's standardised weights, TensorFlow's padding, and a network that asks for the kernel's size."""
    plain = create_model(ModelConfig(arch=arch), 10).eval()
    blurred = create_model(ModelConfig(arch=arch, use_blurpool=True), 10).eval()
    for this, other in ((blurred, plain), (plain, blurred)):
        with pytest.raises(RuntimeError, match="blur_filter"):
            this.load_state_dict(other.state_dict())
    blurred.load_state_dict(with_filters(plain.state_dict(), blurred))
    for model in (plain, blurred):
        # Some heads start as zeros.
        nn.init.normal_(list(model.parameters())[-2])
    images = torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        assert not torch.allclose(plain(images), blurred(images), rtol=1e-3)


def test_blurpool_under_autocast_copy_and_compile() -> None:
    model = copy.deepcopy(create_model(ModelConfig(arch="cifar_resnet20", use_blurpool=True), 10))
    images = torch.rand(2, 3, 16, 16)
    with torch.autocast("cpu", torch.bfloat16):
        assert model(images).dtype == torch.bfloat16
    model.eval()
    torch.compiler.reset()
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(images), model(images))


class FfcvBlurPoolConv2d(nn.Module):
    """The class of FFCV's rn50 script, with what it holds and computes."""

    def __init__(self, conv: nn.Conv2d) -> None:
        super().__init__()
        self.conv = conv
        kernel = torch.tensor([[[[1, 2, 1], [2, 4, 2], [1, 2, 1]]]]) / 16.0
        self.register_buffer("blur_filter", kernel.repeat(conv.in_channels, 1, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        blurred = F.conv2d(x, self.get_buffer("blur_filter"), stride=1, padding=(1, 1), groups=self.conv.in_channels)
        return self.conv(blurred)


def ffcv_resnet18() -> nn.Module:
    def apply(module: nn.Module) -> None:
        for name, child in module.named_children():
            if isinstance(child, nn.Conv2d) and max(child.stride) > 1 and child.in_channels >= 16:
                setattr(module, name, FfcvBlurPoolConv2d(child))
            else:
                apply(child)

    model = torchvision.models.resnet18()
    apply(model)
    return model


@torch.no_grad()
def test_ffcvs_network_takes_our_state_dict_and_gives_our_logits() -> None:
    ours, theirs = create_model(ModelConfig(arch="resnet18", use_blurpool=True), 1000).eval(), ffcv_resnet18().eval()
    assert set(ours.state_dict()) == set(theirs.state_dict())
    theirs.load_state_dict(ours.state_dict())
    images = torch.rand(2, 3, 64, 64)
    torch.testing.assert_close(theirs(images), ours(images))
    for stranger in (torchvision.models.resnet18(), timm.create_model("resnet18")):
        with pytest.raises(RuntimeError, match=r"Missing key.*layer2\.0\.conv1\.weight"):
            stranger.load_state_dict(ours.state_dict())


@torch.no_grad()
@pytest.mark.filterwarnings("ignore:`torch.jit:FutureWarning")
def test_blurpool_goes_through_script_and_export() -> None:
    model = create_model(ModelConfig(arch="resnet18", use_blurpool=True), 10).eval()
    images = torch.rand(2, 3, 64, 64)
    torch.testing.assert_close(torch.jit.script(model)(images), model(images))
    torch.testing.assert_close(torch.export.export(model, (images,)).module()(images), model(images))


def test_blurpool_without_effect_is_refused() -> None:
    with pytest.raises(UserError, match=r"model\.use_blurpool=1 changes nothing in deit_tiny_patch16_224"):
        create_model(ModelConfig(arch="deit_tiny_patch16_224", use_blurpool=True), 10)


# Weights


def trained(arch: str = "cifar_resnet20", classes: int = 10) -> nn.Module:
    """A model whose every tensor differs from initialisation."""
    model = create_model(ModelConfig(arch=arch), classes)
    for tensor in model.state_dict().values():
        tensor.copy_(torch.rand_like(tensor) if tensor.is_floating_point() else torch.full_like(tensor, 5))
    return model


def ours(model: nn.Module, ema: nn.Module | None = None, **config: Any) -> dict[str, Any]:
    return {
        "format": 1,
        "model": model.state_dict(),
        "ema": ema.state_dict() if ema else None,
        "config": {"model": {"arch": "cifar_resnet20", **config}},
        "arch": "cifar_resnet20",
        "normalisation": {"mean": [0.1, 0.2, 0.3], "std": [0.4, 0.5, 0.6]},
        "epoch": 3,
    }


def prefixed(state: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {f"{prefix}{key}": value for key, value in state.items()}


CONTAINERS: dict[str, Callable[[nn.Module], Any]] = {
    "ours": ours,
    "plain": lambda m: m.state_dict(),
    "state_dict": lambda m: {"state_dict": m.state_dict(), "epoch": 90, "best_acc1": torch.tensor(76.1)},
    "model": lambda m: {"model": m.state_dict(), "optimizer": {"state": {}}},
    "model_state_dict": lambda m: {"model_state_dict": m.state_dict()},
    "timm with options": lambda m: {"state_dict": m.state_dict(), "args": argparse.Namespace(lr=0.1)},
    "DDP": lambda m: {"state_dict": prefixed(m.state_dict(), "module.")},
    "DDP, compiled": lambda m: prefixed(m.state_dict(), "module._orig_mod."),
    "compiled, DDP": lambda m: prefixed(m.state_dict(), "_orig_mod.module."),
    "AveragedModel": lambda m: torch.optim.swa_utils.AveragedModel(m).state_dict(),
    "torchvision's": lambda m: {"model": m.state_dict(), "args": argparse.Namespace(model="resnet18", output_dir=".")},
    "DeiT's": lambda m: {"model": m.state_dict(), "model_ema": None, "scaler": {}, "epoch": 299},
    "Lightning's": lambda m: {
        "pytorch-lightning_version": "2.6.6",
        "state_dict": prefixed(m.state_dict(), "model.") | {"criterion.weight": torch.ones(10)},
        "hyper_parameters": {"lr": np.float64(0.1), "root": Path("/data"), "steps": np.int64(3)},
    },
    "timm_model": lambda m: prefixed(m.state_dict(), "timm_model."),
    "DDP, Lightning": lambda m: {"state_dict": prefixed(m.state_dict(), "module.model.")},
    "MoCo's": lambda m: {
        "arch": "resnet50",
        "state_dict": prefixed(m.state_dict(), "module.encoder_q.")
        | prefixed(trained().state_dict(), "module.encoder_k.")
        | {"module.queue": torch.rand(8, 4)},
    },
    "FSDP": lambda m: {within(k, "_fsdp_wrapped_module."): v for k, v in m.state_dict().items()},
    "FSDP, checkpointed": lambda m: {
        within(k, "_fsdp_wrapped_module._checkpoint_wrapped_module."): v for k, v in m.state_dict().items()
    },
    "Composer's": lambda m: {"state": {"model": prefixed(m.state_dict(), "module."), "optimizers": {"SGD": {}}}},
    "half": lambda m: {k: v.half() if v.is_floating_point() else v for k, v in m.state_dict().items()},
    "under a name of its own": lambda m: {"queue": {"n": torch.ones(2)}, "student": prefixed(m.state_dict(), "net.")},
}


def within(key: str, wrapper: str) -> str:
    """As wrappers of blocks name a block's keys."""
    block, _, leaf = key.rpartition(".")
    return f"{wrapper}{block}.{wrapper}{leaf}"


@pytest.mark.parametrize("container", CONTAINERS)
def test_every_container_is_read(container: str, tmp_path: Path) -> None:
    source, target = trained(), create_model(CIFAR, 10)
    if container == "half":
        source.load_state_dict({key: value.half() for key, value in source.state_dict().items()})
    torch.save(CONTAINERS[container](source), tmp_path / "file.pt")
    report = load_weights(target, tmp_path / "file.pt", "cifar_resnet20")
    torch.testing.assert_close(target.state_dict(), source.state_dict(), rtol=0, atol=0)
    assert (report.loaded, report.replaced, report.dropped) == (len(source.state_dict()), (), ())


def test_what_was_taken_from_a_file_is_said(tmp_path: Path) -> None:
    def said(container: str) -> str:
        torch.save(CONTAINERS[container](trained()), tmp_path / "file.pt")
        return str(load_weights(create_model(CIFAR, 10), tmp_path / "file.pt"))

    count = len(trained().state_dict())
    assert said("plain") == f"{count} tensors from {tmp_path}/file.pt"
    assert said("Lightning's").endswith(", under model., without 1 key beside it (criterion.weight)")
    assert f", under module.encoder_q., without {count + 1} keys beside it (module.encoder_k.conv1.w" in said("MoCo's")
    torch.save({"state_dict": trained().state_dict(), "state_dict_ema": trained().state_dict()}, tmp_path / "both.pt")
    assert str(load_weights(create_model(CIFAR, 10), tmp_path / "both.pt")).endswith("both.pt, averaged weights")
    assert not load_weights(create_model(CIFAR, 10), tmp_path / "both.pt", ema=False).averaged


def test_a_prefix_is_that_of_most_of_the_networks_keys() -> None:
    own = {"fc.weight", "fc.bias", "layer1.0.fc.weight"}
    assert find_prefix(["a.fc.weight", "a.layer1.0.fc.weight", "b.fc.weight"], own) == "a."
    assert find_prefix(["fc.weight", "fc.bias", "a.fc.weight"], own) == ""
    assert find_prefix(["a.fc.weight", "b.fc.bias"], own) == ""
    assert find_prefix([], own) == ""


def test_safetensors_and_old_torch_files_are_read(tmp_path: Path) -> None:
    source = trained()
    safetensors.torch.save_file(source.state_dict(), tmp_path / "file.safetensors")
    torch.save(source.state_dict(), tmp_path / "old.pt", _use_new_zipfile_serialization=False)
    for name in ("file.safetensors", "old.pt"):
        state = read_state_dict(tmp_path / name)
        assert state.keys() == source.state_dict().keys()
        torch.testing.assert_close(dict(state), dict(source.state_dict()), rtol=0, atol=0)


def test_averaged_weights_are_taken_where_asked_for(tmp_path: Path) -> None:
    model, ema, target = trained(), trained(), create_model(CIFAR, 10)
    torch.save(ours(model, ema), tmp_path / "both.pt")
    torch.save(ours(model), tmp_path / "one.pt")
    key = "fc.weight"
    assert read_state_dict(tmp_path / "both.pt")[key].equal(model.state_dict()[key])
    assert read_state_dict(tmp_path / "both.pt", ema=True)[key].equal(ema.state_dict()[key])
    assert read_state_dict(tmp_path / "one.pt", ema=True)[key].equal(model.state_dict()[key])
    load_weights(target, tmp_path / "both.pt")
    assert target.state_dict()[key].equal(ema.state_dict()[key])
    load_weights(target, tmp_path / "both.pt", ema=False)
    assert target.state_dict()[key].equal(model.state_dict()[key])


@pytest.mark.parametrize(
    ("arch", "head"),
    [
        ("cifar_resnet20", "fc"),
        ("mobilenet_v2", "classifier.1"),
        ("squeezenet1_1", "classifier.1"),
        ("timm/mobilenetv3_small_050", "classifier"),
        ("deit_tiny_distilled_patch16_224", "head"),
    ],
)
def test_a_head_of_other_classes_starts_anew(arch: str, head: str, tmp_path: Path) -> None:
    source, target = trained(arch, 12), create_model(ModelConfig(arch=arch), 10)
    torch.save(source.state_dict(), tmp_path / "file.pt")
    fresh = copy.deepcopy(target.state_dict())
    if not arch.startswith("squeezenet"):  # whose head at zero would have no gradient
        fresh |= {key: torch.zeros_like(value) for key, value in fresh.items()}
    report = load_weights(target, tmp_path / "file.pt", arch)
    assert {f"{head}.weight", f"{head}.bias"} <= set(report.replaced)
    assert "12 classes" in str(report)
    for key, value in target.state_dict().items():
        expected = fresh if key in report.replaced else source.state_dict()
        assert value.equal(expected[key]), key
    assert report.loaded + len(report.replaced) == len(fresh)


@pytest.mark.parametrize(
    ("arch", "detail"),
    [
        ("cifar_resnet32", "72 unexpected .*layer1.3.conv1.weight"),
        ("cifar_resnet18", "of another shape .*conv1.weight 64x3x3x3 instead of 16x3x3x3"),
        ("timm/mobilenetv3_small_050", "missing .*unexpected"),
    ],
)
def test_another_architectures_checkpoint_is_refused(arch: str, detail: str, tmp_path: Path) -> None:
    path = tmp_path / "file.pt"
    torch.save(trained(arch).state_dict(), path)
    with pytest.raises(UserError, match=f"{path} does not fit cifar_resnet20: keys .*{detail}.*another architecture"):
        load_weights(create_model(CIFAR, 10), path, "cifar_resnet20")


def test_a_missing_or_misshapen_layer_of_the_body_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "file.pt"
    for change in ({"layer1.0.conv1.weight": None}, {"layer1.0.bn1.weight": torch.zeros(3)}, {"fc.bias": None}):
        state = dict(trained().state_dict()) | change
        torch.save({key: value for key, value in state.items() if value is not None}, path)
        with pytest.raises(UserError, match=f"1 (missing|of another shape) .{next(iter(change))}"):
            load_weights(create_model(CIFAR, 10), path)


def test_ffcvs_blurred_checkpoints_load_into_blurred_models(tmp_path: Path) -> None:
    source = ffcv_resnet18()
    torch.save(prefixed(source.state_dict(), "module."), tmp_path / "ffcv.pt")
    target = create_model(ModelConfig(arch="resnet18", use_blurpool=True), 1000)
    assert load_weights(target, tmp_path / "ffcv.pt").prefix == "module."
    torch.testing.assert_close(dict(target.state_dict()), dict(source.state_dict()), rtol=0, atol=0)
    with pytest.raises(UserError, match=r"trained with BlurPool.*resnet18 lacks here.*model\.use_blurpool=1"):
        load_weights(torchvision.models.resnet18(), tmp_path / "ffcv.pt", "resnet18")


def test_our_blurred_checkpoints_want_a_blurred_model(tmp_path: Path) -> None:
    blurred = ModelConfig(arch="cifar_resnet20", use_blurpool=True)
    for name, config, key in (("old", CIFAR, "layer2.0.conv1"), ("new", blurred, "layer2.0.conv1.conv")):
        model, target = create_model(config, 10), create_model(blurred, 10)
        torch.save(ours(model, use_blurpool=True), tmp_path / f"{name}.pt")
        with pytest.raises(UserError, match=r"trained with BlurPool.*model\.use_blurpool=1"):
            load_weights(create_model(CIFAR, 10), tmp_path / f"{name}.pt")
        load_weights(target, tmp_path / f"{name}.pt")
        assert target.state_dict()["layer2.0.conv1.conv.weight"].equal(model.state_dict()[f"{key}.weight"])


@pytest.mark.parametrize("file", ["plain", "ours"])
def test_plain_weights_do_not_pass_for_blurred_ones(file: str, tmp_path: Path) -> None:
    torch.save(ours(trained()) if file == "ours" else trained().state_dict(), tmp_path / "file.pt")
    target = create_model(ModelConfig(arch="cifar_resnet20", use_blurpool=True), 10)
    with pytest.raises(UserError, match=r"trained without BlurPool.*cifar_resnet20 has here.*model\.use_blurpool=0"):
        load_weights(target, tmp_path / "file.pt", "cifar_resnet20")


def test_published_files_with_auxiliary_heads_and_old_keys_load(tmp_path: Path) -> None:
    source = torchvision.models.googlenet(weights=None, num_classes=10, aux_logits=True, init_weights=False)
    torch.save(source.state_dict(), tmp_path / "googlenet.pth")
    report = load_weights(create_model(ModelConfig(arch="googlenet"), 10), tmp_path / "googlenet.pth")
    assert report.dropped
    assert all(key.startswith(("aux1.", "aux2.")) for key in report.dropped)

    model = create_model(ModelConfig(arch="densenet121"), 10)
    old = {key.replace("norm1", "norm.1").replace("conv2", "conv.2"): v for key, v in model.state_dict().items()}
    assert old.keys() != model.state_dict().keys()
    old = {key: value for key, value in old.items() if not key.endswith("num_batches_tracked")}
    torch.save(old, tmp_path / "densenet.pth")
    assert load_weights(model, tmp_path / "densenet.pth").loaded == len(old)

    # MNASNet refuses a state dict without its version.
    model = create_model(ModelConfig(arch="mnasnet0_5"), 10)
    torch.save(model.state_dict(), tmp_path / "mnasnet.pth")
    load_weights(model, tmp_path / "mnasnet.pth")


def of_kind(kind: str, folder: Path) -> Path:
    """A file, or folder, of a kind that is no state dict."""
    path = folder / "weights.pt"
    model = nn.Sequential(nn.Flatten(), nn.Linear(3, 2))
    bytes_of = {
        "Git LFS": b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n",
        "web page": b"\n<!DOCTYPE html><html><title>404</title></html>",
        "HDF5": b"\x89HDF\r\n\x1a\n" + bytes(100),
        "gzip": gzip.compress(b"weights"),
    }
    in_folder = {
        "distributed checkpoint": ".metadata",
        "DeepSpeed": "zero_to_fp32.py",
        "SavedModel": "saved_model.pb",
        "run": "final.pt",
        "Hugging Face": "model.safetensors",
    }
    if kind in bytes_of:
        path.write_bytes(bytes_of[kind])
    elif kind in in_folder:
        path.mkdir()
        (path / in_folder[kind]).touch()
    elif kind == "TorchScript":
        torch.jit.save(torch.jit.script(model), path)
    elif kind == "export":
        torch.export.save(torch.export.export(model, (torch.zeros(1, 3),)), path := folder / "weights.pt2")
    elif kind == "NumPy":
        np.savez(path := folder / "weights.npz", kernel=np.zeros(3))
    elif kind == "FSDP, flat":
        torch.save({"_fsdp_wrapped_module._flat_param": torch.zeros(9)}, path)
    elif kind == "DTensor":
        dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
        try:
            mesh = init_device_mesh("cpu", (1,))
            torch.save({key: distribute_tensor(t, mesh, [Shard(0)]) for key, t in model.state_dict().items()}, path)
        finally:
            dist.destroy_process_group()
    return path


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning")
@pytest.mark.parametrize(
    ("kind", "advice"),
    [
        ("TorchScript", r"is a TorchScript program, .*torch\.jit\.load\('.*weights\.pt'\)\.state_dict\(\)"),
        ("export", r"is a program of torch\.export, .*torch\.export\.load"),
        ("NumPy", r"is an archive of NumPy arrays"),
        ("DTensor", r"share of each tensor \(DTensor.*get_model_state_dict"),
        ("FSDP, flat", r"FSDP's flattened parameters \(_flat_param\); save under"),
        ("Git LFS", r"pointer that Git LFS leaves.*git lfs pull"),
        ("web page", r"is a web page"),
        ("HDF5", r"is HDF5"),
        ("gzip", r"compressed with gzip"),
        (
            "distributed checkpoint",
            r"folder of torch\.distributed\.checkpoint; .*dcp_to_torch .*/weights\.pt weights\.pt",
        ),
        ("DeepSpeed", r"folder of DeepSpeed; .*zero_to_fp32\.py"),
        ("SavedModel", r"SavedModel of TensorFlow"),
        ("run", r"is a folder; give .*/weights\.pt/final\.pt"),
        ("Hugging Face", r"is a folder; give .*/weights\.pt/model\.safetensors"),
    ],
)
def test_other_kinds_of_files_are_named_with_what_to_do(kind: str, advice: str, tmp_path: Path) -> None:
    path = of_kind(kind, tmp_path)
    with pytest.raises(UserError, match=advice):
        read_state_dict(path)


@pytest.mark.parametrize("kind", ["run", "Hugging Face"])
def test_the_file_that_is_named_for_a_folder_is_read(kind: str, tmp_path: Path) -> None:
    path = of_kind(kind, tmp_path)
    with pytest.raises(UserError, match="give") as error:
        read_state_dict(path)
    named = str(error.value).partition("give ")[2]
    (safetensors.torch.save_file if kind == "Hugging Face" else torch.save)(trained().state_dict(), named)
    assert read_state_dict(named).keys() == trained().state_dict().keys()


class Harmful:
    def __reduce__(self) -> tuple[Any, ...]:
        return exec, ("raise SystemExit('code of the file was run')",)


def test_what_is_no_checkpoint_is_refused_and_never_run(tmp_path: Path) -> None:
    path = tmp_path / "file.pt"
    whole = tmp_path / "whole.pt"
    torch.save(trained().state_dict(), whole)

    def expect(match: str) -> None:
        with pytest.raises(UserError, match=match):
            read_state_dict(path)

    expect("cannot read the checkpoint .*No such file")
    path.mkdir()
    expect("cannot read the checkpoint .*directory")
    path.rmdir()
    for content in (b"", b"{", b"not a checkpoint at all", b"\x10" + bytes(7) + b"{broken", whole.read_bytes()[:5000]):
        path.write_bytes(content)
        expect("is not a checkpoint of torch.save or safetensors, or it is damaged")
    torch.save(Harmful(), path)
    expect("holds a pickled .*exec.*not read")
    path.write_bytes(pickle.dumps(Harmful(), protocol=2))
    expect("is not a checkpoint|holds a pickled")
    torch.save(trained(), path)
    expect("holds a pickled .*CifarResNet")
    torch.save([torch.zeros(2)], path)
    expect("holds list, not a state dict")
    torch.save({"epoch": 3, "note": "x"}, path)
    expect("holds no weights, only epoch, note")
