"""Weights by name: from a hub of our own, from warm caches without a network, and what is refused."""

import json
import os
import re
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import torchvision
from huggingface_hub import constants
from safetensors.torch import save
from torch import nn

from ffcv_train.cli.evaluate import main
from ffcv_train.cli.presets import load_run_config
from ffcv_train.config.schema import ModelConfig
from ffcv_train.evaluation.classifier import load_network
from ffcv_train.evaluation.subject import read_subject
from ffcv_train.models import published
from ffcv_train.models.factory import create_model
from ffcv_train.models.opening import open_checkpoint
from ffcv_train.models.preset import preset_of
from ffcv_train.models.published import local_file
from ffcv_train.models.weights import load_weights
from ffcv_train.system.errors import UserError
from tests.support.hub import Hub, in_place, serving
from tests.support.photographs import ROOT
from tests.support.runs import Betons

NAME = "test_efficientnet_gn.r160_in1k"


def network() -> nn.Module:
    torch.manual_seed(0)
    return timm.create_model("test_efficientnet_gn").eval()


def config_json() -> bytes:
    """As timm's repositories have it; the crop is not that of the installed timm."""
    cfg = {**timm.get_pretrained_cfg(NAME).to_dict(), "crop_pct": 0.9}
    return json.dumps({"architecture": "test_efficientnet_gn", "num_classes": 1000, "pretrained_cfg": cfg}).encode()


