"""Kinds of fault with two hosts, which are network and process namespaces of this machine with a wire between them.

    python -m faults.hosts

does the same to a program of ten lines instead of the trainer: what PyTorch by itself makes of a lost host, where its
agents share their store with the ranks, as they do unless told, and where they do not.
"""

import contextlib
import os
import random
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from faults.kinds import Bench, Kind, Skipped, Trial
from faults.ranks import CARRIES_ON, RANKS, Launcher, launched, undisturbed
from faults.runs import PATIENCE, differs, lines, options

_UNSHARED = "TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1"
"""Without it a host that comes back never learns where ranks meet: rank 0's agent tells it in its first round only"""
_RENDEZVOUS_PORT = 29500
_MISSED_SECONDS = 15.0
"""So long without a word, and agents take another for dead"""


@dataclass(frozen=True)
class Host:
    """One of two, 1 or 2; torchrun gives the lower ranks to the host of the lower address."""

    number: int
    space: str

    @property
    def address(self) -> str:
        """On the wire."""
        return f"10.77.0.{self.number}"

    def torchrun(
        self,
        folder: Path,
        arguments: Sequence[str],
        store: "Host",
        *,
        shared: bool = False,
        supervised: bool = False,
        patience: int = 300,
        program: str = "train_imagenet.py",
    ) -> Launcher:
        """Start torchrun here, one rank of two; agents meet at `store`, and wait for it so many seconds.

        `supervised`: torchrun is started again until it ends well.
        """
        within = ["ip", "netns", "exec", self.space, "unshare", "--pid", "--fork", "--kill-child", "--mount-proc"]
        within += ["env", "GLOO_SOCKET_IFNAME=veth", *([] if shared else [_UNSHARED])]
        within += ["sh", "-c", 'until "$@"; do sleep 1; done', "sh"] if supervised else []
        flags = ["--nnodes=2", "--nproc_per_node=1", "--max-restarts=3", f"--local-addr={self.address}"]
        flags += ["--rdzv_backend=c10d", f"--rdzv_endpoint={store.address}:{_RENDEZVOUS_PORT}", "--rdzv_id=r"]
        # Torchrun would tell by the host's name, which both share, who keeps the store.
        flags += [f"--rdzv_conf=is_host={int(self == store)},read_timeout={patience}"]
        name = f"host{self.number}-{time.monotonic_ns()}"
        return Launcher(folder, name, flags, arguments, *within, program=program)

    def network(self, state: str) -> None:
        """Up or down."""
        subprocess.run(["ip", "-n", self.space, "link", "set", "veth", state], check=True)


def a_host_is_lost(with_the_store: bool) -> Trial:
    """One of two hosts loses its network and all its processes, and comes back: both go on to the end of the run.

    Where it kept the store of the agents (`with_the_store`), torchrun is started again on both, as a supervisor does.
    """

    def trial(bench: Bench, folder: Path, draw: random.Random) -> list[str]:
        epochs = draw.randint(1, 3)
        with two_hosts() as hosts:
            lost = draw.choice(hosts)
            (kept,) = set(hosts) - {lost}

            def start(host: Host) -> Launcher:
                arguments = options(bench.data, folder, *RANKS)
                store = lost if with_the_store else kept
                return host.torchrun(folder, arguments, store, supervised=with_the_store)

            one, other = start(kept), start(lost)
            with launched(one, other):
                one.wait(lambda: lines(folder) >= epochs)
                if not lines(folder):
                    return [f"did not start: {one.said()[-200:]} {other.said()[-200:]}"]
                away(lost, other, draw.choice((0, 2 * _MISSED_SECONDS)))
                back = start(lost)
                with launched(back):
                    ends = [(agent.wait(), agent) for agent in (one, back)]
                    wrong = [
                        f"{agent.log.stem}: status {status}: {agent.said()[-300:]}"
                        for status, agent in ends
                        if status != 0
                    ]
                    return wrong or differs(folder, undisturbed(bench))

    return trial


def away(host: Host, launcher: Launcher, seconds: float) -> None:
    """Take the host's network and processes away at once, and give the network back after so many seconds."""
    host.network("down")
    launcher.kill()
    time.sleep(seconds)
    host.network("up")


@contextlib.contextmanager
def two_hosts() -> Iterator[tuple[Host, Host]]:
    """Two hosts with a wire between them. Raises `Skipped` where this machine permits none."""
    hosts = Host(1, f"faults{os.getpid()}-1"), Host(2, f"faults{os.getpid()}-2")
    made = []
    try:
        for host in hosts:
            _try(["ip", "netns", "add", host.space], "network namespaces")
            made.append(host)
        first, second = (host.space for host in hosts)
        wire = ["ip", "-n", first, "link", "add", "veth", "type", "veth", "peer", "name", "veth", "netns", second]
        _try(wire, "virtual networks")
        _try(["unshare", "--pid", "--fork", "--kill-child", "--mount-proc", "true"], "process namespaces")
        for host in hosts:
            subprocess.run(["ip", "-n", host.space, "addr", "add", f"{host.address}/24", "dev", "veth"], check=True)
            host.network("up")
            subprocess.run(["ip", "-n", host.space, "link", "set", "lo", "up"], check=True)
        yield hosts
    finally:
        for host in made:
            subprocess.run(["ip", "netns", "del", host.space], check=False)


def _try(command: Sequence[str], what: str) -> None:
    try:
        run = subprocess.run(command, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        raise Skipped(f"this machine has no command {command[0]}") from None
    if run.returncode:
        raise Skipped(f"this machine permits no {what} ({run.stderr.strip()})")


_PLAIN = """
import pathlib, sys, time, torch, torch.distributed as dist

dist.init_process_group("gloo")
for step in range(200):
    dist.all_reduce(torch.ones(1))
    if dist.get_rank() == 0:
        pathlib.Path(sys.argv[1]).write_text(str(step))
    time.sleep(0.05)
dist.destroy_process_group()
"""


def plain(lost_number: int, shared: bool) -> str:
    """How `_PLAIN` ends on two hosts of which that one, without the agents' store, is lost after twenty steps."""
    with tempfile.TemporaryDirectory() as name, two_hosts() as hosts:
        folder = Path(name)
        program, step = folder / "plain.py", folder / "step"
        program.write_text(_PLAIN)
        lost, kept = hosts[lost_number - 1], hosts[2 - lost_number]

        def start(host: Host) -> Launcher:
            return host.torchrun(folder, [str(step)], kept, shared=shared, patience=60, program=str(program))

        one, other = start(kept), start(lost)
        with launched(one, other):
            one.wait(lambda: step.exists() and int(step.read_text() or 0) >= 20)
            away(lost, other, 0)
            back = start(lost)
            with launched(back):
                ends = one.wait(), back.wait(seconds=5)
        return ", ".join("still waits" if end is None else f"status {end}" for end in ends)


KINDS = [
    Kind("one of two hosts lost, and back", CARRIES_ON, 4, a_host_is_lost(with_the_store=False)),
    Kind("the host of the agents' store lost, and back", CARRIES_ON, 2, a_host_is_lost(with_the_store=True)),
]

if __name__ == "__main__":
    for sharing in (True, False):
        for number in (1, 2):
            found = plain(number, sharing)
            print(
                f"store {'shared' if sharing else 'not shared'}, host {number} lost: the other, it: {found}", flush=True
            )
    print(f"(still waits: after {PATIENCE:.0f} s)")
