"""The schema of a run: frozen, typed dataclasses; fastargs is their YAML and command-line face.

Every option of the trainer stands in exactly one dataclass field below. `load_config` reads YAML files and
`--section.key=value` arguments, refuses unknown keys and wrong types (naming the nearest key), and returns a
`RunConfig`; `to_dict` and `from_dict` carry it through checkpoints.
"""

import argparse
import dataclasses
import difflib
import math
import types
import typing
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import fastargs
import fastargs.validation
import yaml

from ffcv_train.system.errors import UserError

T = TypeVar("T")


def load_config(
    schema: type[T], argv: Sequence[str], description: str = "", base: Mapping[str, Any] | None = None
) -> T:
    """Resolve defaults, `base`, YAML files (`--config-file`, repeatable) and `--section.key=value`, in this order.

    `schema` is a frozen dataclass whose fields are frozen dataclasses. Raises `UserError` on an unknown section
    or key, a wrong type or a value out of bounds, naming the file or argument it came from.
    """
    schema_fields = _fields_by_key(schema)
    arguments = list(argv)
    parser = argparse.ArgumentParser(description=description, allow_abbrev=False)
    parser.usage = "%(prog)s [--config-file YAML] [--section.key=value …]"
    face = _fastargs_face(schema)
    _augment_help(face, parser, schema_fields)
    known, unknown = parser.parse_known_args(arguments)
    if unknown:
        name = unknown[0].split("=")[0].lstrip("-")
        raise UserError(f"unknown argument {unknown[0]!r}{_suggest(name, schema_fields)}; --help lists all options")

    merged: dict[str, tuple[Any, str]] = {}
    for key, value in _flatten(base or {}).items():
        _check_key(key, schema_fields, "the checkpoint's configuration")
        merged[key] = (value, "the checkpoint's configuration")
    for file in known.config_file:
        for key, value in _flatten(_read_yaml(file)).items():
            _check_key(key, schema_fields, file)
            merged[key] = (value, file)
    for key, value in vars(known).items():
        if key in schema_fields and value is not None:
            merged[key] = (value, "the command line")
    face.collect({key: value for key, (value, _) in merged.items() if value is not None})

    sections: dict[str, dict[str, Any]] = {}
    for key, spec in schema_fields.items():
        section, name = key.split(".")
        value, origin = merged.get(key, (None, ""))
        if value is None:
            sections.setdefault(section, {})[name] = spec.default
            continue
        try:
            sections.setdefault(section, {})[name] = face[key]
        except (ValueError, fastargs.exceptions.ValidationError) as error:
            reason = error.__cause__ or error.__context__ or error
            raise UserError(f"{key} in {origin} {reason}, not {value!r}") from None
    return _build(schema, sections)


def to_dict(config: Any) -> dict[str, Any]:
    """The configuration as plain dictionaries, lists and scalars (what YAML, JSON and checkpoints hold)."""

    def plain(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: plain(item) for key, item in value.items()}
        return list(value) if isinstance(value, tuple) else value

    return plain(dataclasses.asdict(config))


def from_dict(schema: type[T], content: Mapping[str, Any], origin: str) -> T:
    """The inverse of `to_dict`; `origin` names the file in errors."""
    schema_fields = _fields_by_key(schema)
    sections: dict[str, dict[str, Any]] = {f.name: {} for f in dataclasses.fields(schema)}  # type: ignore[arg-type]
    for key, value in _flatten(content).items():
        _check_key(key, schema_fields, origin)
        section, name = key.split(".")
        try:
            sections[section][name] = parse_value(schema_fields[key], value)
        except ValueError as error:
            raise UserError(f"{key} in {origin} {error}, not {value!r}") from None
    return _build(schema, sections)


def parse_value(spec: dataclasses.Field, value: Any) -> Any:
    """`value` (a string of the command line, or what YAML gave) as the type of the field, within its bounds.

    Raises `ValueError` with what the value must be.
    """
    hint = spec.type
    metadata = spec.metadata
    if typing.get_origin(hint) is tuple:
        parts = value.split(",") if isinstance(value, str) else value
        items = list(parts) if isinstance(parts, Iterable) else [parts]
        items = [item for item in items if item != ""]
        if metadata["length"] is not None and len(items) not in (
            {0, metadata["length"]} if not spec.default else {metadata["length"]}
        ):
            raise ValueError(f"must be {metadata['length']} values separated by commas")
        if not items and spec.default and metadata["length"] is None and metadata["min"] is not None:
            raise ValueError("must name at least one value")
        return tuple(_parse_scalar(typing.get_args(hint)[0], item, metadata) for item in items)
    return _parse_scalar(typing.cast(type, hint), value, metadata)


