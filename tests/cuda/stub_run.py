"""Runs a probe, a script of `probes/`, on the CUDA stub, once for all tests and processes that read its findings."""

import fcntl
import json
import os
import socket
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from tests.cuda import stub_build
from tests.support.photographs import ROOT

PROBES = Path(__file__).parent / "probes"
CACHE = ROOT / ".pytest_cache" / "cuda_stub"


def findings(
    factory: pytest.TempPathFactory, probe: str, arguments: Mapping[str, Any] | None = None, ranks: int = 1
) -> Any:
    """What `probes/{probe}.py` found: the JSON that it wrote; with several ranks, a list of it.

    `arguments` reach it as JSON. Where the stub cannot be had the calling test is skipped, with the reason.
    """
    reason = stub_build.unavailable()
    if reason:
        pytest.skip(reason)
    shared = factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        shared = shared.parent  # of all test processes of this run
    folder = shared / f"cuda_{probe}"
    folder.mkdir(exist_ok=True)
    with (shared / f"cuda_{probe}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        outputs = [folder / f"{rank}.json" for rank in range(ranks)]
        if not all(output.exists() for output in outputs):
            if (folder / "failed").exists():
                pytest.fail((folder / "failed").read_text())
            _run(probe, json.dumps(dict(arguments or {})), folder, outputs)
    found = [json.loads(output.read_text()) for output in outputs]
    return found[0] if ranks == 1 else found


def _run(probe: str, arguments: str, folder: Path, outputs: list[Path]) -> None:
    environment = _environment(len(outputs))
    commands = [
        [sys.executable, str(PROBES / f"{probe}.py"), arguments, str(output), str(folder)] for output in outputs
    ]
    logs = [output.with_suffix(".txt") for output in outputs]
    processes = []
    for rank, (command, log) in enumerate(zip(commands, logs, strict=True)):
        variables = environment | ({"RANK": str(rank), "LOCAL_RANK": str(rank)} if len(outputs) > 1 else {})
        with log.open("wb") as file:
            processes.append(subprocess.Popen(command, env=variables, stdout=file, stderr=subprocess.STDOUT))
    try:
        statuses = [process.wait(timeout=240) for process in processes]
    finally:
        for process in processes:
            process.kill()
            process.wait()
    if any(statuses):
        tails = "\n".join(log.read_text(errors="replace")[-4000:] for log in logs)
        (folder / "failed").write_text(f"{probe} ended with {statuses}:\n{tails}")
        pytest.fail((folder / "failed").read_text())


def _environment(ranks: int) -> dict[str, str]:
    stub = stub_build.build(CACHE)
    ours = {
        key: value for key, value in os.environ.items() if key not in ("RANK", "WORLD_SIZE", "CUDA_VISIBLE_DEVICES")
    }
    if ranks > 1:
        ours |= {"WORLD_SIZE": str(ranks), "LOCAL_WORLD_SIZE": str(ranks), "MASTER_ADDR": "127.0.0.1"}
        ours |= {"MASTER_PORT": str(_free_port()), "CUDA_STUB_DEVICES": str(ranks)}
    return ours | {
        "LD_PRELOAD": stub_build.preloaded(stub),
        "LD_LIBRARY_PATH": str(stub),
        "PYTHONPATH": str(ROOT),
        "OMP_NUM_THREADS": "1",
        # What is compiled here is no use to anybody else.
        "USE_PYTORCH_KERNEL_CACHE": "0",
        "TORCHINDUCTOR_CACHE_DIR": str(CACHE / "inductor"),
        "TRITON_CACHE_DIR": str(CACHE / "triton"),
    }


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
