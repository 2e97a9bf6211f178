"""Kinds of fault that need several ranks, on one host or on two that are network namespaces of this machine."""

import contextlib
import os
import random
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import psutil

from faults.kinds import Bench, Kind, Skipped
from faults.runs import PATIENCE, lines, options, unreadable

ROOT = Path(__file__).resolve().parent.parent
_RANKS = ("--training.batch_size=8", "--training.epochs=6")


class Launcher:
    """Torchrun at work, with its output in a file."""

    def __init__(self, folder: Path, name: str, flags: Sequence[str], arguments: Sequence[str], *within: str) -> None:
        self.log = folder / f"{name}.txt"
        command = [sys.executable, "-m", "torch.distributed.run", "--monitor-interval=0.2", *flags]
        with self.log.open("wb") as file:
            self.process = subprocess.Popen(
                [*within, *command, "train_imagenet.py", *arguments],
                cwd=ROOT,
                env=os.environ | {"OMP_NUM_THREADS": "1"},
                stdout=file,
                stderr=file,
                start_new_session=True,
            )

    def ranks(self) -> list[psutil.Process]:
        """The processes that train."""
        with contextlib.suppress(psutil.NoSuchProcess):
            children = psutil.Process(self.process.pid).children(recursive=True)
            return [child for child in children if _trains(child)]
        return []

    def wait(self, until: Callable[[], bool] = lambda: False, seconds: float = PATIENCE) -> int | None:
        """The exit status, or None where `until()` came true before it, or so many seconds are over."""
        deadline = time.monotonic() + seconds
        while self.process.poll() is None and not until() and time.monotonic() < deadline:
            time.sleep(0.05)
        return self.process.poll()

    def kill(self) -> None:
        """Kill it with all that it started."""
        ranks = self.ranks()
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        for rank in ranks:
            with contextlib.suppress(psutil.NoSuchProcess):
                rank.kill()
        self.process.wait()

    def said(self) -> str:
        """Its output."""
        return self.log.read_text(errors="replace")


def _trains(process: psutil.Process) -> bool:
    with contextlib.suppress(psutil.Error):
        words = process.cmdline()
        return any(word.endswith("train_imagenet.py") for word in words) and "torch.distributed.run" not in words
    return False


def _port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextlib.contextmanager
def _launched(*launchers: Launcher) -> Iterator[None]:
    try:
        yield
    finally:
        for launcher in launchers:
            launcher.kill()


def a_rank_is_killed(bench: Bench, folder: Path, draw: random.Random) -> list[str]:
    """One of two ranks gets SIGKILL: the other ends with a sentence, before torchrun would kill it."""
    endless = ("--training.epochs=4000", "--validation.every=4000")
    flags = ["--nproc_per_node=2", f"--master_port={_port()}"]
    launcher = Launcher(folder, "torchrun", flags, options(bench.data, folder, *_RANKS, *endless))
    with _launched(launcher):
        launcher.wait(lambda: lines(folder) >= 1)
        ranks = launcher.ranks()
        if len(ranks) != 2:
            return [f"{len(ranks)} ranks started: {launcher.said()[-300:]}"]
        draw.choice(ranks).kill()
        if launcher.wait() is None:
            return ["hangs"]
        left = psutil.wait_procs(ranks, timeout=30)[1]
        said = [] if "has lost rank" in launcher.said() or "in vain for rank" in launcher.said() else ["no sentence"]
        return said + [f"{len(left)} ranks are left"] * bool(left) + unreadable(folder)


def restarts(bench: Bench, folder: Path, draw: random.Random) -> list[str]:
    """With --max-restarts the ranks start again and finish the run."""
    flags = ["--nproc_per_node=2", f"--master_port={_port()}", "--max-restarts=2"]
    launcher = Launcher(folder, "torchrun", flags, options(bench.data, folder, *_RANKS))
    with _launched(launcher):
        launcher.wait(lambda: lines(folder) >= 1)
        ranks = launcher.ranks()
        if len(ranks) != 2:
            return [f"{len(ranks)} ranks started: {launcher.said()[-300:]}"]
        draw.choice(ranks).kill()
        status = launcher.wait()
        return ([] if status == 0 else [f"status {status}: {launcher.said()[-300:]}"]) + unreadable(folder)


