"""Where the ranks of an attempt meet: torchrun's agent keeps one store for all, with what dead ranks left in it.

The agents' own count of restarts tells attempts apart on one host only: on others an agent restarts its ranks because
one elsewhere died, which it does not count.
"""

import os
import time
import uuid
from datetime import timedelta

import torch.distributed as dist

from ffcv_train.system.errors import UserError

_POLL_SECONDS = 0.05
_MEETING_SECONDS = 600.0
"""How much later than the first the last rank may come, from a slow disk"""


def meet() -> tuple[dist.Store, int, int]:
    """The store that this attempt's ranks share with no earlier ones, this rank, and how many there are.

    Torchrun's environment variables describe them. Raises `RuntimeError`, `ValueError` and `UserError`.
    """
    store, rank, world_size = next(dist.rendezvous("env://"))
    if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == str(True):
        store = dist.PrefixStore(agree_on_attempt(store, rank, world_size), store)
    return store, rank, world_size


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


def _first_line(error: Exception) -> str:
    return str(error).splitlines()[0].rstrip(". ")
