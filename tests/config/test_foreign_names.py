"""Configurations and command lines of other trainers: everything that is meant differently here is said at once."""

import re
from pathlib import Path

import pytest

from ffcv_train.config.foreign_names import FOREIGN_NAMES, normalised
from ffcv_train.config.read import load_config
from ffcv_train.config.schema import RunConfig
from ffcv_train.data.convert.write import WriterRun
from ffcv_train.system.errors import UserError
from tests.support.options import OPTIONS, options_in

# The keys of FFCV's rn50_configs and rn18_configs, values of the first.
FFCV = """
data: {gpu: 0, in_memory: 1, num_workers: 12}
dist: {world_size: 8}
logging: {folder: /tmp/, log_level: 1}
lr: {lr: 1.7, lr_peak_epoch: 2, lr_schedule_type: cyclic}
model: {arch: resnet50}
resolution: {end_ramp: 13, max_res: 192, min_res: 160, start_ramp: 11}
training:
  {batch_size: 512, bn_wd: 0, distributed: 1, epochs: 16, label_smoothing: 0.1, momentum: 0.9, optimizer: sgd,
   use_blurpool: 1, weight_decay: 0.0001}
validation: {lr_tta: true, resolution: 256}
"""


def refusal(*arguments: str, schema: type = RunConfig) -> str:
    with pytest.raises(UserError) as caught:
        load_config(schema, arguments)
    message = str(caught.value)
    assert "\n" not in message
    return message


def hints(message: str) -> dict[str, str]:
    return dict(re.findall(r"'([^' ]+)' \((.*?)\)[,;]", message + ";"))


def test_all_that_ffcvs_files_have_and_we_have_not_is_said_at_once(tmp_path: Path) -> None:
    file = tmp_path / "rn50.yaml"
    file.write_text(FFCV)
    found = hints(refusal("-C", str(file)))
    assert found.keys() == {
        "data.gpu",
        "dist.world_size",
        "logging.log_level",
        "training.bn_wd",
        "training.distributed",
        "training.label_smoothing",
        "training.use_blurpool",
    }
    assert (
        "loss.name=ls" in found["training.label_smoothing"] and "loss.alpha_start" in found["training.label_smoothing"]
    )
    assert "training.norm_weight_decay" in found["training.bn_wd"]
    assert found["training.use_blurpool"] == "did you mean 'model.use_blurpool'?"
    assert "torchrun" in found["dist.world_size"] == found["training.distributed"]


def test_keys_of_several_files_and_wrong_values_are_one_refusal(tmp_path: Path) -> None:
    first, second = tmp_path / "a.yaml", tmp_path / "b.yaml"
    first.write_text("training: {epoch: 3, amp: fp8}\n")
    second.write_text("eval_only: 1\nlr: {lr: fast}\n")
    message = refusal("-C", str(first), "-C", str(second), "--batch-size", "64", "--training.seed=-1")
    for words in (
        f"unknown key in {first}: 'training.epoch' (did you mean 'training.epochs'?)",
        f"unknown key in {second}: 'eval_only' (here the command ffcv-train eval --checkpoint FILE)",
        "unknown key in the command line: '--batch-size' (here training.batch_size and validation.batch_size",
        f"training.amp in {first} must be one of bf16, fp16, off, not 'fp8'",
        f"lr.lr in {second} must be a number, not 'fast'",
        "training.seed in the command line must be at least 0",
    ):
        assert words in message


def test_maxsups_sections_within_sections(tmp_path: Path) -> None:
    """Its config.toml, as YAML, and the options of its train.sh."""
    file = tmp_path / "config.yaml"
    file.write_text(
        "experiment: {name: test, fast_run: 0}\ndata: {train_resolution: 224, val_resolution: 256, batch_size: 512}\n"
        "train: {epochs: 90, world_size: 4}\nmodel:\n  model: resnet50\n  use_blurpool: 1\n"
        "  optimizer: {lr: 0.8, weight_decay: 1e-4}\n  scheduler: {step_size: 30, gamma: 0.1}\n"
        "  loss: {loss_type: ms, weight: 1.0, beta: 2e-3, begin_lambda: 0.1, end_lambda: 0.2, epochs: 90}\n"
    )
    found = hints(refusal("-C", str(file), "--experiment.experiment_name=ms_12345_long_18", "--loss.loss_type=ms"))
    for key, words in {
        "model.model": "here model.arch",
        "model.optimizer.lr": "did you mean 'lr.lr'?",
        "model.scheduler.step_size": "lr.step_length",
        "model.scheduler.gamma": "lr.step_ratio",
        "model.loss.loss_type": "ms is maxsup, lp is logit_penalty",
        "--loss.loss_type": "ms is maxsup, lp is logit_penalty",
        "model.loss.begin_lambda": "here loss.alpha_start",
        "model.loss.end_lambda": "here loss.alpha_end",
        "model.loss.beta": "did you mean 'loss.beta'?",
        "model.loss.weight": "here nothing",
        "model.loss.epochs": "here nothing",
        "--experiment.experiment_name": "here logging.run",
        "experiment.name": "here logging.run",
        "train.epochs": "did you mean 'training.epochs'?",
        "data.val_resolution": "here validation.resolution",
        "train.world_size": "torchrun",
    }.items():
        assert words in found[key], key