def the_agent_is_killed(bench: Bench, folder: Path, draw: random.Random) -> list[str]:
    """Torchrun itself gets SIGKILL: its ranks stop and free the run."""
    endless = ("--training.epochs=4000", "--validation.every=4000")
    flags = ["--nproc_per_node=2", f"--master_port={_port()}"]
    launcher = Launcher(folder, "torchrun", flags, options(bench.data, folder, *_RANKS, *endless))
    with _launched(launcher):
        launcher.wait(lambda: lines(folder) >= 1)
        ranks = launcher.ranks()
        if len(ranks) != 2:
            return [f"{len(ranks)} ranks started: {launcher.said()[-300:]}"]
        launcher.process.kill()
        left = psutil.wait_procs(ranks, timeout=PATIENCE)[1]
        for rank in left:
            rank.kill()
        return [f"{len(left)} ranks are left"] * bool(left) + unreadable(folder)


def a_host_is_lost(bench: Bench, folder: Path, draw: random.Random) -> list[str]:
    """Of two hosts one loses its network and its processes, and comes back: both go on to the end of the run."""
    with _two_hosts() as (first, second):
        where = ["--rdzv_backend=c10d", "--rdzv_endpoint=10.77.0.1:29500", "--rdzv_id=r"]
        flags = ["--nnodes=2", "--nproc_per_node=1", *where, "--max-restarts=3"]
        arguments = options(bench.data, folder, *_RANKS)

        def host(name: str, space: str, number: int) -> Launcher:
            within = ["ip", "netns", "exec", space, "env", "GLOO_SOCKET_IFNAME=veth"]
            # Torchrun would tell by the host's name, which both share, who keeps the store.
            own = [f"--rdzv_conf=is_host={int(number == 1)}", f"--local-addr=10.77.0.{number}"]
            return Launcher(folder, name, [*flags, *own], arguments, *within)

        one, other = host("one", first, 1), host("other", second, 2)
        with _launched(one, other):
            one.wait(lambda: lines(folder) >= 1)
            if lines(folder) < 1:
                return [f"did not start: {one.said()[-200:]} {other.said()[-200:]}"]
            subprocess.run(["ip", "-n", second, "link", "set", "veth", "down"], check=True)
            other.kill()
            subprocess.run(["ip", "-n", second, "link", "set", "veth", "up"], check=True)
            back = host("back", second, 2)
            with _launched(back):
                status = one.wait()
                wrong = [] if status == 0 else [f"status {status}: {one.said()[-300:]}"]
                return wrong + unreadable(folder)


@contextlib.contextmanager
def _two_hosts() -> Iterator[tuple[str, str]]:
    """Two network namespaces with a wire between them. Raises `Skipped` where this machine permits none."""
    names = [f"faults{os.getpid()}-{host}" for host in (1, 2)]
    made = []
    try:
        for name in names:
            run = subprocess.run(["ip", "netns", "add", name], capture_output=True, text=True, check=False)
            if run.returncode:
                raise Skipped(f"this machine permits no network namespaces ({run.stderr.strip()})")
            made.append(name)
        wire = ["ip", "-n", names[0], "link", "add", "veth", "type", "veth", "peer", "name", "veth", "netns", names[1]]
        run = subprocess.run(wire, capture_output=True, text=True, check=False)
        if run.returncode:
            raise Skipped(f"this machine permits no virtual networks ({run.stderr.strip()})")
        for number, name in enumerate(names, start=1):
            for command in (["addr", "add", f"10.77.0.{number}/24", "dev", "veth"], ["link", "set", "veth", "up"]):
                subprocess.run(["ip", "-n", name, *command], check=True)
            subprocess.run(["ip", "-n", name, "link", "set", "lo", "up"], check=True)
        yield names[0], names[1]
    except FileNotFoundError:
        raise Skipped("this machine has no ip command (iproute2)") from None
    finally:
        for name in made:
            subprocess.run(["ip", "netns", "del", name], check=False)


_CARRIES_ON = "torchrun --max-restarts carries on"

KINDS = [
    Kind("rank killed", "a rank that waits for another ends with a sentence", 1, a_rank_is_killed),
    Kind("rank killed, torchrun restarts", _CARRIES_ON, 1, restarts),
    Kind("torchrun killed", "ranks end with their torchrun", 1, the_agent_is_killed),
    Kind("one of two hosts lost, and back", _CARRIES_ON, 1, a_host_is_lost),
]
