"""Trackers: the numbers of every epoch, on one page however often a run is continued; a failure stops nothing.

In place of each library stands a module that takes the calls that ours may make, and no others.
"""

import json
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ffcv_train.system.errors import UserError
from ffcv_train.training.trainer import Stopped, Trainer
from tests.support.runs import ALONE, Betons, config, log, train


class Fake:
    """What a tracker was told, by page."""

    def __init__(self) -> None:
        self.opened: list[tuple[str, dict[str, Any]]] = []
        self.numbers: dict[str, list[tuple[int, dict[str, float]]]] = {}
        self.ends: list[str] = []
        self.fail_at = ""

    def call(self, what: str) -> None:
        if what == self.fail_at:
            raise ConnectionError(f"no route to the {what}")

    def open(self, page: str, **about: Any) -> None:
        self.call("init")
        self.opened.append((page, about))
        self.numbers.setdefault(page, [])

    def log(self, step: int, numbers: dict[str, float]) -> None:
        self.call("log")
        self.numbers[self.opened[-1][0]].append((step, numbers))

    def end(self, how: str) -> None:
        self.call("finish")
        self.ends.append(how)


def wandb(fake: Fake) -> types.ModuleType:
    module = types.ModuleType("wandb")

    class Run:
        def define_metric(self, name: str, step_metric: str) -> None:
            assert (name, step_metric) == ("*", "epoch")

        def log(self, numbers: dict[str, float]) -> None:
            fake.log(int(numbers.pop("epoch")), numbers)

        def finish(self, exit_code: int) -> None:
            fake.end("finished" if exit_code == 0 else "stopped")

    def init(*, project: str, name: str, id: str, resume: str, dir: str, config: dict[str, Any]) -> Run:
        assert resume == "allow" and Path(dir).is_dir()
        fake.open(id, project=project, name=name, config=config)
        return Run()

    module.init = init  # type: ignore[attr-defined]
    return module


def trackio(fake: Fake) -> types.ModuleType:
    module = types.ModuleType("trackio")

    def init(*, project: str, name: str, config: dict[str, Any], resume: str, embed: bool) -> None:
        assert resume == "allow"
        fake.open(name, project=project, name=name, config=config)

    def log(numbers: dict[str, float], step: int) -> None:
        assert numbers.pop("epoch") == step
        fake.log(step, numbers)

    module.init, module.log = init, log  # type: ignore[attr-defined]
    module.finish = lambda: fake.end("finished")  # type: ignore[attr-defined]
    return module


def mlflow(fake: Fake) -> types.ModuleType:
    module = types.ModuleType("mlflow")
    seen: dict[str, Any] = {}

    def start_run(*, run_id: str | None, run_name: str | None) -> Any:
        assert (run_id is None) == (run_name is not None)
        fake.open(run_id or "run1", project=seen["project"], name=run_name or "named before")
        return types.SimpleNamespace(info=types.SimpleNamespace(run_id=run_id or "run1"))

    def log_params(options: dict[str, Any]) -> None:
        fake.opened[-1][1]["config"] = {"lr": {"lr": options["lr.lr"]}}

    module.set_experiment = lambda project: seen.update(project=project)  # type: ignore[attr-defined]
    module.start_run, module.log_params = start_run, log_params  # type: ignore[attr-defined]
    module.log_metrics = lambda numbers, step: fake.log(step, numbers)  # type: ignore[attr-defined]
    module.end_run = lambda status: fake.end("finished" if status == "FINISHED" else "stopped")  # type: ignore[attr-defined]
    return module


Make = Callable[[Fake], types.ModuleType]
TRACKERS: dict[str, Make] = {"wandb": wandb, "trackio": trackio, "mlflow": mlflow}


@pytest.fixture(params=TRACKERS)
def tracker(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> tuple[str, Fake]:
    fake = Fake()
    module = TRACKERS[request.param](fake)
    module.__spec__ = types.SimpleNamespace()  # type: ignore[assignment]
    monkeypatch.setitem(sys.modules, request.param, module)
    return request.param, fake


def test_a_resumed_run_continues_its_page(
    tracker: tuple[str, Fake], small_betons: Betons, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name, fake = tracker
    words = ["--logging.run=r", f"--logging.tracker={name}", "--logging.project=p", "--training.amp=off"]
    finish = Trainer._finish_epoch

    def stop(self: Trainer, epoch: int, record: dict[str, Any]) -> None:
        finish(self, epoch, {**record, "stop": epoch == 1})

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "_finish_epoch", stop)
        with pytest.raises(Stopped):
            train(small_betons, tmp_path, "--training.epochs=3", *words)
    run = train(small_betons, tmp_path, "--training.epochs=3", "--training.resume=auto", *words)
    (page, about), (again, _) = fake.opened
    assert page == again
    assert (about["project"], about["name"], about["config"]["lr"]["lr"]) == ("p", "r", 0.05)
    lines = log(run)
    assert [step for step, _ in fake.numbers[page]] == [1, 2, 3]
    for line, (_, numbers) in zip(lines, fake.numbers[page], strict=True):
        assert numbers["top_1"] == line["top_1"]
        assert numbers["flip_averaged/nll"] == line["flip_averaged"]["nll"]
    assert fake.ends == ["finished" if name == "trackio" else "stopped", "finished"]
    assert json.loads((run / "tracker.json").read_text()) == {name: page}


@pytest.mark.parametrize("place", ["init", "log", "finish"])
def test_a_tracker_that_fails_stops_nothing(
    tracker: tuple[str, Fake], place: str, small_betons: Betons, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    name, fake = tracker
    fake.fail_at = place
    words = ["--training.epochs=2", "--logging.run=r", f"--logging.tracker={name}", "--training.amp=off"]
    run = train(small_betons, tmp_path, *words)
    assert (run / "final.pt").exists() and len(log(run)) == 2
    printed = capsys.readouterr().out
    assert printed.count(f"logging.tracker={name} failed (no route to the {place}); the run goes on") == 1


def test_one_that_is_not_installed_is_refused_before_the_run(
    small_betons: Betons, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UserError, match="wandb is not installed; pip install wandb"):
        Trainer(config(small_betons, tmp_path, "--logging.tracker=wandb"), ALONE)
    assert not list(tmp_path.iterdir())
