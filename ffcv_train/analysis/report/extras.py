"""What else lies in a run's folder: pictures, files of logits, metrics, JSON of the figures' commands."""

import contextlib
import dataclasses
import io
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from ffcv_train.analysis.figures.confusion import classes_table, draw_confusion, pairs_table
from ffcv_train.analysis.figures.features import draw_features, feature_table
from ffcv_train.analysis.figures.logits import draw_distributions, draw_logit_density, draw_near_zero, logit_table
from ffcv_train.analysis.figures.reliability import draw_reliability
from ffcv_train.analysis.figures.style import MAX_INPUTS
from ffcv_train.analysis.figures.suites import draw_suite, suite_tables
from ffcv_train.analysis.figures.texts import settle_texts
from ffcv_train.analysis.figures.transfer import transfer_table
from ffcv_train.analysis.report.content import Drawing, Item, Section, Table, Text, data_address, drawing, tables_of
from ffcv_train.analysis.report.runs import Run, read_json
from ffcv_train.metrics.calibration import Calibration, calibration_of, read_calibration
from ffcv_train.metrics.features import FeatureMetrics, metrics_of
from ffcv_train.metrics.logits import THRESHOLD, statistics_of, summarise_logits
from ffcv_train.metrics.logits_file import LogitsFile, read_logits
from ffcv_train.metrics.per_class import ClassResults
from ffcv_train.system.errors import UserError

_CHECKPOINTS = ("last.pt", "best.pt", "final.pt")
_PICTURES = (".png", ".svg")
_OF_OTHERS = re.compile(r"(params|measures)(\..*)?\.json|.*_(suites\.part|corruptions\.\d+of\d+)\.json")
"""JSON of the run itself and of a comparison, and what a stopped evaluation goes on from"""
SUITE_TITLES = {
    "calibration": "Calibration, before and after a temperature",
    "selective": "Selective prediction",
    "groups": "Often and seldom seen classes",
    "ood": "Out-of-distribution detection",
    "corruptions": "Corruptions",
    "variants": "Other pictures of the classes",
}
_WORST = 20
# What draw_computed draws anew where there are logits.
_COMPUTED = ("near_zero", "density", "distributions", "reliability", "features")


