"""Where the ranks of an attempt meet: torchrun's agent keeps one store for all, with what dead ranks left in it.

The agents' own count of restarts tells attempts apart on one host only: on others an agent restarts its ranks because
one elsewhere died, which it does not count.
"""

import contextlib
import os
import sys
import threading
import time
import uuid
from collections.abc import Iterator
from datetime import timedelta

import torch.distributed as dist

from ffcv_train.system.errors import UserError

_POLL_SECONDS = 0.05
_MEETING_SECONDS = 600.0
"""How much later than the first the last rank may come, from a slow disk"""
_SAY_SECONDS = 60.0
_UNSHARED = "TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1"


def meet() -> tuple[dist.Store, int, int]:
    """The store that this attempt's ranks share with no earlier ones, this rank, and how many there are.

    Torchrun's environment variables describe them. Raises `RuntimeError`, `ValueError` and `UserError`.
    """
    store, rank, world_size = next(dist.rendezvous("env://"))
    if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == str(True):
        if rank == 0 and hosts_cannot_come_back():
            _note(
                "a host that is lost can come back to this run only where torchrun is started on every host with "
                f"--rdzv_backend=c10d and {_UNSHARED} in its environment"
            )
        store = dist.PrefixStore(agree_on_attempt(store, rank, world_size), store)
    return store, rank, world_size


def hosts_cannot_come_back() -> bool:
    """Whether torchrun, told to start ranks again, shares its agents' store with them on several hosts.

    PyTorch's agent of rank 0 then says where the ranks meet in its first round alone: one that joins later waits for
    that in vain (torch 2.14, `DynamicRendezvousHandler.next_rendezvous`), and takes the others along.
    """
    shared = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == str(True)
    restarts, hosts = (os.environ.get(name, "0") for name in ("TORCHELASTIC_MAX_RESTARTS", "GROUP_WORLD_SIZE"))
    return shared and restarts != "0" and hosts not in ("0", "1")


@contextlib.contextmanager
def absent_ranks_are_said() -> Iterator[None]:
    """A context in which the ranks meet: after a minute, two, four, … it is said that this one waits, and where."""
    rank, world_size = (os.environ.get(name) for name in ("RANK", "WORLD_SIZE"))
    address = f"{os.environ.get('MASTER_ADDR')}:{os.environ.get('MASTER_PORT')}"
    since, over = time.strftime("%H:%M:%S"), threading.Event()

    def say() -> None:
        seconds = _SAY_SECONDS
        while not over.wait(seconds):
            _note(
                f"rank {rank} has waited since {since} for other ranks to come to {address}; are all {world_size} "
                "started, and may their hosts reach that port?"
            )
            seconds *= 2

    threading.Thread(target=say, name="absent ranks", daemon=True).start()
    try:
        yield
    finally:
        over.set()


def agree_on_attempt(store: dist.Store, rank: int, world_size: int, seconds: float = _MEETING_SECONDS) -> str:
    """A name that the ranks who call this now agree on, whatever dead ones have left in `store`.

    Rank 0 makes it. Another rank leaves a word of its own under its number, and takes the answer to that word alone;
    rank 0 answers what it finds there, a dead rank's word as well, until this attempt's ranks have thanked for it.
    Raises `UserError` where one does not come within `seconds`.
    """
    place = "ffcv_train/attempt"
    if rank:
        word = uuid.uuid4().hex
        answer = f"{place}/answer/{rank}/{word}"
        store.set(f"{place}/word/{rank}", word)
        try:
            store.wait([answer], timedelta(seconds=seconds))
        except dist.DistStoreError as error:
            raise UserError(f"rank {rank} met no rank 0 within {seconds:.0f} s ({_first_line(error)})") from None
        attempt = store.get(answer).decode()
        store.set(f"{place}/thanks/{attempt}/{rank}", "")
        return attempt
    attempt = uuid.uuid4().hex
    missing = set(range(1, world_size))
    deadline = time.monotonic() + seconds
    while missing:
        for other in sorted(missing):
            if store.check([f"{place}/word/{other}"]):
                word = store.get(f"{place}/word/{other}").decode()
                store.set(f"{place}/answer/{other}/{word}", attempt)
            if store.check([f"{place}/thanks/{attempt}/{other}"]):
                missing.discard(other)
        if missing and time.monotonic() > deadline:
            raise UserError(f"of {world_size} ranks {sorted(missing)} did not come within {seconds:.0f} s")
        time.sleep(_POLL_SECONDS)
    return attempt


def _note(sentence: str) -> None:
    with contextlib.suppress(OSError, ValueError):
        print(f"note: {sentence}", file=sys.stderr, flush=True)


def _first_line(error: Exception) -> str:
    return str(error).splitlines()[0].rstrip(". ")
