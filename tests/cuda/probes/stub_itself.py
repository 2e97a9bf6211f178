"""What the stub lets through and what it finds, with plain PyTorch."""

import card
import torch

SIZE = 1 << 16


def copied_back(order: str) -> bool:
    """Whether what goes to the device comes back, by way of a second stream."""
    card.set_order(order)
    values = torch.arange(SIZE).pin_memory()
    side = torch.cuda.Stream()
    with torch.cuda.stream(side):
        there = values.to("cuda", non_blocking=True)
        event = torch.cuda.Event()
        event.record()
    torch.cuda.current_stream().wait_event(event)
    return torch.equal(there.clone().cpu(), values)


def unordered(order: str) -> bool:
    """Whether a stream that does not wait for another one's copy still sees it."""
    card.set_order(order)
    values = torch.arange(1, SIZE + 1).pin_memory()
    there = torch.zeros(SIZE, dtype=torch.int64).to("cuda")
    side = torch.cuda.Stream()
    with torch.cuda.stream(side):
        there.copy_(values, non_blocking=True)
    seen = there.clone().cpu()
    torch.cuda.synchronize()
    return torch.equal(seen, values)


def overwritten(order: str) -> bool:
    """Whether a pinned buffer that is written before its copy was waited for still arrives as it was."""
    card.set_order(order)
    values = torch.zeros(SIZE, dtype=torch.int64).pin_memory()
    there = values.to("cuda", non_blocking=True)
    values.fill_(1)
    return not there.cpu().any()


def pageable_is_staged() -> bool:
    """Whether memory that is not pinned may be written at once, as CUDA promises."""
    card.set_order("late")
    values = torch.zeros(SIZE, dtype=torch.int64)
    there = values.to("cuda", non_blocking=True)
    values.fill_(1)
    return not there.cpu().any()


def detector_sees(action: str) -> bool:
    """Whether PyTorch's detector of synchronising operations works above the stub."""
    values = torch.zeros(8).to("cuda")
    pinned = torch.zeros(8).pin_memory()
    torch.cuda.set_sync_debug_mode("error")
    try:
        {"item": lambda: values[0].item(), "launch": lambda: values + 1, "copy": lambda: values.copy_(pinned, True)}[
            action
        ]()
        return False
    except RuntimeError:
        return True
    finally:
        torch.cuda.set_sync_debug_mode("default")


def out_of_memory() -> str:
    """What PyTorch says when the device is full, and whether it goes on afterwards."""
    torch.cuda.empty_cache()
    card.set_memory(1 << 30)
    try:
        torch.empty(2 << 30, dtype=torch.uint8, device="cuda")
        return "nothing"
    except torch.cuda.OutOfMemoryError as error:
        return type(error).__name__
    finally:
        card.set_memory(card.MEMORY)
        torch.empty(2 << 30, dtype=torch.uint8, device="cuda")


def launches_of_a_network() -> dict[str, int]:
    """A convolution with its search, forward and backward: twice, the search is done once."""
    torch.backends.cudnn.benchmark = True
    layer = torch.nn.Conv2d(3, 8, 3).cuda()
    images = torch.zeros(2, 3, 32, 32, device="cuda")

    def step() -> None:
        layer(images).sum().backward()

    first = card.counted(step)
    second = card.counted(step)
    return {
        "first": first.get("wait: cudaDeviceSynchronize", 0),
        "second": second.get("wait: cudaDeviceSynchronize", 0),
    }


card.report(
    {
        "copied_back": [copied_back(order) for order in card.ORDERS],
        "unordered": {order: unordered(order) for order in ("early", "late")},
        "overwritten": {order: overwritten(order) for order in ("early", "late")},
        "pageable_is_staged": pageable_is_staged(),
        "detected": {action: detector_sees(action) for action in ("item", "launch", "copy")},
        "out_of_memory": out_of_memory(),
        "searches": launches_of_a_network(),
        "missing": [name for name in card.counters() if name.startswith("missing")],
        "memory": torch.cuda.get_device_properties(0).total_memory,
    }
)
