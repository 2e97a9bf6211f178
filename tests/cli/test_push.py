"""push: the folder is a network that timm opens, with a card of what the run left; it arrives at a hub whole."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import timm
import torch
import yaml
from huggingface_hub import constants

from ffcv_train import load_network
from ffcv_train.cli import evaluate, push
from ffcv_train.cli.main import run_main
from ffcv_train.publish.card import read_record
from tests.support.hub import Hub, serving
from tests.support.photographs import crops_of_photographs
from tests.support.runs import Betons, train

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
    metrics = json.loads((runs / "seed0" / "metrics.json").read_text())["results"][0]
    assert (
        f"| eval, 32 px | {100 * metrics['top_1']:.2f} | 100.00 | {metrics['nll']:.4f} | {metrics['ece']:.4f} |" in card
    )
    for part in ("## Most frequent errors", "val.beton", "- classes: class0, class1", "optimizer: sgd", "lr: 0.05"):
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


def test_a_network_of_ours_is_safetensors(small_run: Path, tmp_path: Path) -> None:
    """cifar_resnet20, which timm lacks; the card's three lines open it."""
    copied = shutil.copytree(small_run, tmp_path / "run")
    push.main([f"--checkpoint={copied / 'final.pt'}", "--to=a/b", "--dry-run"])
    folder = copied / "hub"
    card = (folder / "README.md").read_text()
    assert "One seed: there is no spread to state." in card
    code = card.split("```python\n")[1].split("```")[0].splitlines()
    assert len(code) == 3
    names = {"file": folder / "model.safetensors", "load_network": load_network}
    exec(code[2], names)
    ours = load_network(copied / "final.pt", device="cpu", amp="bf16")  # what other files are opened in
    pixels = crops_of_photographs(3, 40, 40)
    torch.testing.assert_close(names["network"].predict(pixels), ours.predict(pixels), rtol=0, atol=1e-4)  # type: ignore[attr-defined]


def test_what_goes_wrong_is_a_sentence(
    runs: Path, tmp_path: Path, hub: Hub, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint, folder = f"--checkpoint={runs / 'seed2' / 'final.pt'}", tmp_path / "hub"
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.tex").write_text("")

    def error_of(*words: str) -> str:
        with pytest.raises(SystemExit) as exit_:
            run_main(lambda: push.main([checkpoint, f"--folder={folder}", *words]))
        assert exit_.value.code == 2
        return capsys.readouterr().err

    assert "give the repository with --to" in error_of()
    assert "is no repository's name" in error_of("--to=net")
    assert "is no repository's name" in error_of("--to=a/../b")
    assert "full exists" in error_of("--to=a/b", f"--folder={tmp_path / 'full'}")
    hub.refuse = 403
    assert "does not let you write to a/b (status 403)" in error_of("--to=a/b")
    hub.refuse = 400
    assert "refused a/b (status 400)" in error_of("--to=a/b")
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    assert "cannot send a/b to the hub (" in error_of("--to=a/b")
    assert (folder / "README.md").exists()


def test_a_card_of_what_is_not_there(tmp_path: Path) -> None:
    (tmp_path / "params.json").write_text("no JSON")
    record = read_record(tmp_path / "final.pt")
    assert (record.params, record.last, record.evaluation, record.others) == ({}, {}, {}, ())
