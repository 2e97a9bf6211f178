import ast
import dataclasses
import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ffcv_train.cli import main as cli_main
from ffcv_train.config.options_page import page
from ffcv_train.config.read import from_dict, load_config, to_dict
from ffcv_train.config.schema import RunConfig
from ffcv_train.system.errors import UserError


def load(*arguments: str) -> RunConfig:
    return load_config(RunConfig, arguments)


def test_defaults_yaml_and_command_line_apply_in_this_order(tmp_path: Path) -> None:
    first, second = tmp_path / "a.yaml", tmp_path / "b.yaml"
    first.write_text("lr: {lr: 1.7}\ntraining:\n  epochs: 16\n  weight_decay: 5e-5\nvalidation: {lr_tta: true}\n")
    second.write_text("training: {epochs: 18}\n")
    config = load("--config-file", str(first), "-C", str(second), "--lr.lr=0.3", "--validation.resolution=224,256")
    assert (config.lr.lr, config.training.epochs, config.training.weight_decay) == (0.3, 18, 5e-5)
    assert config.validation.resolution == (224, 256)
    assert config.training.momentum == 0.9
    assert config.validation.lr_tta is True


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--training.epoch=3"], ["training.epoch", "did you mean 'training.epochs'"]),
        (["--epochs=3"], ["--epochs", "did you mean 'training.epochs'"]),
        (["stray"], ["stray"]),
        (["--training.epochs=3.5"], ["training.epochs", "whole number", "3.5"]),
        (["--training.epochs=0"], ["at least 1"]),
        (["--lr.lr=fast"], ["lr.lr", "number", "fast"]),
        (["--lr.lr=nan"], ["lr.lr", "number"]),
        (["--data.flip=1.5"], ["at most 1"]),
        (["--data.crop_scale=0.5"], ["2 values"]),
        (["--data.mean=0.5,0.5"], ["3 values"]),
        (["--validation.resolution="], ["at least one"]),
        (["--training.amp=fp8"], ["bf16, fp16, off"]),
        (["--model.compile=maybe"], ["1 or 0"]),
        (["-C", "absent.yaml"], ["absent.yaml", "No such file"]),
    ],
)
def test_what_cannot_be_is_refused_in_one_sentence(arguments: list[str], words: list[str]) -> None:
    with pytest.raises(UserError) as caught:
        load(*arguments)
    message = str(caught.value)
    assert "\n" not in message
    for word in words:
        assert word in message


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("training: {epoch: 3}", ["training.epoch", "bad.yaml", "did you mean 'training.epochs'"]),
        ("trainig: {epochs: 3}", ["trainig.epochs", "did you mean 'training.epochs'"]),
        ("epochs: 3", ["'epochs'", "training.epochs"]),
        ("training: {epochs: true}", ["training.epochs", "whole number"]),
        ("training: {epochs: [1, 2]}", ["training.epochs", "whole number"]),
        ("loss: {name: 3}", ["loss.name", "text"]),
        ("training: {epochs: 3, epochs: 4}", ["epochs", "twice"]),
        ("training: [unclosed", ["not valid YAML"]),
        ("- a list", ["sections"]),
        ("[" * 5000, ["nested too deeply"]),
    ],
)
def test_yaml_faults_name_the_file_and_the_key(tmp_path: Path, text: str, words: list[str]) -> None:
    file = tmp_path / "bad.yaml"
    file.write_text(text)
    with pytest.raises(UserError) as caught:
        load("-C", str(file))
    for word in words:
        assert word in str(caught.value)


@pytest.mark.parametrize("text", ["90.0", "9e1", "+90", "090"])
def test_a_whole_number_may_be_written_as_others_write_it(tmp_path: Path, text: str) -> None:
    file = tmp_path / "a.yaml"
    file.write_text(f"training: {{epochs: {text}}}\nvalidation: {{resolution: [{text}]}}\n")
    assert load(f"--training.epochs={text}").training.epochs == 90
    assert load("-C", str(file)).training.epochs == 90
    assert load("-C", str(file)).validation.resolution == (90,)
    assert type(load(f"--training.epochs={text}").training.epochs) is int


def test_whole_numbers_beyond_floats_stay_exact() -> None:
    assert load("--training.seed=9007199254740993").training.seed == 9007199254740993


def test_off_is_a_choice_before_it_is_a_boolean_of_yaml(tmp_path: Path) -> None:
    file = tmp_path / "a.yaml"
    file.write_text("training: {amp: off}\nmodel: {compile: off, channels_last: on}\n")
    config = load("-C", str(file))
    assert config.training.amp == "off"
    assert (config.model.compile, config.model.channels_last) == (False, True)
    file.write_text("training: {amp: no}\n")
    with pytest.raises(UserError, match=r"training\.amp in .* must be one of bf16, fp16, off, not no"):
        load("-C", str(file))