@dataclass(frozen=True)
class Found:
    """What lies in one run's folder, or was named on the command line; labels begin with the run's name."""

    pictures: list[tuple[str, Path]] = field(default_factory=list)
    logits: list[tuple[str, LogitsFile]] = field(default_factory=list)
    curves: list[Calibration] = field(default_factory=list)
    features: list[tuple[str, FeatureMetrics, str]] = field(default_factory=list)
    transfers: list[tuple[str, dict[str, Any]]] = field(default_factory=list)
    suites: list[tuple[str, dict[str, Any]]] = field(default_factory=list)
    """What ffcv-train eval --suite wrote: a record per suite"""
    classes: list[tuple[str, ClassResults]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def find_extras(run: Run) -> Found:
    """What lies in `run.folder`, its folders figures/ (at any depth) and logits/.

    Pictures are all .png and .svg, of two with one name the smaller file; logits all .pt but the run's checkpoints. A
    file that cannot be read is noted.
    """
    folder, found = run.folder, Found()
    deep = sorted((folder / "figures").rglob("*")) if (folder / "figures").is_dir() else []
    files = [*sorted(folder.glob("*")), *deep, *sorted((folder / "logits").glob("*"))]
    by_name: dict[Path, list[Path]] = {}
    for path in files:
        if path.suffix.lower() in _PICTURES and path.is_file():
            by_name.setdefault(path.with_suffix(""), []).append(path)
    for name, paths in by_name.items():
        found.pictures.append((name.name, min(paths, key=lambda path: path.stat().st_size)))
    logits = []
    for path in files:
        if path.suffix == ".pt" and path.name not in _CHECKPOINTS:
            # What is no file of logits is another checkpoint.
            with contextlib.suppress(UserError):
                logits.append(read_logits(path))
    for file in logits:
        found.logits.append((run.name if len(logits) == 1 else f"{run.name}: {file.path.stem}", file))
    for path in files:
        if path.suffix == ".json" and not _OF_OTHERS.fullmatch(path.name):
            _read_json_of_viz(run, path, found)
    return found


def _read_json_of_viz(run: Run, path: Path, found: Found) -> None:
    content, problem = read_json(path)
    if problem:
        found.notes.append(f"{run.name}: {path.name} cannot be read and was left out.")
        return
    try:
        if "per_class" in content:
            found.classes.append((f"{run.name}: {path.stem}", ClassResults.from_plain(content["per_class"])))
        if "results" in content:
            found.curves.append(read_calibration(path, label=run.name))
            if "suites" in content:
                several = any(label.partition(":")[0] == run.name for label, _ in found.suites)
                label = f"{run.name}: {path.stem}" if several else run.name
                for name, record in content["suites"].items():
                    suite_tables(name, [(label, record)])  # raises where it is another thing
                found.suites.append((label, content["suites"]))
        elif path.name == "features.json":
            for one in content["inputs"]:
                numbers = {key: one[key] for key in FeatureMetrics.__dataclass_fields__}
                numbers["r_squared"] = float("nan") if numbers["r_squared"] is None else numbers["r_squared"]
                data_set = Path(str(one.get("about", {}).get("data_set", ""))).name
                found.features.append((f"{run.name}: {one['label']}", FeatureMetrics(**numbers), data_set))
        elif path.name == "transfer.json":
            transfer_table(content)  # raises where it is another file
            found.transfers.append((run.name, content))
    except (UserError, KeyError, TypeError, ValueError):
        found.notes.append(f"{run.name}: {path.name} is not what a command here writes and was left out.")


def extra_sections(found: Sequence[Found], titles: Sequence[str]) -> list[Section]:
    """Sections of all that was found in the folders of several runs; `titles` are the runs' names."""
    logits = [one for extras in found for one in extras.logits]
    curves = [one for extras in found for one in extras.curves]
    features = [one for extras in found for one in extras.features]
    sections = []
    named = {label.partition(":")[0] for label, _ in logits}
    computed = _computed(logits, [curve for curve in curves if curve.label not in named], features)
    if computed.items:
        sections.append(computed)
    classes = [one for extras in found for one in extras.classes]
    if classes:
        sections.append(
            Section("Classes", [item for label, results in classes for item in _of_classes(label, results)])
        )
    transfers = [one for extras in found for one in extras.transfers]
    if transfers:
        items: list[Item] = []
        for label, report in transfers:
            result, _, _ = transfer_table(report).partition("\n\n")
            items += [Text(label), *tables_of(result)]
        sections.append(Section("Linear transfer", items))
    sections += suite_sections([one for extras in found for one in extras.suites])
    pictures: list[Item] = []
    notes = [note for extras in found for note in extras.notes]
    for title, extras in zip(titles, found, strict=True):
        for name, path in extras.pictures:
            drawn = {suite for _, records in extras.suites for suite in records}
            drawn |= {"confusion"} if extras.classes else set()
            if (logits and name in _COMPUTED) or name.rpartition("_")[2] in drawn:
                continue
            try:
                pictures.append(drawing(path, f"{title}: {name}"))
            except UserError as error:
                notes.append(f"{title}: {error}.")
    if pictures:
        sections.append(Section("Figures", pictures))
    if notes:
        sections.append(Section("Left out", [Text(note) for note in notes]))
    return sections


def suite_sections(found: Sequence[tuple[str, dict[str, Any]]]) -> list[Section]:
    """A section per suite: its tables, and its figure of as many runs as one can show."""
    sections = []
    for name in dict.fromkeys(suite for _, records in found for suite in records):
        inputs = [(label, records[name]) for label, records in found if name in records]
        items: list[Item] = [Table(t.header, t.rows, t.title) for t in suite_tables(name, inputs)]
        if len(inputs) > MAX_INPUTS:
            items.append(Text(f"The figure shows the first {MAX_INPUTS} of {len(inputs)} runs.", note=True))
        items.append(_drawn(name.capitalize(), draw_suite(name, inputs[:MAX_INPUTS])))
        sections.append(Section(SUITE_TITLES.get(name, name), items))
    return sections


def _of_classes(label: str, results: ClassResults) -> list[Item]:
    """The confusion matrix, the most frequent errors, and the classes of lowest recall; all classes folded."""

    def table(markdown: str, title: str, folded: bool = False) -> Item:
        (found,) = tables_of(markdown)
        assert isinstance(found, Table)
        return dataclasses.replace(found, title=title, folded=folded)

    worst = results.worst_classes(_WORST)
    items: list[Item] = [Text(label), _drawn("Confusion matrix", draw_confusion(results))]
    if len(results.confusions):
        items.append(table(pairs_table(results), "Most frequent errors"))
    items.append(table(classes_table(results, worst), "Classes of lowest recall"))
    if len(worst) < len(results.names):
        items.append(table(classes_table(results, range(len(results.names))), "All classes", folded=True))
    return items


@contextlib.contextmanager
def _left_out(label: str, items: list[Item]) -> Iterator[None]:
    """Say in a note what could not be computed, of a network that diverged say; the rest of the page stands."""
    try:
        yield
    except UserError as error:
        items.append(Text(f"{label}: {error}.", note=True))


def _computed(
    logits: Sequence[tuple[str, LogitsFile]],
    curves: Sequence[Calibration],
    features: Sequence[tuple[str, FeatureMetrics, str]],
) -> Section:
    """Figures and tables of logits, calibration and features; what a figure has no room for is named."""
    section = Section("Logits, calibration and features")
    items = section.items
    if len(logits) > MAX_INPUTS:
        items.append(Text(f"Only the first {MAX_INPUTS} of {len(logits)} files of logits are shown.", note=True))
        logits = logits[:MAX_INPUTS]
    curves = list(curves)
    for classes in dict.fromkeys(file.num_classes for _, file in logits):
        named = []
        for label, file in logits:
            with _left_out(label, items):
                if file.num_classes == classes:
                    named.append((label, statistics_of(file, THRESHOLD)))
        if not named:
            continue
        items += tables_of(logit_table([(label, summarise_logits(statistics)) for label, statistics in named]))
        items.append(_drawn("Near-zero logits", draw_near_zero(named)))
        items.append(_drawn("Density of all logits", draw_logit_density(named)))
        items.append(_drawn("Distributions of logits", draw_distributions(named)))
        curves += [calibration_of(s.metrics, label, f"{len(s):,} samples") for label, s in named]
    if curves:
        if len(curves) > MAX_INPUTS:
            items.append(Text(f"Only the first {MAX_INPUTS} of {len(curves)} reliability curves are shown.", note=True))
        items.append(_drawn("Reliability", draw_reliability(curves[:MAX_INPUTS])))
    own = []
    for label, file in logits:
        with _left_out(f"features of {label}", items):
            if file.features is not None:
                own.append((label, metrics_of(file), file.data_set))
    rows = own or list(features)
    if rows:
        pairs = [(label, metrics) for label, metrics, _ in rows]
        items += tables_of(feature_table(pairs, [data_set for _, _, data_set in rows]))
        items.append(_drawn("Features", draw_features(pairs)))
    return section


def _drawn(title: str, figure: Figure) -> Drawing:
    settle_texts(figure)
    content = io.BytesIO()
    figure.savefig(content, format="svg", dpi=100)
    width = round(96 * float(figure.get_size_inches()[0]))
    return Drawing(title, data_address("image/svg+xml", content.getvalue()), width)
