"""push: the folder is a network that timm opens, with a card of what the run left; it arrives at a hub whole."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import yaml
from huggingface_hub import constants
from PIL import Image

from ffcv_train import load_network
from ffcv_train.cli import evaluate, push
from ffcv_train.cli.main import run_main
from ffcv_train.publish.card import read_record, write_card
from ffcv_train.publish.description import Description
from tests.support.hub import Hub, in_place, serving
from tests.support.photographs import crops_of_photographs
from tests.support.runs import Betons, train

DESCRIPTION = Description(
    "resnet18", 4, None, 32, (0.5,) * 3, (0.5,) * 3, 0.9, "torchvision", "bilinear", False, "ema", 4, "x"
)
SMALL = ("--training.epochs=1", "--lr.lr_peak_epoch=0", "--resolution.end_ramp=0", "--training.amp=off")


@pytest.fixture(scope="module")
def runs(small_betons: Betons, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three seeds of one recipe, a run of another, and an evaluation of the first by class."""
    folder = tmp_path_factory.mktemp("runs")
    for seed in range(3):
        words = ("--model.arch=timm/test_resnet", f"--training.seed={seed}", f"--logging.run=seed{seed}", *SMALL)
        train(small_betons, folder, *words)
    train(small_betons, folder, "--model.arch=timm/test_resnet", "--logging.run=other", "--lr.lr=0.01", *SMALL)
    run = folder / "seed0"
    words = [f"--checkpoint={run / 'final.pt'}", f"--output={run / 'metrics.json'}", "--data.num_workers=1"]
    evaluate.main([*words, f"--per-class={run / 'classes.csv'}", "--training.device=cpu"])
    for name, more in (("on_train", f"--data.val_dataset={small_betons[0]}"), ("with_tau", "--tau=0.5")):
        words[1] = f"--output={run / name}.json"
        evaluate.main([*words, more, "--training.device=cpu"])
    return folder


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Hub]:
    with serving(Hub()) as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.endpoint)
        monkeypatch.setenv("HF_TOKEN", "hf_test")
        monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
        yield hub


@pytest.fixture
def without_xet(monkeypatch: pytest.MonkeyPatch) -> None:
    """As where hf_xet is not installed: its protocol is the Hub's own, that of Git LFS is open."""
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)