def test_a_toml_file_is_called_so(tmp_path: Path) -> None:
    file = tmp_path / "config.toml"
    file.write_text('[experiment]\nname = "test"\n\n[data]\nbatch_size = 512\n')
    assert "TOML is not read" in refusal("-C", str(file))


COMMAND_LINES = {
    "timm": "--model resnet50 --sched cosine --lr 0.1 --amp -b 256 --opt-betas 0.9 0.999 --aa rand-m9-mstd0.5-inc1 "
    "--reprob 0.25 --crop-pct 0.95 --clip-grad 1.0 --model-ema --smoothing 0.1 --drop-path 0.1 --lr-base 0.1",
    "torchvision": "--data-path imagenet --model=resnet50 --batch-size=128 --lr-scheduler cosineannealinglr --wd 2e-5 "
    "--auto-augment ta_wide --random-erase 0.1 --label-smoothing 0.1 --mixup-alpha 0.2 --train-crop-size 176 "
    "--val-resize-size 232 --ra-sampler --ra-reps 4 --norm-weight-decay 0",
    "DeiT": "--data-set IMNET --data-path imagenet --input-size 224 --repeated-aug --ThreeAugment --unscale-lr --eval "
    "--distillation-type hard --teacher-path t.pth --mixup 0.8 --output_dir out --eval-crop-ratio 1.0",
}


@pytest.mark.parametrize("whose", COMMAND_LINES)
def test_every_option_of_a_command_line_is_named_with_what_stands_here(whose: str) -> None:
    words = COMMAND_LINES[whose].split()
    message = refusal(*words)
    found = hints(message)
    given = [word.split("=")[0] for word in words if word.startswith("-")]
    assert list(found) == given
    assert "docs/migration.md" in message
    for option, text in found.items():
        assert options_in(text) or "nothing" in text or "ffcv-train eval" in text, option


def test_no_guess_across_sections() -> None:
    assert "data.std" not in refusal("--data-set", "IMNET") and "data.format" in refusal("--data-set", "IMNET")
    assert "did you mean" not in refusal("--data.epochz=3")
    assert "did you mean 'training.epochs'" in refusal("--trainin.epoch=3")
    assert "did you mean 'data.train_dataset'" in refusal("--data.train-dataset=x")


def test_values_of_unknown_options_are_not_taken_for_options() -> None:
    assert list(hints(refusal("--lr-noise", "0.42", "0.9", "-1", "--lr-noise-pct", "-0.5"))) == [
        "--lr-noise",
        "--lr-noise-pct",
    ]
    assert "'stray'" in refusal("--epochs=3", "stray")


def test_other_commands_options_are_not_compared_with_a_runs() -> None:
    message = refusal("--cfg.smoothing=1", schema=WriterRun)
    assert "loss" not in message and "migration" not in message


@pytest.mark.parametrize("name", FOREIGN_NAMES)
def test_the_table_names_options_that_exist_with_values_that_they_take(name: str) -> None:
    text = FOREIGN_NAMES[name]
    assert name == normalised(name)
    assert "(" not in text, "it stands in parentheses"
    named = options_in(text)
    assert named or text.startswith("nothing") or "--" in text
    for key, value in named:
        assert key in OPTIONS
        if value and value not in ("FILE",):
            load_config(RunConfig, [f"--{key}={value}"])


def test_no_name_of_ours_is_explained_away() -> None:
    """A name that is an option's here stands in the table only to say more, and names that option."""
    assert not OPTIONS & FOREIGN_NAMES.keys()
    for name, text in FOREIGN_NAMES.items():
        own = {key for key in OPTIONS if key.partition(".")[2] == name}
        assert not own or own & {key for key, _ in options_in(text)}, name
