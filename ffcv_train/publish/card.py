"""A model card, written from what a run left behind: README.md as the Hugging Face hub shows it."""

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from ffcv_train.publish.description import Description
from ffcv_train.system.files import parse_json

_SHOWN_OPTIONS = ("augment", "distill", "finetune", "lr", "resolution", "loss", "training")
_NO_PART_OF_A_RECIPE = ("seed", "device", "resume")
_METRICS = (("top_1", "top-1 %", 100), ("top_5", "top-5 %", 100), ("nll", "NLL", 1), ("ece", "ECE", 1))
_MOST_PAIRS = 10


@dataclass(frozen=True)
class Record:
    """What lies beside a checkpoint; everything may be missing."""

    params: Mapping[str, Any] = field(default_factory=dict)
    """params.json"""
    last: Mapping[str, Any] = field(default_factory=dict)
    """The last line of log.jsonl"""
    evaluations: tuple[Mapping[str, Any], ...] = ()
    """What ffcv-train eval --output wrote of these weights, by the names of the files"""
    others: tuple[Mapping[str, Any], ...] = ()
    """Last lines of finished runs beside it that differ in the seed alone"""


def read_record(checkpoint: Path, description: Description) -> Record:
    """What the run of `checkpoint` left in its folder, and the runs of other seeds beside it.

    Of evaluations those of the network that `description` is of: its weights, as they are, at its epoch.
    """
    folder = checkpoint.resolve().parent
    params = _json(folder / "params.json")
    evaluations = [_json(path) for path in sorted(folder.glob("*.json")) if not path.name.startswith("params")]
    wanted = (checkpoint.name, description.weights, description.epoch, None)
    own = [
        one
        for one in evaluations
        if "results" in one
        and (Path(str(one.get("checkpoint"))).name, *(one.get(key) for key in ("weights", "epoch", "tau"))) == wanted
    ]
    others = []
    for path in sorted(folder.parent.glob("*/final.pt")) if params else []:
        other = _json(path.parent / "params.json")
        if path.parent != folder and other and _recipe(other) == _recipe(params):
            others.append(_last_line(path.parent / "log.jsonl"))
    return Record(params, _last_line(folder / "log.jsonl"), tuple(own), tuple(filter(None, others)))


def write_card(repo: str, description: Description, record: Record, licence: str, library: str) -> str:
    """The card of `repo`; `library` is "timm" where its folder opens with timm, else "safetensors"."""
    config = record.params.get("config", {})
    head = {
        "license": licence,
        "library_name": library,
        "pipeline_tag": "image-classification",
        "tags": ["image-classification", "ffcv_train", *(["timm"] if library == "timm" else [])],
    }
    data = {split: Path(str(config.get("data", {}).get(f"{split}_dataset", ""))).name for split in ("train", "val")}
    sections = [
        "---\n" + yaml.safe_dump(head, sort_keys=False) + "---\n",
        f"# {repo.partition('/')[2]}\n",
        f"{description.arch}, {description.num_classes:,} classes, images of {description.side} px; trained with "
        f"{description.producer}.\n",
        "## Use\n\n" + _usage(repo, library),
        "## Results\n\n" + _results(record, data["val"], description.weights),
        _confusion(record.evaluations),
        "## Data\n\n" + _data(data, record, description),
        "## Recipe\n\n" + _recipe_text(record),
    ]
    return "\n".join(filter(None, sections))


def _usage(repo: str, library: str) -> str:
    if library == "timm":
        code = [
            "import timm",
            f'model = timm.create_model("hf-hub:{repo}", pretrained=True).eval()',
            "transform = timm.data.create_transform(**timm.data.resolve_model_data_config(model))",
        ]
    else:
        code = [
            "from ffcv_train import load_network",
            f'network = load_network("hf:{repo}")',
            'logits = network.predict(["photograph.jpg"])',
        ]
    return "```python\n" + "\n".join(code) + "\n```\n"


