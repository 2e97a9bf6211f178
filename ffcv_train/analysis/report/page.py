"""From folders to the page."""

import re
from collections.abc import Mapping, Sequence, Set
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup, escape

from ffcv_train.analysis.report.content import Item, Section, Table, Text, anchor, drawing, group_findings, tables_of
from ffcv_train.analysis.report.curves import draw_groups, draw_runs
from ffcv_train.analysis.report.extras import SUITE_TITLES, Found, extra_sections, find_extras, suite_sections
from ffcv_train.analysis.report.rules import find
from ffcv_train.analysis.report.runs import Comparison, Run, is_comparison, read_comparison, read_runs
from ffcv_train.analysis.report.tables import metrics_table, settings_tables
from ffcv_train.metrics.logits_file import read_logits
from ffcv_train.system.errors import UserError

NOTHING_WRONG = "None of the rules found anything wrong."


def make_page(folders: Sequence[str], logits: Sequence[str] = ()) -> str:
    """The page of runs, or of one folder of ffcv-train compare, as HTML that needs no other file and no network.

    `logits` are files of ffcv-train logits to be shown besides those in the runs' folders. Raises `UserError`.
    """
    paths = [Path(folder) for folder in folders]
    named = Found(logits=[(Path(path).stem, read_logits(path)) for path in logits])
    comparisons = [path for path in paths if is_comparison(path)]
    if comparisons and len(paths) > 1:
        raise UserError(f"{comparisons[0]} is a comparison and needs a page of its own; give it alone")
    if comparisons:
        comparison = read_comparison(paths[0])
        title = f"Comparison of {', '.join(name for name, _ in comparison.groups)}"
        return render(title, _subtitle(comparison.runs), comparison_sections(comparison, named))
    runs = read_runs(paths)
    return render(", ".join(run.name for run in runs), _subtitle(runs), run_sections(runs, named))


def render(title: str, subtitle: str, sections: Sequence[Section]) -> str:
    """The template, filled; every text is escaped."""
    environment = jinja2.Environment(
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
    )
    environment.filters["anchor"] = anchor
    environment.filters["bold"] = bold
    written = datetime.now(timezone.utc).strftime("%Y-%m-%d %H:%M UTC")
    return environment.get_template("page.html").render(
        title=title, subtitle=subtitle, sections=sections, written=written
    )


def run_sections(runs: Sequence[Run], named: Found) -> list[Section]:
    """Results, findings, curves, what else lies in the folders, settings."""
    results: list[Item] = [*_notes(runs), metrics_table(runs)]
    return [
        Section("Results", results),
        Section("What to try next", _findings(runs)),
        Section("Curves", [draw_runs(runs)]),
        *_extras(runs, named),
        Section("Settings", [*settings_tables(runs)]),
    ]


def comparison_sections(comparison: Comparison, named: Found) -> list[Section]:
    """Criterion by quality, then the comparison's tables and figure, findings, curves, suites, every run, settings."""
    runs = comparison.runs
    results: list[Item] = [Text(note, note=True) for note in comparison.notes]
    # One run of each criterion, so that figures show all criteria.
    first = [(name, runs[members[0]]) for name, members in comparison.groups]
    suites = suite_sections(
        [(f"{name}, {run.name}", found) for name, run in first if isinstance(found := run.measures.get("suites"), dict)]
    )
    there = {section.title for section in suites} | {"Comparison", "Runs"}
    opening = _opening(comparison.qualities, there)
    results += _without(tables_of(comparison.markdown), opening)
    if comparison.figure is not None:
        results.append(drawing(comparison.figure, "A dot per seed, a bar at the mean; hollow: training set"))
    groups = [(name, [runs[i] for i in members]) for name, members in comparison.groups]
    lines = Text("Lines are means over seeds, bands reach from the least to the largest value.")
    return [
        *([Section("In short", opening)] if opening else []),
        Section("Comparison", results),
        Section("What to try next", _findings(runs)),
        *suites,
        Section("Curves", [lines, draw_groups(groups)]),
        Section("Runs", [*_notes(runs), metrics_table(runs)]),
        *_extras(runs, named),
        Section("Settings", [*settings_tables(runs)]),
    ]


def _opening(qualities: Mapping[str, Any], there: Set[str]) -> list[Item]:
    """A row per criterion, a column per quality, whose cells lead to the section that shows it."""
    columns = qualities.get("columns", [])
    if not columns:
        return []
    names = list(columns[0]["cells"])
    rows = [[name, *(column["cells"].get(name, "–") for column in columns)] for name in names]
    titles = [SUITE_TITLES.get(column["suite"], "Comparison") for column in columns]
    links = ["", *(title if title in there else "Comparison" for title in titles)]
    return [Table(["criterion", *(column["title"] for column in columns)], rows, links=links), Text(qualities["note"])]


def _without(items: Sequence[Item], shown: Sequence[Item]) -> list[Item]:
    """The items but for those that stand on the page already: compare.md opens with the same table."""
    headers = [list(item.header) for item in shown if isinstance(item, Table)]
    texts = [item.text for item in shown if isinstance(item, Text)]
    return [
        item
        for item in items
        if not (isinstance(item, Table) and list(item.header) in headers)
        and not (isinstance(item, Text) and item.text in texts)
    ]


def bold(text: str) -> Markup:
    """`text` escaped, Markdown's **…** in it bold.

    >>> bold("**+1** < 2")
    Markup('<b>+1</b> &lt; 2')
    """
    return Markup(re.sub(r"\*\*(.+?)\*\*", r"<b>\1</b>", str(escape(text))))


def _extras(runs: Sequence[Run], named: Found) -> list[Section]:
    return extra_sections([named, *map(find_extras, runs)], ["", *(run.name for run in runs)])


def _findings(runs: Sequence[Run]) -> list[Item]:
    found = [(run.name, finding) for run in runs for finding in find(run)]
    return [group_findings(found)] if found else [Text(NOTHING_WRONG)]


def _notes(runs: Sequence[Run]) -> list[Item]:
    notes = [f"{run.name}: {note}" for run in runs for note in run.notes]
    sets = dict.fromkeys(run.val_set for run in runs if run.val_set)
    if len(sets) > 1:
        notes.append(
            f"The runs were validated on different data sets ({', '.join(sets)}); do not compare their metrics."
        )
    return [Text(note, note=True) for note in notes]


def _subtitle(runs: Sequence[Run]) -> str:
    """Architectures and data sets."""
    parts = [
        dict.fromkeys(str(run.config.get("model", {}).get("arch", "")) for run in runs),
        dict.fromkeys(Path(run.val_set).name for run in runs),
    ]
    return ", validated on ".join(text for part in parts if (text := ", ".join(filter(None, part))))
