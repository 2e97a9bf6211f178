"""What the benchmarks' command lines have in common."""

import argparse

from ffcv_train.system.errors import UserError


def parser_of(description: str | None) -> argparse.ArgumentParser:
    """A parser without options yet that shows `description` line by line."""
    return argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )


def check_least(options: argparse.Namespace, **least: int) -> None:
    """Raise `UserError` where an option is below the number that is given for it."""
    for name, number in least.items():
        if getattr(options, name) < number:
            raise UserError(f"--{name.replace('_', '-')} must be at least {number}, not {getattr(options, name)}")


def check_folders(options: argparse.Namespace) -> None:
    """Raise `UserError` where `scratch`, or the folder of the file `json`, is given and is no folder."""
    for name, folder in (
        ("scratch", getattr(options, "scratch", None)),
        ("json", options.json and options.json.parent),
    ):
        if folder is not None and not folder.is_dir():
            raise UserError(f"--{name}: {folder} is no folder; make it first")