def test_the_folder_opens_with_timm_and_the_card_says_what_was_run(
    runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    checkpoint, folder = runs / "seed0" / "final.pt", tmp_path / "hub"
    push.main([f"--checkpoint={checkpoint}", "--to=somebody/net", f"--folder={folder}", "--license=mit", "--dry-run"])
    assert "published" not in capsys.readouterr().out
    model = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
    ours = load_network(checkpoint, device="cpu", amp="off", crop_ratio=1.0)
    pixels = crops_of_photographs(4, 32, 32)
    images = ours.network.normalise(torch.stack([torch.from_numpy(p).permute(2, 0, 1) for p in pixels]))
    with torch.no_grad():
        torch.testing.assert_close(model(images), ours.predict(pixels), rtol=0, atol=1e-4)
    card = (folder / "README.md").read_text()
    head = yaml.safe_load(card.split("---")[1])
    assert (head["license"], head["library_name"], head["pipeline_tag"]) == ("mit", "timm", "image-classification")
    assert 'timm.create_model("hf-hub:somebody/net", pretrained=True)' in card
    records = [json.loads((runs / f"seed{seed}" / "log.jsonl").read_text()) for seed in range(3)]
    top_1 = torch.tensor([100 * record["top_1"] for record in records], dtype=torch.float64)
    assert f"Top-1 over 3 seeds, at their last epochs: {top_1.mean():.2f} ± {top_1.std():.2f}" in card
    rows = re.findall(r"^\| eval, 32 px \| (.*) \|$", card, re.MULTILINE)
    assert len(rows) == 2, "on two data sets, of the network as it is"
    for row, name, data in zip(rows, ("metrics", "on_train"), ("val.beton", "train.beton"), strict=True):
        found = json.loads((runs / "seed0" / f"{name}.json").read_text())["results"][0]
        assert row == f"{data} | {100 * found['top_1']:.2f} | 100.00 | {found['nll']:.4f} | {found['ece']:.4f}"
    for part in ("## Most frequent errors\n\nOn val.beton.", "- classes: class0, class1", "optimizer: sgd", "lr: 0.05"):
        assert part in card
    assert json.loads((runs / "seed0" / "params.json").read_text())["command"] in card


def test_it_arrives_at_the_hub(runs: Path, tmp_path: Path, hub: Hub, capsys: pytest.CaptureFixture[str]) -> None:
    """Every byte of the folder; a second time as well, over a folder of the first."""
    words = [f"--checkpoint={runs / 'seed1' / 'final.pt'}", "--to=somebody/net", f"--folder={tmp_path / 'hub'}"]
    push.main([*words, "--dry-run"])
    assert hub.files == {}
    push.main([*words, "--private"])
    assert f"published: {hub.endpoint}/somebody/net" in capsys.readouterr().out
    wanted = {path.name: path.read_bytes() for path in (tmp_path / "hub").iterdir()}
    assert {name: content for name, content in hub.files["somebody/net"].items() if name in wanted} == wanted
    assert set(wanted) == {"README.md", "config.json", "model.safetensors"}
    assert hub.private == {"somebody/net": True}
    assert "Bearer hf_test" in hub.tokens


# huggingface_hub gives its HTTP client the file by an argument that is going out of use.
@pytest.mark.filterwarnings("ignore:Use 'content=<...>' to upload raw bytes:DeprecationWarning")
@pytest.mark.parametrize("part", [0, 500_000])
def test_large_files_go_through_the_store_of_large_files(
    runs: Path, tmp_path: Path, hub: Hub, without_xet: None, part: int, capsys: pytest.CaptureFixture[str]
) -> None:
    """In one piece or in parts; what is there already is not sent again; nothing is published of what is refused."""
    hub.large, hub.part = 1_000_000, part
    words = [f"--checkpoint={runs / 'seed1' / 'final.pt'}", "--to=somebody/net", f"--folder={tmp_path / 'hub'}"]
    hub.refuse_storage = 403
    with pytest.raises(SystemExit) as exit_:
        run_main(lambda: push.main(words))
    assert exit_.value.code == 2
    assert "the hub does not let you write to somebody/net (status 403)" in capsys.readouterr().err
    assert hub.files == {"somebody/net": {}}
    hub.refuse_storage = 0
    hub.requests.clear()
    push.main(words)
    wanted = {path.name: path.read_bytes() for path in (tmp_path / "hub").iterdir()}
    weights = wanted["model.safetensors"]
    assert len(weights) > hub.large and list(hub.stored.values()) == [weights]
    assert wanted.items() <= hub.files["somebody/net"].items()
    sent = [path for method, path in hub.requests if method == "PUT"]
    assert len(sent) == (-(-len(weights) // part) if part else 1)
    assert ("POST", "/verify") in hub.requests
    hub.requests.clear()
    push.main(words)
    assert not [path for method, path in hub.requests if method == "PUT"]


@pytest.mark.parametrize("blurpool", [0, 1])
def test_a_network_of_ours_is_safetensors(
    small_betons: Betons, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, blurpool: int
) -> None:
    """cifar_resnet20, which timm lacks; the card's three lines open it, as it was cut and resized."""
    odd = ("--validation.crop=ffcv", "--validation.crop_ratio=0.8", "--validation.interpolation=bicubic")
    run = train(small_betons, tmp_path, "--logging.run=r", f"--model.use_blurpool={blurpool}", *odd, *SMALL)
    push.main([f"--checkpoint={run / 'final.pt'}", "--to=a/b", "--dry-run"])
    card = (run / "hub" / "README.md").read_text()
    assert "One seed: there is no spread to state." in card
    code = card.split("```python\n")[1].split("```")[0].splitlines()
    assert len(code) == 3
    (pixels,) = crops_of_photographs(1, 40, 50)
    monkeypatch.chdir(tmp_path)
    Image.fromarray(pixels).save("photograph.jpg")
    names: dict[str, Any] = {}
    with serving(Hub({"a/b": {file.name: file.read_bytes() for file in (run / "hub").iterdir()}})) as hub:
        in_place(hub, tmp_path / "hf", monkeypatch)
        exec("\n".join(code), names)
    ours = load_network(run / "final.pt", amp="bf16")  # what other files are opened in
    torch.testing.assert_close(names["logits"], ours.predict(["photograph.jpg"]), rtol=0, atol=1e-4)


def test_a_card_states_the_spread_of_the_weights_that_are_published(tmp_path: Path) -> None:
    """Of averaged ones, where these are; and no evaluation of other weights, or of an earlier end of the run."""
    for seed in range(2):
        run = tmp_path / f"seed{seed}"
        run.mkdir()
        (run / "params.json").write_text(json.dumps({"config": {"training": {"seed": seed}}}))
        (run / "log.jsonl").write_text(json.dumps({"top_1": 0.1, "ema": {"top_1": 0.5 + 0.25 * seed}}) + "\n")
        (run / "final.pt").touch()
    for name, weights, epoch in (("a", "ema", 4), ("b", "model", 4), ("c", "ema", 2)):
        about = {"checkpoint": "final.pt", "weights": weights, "epoch": epoch, "data_set": f"{name}.beton"}
        (tmp_path / "seed0" / f"{name}.json").write_text(json.dumps({**about, "results": [{"resolution": 32}]}))
    record = read_record(tmp_path / "seed0" / "final.pt", DESCRIPTION)
    card = write_card("a/b", DESCRIPTION, record, "mit", "timm")
    assert "Top-1 over 2 seeds, at their last epochs: 62.50 ± 17.68" in card
    assert "a.beton" in card and "b.beton" not in card and "c.beton" not in card


def test_what_goes_wrong_is_a_sentence(
    runs: Path, tmp_path: Path, hub: Hub, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint, folder = f"--checkpoint={runs / 'seed2' / 'final.pt'}", tmp_path / "hub"
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "README.md").write_text("mine")

    def error_of(*words: str) -> str:
        with pytest.raises(SystemExit) as exit_:
            run_main(lambda: push.main([checkpoint, f"--folder={folder}", *words]))
        assert exit_.value.code == 2
        return capsys.readouterr().err

    assert "give the repository with --to" in error_of()
    assert "is no repository's name" in error_of("--to=net")
    assert "is no repository's name" in error_of("--to=a/../b")
    assert "full exists and holds other files than an earlier push" in error_of(
        "--to=a/b", f"--folder={tmp_path / 'full'}"
    )
    assert (tmp_path / "full" / "README.md").read_text() == "mine"
    assert "is a file; name a new folder with --folder" in error_of("--to=a/b", f"--folder={tmp_path}/full/README.md")
    hub.refuse = 403
    assert "does not let you write to a/b (status 403)" in error_of("--to=a/b")
    hub.refuse = 400
    assert "refused a/b (status 400)" in error_of("--to=a/b")
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    assert "cannot send a/b to the hub (" in error_of("--to=a/b")
    assert (folder / "README.md").exists()


def test_a_card_of_what_is_not_there(tmp_path: Path) -> None:
    (tmp_path / "params.json").write_text("no JSON")
    record = read_record(tmp_path / "final.pt", DESCRIPTION)
    assert (record.params, record.last, record.evaluations, record.others) == ({}, {}, (), ())