def _results(record: Record, val: str, weights: str) -> str:
    rows: list[tuple[str, str, Mapping[str, Any]]] = []
    for evaluation in record.evaluations:
        data_set = Path(str(evaluation.get("data_set"))).name
        for result in evaluation["results"]:
            rows.append((f"eval, {result['resolution']} px", data_set, result))
            if "flip_averaged" in result:
                rows.append((f"eval, {result['resolution']} px, flip-averaged", data_set, result["flip_averaged"]))
    if record.last.get("top_1") is not None:
        rows.append(("last epoch of the run", val, record.last))
        if isinstance(record.last.get("ema"), dict):
            rows.append(("last epoch of the run, averaged weights", val, record.last["ema"]))
    if not rows:
        return "Not evaluated.\n"
    titles = " | ".join(title for _, title, _ in _METRICS)
    lines = [f"| | on | {titles} |", "| --- | --- |" + " ---: |" * len(_METRICS)]
    for name, data_set, metrics in rows:
        values = [_number(metrics.get(key), scale) for key, _, scale in _METRICS]
        lines.append(f"| {name} | {_cell(data_set)} | " + " | ".join(values) + " |")
    text = "\n".join(lines) + "\n\nEach image once; ECE is the calibration error in 15 bins.\n"
    top_1 = [100 * value for one in (record.last, *record.others) if (value := _top_1(one, weights)) is not None]
    if len(top_1) > 1:
        spread = f"{statistics.mean(top_1):.2f} ± {statistics.stdev(top_1):.2f}"
        return (
            text
            + f"Top-1 over {len(top_1)} seeds, at their last epochs: {spread} (mean ± sample standard deviation).\n"
        )
    return text + "One seed: there is no spread to state.\n"


def _top_1(line: Mapping[str, Any], weights: str) -> Any:
    """Of the log's `line`, for the weights that are published."""
    averaged = line.get("ema")
    return averaged.get("top_1") if weights == "ema" and isinstance(averaged, Mapping) else line.get("top_1")


def _number(value: Any, scale: float) -> str:
    return "–" if value is None else f"{scale * value:.2f}" if scale > 1 else f"{value:.4f}"


def _confusion(evaluations: Sequence[Mapping[str, Any]]) -> str:
    found = next((one for one in reversed(evaluations) if (one.get("per_class") or {}).get("confusions")), None)
    if found is None:
        return ""
    classes = found["per_class"]
    pairs = sorted(classes["confusions"], key=lambda pair: -pair[2])[:_MOST_PAIRS]
    data_set = _cell(Path(str(found.get("data_set"))).name)
    lines = [f"## Most frequent errors\n\nOn {data_set}.\n", "| class | taken for | images | of |"]
    lines.append("| --- | --- | ---: | ---: |")
    names, counts = [_cell(name) for name in classes["names"]], classes["counts"]
    lines += [f"| {names[a]} | {names[b]} | {count} | {counts[a]} |" for a, b, count in pairs]
    return "\n".join(lines) + "\n"


def _data(data: Mapping[str, str], record: Record, description: Description) -> str:
    lines = [f"- {split}: `{name}`" for split, name in data.items() if name] or ["Not recorded."]
    names = description.class_names or ()
    if names:
        shown = ", ".join(map(_cell, names[:20])) + (f", … ({len(names):,} in all)" if len(names) > 20 else "")
        lines.append(f"- classes: {shown}")
    crop = f"centre crop of {description.crop_ratio:g}, {description.interpolation}"
    mean, std = _list(description.mean), _list(description.std)
    lines.append(f"- images: RGB, mean {mean}, std {std} of pixels in [0, 1]; {crop}")
    return "\n".join(lines) + "\n"


def _recipe_text(record: Record) -> str:
    config = record.params.get("config")
    if not config:
        return "Not recorded.\n"
    chosen = {section: config[section] for section in _SHOWN_OPTIONS if section in config}
    parts = ["```yaml\n" + yaml.safe_dump(chosen, sort_keys=False, default_flow_style=None) + "```\n"]
    command = record.params.get("command")
    if command:
        parts.insert(0, f"```\n{command}\n```\n")
    return "\n".join(parts)


def _recipe(params: Mapping[str, Any]) -> dict[str, Any]:
    """What runs of several seeds share."""
    config = {name: dict(values) for name, values in params.get("config", {}).items() if name != "logging"}
    for name in _NO_PART_OF_A_RECIPE:
        config.get("training", {}).pop(name, None)
    return config


def _list(values: Sequence[float]) -> str:
    return ", ".join(f"{value:g}" for value in values)


def _cell(text: str) -> str:
    """Names come from folders: nothing in them may end a table's cell or begin Markdown of its own."""
    return "".join(f"\\{c}" if c in r"\`*_{}[]<>|#" else c for c in " ".join(text.split()))


def _json(path: Path) -> dict[str, Any]:
    try:
        content = parse_json(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def _last_line(path: Path) -> dict[str, Any]:
    try:
        content = parse_json(path.read_text(encoding="utf-8").splitlines()[-1])
    except (OSError, ValueError, IndexError):
        return {}
    return content if isinstance(content, dict) else {}