@pytest.fixture(scope="module")
def hub() -> Iterator[Hub]:
    weights = save(network().state_dict())
    files = {
        f"timm/{NAME}": {"model.safetensors": weights, "config.json": config_json()},
        "lab/plain": {"pytorch_model.bin": b"", "sub/one.safetensors": weights},
        "lab/gated": {"model.safetensors": weights},
        "lab/torn": {"model.safetensors": weights},
        "lab/empty": {"README.md": b"nothing"},
        "lab/short": {"model.safetensors": weights[: len(weights) // 2]},
    }
    found = Hub(files, gated={"lab/gated"}, broken={"lab/torn"})
    with serving(found):
        yield found


@pytest.fixture(autouse=True)
def caches(hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Cold ones, and the hub in place of the real one."""
    in_place(hub, tmp_path / "hf", monkeypatch)
    monkeypatch.setattr(torch.hub, "_hub_dir", str(tmp_path / "torch"))


def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    published._download.cache_clear()


def refusal(source: str, arch: str = "resnet18") -> str:
    published._download.cache_clear()
    with pytest.raises(UserError) as caught:
        open_checkpoint(source, arch)
    return str(caught.value)


def test_timms_weights_come_with_their_architecture_and_preprocessing(monkeypatch: pytest.MonkeyPatch) -> None:
    config, taken, _ = load_run_config([f"--model.weights=timm:{NAME}"])
    assert config.model.arch == "timm/test_efficientnet_gn"
    assert (config.validation.resolution, config.validation.crop_ratio) == ((160,), 0.9)
    assert (config.validation.interpolation, config.resolution.min_res) == ("bicubic", 160)
    assert taken.startswith("took architecture timm/test_efficientnet_gn, side 160, ")
    for weights in (f"timm:{NAME}", f"hf:timm/{NAME}", f"hf:timm/{NAME}@v1/model.safetensors"):
        model = create_model(config.model, 1000)
        report = load_weights(model, weights)
        assert str(report).endswith(f"tensors from {weights}")
        torch.testing.assert_close(dict(model.state_dict()), dict(network().state_dict()), rtol=0, atol=0)
    offline(monkeypatch)
    assert load_run_config([f"--model.weights=timm:{NAME}"])[:2] == (config, taken)


def test_a_network_by_name_from_python() -> None:
    found = load_network(f"timm:{NAME}", device="cpu", amp="off")
    images = torch.rand(2, 3, 160, 160)
    with torch.no_grad():
        torch.testing.assert_close(found.model(images), network()(images))
    assert (found.config.validation.crop_ratio, found.config.model.arch) == (0.9, "timm/test_efficientnet_gn")


def test_a_file_of_a_repository_needs_its_architecture() -> None:
    subject = read_subject("hf:lab/plain/sub/one.safetensors")
    assert (subject.ours, subject.named, subject.arch) == (False, False, "")
    model = create_model(ModelConfig(arch="test_efficientnet_gn"), 1000)
    assert load_weights(model, "hf:lab/plain/sub/one.safetensors").loaded == len(model.state_dict())


@pytest.mark.parametrize(
    ("revision", "asked"), [("refs/pr/1", "refs/pr/1"), ("refs%2Fpr%2F1", "refs/pr/1"), ("v1", "v1")]
)
def test_a_revision_may_have_slashes(hub: Hub, revision: str, asked: str) -> None:
    for file in ("sub/one.safetensors", "pytorch_model.bin"):
        hub.requests.clear()
        assert local_file(f"hf:lab/plain@{revision}/{file}").read_bytes() == hub.files["lab/plain"][file]
        assert ("HEAD", f"/lab/plain/resolve/{asked}/{file}") in hub.requests
    assert local_file(f"hf:lab/plain@{revision}").name == "pytorch_model.bin"


def test_every_name_of_timm_leads_somewhere(hub: Hub) -> None:
    """timm names repositories of others, and weights that lie in none."""
    named = {name: timm.get_pretrained_cfg(name) for name in timm.list_pretrained()}
    others = [(name, cfg) for name, cfg in named.items() if cfg.hf_hub_id and not cfg.hf_hub_id.startswith("timm/")]
    nowhere = [(name, cfg) for name, cfg in named.items() if not cfg.hf_hub_id]
    assert others and nowhere
    name, cfg = others[0]
    hub.files[cfg.hf_hub_id] = {"model.safetensors": b"weights"}
    assert local_file(f"timm:{name}").read_bytes() == b"weights"
    for name, cfg in nowhere:
        wanted = f"lies in no repository but at {cfg.url}; download that file and name it instead, with --model.arch="
        assert f"{wanted}timm/{cfg.architecture}" in refusal(f"timm:{name}")
        assert timm.is_model(cfg.architecture)


def test_what_cannot_be_had_is_a_sentence(hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    at = hub.endpoint
    assert f"there is no repository {at}/lab/none, or it is private; check the name, or log in" in refusal(
        "hf:lab/none"
    )
    assert f"{at}/lab/gated is gated; accept its terms there, and log in" in refusal("hf:lab/gated")
    assert (
        f"{at}/timm/{NAME} has no revision v9; name a branch, a tag or a whole commit, a slash in it as %2F,"
        in refusal(f"hf:timm/{NAME}@v9")
    )
    assert f"{at}/lab/empty has no model.safetensors or pytorch_model.bin or final.pt; name a file" in refusal(
        "hf:lab/empty"
    )
    assert f"{at}/lab/plain has no other.bin; name a file" in refusal("hf:lab/plain/other.bin")
    assert "names no weights; give timm:NAME, torchvision:NAME or hf:ORG/NAME" in refusal("hf:lab")
    assert "timm:resnet50.nobody is not among timm's weights; there are resnet50." in refusal("timm:resnet50.nobody")
    assert "timm.list_pretrained() lists what is" in refusal("timm:nonet")
    assert "has no revision refs; name a branch" in refusal("hf:lab/plain@refs/heads/x/sub/one.safetensors")
    short = refusal("hf:lab/short")
    assert "it is damaged" in short and "remove that file, and it is downloaded anew" in short
    offline(monkeypatch)
    cold = refusal(f"timm:{NAME}")
    assert f"not in the cache {tmp_path}/hf, and HF_HUB_OFFLINE is set; run once where there is a network" in cold


@pytest.mark.parametrize(
    ("given", "name"),
    [
        ("timm/resnet50.a1_in1k", "timm:resnet50.a1_in1k"),
        ("hf-hub:timm/resnet50.a1_in1k", "timm:resnet50.a1_in1k"),
        ("resnet50.a1_in1k", "timm:resnet50.a1_in1k"),
        ("https://huggingface.co/org/name", "hf:org/name"),
        ("hf_hub:org/name", "hf:org/name"),
        ("IMAGENET1K_V2", "torchvision:IMAGENET1K_V2"),
        ("ResNet50_Weights.DEFAULT", "torchvision:ResNet50_Weights.DEFAULT"),
    ],
)
def test_names_as_others_write_them_are_told_as_they_are_here(
    given: str, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert refusal(given, "resnet50") == f"there is no file {given}; published weights of that name are {name}"
    with pytest.raises(UserError, match=re.escape(name)):
        read_subject(given)
    for own in ("weights.pt", "resnet50.pth", "org/name"):
        assert "published" not in refusal(own, "resnet50")


def test_a_hub_that_does_not_answer_and_a_transfer_that_breaks_off(
    hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.file_download.time.sleep", lambda seconds: None, raising=False)
    assert "cannot be downloaded from" in (torn := refusal("hf:lab/torn")) and "; try again, or give a file" in torn
    nowhere = "http://127.0.0.1:9"
    in_place(Hub(endpoint=nowhere), tmp_path / "hf", monkeypatch)
    assert f"and {nowhere} does not answer; run once where there is a network" in refusal(f"timm:{NAME}")


def test_torchvisions_weights_by_name_and_from_its_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    weights = torchvision.models.ShuffleNet_V2_X0_5_Weights.IMAGENET1K_V1
    cached = tmp_path / "torch" / "checkpoints" / weights.url.rpartition("/")[2]

    def no_network(*arguments: Any, **options: Any) -> None:
        raise urllib.error.URLError("Name or service not known")

    monkeypatch.setattr(urllib.request, "urlopen", no_network)
    monkeypatch.setattr(torch.hub, "urlopen", no_network, raising=False)
    message = refusal("torchvision:IMAGENET1K_V1", "shufflenet_v2_x0_5")
    assert f"is not in the cache {cached.parent} and cannot be downloaded from {weights.url}" in message
    assert "resnet50 has IMAGENET1K_V1, IMAGENET1K_V2" in refusal("torchvision:IMAGENET1K_V9", "resnet50")
    assert "nonet is none of its networks" in refusal("torchvision:IMAGENET1K_V1", "nonet")
    cached.parent.mkdir(parents=True, exist_ok=True)
    model = torchvision.models.shufflenet_v2_x0_5()
    torch.save(model.state_dict(), cached)
    for name in ("IMAGENET1K_V1", "DEFAULT", "ShuffleNet_V2_X0_5_Weights.IMAGENET1K_V1"):
        assert local_file(f"torchvision:{name}", "shufflenet_v2_x0_5") == cached
    config, taken, _ = load_run_config([f"--model.weights=torchvision:{weights}"])
    assert config.model.arch == "torchvision/shufflenet_v2_x0_5"
    assert taken.endswith(f" from torchvision's {weights}") and "crop ratio 0.875" in taken
    arch = "shufflenet_v2_x0_5"
    named = preset_of(open_checkpoint("torchvision:IMAGENET1K_V1", arch), arch)
    assert named is not None and named.source == f"torchvision's {weights}"
    assert load_weights(create_model(config.model, 1000), f"torchvision:{weights}").loaded == len(model.state_dict())


def test_eval_by_name_and_without_a_network(
    small_betons: Betons, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ["--checkpoint", f"timm:{NAME}", "--ignore-class-names", f"--data.val_dataset={small_betons[1]}"]
    words += ["--validation.resolution=32", "--training.device=cpu", "--training.amp=off", "--validation.lr_tta=0"]
    reports = []
    for _ in range(2):
        main([*words, f"--output={tmp_path}/metrics.json"])
        assert (
            "took architecture timm/test_efficientnet_gn, crop torchvision, crop ratio 0.9," in capsys.readouterr().err
        )
        reports.append(json.loads((tmp_path / "metrics.json").read_text()))
        offline(monkeypatch)
    assert reports[0]["results"][0]["nll"] == reports[1]["results"][0]["nll"]
    assert (reports[0]["checkpoint"], reports[0]["num_classes"]) == (f"timm:{NAME}", 1000)


def test_the_environment_says_that_there_is_no_network_and_where_the_cache_is(tmp_path: Path) -> None:
    warm = local_file(f"hf:timm/{NAME}")
    program = f"from ffcv_train.models.published import local_file; print(local_file('hf:timm/{NAME}'))"
    more = {"HF_HUB_OFFLINE": "1", "HF_ENDPOINT": "http://127.0.0.1:9", "HF_HUB_CACHE": str(tmp_path / "hf")}
    command, environment = [sys.executable, "-c", program], os.environ | more
    answer = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=240, check=True)
    assert answer.stdout.strip() == str(warm)