@pytest.mark.parametrize(
    ("text", "written", "seen"),
    [
        ("logging: {run: 007}", "007", "a number"),
        ("logging: {run: 12:30:00}", "12:30:00", "a number"),
        ("logging: {run: 1.50}", "1.50", "a number"),
        ("logging: {run: 2026-01-02}", "2026-01-02", "a date"),
        ("training: {resume: no}", "no", "1 or 0"),
        ("model: {weights: on}", "on", "1 or 0"),
    ],
)
def test_a_text_that_yaml_reads_as_something_else_is_to_be_quoted(
    tmp_path: Path, text: str, written: str, seen: str
) -> None:
    file = tmp_path / "a.yaml"
    file.write_text(text)
    with pytest.raises(UserError) as caught:
        load("-C", str(file))
    assert f"YAML reads {seen} here: quote it ('{written}')" in str(caught.value)
    file.write_text(text.replace(f" {written}}}", f" '{written}'}}"))
    config = load("-C", str(file))
    assert written in (config.logging.run, config.training.resume, config.model.weights)


def test_home_and_environment_variables_in_paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("DISK", "/disk")
    (tmp_path / "run.yaml").write_text("data:\n  val_dataset: $DISK/val.beton\nlogging: {run: ~ours}\n")
    found = load(
        "--config-file=~/run.yaml",
        "--data.train_dataset=~/train.beton",
        "--model.weights=${DISK}/w$1.pt",
        "--logging.folder=$HOME/runs/",
        "--training.resume=auto",
    )
    assert found.data.train_dataset == f"{tmp_path}/train.beton" and found.data.val_dataset == "/disk/val.beton"
    assert found.model.weights == "/disk/w$1.pt" and found.training.resume == "auto"
    assert found.logging.folder == f"{tmp_path}/runs/" and found.logging.run == "~ours"  # a name is no path


def test_every_option_that_takes_a_path_replaces_home() -> None:
    """By the words that stand for its value in --help."""
    cli = Path(cli_main.__file__).parent
    calls = [
        (f"{file.name}: {ast.unparse(node.args[0])}", {word.arg: ast.unparse(word.value) for word in node.keywords})
        for file in [*cli.glob("*.py"), cli.parent / "config" / "read.py"]
        for node in ast.walk(ast.parse(file.read_text()))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "add_argument"
    ]
    words = re.compile(r"'(FILE|DIR|PATH|RUN|BETON|DATA|OUT|YAML)\b")
    taking = [(name, words_.get("type")) for name, words_ in calls if words.match(words_.get("metavar", ""))]
    assert len(taking) > 30 and [name for name, kind in taking if kind != "expand_path"] == []


def test_environment_variables_are_not_options(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("training.epochs", "7")
    assert load().training.epochs == RunConfig().training.epochs


def test_a_checkpoints_configuration_is_the_base_that_arguments_override() -> None:
    base = to_dict(load("--training.epochs=5", "--lr.lr=0.1"))
    config = load_config(RunConfig, ["--lr.lr=0.2"], base=base)
    assert (config.training.epochs, config.lr.lr) == (5, 0.2)


@given(st.integers(1, 10**6), st.floats(0, 1e3), st.booleans(), st.lists(st.integers(8, 999), min_size=1, max_size=4))
def test_dictionaries_carry_a_configuration_whole(epochs: int, lr: float, flag: bool, sides: list[int]) -> None:
    plain = RunConfig()
    config = dataclasses.replace(
        plain,
        training=dataclasses.replace(plain.training, epochs=epochs),
        lr=dataclasses.replace(plain.lr, lr=lr),
        model=dataclasses.replace(plain.model, compile=flag),
        validation=dataclasses.replace(plain.validation, resolution=tuple(sides)),
    )
    assert from_dict(RunConfig, to_dict(config), "here") == config


@given(st.text(max_size=30), st.text(max_size=30))
def test_any_argument_is_taken_or_refused_never_a_crash(key: str, value: str) -> None:
    try:
        load(f"--{key}={value}")
    except UserError as error:
        assert "\n" not in str(error) or "\n" in key + value
    except SystemExit:
        assert key.startswith(("h", "config-file", "=", "C")) or key == ""


def test_every_option_says_what_it_does() -> None:
    for section in dataclasses.fields(RunConfig):
        for option in dataclasses.fields(section.type):  # type: ignore[arg-type]
            assert len(option.metadata["help"]) > 3, option.name


def test_the_options_page_is_up_to_date() -> None:
    assert (Path(__file__).resolve().parents[2] / "docs" / "options.md").read_text() == page(), "run make docs"


@pytest.mark.parametrize(("key", "value"), [("mean", "123.675,116.28,103.53"), ("std", "58.395,57.12,57.375")])
def test_constants_of_bytes_are_refused_with_what_to_do(key: str, value: str, tmp_path: Path) -> None:
    """FFCV's constants are those of pixels up to 255; so is a network trained with them, which predicts noise here."""
    (tmp_path / "ffcv.yaml").write_text(f"data: {{{key}: [{value}]}}")
    for words in ([f"--data.{key}={value}"], [f"--config-file={tmp_path}/ffcv.yaml"]):
        with pytest.raises(
            UserError, match=rf"data\.{key} in .* must be at most 1 for pixels in \[0, 1\]: .*÷ 255, not"
        ):
            load_config(RunConfig, words)
