"""The schema of a run: frozen, typed dataclasses; fastargs is their YAML and command-line face.

Every option of the trainer stands in exactly one dataclass field below. `load_config` reads YAML files and
`--section.key=value` arguments, refuses unknown keys and wrong types, all of them at once (naming the nearest key, or
what stands here for another trainer's), and returns a `RunConfig`; `to_dict` and `from_dict` carry it through
checkpoints.
"""

import argparse
import dataclasses
import difflib
import math
import types
import typing
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypeVar

import fastargs
import fastargs.validation

from ffcv_train.config.foreign_names import meaning_here, normalised
from ffcv_train.config.yaml_file import Plain, read_yaml
from ffcv_train.system.errors import UserError
from ffcv_train.system.files import expand_path

T = TypeVar("T")


def load_config(
    schema: type[T], argv: Sequence[str], description: str = "", base: Mapping[str, Any] | None = None
) -> T:
    """Resolve defaults, `base`, YAML files (`--config-file`, repeatable) and `--section.key=value`, in this order.

    `schema` is a frozen dataclass whose fields are frozen dataclasses. Raises `UserError` on an unknown section
    or key, a wrong type or a value out of bounds, naming the file or argument it came from.
    """
    schema_fields = _fields_by_key(schema)
    face, known, rest = _parse(schema, argv, description)

    merged: dict[str, tuple[Any, str]] = {}
    unknown: list[tuple[str, str]] = []
    sources = [(base or {}, "the checkpoint's configuration"), *((read_yaml(file), file) for file in known.config_file)]
    for content, origin in sources:
        for key, value in _flatten(content).items():
            if key in schema_fields:
                merged[key] = (value, origin)
            else:
                unknown.append((key, origin))
    for key, value in vars(known).items():
        if key in schema_fields and value is not None:
            merged[key] = (value, "the command line")
    unknown += [(word, "the command line") for word in _unknown_arguments(rest)]
    face.collect({key: value for key, (value, _) in merged.items() if value is not None})

    sections: dict[str, dict[str, Any]] = {}
    wrong = []
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
            wrong.append(f"{key} in {origin} {reason}, not {_shown(value)}")
    _refuse(unknown, wrong, schema_fields)
    return _build(schema, sections)


def told_options(schema: type, argv: Sequence[str]) -> set[str]:
    """The "section.key" of every option that a YAML file or the command line in `argv` sets."""
    schema_fields = _fields_by_key(schema)
    _, known, _ = _parse(schema, argv, "")
    in_files = {key for file in known.config_file for key in _flatten(read_yaml(file))}
    return {key for key in schema_fields if key in in_files or getattr(known, key) is not None}


def _parse(
    schema: type, argv: Sequence[str], description: str
) -> tuple[fastargs.Config, argparse.Namespace, list[str]]:
    """(fastargs' face, the words of `argv` as options, those that are none)."""
    parser = argparse.ArgumentParser(description=description, allow_abbrev=False)
    parser.usage = "%(prog)s [--config-file YAML] [--section.key=value …]"
    face = _fastargs_face(schema)
    _augment_help(face, parser, _fields_by_key(schema))
    known, rest = parser.parse_known_args(list(argv))
    return face, known, rest


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
    flat = _flatten(content)
    _refuse([(key, origin) for key in flat if key not in schema_fields], [], schema_fields)
    for key, value in flat.items():
        section, name = key.split(".")
        try:
            sections[section][name] = parse_value(schema_fields[key], value)
        except ValueError as error:
            raise UserError(f"{key} in {origin} {error}, not {_shown(value)}") from None
    return _build(schema, sections)


def parse_value(spec: dataclasses.Field[Any], value: Any) -> Any:
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


def _parse_scalar(kind: type, value: Any, metadata: Mapping[str, Any] | types.MappingProxyType[Any, Any]) -> Any:
    parsed: Any
    if isinstance(value, Plain):
        value = _unquoted(kind, value, metadata["choices"])
    try:
        if kind is bool:
            parsed = _BOOLEANS[str(value).lower()]
        elif kind is int:
            parsed = _number(value) if isinstance(value, str) else value
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
            parsed = expand_path(value) if metadata["path"] else value
    except (ValueError, TypeError, KeyError, OverflowError):
        raise ValueError(f"must be {_TYPE_NAMES[kind]}") from None
    choices, low, high = metadata["choices"], metadata["min"], metadata["max"]
    if choices is not None and parsed not in choices:
        raise ValueError(f"must be one of {', '.join(map(str, choices))}")
    if low is not None and parsed < low:
        raise ValueError(f"must be at least {low:g}")
    if high is not None and parsed > high:
        beyond = f" {metadata['beyond']}" if metadata["beyond"] else ""
        raise ValueError(f"must be at most {high:g}{beyond}")
    return parsed


def _number(text: str) -> int | float:
    """A whole number may be written 90.0 or 1e3."""
    try:
        return int(text)
    except ValueError:
        return float(text)


