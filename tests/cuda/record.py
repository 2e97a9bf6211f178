"""Records what a step of every recipe costs, for test_cuda_recipes.py and docs/gpu.md to compare with.

python tests/cuda/record.py, where a change of launches or memory is meant.
"""

import json
import sys
import tempfile
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
RECORD = HERE / "recorded.json"
PAGE = HERE.parents[1] / "docs" / "gpu.md"
CARDS = (11, 16, 24, 40, 80)
RESERVE_GIB = 2.0
"""What the allocator's peak leaves out: CUDA's context, workspaces of cuDNN and cuBLAS, NCCL's buffers, fragments"""
BATCH_STEP = 32


def largest_batch(size: dict[str, float], card_gib: float) -> int:
    """The largest multiple of `BATCH_STEP` images whose step fits a card of so many GiB, by the record's figures."""
    images = (card_gib - RESERVE_GIB - size["fixed_gib"]) / size["gib_per_image"]
    return int(images / BATCH_STEP) * BATCH_STEP


def tables(recorded: dict[str, Any]) -> str:
    """The tables of docs/gpu.md, in Markdown."""
    lines = ["| network | GiB, and per 100 images | " + " | ".join(f"{card} GB" for card in CARDS) + " |"]
    lines.append("| --- | ---: |" + " ---: |" * len(CARDS))
    for name, size in recorded["sizes"].items():
        batches = " | ".join(str(largest_batch(size, card)) for card in CARDS)
        lines.append(f"| {name} | {size['fixed_gib']:.2f} + {100 * size['gib_per_image']:.2f} | {batches} |")
    lines += ["", "| recipe | batch | side | launches per step | peak, GiB |", "| --- | ---: | ---: | ---: | ---: |"]
    for name, step in recorded["recipes"].items():
        lines.append(f"| {name} | {step['batch']} | {step['side']} | {step['launches']} | {step['peak_gib']:.2f} |")
    parts = list(dict.fromkeys(part for found in recorded["parts"].values() for part in found))
    lines += ["", f"| launches, host ms | {' | '.join(parts)} | all |", f"| --- |{' ---: |' * (len(parts) + 1)}"]
    for name, found in recorded["parts"].items():
        cells = [f"{p['launches']}, {p['host_ms']:.1f}" if p else "" for p in (found.get(part) for part in parts)]
        every = [sum(part[what] for part in found.values()) for what in ("launches", "host_ms")]
        lines.append(f"| {name} | {' | '.join(cells)} | {every[0]}, {every[1]:.1f} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Measure, and write the record and the page."""
    sys.path.insert(0, str(HERE.parents[1]))
    import pytest

    from tests.cuda.stub_run import ROOT, findings
    from tests.support.photographs import Samples, crops_of_photographs, write_stock_beton

    with tempfile.TemporaryDirectory() as folder:
        beton = write_stock_beton(Path(folder) / "photos.beton", Samples(crops_of_photographs(9, 40, 60), [0] * 9))

        class Factory:
            def getbasetemp(self) -> Path:
                return Path(folder)

        factory: Any = Factory()
        try:
            found = findings(factory, "recipes", {"beton": str(beton), "root": str(ROOT), "sizes": True})
        except pytest.skip.Exception as reason:
            sys.exit(str(reason))
    kept = ("batch", "side", "launches", "peak_gib")
    recipes = {name: {key: step[key] for key in kept} for name, step in found["recipes"].items() if "as" not in step}
    recorded = {"recipes": recipes, "sizes": found["sizes"], "parts": found["parts"]}
    page = PAGE.read_text()
    before = tables(json.loads(RECORD.read_text())).split("\n\n")
    for old, new in zip(before, tables(recorded).split("\n\n"), strict=True):
        page = page.replace(old, new)
    PAGE.write_text(page)
    RECORD.write_text(json.dumps(recorded, indent=1) + "\n")
    print(tables(recorded))


if __name__ == "__main__":
    main()
