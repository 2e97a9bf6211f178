"""docs/options.md from the schema: `python -m ffcv_train.config.options_page > docs/options.md`."""

import dataclasses
import typing

from ffcv_train.config.read import FieldChecker
from ffcv_train.config.schema import RunConfig

HEAD = """# Options of a run

Every option of `ffcv-train train` and `ffcv-train eval`, as `--section.key=value` on the command line or under
`section:` in a YAML file (`--config-file`, may be repeated; later files and then the command line win). Lists are
comma-separated on the command line. An unknown key or a wrong type is an error. Made by `make docs` from
`ffcv_train/config/schema.py`.
"""


def page(schema: type = RunConfig) -> str:
    """The Markdown page: a table per section."""
    parts = [HEAD]
    for section in dataclasses.fields(schema):
        kind = typing.cast(type, section.type)
        parts.append(f"\n## {section.name}\n\n{' '.join((kind.__doc__ or '').split())}\n")
        parts.append("| option | default | values | meaning |\n| --- | --- | --- | --- |")
        for option in dataclasses.fields(kind):
            default = option.default
            shown = ",".join(f"{x:.4g}" for x in default) if isinstance(default, tuple) else default
            shown = int(default) if isinstance(default, bool) else shown
            shown = f"`{shown}`" if shown != "" else ""
            values = FieldChecker(option).help().replace("|", "\\|")
            parts.append(f"| `{section.name}.{option.name}` | {shown} | {values} | {option.metadata['help']} |")
    return "\n".join(parts) + "\n"


if __name__ == "__main__":
    print(page(), end="")
