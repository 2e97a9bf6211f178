"""Batches on their way to a GPU: copied on a stream of their own, while the step works on the batch before."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor


class Transfer:
    """Copies of pinned tensors to `device`, a GPU, that the host does not wait for.

    `send` starts them, `receive` hands them to the stream that is current: it waits for these copies, not for those
    that were sent later.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stream = torch.cuda.Stream(device)

    def send(self, sources: Sequence[Tensor]) -> tuple[list[Tensor], torch.cuda.Event]:
        """The copies of `sources`, to be had by `receive`, and when they are done: then `sources` may be written."""

        def copy() -> list[Tensor]:
            copies = [torch.empty_like(source, device=self._device, pin_memory=False) for source in sources]
            for target, source in zip(copies, sources, strict=True):
                target.copy_(source, non_blocking=True)
            return copies

        return self.make(copy)

    def make(self, action: Callable[[], list[Tensor]]) -> tuple[list[Tensor], torch.cuda.Event]:
        """What `action` makes on the device, to be had by `receive`, and when that is done; for any thread."""
        with torch.cuda.device(self._device), torch.cuda.stream(self._stream):
            made = action()
            done = torch.cuda.Event()
            done.record(self._stream)
        return made, done

    def receive(self, copies: Sequence[Tensor], copied: torch.cuda.Event) -> None:
        """Let the current stream use `copies`, or views of them."""
        current = torch.cuda.current_stream(self._device)
        current.wait_event(copied)
        for copy in copies:
            # Allocated on the copies' stream: its memory may be reused only after the current one has read it.
            copy.record_stream(current)
