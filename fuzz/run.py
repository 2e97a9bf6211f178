"""Damaged JPEGs and damaged .beton files through the loader's code: each must end in an image or in a clear error.

    python -m fuzz.run --jpegs 100000 --betons 10000 --seed 0 --json fuzz.json

JPEGs: parts of photographs, stored with and without restart markers, with every chroma sampling and grey, sequential
and progressive; then bits, bytes, lengths, dimensions, markers, tables and tiles are altered, removed, repeated,
exchanged. They go through `decode_samples`, the loader's inner loop. What it reads ends at a page that cannot be read,
what it writes at one that cannot be written, in scratch of the size that the loader would make for this image. Betons:
header, field descriptions, sample and allocation table, pixels and sidecar altered; then `open_beton`, `check_labels`,
`decode_samples` for each sample, and for a part of them `Loader` and `verify`.

Bad, and exit status 1, are: a crash; a hang; a read or write outside of what belongs to the sample; an exception other
than UserError; a wrong image. No image is wrong in this sense:

- Where TurboJPEG decodes the whole JPEG without complaint, the loader's image is exactly that of the whole, cropped and
  resized; OpenCV's decoder, asked for a part of the sequential ones, sees the same pixels.
- Where TurboJPEG complains of the whole, the damage lies outside of the tiles that the crop reads: with all other tiles
  replaced by sound ones it no longer complains, and the image is exactly that one's. Or each of the tiles read decodes
  by itself, and what is left to complain of are surplus bytes behind its last block, of which a decoder notices few.
- A sample of a beton shows the image that was stored for it, or the one that its damaged bytes decode to. With a
  sidecar of write_dataset.py, which holds a checksum of the tables, labels and dimensions are those that were stored.

Damage that leaves a sound JPEG of the same size, such as a bit of a coefficient or a lost scan of a progressive file,
or that strikes raw pixels, gives the image of the damaged bytes, as in any reader. `write_dataset.py --verify` finds it
by the checksums in the sidecar.

A case is a function of the seed and its number: `--jpegs 1 --betons 0 --first 4711` repeats one. Inputs of bad cases
are kept in --save.
"""

import argparse
import json
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

from ffcv_train.cli.main import run_main
from ffcv_train.data.format.beton import open_beton, sidecar_path
from ffcv_train.system.environment import describe_environment
from ffcv_train.system.errors import UserError
from ffcv_train.system.progress import ProgressLine
from fuzz import beton_mutations, jpegs
from fuzz.betons import BetonFuzzer
from fuzz.supervisor import Fuzzer, Report, supervise

_MAX_GIVEN_BYTES = 1 << 25
_BAD = {"crash": "crashes", "hang": "hangs", "exception": "exceptions", "wrong": "wrong images"}


