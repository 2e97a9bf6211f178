"""docs/api.md from the docstrings of what `ffcv_train` exports: `python -m tools.api_page > docs/api.md`."""

import ast
import dataclasses
import inspect
import re
import textwrap
from collections.abc import Iterator
from typing import Any

import ffcv_train

HEAD = """# What `ffcv_train` exports

`from ffcv_train import …`; each name is imported when it is first asked for, and `import ffcv_train` alone loads
neither PyTorch nor numba. Examples run in the tests. Made by `make docs` from the docstrings.
"""
SECTIONS = {
    "Data": [
        "open_data_set",
        "Loader",
        "Batch",
        "ViewBatch",
        "RandomResizedCrop",
        "CenterCrop",
        "write_dataset",
        "WriteConfig",
    ],
    "Networks": ["create_model", "load_network", "Classifier", "Normaliser"],
    "Criteria": ["MaxSup", "maxsup", "LabelSmoothing", "Criterion", "CRITERIA"],
    "Training and evaluation": ["RunConfig", "load_config", "train", "evaluate", "MetricSums", "Stopped", "UserError"],
}


def page() -> str:
    """The Markdown page."""
    parts = [HEAD]
    for title, names in SECTIONS.items():
        parts.append(f"## {title}\n")
        for name in names:
            parts += entry(name, getattr(ffcv_train, name))
    return "\n".join(parts)


def entry(name: str, value: Any) -> list[str]:
    """The lines of one exported name."""
    if isinstance(value, dict):
        rows = [f"- `{key}`: `{one.__name__}`" for key, one in value.items()]
        return [f"### `{name}`\n", "The criteria by their names in `loss.name` ([all](losses.md)):\n", *rows, ""]
    lines = [f"### `{name}`\n", f"```python\n{name}{signature(value)}\n```\n", text_of(value), ""]
    if not inspect.isclass(value):
        return lines
    own = value.__dict__.get("__init__")
    if own is not None and own.__doc__ and not dataclasses.is_dataclass(value):
        lines += [text_of(own), ""]
    members = [f"- `{field}`: {text}" for field, text in described_fields(value)]
    for member, found in vars(value).items():
        described = inspect.isfunction(found) or isinstance(found, property)
        if described and found.__doc__ and not member.startswith("_"):
            call = "" if isinstance(found, property) else signature(found, width=10_000)
            text, *examples = re.split(r"\n+(?=```)", text_of(found))
            members += [f"- `{member}{call}`: {joined(text)}"]
            members += [textwrap.indent(f"\n{example}\n", "  ") for example in examples]
    return [*lines, *members, ""] if members else lines


def signature(value: Any, width: int = 110) -> str:
    """A call's arguments as they are written, without the modules of their types and the instance itself."""
    try:
        found = inspect.signature(value)
    except ValueError:  # a built-in constructor
        return "(…)"
    kept = []
    for parameter in found.parameters.values():
        if parameter.name == "self":
            continue
        shown = {name: getattr(parameter, name) for name in ("default", "annotation")}
        if dataclasses.is_dataclass(shown["default"]):
            shown["default"] = _Dots()
        kept.append(parameter.replace(**shown))
    text = str(found.replace(parameters=kept)).removesuffix(" -> None").replace("~", "")
    text = re.sub(r"(?<![\w.'])(?!torch\.d)(?:[A-Za-z_]\w*\.)+([A-Za-z_]\w*)", r"\1", text)
    text = re.sub(r"-> '(.*)'$", r"-> \1", text)
    if len(text) <= width:
        return text
    inner, _, result = text[1:].rpartition(")")
    return "(\n    " + re.sub(r", (?=\*|\w+:)", ",\n    ", inner) + f",\n){result}"


class _Dots:
    """Stands for a default that is too long to be read."""

    def __repr__(self) -> str:
        return "…"


def described_fields(value: type) -> Iterator[tuple[str, str]]:
    """Fields of a tuple or data class that a text below them or an option's help describes."""
    if dataclasses.is_dataclass(value):
        options = {field.name: field.metadata.get("help") for field in dataclasses.fields(value)}
        yield from ((name, text) for name, text in options.items() if text)
    (body,) = ast.parse(textwrap.dedent(inspect.getsource(value))).body
    assert isinstance(body, ast.ClassDef)
    for field, text in zip(body.body, body.body[1:], strict=False):
        if isinstance(field, ast.AnnAssign) and isinstance(text, ast.Expr) and isinstance(text.value, ast.Constant):
            assert isinstance(field.target, ast.Name)
            yield field.target.id, joined(str(text.value.value))


def text_of(value: Any) -> str:
    """A docstring as Markdown: its examples become blocks of code."""
    blocks = re.split(r"\n\s*\n", inspect.cleandoc(value.__doc__ or ""))
    return "\n\n".join(f"```python\n{block}\n```" if block.startswith(">>>") else block for block in blocks)


def joined(text: str) -> str:
    """Paragraphs in one line."""
    return " ".join(text.split())


if __name__ == "__main__":
    print(page(), end="")
