"""Whether all of this works on a GPU, and how fast; docs/gpu.md describes the rows.

python -m ffcv_train gpu-check
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from ffcv_train.cli.doctor import check_json, positive_number
from ffcv_train.doctor.gpu.check import MINUTES, check, names
from ffcv_train.doctor.gpu.table import print_findings
from ffcv_train.system.errors import UserError
from ffcv_train.system.files import expand_path, write_json

DESCRIPTION = """Prove on synthetic images that loading, training and evaluation work on this GPU, and how fast.

python -m ffcv_train gpu-check --json gpu.json
torchrun --nproc_per_node=8 -m ffcv_train gpu-check        each of 8 GPUs, and all together

Exit status 1 where a row fails; what no time was left for is said. Started in the repository, it tries the recipes of
its folders as well.
"""


def main(argv: Sequence[str]) -> None:
    """Check, print, write; exit with status 1 where a row fails."""
    parser = argparse.ArgumentParser(
        prog="gpu-check",
        description=DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--json", metavar="FILE", type=expand_path, help="also write the findings to this file")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda", help="what is checked [cuda]")
    parser.add_argument("--rows", metavar="NAME,…", help=f"these rows only, of: {', '.join(names())}")
    parser.add_argument(
        "--minutes", metavar="N", default=f"{MINUTES:g}", help=f"begin no row after so many minutes [{MINUTES:g}]"
    )
    options = parser.parse_args(list(argv))
    wanted, minutes = _rows(options.rows), positive_number("--minutes", options.minutes)
    if options.device == "cuda" and not torch.cuda.is_available():
        raise UserError("PyTorch sees no GPU; check nvidia-smi, or try the rows that need none with --device=cpu")
    if options.json:
        check_json(Path(options.json))

    def keep(findings: dict[str, Any]) -> None:
        if options.json:
            write_json(options.json, findings)

    findings = check(options.device, wanted, lambda row: print(f"… {row}", file=sys.stderr, flush=True), minutes, keep)
    if findings is None:
        return
    print_findings(findings)
    keep(findings)
    if options.json:
        print(f"findings: {options.json}")
    if not findings["holds"]:
        sys.exit(1)


def _rows(text: str | None) -> list[str]:
    if text is None:
        return names()
    wanted = [name.strip() for name in text.split(",")]
    for name in wanted:
        if name not in names():
            raise UserError(f"--rows names {name!r}, and there are: {', '.join(names())}")
    return wanted