def _parse_scalar(kind: type, value: Any, metadata: Mapping[str, Any] | types.MappingProxyType) -> Any:
    parsed: Any
    try:
        if kind is bool:
            parsed = _BOOLEANS[str(value).lower()]
        elif kind is int:
            parsed = int(value) if isinstance(value, str) else value
            if isinstance(value, bool) or int(parsed) != parsed:
                raise ValueError
            parsed = int(parsed)
        elif kind is float:
            if isinstance(value, bool):
                raise ValueError
            parsed = float(value)
            if not math.isfinite(parsed):
                raise ValueError
        else:
            if not isinstance(value, str):
                raise ValueError
            parsed = value
    except (ValueError, TypeError, KeyError, OverflowError):
        raise ValueError(f"must be {_TYPE_NAMES[kind]}") from None
    choices, low, high = metadata["choices"], metadata["min"], metadata["max"]
    if choices is not None and parsed not in choices:
        raise ValueError(f"must be one of {', '.join(map(str, choices))}")
    if low is not None and parsed < low:
        raise ValueError(f"must be at least {low:g}")
    if high is not None and parsed > high:
        raise ValueError(f"must be at most {high:g}")
    return parsed


_BOOLEANS = {"1": True, "true": True, "yes": True, "on": True, "0": False, "false": False, "no": False, "off": False}
_TYPE_NAMES = {bool: "1 or 0", int: "a whole number", float: "a number", str: "a text"}


class FieldChecker(fastargs.validation.Checker):
    """Lets fastargs check a value by our schema."""

    def __init__(self, spec: dataclasses.Field) -> None:
        self.spec = spec

    def check(self, value: Any) -> Any:
        return parse_value(self.spec, value)

    def help(self) -> str:
        choices = self.spec.metadata["choices"]
        if choices is not None:
            return " | ".join(map(str, choices))
        hint = self.spec.type
        kind = typing.get_args(hint)[0] if typing.get_origin(hint) is tuple else hint
        plural = ", comma-separated" if kind is not hint else ""
        return _TYPE_NAMES[typing.cast(type, kind)] + plural


def _fastargs_face(schema: type) -> fastargs.Config:
    face = fastargs.Config()
    for section in dataclasses.fields(schema):
        summary = (section.type.__doc__ or "").splitlines()[0]
        fastargs.Section(section.name, summary, config_descriptor=face).params(
            **{
                spec.name: fastargs.Param(FieldChecker(spec), spec.metadata["help"], default=spec.default)
                for spec in dataclasses.fields(typing.cast(type, section.type))
            }
        )
    return face


def _augment_help(face: fastargs.Config, parser: argparse.ArgumentParser, schema_fields: Mapping) -> None:
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--config-file", "-C", action="append", default=[], metavar="YAML", help="may be repeated")
    section = ""
    for key, spec in schema_fields.items():
        name = key.split(".")[0]
        if name != section:
            section = name
            group = parser.add_argument_group(name, face.sections[(name,)].desc)
        default = ",".join(map(str, spec.default)) if isinstance(spec.default, tuple) else spec.default
        checker = face.entries[tuple(key.split("."))].checker
        text = f"{spec.metadata['help']} [{checker.help()}; default {default if default != '' else 'none'}]"
        group.add_argument(f"--{key}", dest=key, default=None, metavar="…", help=text.replace("%", "%%"))


def _fields_by_key(schema: type) -> dict[str, dataclasses.Field]:
    return {
        f"{section.name}.{spec.name}": spec
        for section in dataclasses.fields(schema)
        for spec in dataclasses.fields(typing.cast(type, section.type))
    }


def _build(schema: type[T], sections: Mapping[str, Mapping[str, Any]]) -> T:
    fields = dataclasses.fields(schema)  # type: ignore[arg-type]
    return schema(**{f.name: typing.cast(type, f.type)(**sections.get(f.name, {})) for f in fields})


def _read_yaml(file: str) -> Mapping[str, Any]:
    try:
        content = yaml.load(Path(file).read_text(), Loader=_StrictLoader)
    except OSError as error:
        raise UserError(f"cannot read the configuration {file}: {error.strerror}; check --config-file") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{file} is not valid YAML: {' '.join(str(error).split())}") from None
    if content is None:
        return {}
    if not isinstance(content, Mapping):
        raise UserError(f"{file} must hold sections such as 'training:', not {type(content).__name__}")
    return content


class _StrictLoader(yaml.SafeLoader):
    """YAML in which a key that stands twice is an error, and 1e-4 is a number."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict:
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        for key in keys:
            if keys.count(key) > 1:
                raise yaml.YAMLError(f"key {key!r} stands twice{node.start_mark}")
        return super().construct_mapping(node, deep)


def _flatten(content: Mapping[str, Any]) -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for section, values in content.items():
        if isinstance(values, Mapping):
            flat.update({f"{section}.{name}": value for name, value in values.items()})
        else:
            flat[str(section)] = values
    return flat


def _check_key(key: str, schema_fields: Mapping[str, Any], origin: str) -> None:
    if key not in schema_fields:
        raise UserError(f"unknown key {key!r} in {origin}{_suggest(key, schema_fields)}; --help lists all options")


def _suggest(key: str, schema_fields: Mapping[str, Any]) -> str:
    exact = [known for known in schema_fields if known.split(".")[1] == key.split(".")[-1]]
    near = exact or difflib.get_close_matches(key, list(schema_fields), n=1, cutoff=0.75)
    return f", did you mean {near[0]!r}?" if near else ""