def _unquoted(kind: type, plain: Plain, choices: Sequence[Any] | None) -> str:
    """What a word without quotes means for an option of this kind: what it would on the command line.

    YAML, which knows no kinds, reads `off` as a boolean, 010 as 8 and 1:30 as 90. A text that has no choices to be
    recognised by is refused, for the next reader of the file would see something else.
    """
    if kind is not str or choices is not None:
        return plain.text
    named = {bool: "1 or 0", int: "a number", float: "a number"}.get(type(plain.value), "a date")
    raise ValueError(f"must be a text, and without quotes YAML reads {named} here: quote it ('{plain.text}')")


_BOOLEANS = {"1": True, "true": True, "yes": True, "on": True, "0": False, "false": False, "no": False, "off": False}
_TYPE_NAMES = {bool: "1 or 0", int: "a whole number", float: "a number", str: "a text"}


class FieldChecker(fastargs.validation.Checker):  # type: ignore[misc]
    """Lets fastargs check a value by our schema."""

    def __init__(self, spec: dataclasses.Field[Any]) -> None:
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


def _augment_help(face: fastargs.Config, parser: argparse.ArgumentParser, schema_fields: Mapping[str, Any]) -> None:
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument(
        "--config-file", "-C", action="append", default=[], type=expand_path, metavar="YAML", help="may be repeated"
    )
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


def _fields_by_key(schema: type) -> dict[str, dataclasses.Field[Any]]:
    return {
        f"{section.name}.{spec.name}": spec
        for section in dataclasses.fields(schema)
        for spec in dataclasses.fields(typing.cast(type, section.type))
    }


def _build(schema: type[T], sections: Mapping[str, Mapping[str, Any]]) -> T:
    fields = dataclasses.fields(schema)  # type: ignore[arg-type]
    return schema(**{f.name: typing.cast(type, f.type)(**sections.get(f.name, {})) for f in fields})


def _flatten(content: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in content.items():
        if isinstance(value, Mapping):
            flat.update(_flatten(value, f"{prefix}{name}."))
        else:
            flat[f"{prefix}{name}"] = value
    return flat


def _shown(value: Any) -> str:
    """A value in a message, as its author wrote it."""
    if isinstance(value, list):
        return f"[{', '.join(map(_shown, value))}]"
    return value.text if isinstance(value, Plain) else repr(value)


def _unknown_arguments(rest: Sequence[str]) -> list[str]:
    """The options among the words that argparse did not know, and words that are no option's values."""
    names: list[str] = []
    after_option = False
    for word in rest:
        is_option = word.startswith("-") and not word.lstrip("-")[:1].isdigit() and word.strip("-") != ""
        if is_option or not after_option:
            names.append(word.split("=")[0] if is_option else word)
        after_option = "=" not in word if is_option else after_option
    return names


def _refuse(unknown: Sequence[tuple[str, str]], wrong: Sequence[str], schema_fields: Mapping[str, Any]) -> None:
    """Raise one `UserError` that names every key that is `unknown`, with where it stands, and all that is `wrong`."""
    parts = []
    for origin in dict.fromkeys(origin for _, origin in unknown):
        keys = [key for key, where in unknown if where == origin]
        hinted = [f"{key!r}{_hint(key, schema_fields)}" for key in keys]
        parts.append(f"unknown {'key' if len(keys) == 1 else 'keys'} in {origin}: {', '.join(hinted)}")
    if any(meaning_here(key, schema_fields) for key, _ in unknown):
        parts.append("docs/migration.md compares other trainers' options with these")
    elif unknown:
        parts.append("--help lists all options")
    if unknown or wrong:
        raise UserError("; ".join([*parts, *wrong]))


def _hint(key: str, schema_fields: Mapping[str, Any]) -> str:
    """What an unknown `key` may have meant: another trainer's name, another section's or spelling's key, or nothing."""
    name = normalised(key)
    if name not in schema_fields and (meaning := meaning_here(key, schema_fields)):
        return f" (here {meaning})"
    exact = [known for known in schema_fields if known == name or known.split(".")[1] == name.split(".")[-1]]
    near = [name] if name in schema_fields else exact or _near(name, schema_fields)
    return f" (did you mean {' or '.join(map(repr, near))}?)" if near else ""


def _near(name: str, schema_fields: Mapping[str, Any]) -> list[str]:
    """The one key whose section and option are both spelt nearly like `name`'s; `name` may lack the section."""
    section, _, option = name.rpartition(".")

    def likeness(known: str) -> float:
        of_section, of_option = (
            difflib.SequenceMatcher(None, a, b).ratio()
            for a, b in zip((section or known.split(".")[0], option), known.split("."), strict=True)
        )
        return of_option if min(of_section, of_option) >= 0.75 else 0.0

    best = max(schema_fields, key=likeness, default="")
    return [best] if best and likeness(best) else []
