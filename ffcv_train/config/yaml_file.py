"""A YAML file of options, with what stands there word for word."""

from collections.abc import Hashable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from ffcv_train.system.errors import UserError


@dataclass(frozen=True)
class Plain:
    """A word without quotes that YAML takes for something else than a text: 007, no, 2026-01-02."""

    text: str
    value: Any

    def __str__(self) -> str:
        return self.text


def read_yaml(file: str) -> Mapping[str, Any]:
    """The sections of `file`. Raises `UserError` where it cannot be read, is no YAML, or holds no sections."""
    try:
        content = yaml.load(Path(file).read_text(encoding="utf-8"), Loader=_StrictLoader)
    except OSError as error:
        raise UserError(f"cannot read the configuration {file}: {error.strerror}; check --config-file") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        hint = "; TOML is not read, write its sections as YAML (docs/migration.md)" if file.endswith(".toml") else ""
        raise UserError(f"{file} is not valid YAML: {' '.join(str(error).split())}{hint}") from None
    except RecursionError:
        raise UserError(f"{file} is not a configuration: it is nested too deeply; check --config-file") from None
    if content is None:
        return {}
    if not isinstance(content, Mapping):
        kind = type(content.value if isinstance(content, Plain) else content).__name__
        raise UserError(f"{file} must hold sections such as 'training:', not {kind}")
    return content


class _StrictLoader(yaml.SafeLoader):
    """YAML in which a key that stands twice is an error, and which remembers how a value was written."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        keys = [str(self.construct_object(key, deep=True)) for key, _ in node.value]
        for key in keys:
            if keys.count(key) > 1:
                raise yaml.YAMLError(f"key {key!r} stands twice{node.start_mark}")
        return {str(key): value for key, value in super().construct_mapping(node, deep).items()}


def _plain(kind: str) -> Any:
    construct = yaml.SafeLoader.yaml_constructors[f"tag:yaml.org,2002:{kind}"]
    return lambda loader, node: Plain(node.value, construct(loader, node))


for _kind in ("bool", "int", "float", "timestamp"):
    _StrictLoader.add_constructor(f"tag:yaml.org,2002:{_kind}", _plain(_kind))