def main() -> None:
    """Parse, fuzz, print, write."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--jpegs", type=int, default=100_000, help="cases of JPEGs (100000)")
    parser.add_argument("--betons", type=int, default=10_000, help="cases of .beton files (10000)")
    parser.add_argument("--seed", type=int, default=0, help="seed of all cases (0)")
    parser.add_argument("--first", type=int, default=0, help="number of the first case (0)")
    parser.add_argument(
        "--beton", type=Path, action="append", default=[], metavar="F", help="also damage this small .beton file"
    )
    parser.add_argument("--cpu-seconds", type=float, default=10.0, help="computing per case before it is a hang (10)")
    parser.add_argument("--wall-seconds", type=float, default=120.0, help="time per case before it is a hang (120)")
    parser.add_argument(
        "--save", type=Path, default=Path("fuzz_findings"), help="folder for bad inputs (fuzz_findings)"
    )
    parser.add_argument("--json", type=Path, help="file for the counts and findings")
    arguments = parser.parse_args()
    if min(arguments.jpegs, arguments.betons, arguments.first, arguments.seed) < 0:
        raise UserError("--jpegs, --betons, --first and --seed must not be negative")
    if arguments.json is not None and not arguments.json.resolve().parent.is_dir():
        raise UserError(f"--json: the folder of {arguments.json} does not exist; create it first")

    limits: dict[str, Any] = {
        "cpu_seconds": arguments.cpu_seconds,
        "wall_seconds": arguments.wall_seconds,
        "save": arguments.save,
    }
    reports: dict[str, Report] = {}
    progress = ProgressLine(plain_interval=10.0)
    with tempfile.TemporaryDirectory(prefix="fuzz-") as name:
        folder = Path(name)
        if arguments.jpegs:
            jpegs.write_seeds(folder)
        if arguments.betons:
            beton_mutations.write_seeds(folder)
            for number, file in enumerate(arguments.beton):
                link_beton(file, folder / f"given{number}.beton")
        makers: dict[str, tuple[Callable[[], Fuzzer], int]] = {
            "jpegs": (partial(jpegs.JpegFuzzer, arguments.seed, folder), arguments.jpegs),
            "betons": (partial(BetonFuzzer, arguments.seed, folder), arguments.betons),
        }
        try:
            for kind, (make, count) in makers.items():
                if count:
                    show = partial(_show, progress, kind, count)
                    reports[kind] = supervise(make, arguments.first, count, progress=show, **limits)
        finally:
            progress.close()
    print(table(reports))
    for kind, report in reports.items():
        for finding in report.findings:
            print(f"{kind} case {finding.case}: {finding.kind}: {finding.what}\n  input: {finding.file}")
    if arguments.json is not None:
        found = {
            "rows": [row(kind, report) for kind, report in reports.items()],
            "findings": [{"input": k, **asdict(f)} for k, report in reports.items() for f in report.findings],
            "settings": {"seed": arguments.seed, "first": arguments.first},
            "environment": describe_environment(),
        }
        arguments.json.write_text(json.dumps(found, indent=1) + "\n")
    if any(report.findings for report in reports.values()):
        sys.exit(1)


def link_beton(file: Path, link: Path) -> None:
    """A link to a .beton file and one to its sidecar, if it has one."""
    size = open_beton(file).file_size
    if size > _MAX_GIVEN_BYTES:
        raise UserError(f"{file} has {size >> 20} MiB, but every case copies it; give one of at most 32 MiB")
    link.symlink_to(file.resolve())
    if sidecar_path(file).exists():
        sidecar_path(link).symlink_to(sidecar_path(file).resolve())


def _show(progress: ProgressLine, kind: str, total: int, report: Report) -> None:
    progress.show(kind, report.cases, total, f"{len(report.findings)} bad")


def row(kind: str, report: Report) -> dict[str, Any]:
    """A report's counts as JSON can say them."""
    findings = [finding.kind for finding in report.findings]
    errors = {name: n for name, n in report.results.most_common() if name not in ("image", "exception", "wrong")}
    by_mutation: dict[str, dict[str, int]] = {}
    for (mutation, result), count in sorted(report.mutations.items()):
        by_mutation.setdefault(mutation, {})[result] = count
    return {
        "input": kind,
        "cases": report.cases,
        "images": report.results["image"],
        "errors": errors,
        **{plural: findings.count(bad) for bad, plural in _BAD.items()},
        "seconds": round(report.seconds, 2),
        "slowest_ms": round(report.slowest[0], 1),
        "slowest_case": report.slowest[1],
        "by_mutation": by_mutation,
    }


def table(reports: dict[str, Report]) -> str:
    """The counts as text."""
    lines: list[Sequence[str]] = []
    for kind, report in reports.items():
        counts = row(kind, report)
        rate = report.cases / max(report.seconds, 1e-9)
        lines.append((kind, f"{report.cases}", f"{report.seconds:.0f} s, {rate:.0f} per s"))
        lines.append(("", f"{counts['images']}", "images"))
        lines += [("", f"{count}", name) for name, count in counts["errors"].items()]
        lines += [("", f"{counts[name]}", name) for name in _BAD.values()]
        lines.append(
            ("", f"{counts['slowest_ms']:.0f}", f"ms of computing for the slowest, case {counts['slowest_case']}")
        )
    return "\n".join(f"{name:<8}{count:>8}  {what}" for name, count, what in lines)


if __name__ == "__main__":
    run_main(main)
