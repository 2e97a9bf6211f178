import dataclasses
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

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
    ],
)
def test_yaml_faults_name_the_file_and_the_key(tmp_path: Path, text: str, words: list[str]) -> None:
    file = tmp_path / "bad.yaml"
    file.write_text(text)
    with pytest.raises(UserError) as caught:
        load("-C", str(file))
    for word in words:
        assert word in str(caught.value)


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
