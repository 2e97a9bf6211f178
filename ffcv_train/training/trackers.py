"""Experiment trackers, each optional: a run's numbers on a page of Weights & Biases, Trackio or MLflow."""

import importlib
import importlib.util
import json
import math
import secrets
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, Protocol

from ffcv_train.system.errors import UserError
from ffcv_train.system.files import replace_text

PAGE_FILE = "tracker.json"
"""In a run's folder: the page that whoever continues the run continues"""


class Page(Protocol):
    """A run's page at a tracker. Any method may raise whatever the tracker's library raises."""

    name: str
    """By which a later process opens it again"""

    def add(self, epoch: int, scalars: Mapping[str, float]) -> None:
        """Show the numbers of an epoch, from 0."""

    def close(self, finished: bool) -> None:
        """End the page; `finished`: the run reached its end."""


class Tracking:
    """A run's page that never stops the run: where the tracker fails, that is told once, and nothing more is sent."""

    def __init__(self, tracker: str, project: str, folder: Path, tell: Callable[[str], None]) -> None:
        self._tracker, self._project, self._folder, self._tell = tracker, project, folder, tell
        self._page: Page | None = None

    def start(self, config: Mapping[str, Any]) -> None:
        """Open the run's page, the one that it had before where it is continued; `config` describes the run."""

        def start() -> None:
            path = self._folder / PAGE_FILE
            known = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
            self._page = PAGES[self._tracker](self._project, self._folder, known.get(self._tracker), config)
            replace_text(path, json.dumps({**known, self._tracker: self._page.name}))

        self._try(start)

    def add(self, epoch: int, scalars: Iterable[tuple[str, float]]) -> None:
        """Show an epoch's numbers; those that are not finite are left out."""
        page = self._page
        if page is not None:
            numbers = {name: value for name, value in scalars if math.isfinite(value)}
            self._try(lambda: page.add(epoch, numbers))

    def close(self, finished: bool) -> None:
        """End the page; may be called twice."""
        page, self._page = self._page, None
        if page is not None:
            self._try(lambda: page.close(finished))

    def _try(self, call: Callable[[], None]) -> None:
        try:
            call()
        except Exception as error:
            # Trackers' libraries raise their own errors, their HTTP clients', the system's.
            self._page = None
            reason = " ".join(str(error).split())[:200] or type(error).__name__
            self._tell(f"logging.tracker={self._tracker} failed ({reason}); the run goes on without it")


class WandbPage:
    """Weights & Biases; where and whether online is its own to know (`wandb login`, WANDB_MODE=offline)."""

    def __init__(self, project: str, folder: Path, page: str | None, config: Mapping[str, Any]) -> None:
        wandb = importlib.import_module("wandb")
        self.name = page or secrets.token_hex(4)
        self._run = wandb.init(
            project=project, name=folder.name, id=self.name, resume="allow", dir=str(folder), config=dict(config)
        )
        # Its own steps only ever grow, and a run that is resumed trains epochs again.
        self._run.define_metric("*", step_metric="epoch")

    def add(self, epoch: int, scalars: Mapping[str, float]) -> None:
        self._run.log({"epoch": epoch + 1, **scalars})

    def close(self, finished: bool) -> None:
        self._run.finish(exit_code=0 if finished else 1)


class TrackioPage:
    """Trackio, on this machine's disk, or on a Space where its own variables say so."""

    def __init__(self, project: str, folder: Path, page: str | None, config: Mapping[str, Any]) -> None:
        self._trackio = importlib.import_module("trackio")
        self.name = page or folder.name
        self._trackio.init(project=project, name=self.name, config=dict(config), resume="allow", embed=False)

    def add(self, epoch: int, scalars: Mapping[str, float]) -> None:
        self._trackio.log({"epoch": epoch + 1, **scalars}, step=epoch + 1)

    def close(self, finished: bool) -> None:
        self._trackio.finish()


class MlflowPage:
    """MLflow; MLFLOW_TRACKING_URI says where."""

    def __init__(self, project: str, folder: Path, page: str | None, config: Mapping[str, Any]) -> None:
        self._mlflow = importlib.import_module("mlflow")
        self._mlflow.set_experiment(project)
        run = self._mlflow.start_run(run_id=page, run_name=None if page else folder.name)
        self.name = run.info.run_id
        if page is None:
            options = {f"{section}.{key}": value for section, values in config.items() for key, value in values.items()}
            self._mlflow.log_params(options)

    def add(self, epoch: int, scalars: Mapping[str, float]) -> None:
        self._mlflow.log_metrics(dict(scalars), step=epoch + 1)

    def close(self, finished: bool) -> None:
        self._mlflow.end_run("FINISHED" if finished else "KILLED")


PAGES: dict[str, Callable[[str, Path, str | None, Mapping[str, Any]], Page]] = {
    "wandb": WandbPage,
    "trackio": TrackioPage,
    "mlflow": MlflowPage,
}


def check_tracker(tracker: str) -> None:
    """Raise `UserError` where the tracker's library is not installed."""
    if tracker != "none" and importlib.util.find_spec(tracker) is None:
        raise UserError(
            f"logging.tracker={tracker}: {tracker} is not installed; pip install {tracker}, or pass "
            "--logging.tracker=none"
        )
