"""The faults: a small share of them, and their table."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from faults.run import KINDS, show
from tests.support.photographs import ROOT


def test_a_share_of_the_faults_holds(tmp_path: Path) -> None:
    """In a fresh process: its runs are forked, which PyTorch forbids where a backward pass has begun threads."""
    command = [sys.executable, "-m", "pytest", "-n0", "-p", "no:cacheprovider", f"--basetemp={tmp_path / 'runs'}"]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    done = subprocess.run(
        [*command, str(Path(__file__).with_name("share.py"))],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=280,
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_table_counts(capsys: pytest.CaptureFixture[str]) -> None:
    assert show({KINDS[0]: [[], ["lost"], []], KINDS[1]: [[]]}) == 1
    rows = [line for line in capsys.readouterr().out.splitlines() if "at a random moment" in line]
    assert [re.findall(r"\b\d+\b", row) for row in rows] == [["3", "2"], ["1", "1"]]


def test_the_page_has_every_kind() -> None:
    page = (ROOT / "docs/reliability.md").read_text()
    assert [kind.name for kind in KINDS if f"| {kind.name} |" not in page] == []
