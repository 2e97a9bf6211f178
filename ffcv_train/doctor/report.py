"""The doctor's report as text."""

from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from ffcv_train.doctor.balance import Stage, epochs_in_words, gib
from ffcv_train.system.progress import duration

_BUSY = 0.15  # of the cores: what other programs may take before the report says so
_COLUMNS = (
    ("side", "right"),
    ("epochs", "right"),
    ("loader", "right"),
    ("per core", "right"),
    ("step", "right"),
    ("both", "right"),
    ("limited by", "left"),
    ("balance", "right"),
    ("epoch", "right"),
)


def print_report(report: dict[str, Any], console: Console | None = None) -> None:
    """Print what `examine` found; 80 columns are enough."""
    console = console or Console(highlight=False)
    head = Table.grid(padding=(0, 2, 0, 0))
    head.add_column(no_wrap=True)
    head.add_column(overflow="fold")
    for name, text in (
        ("run", _run(report)),
        ("machine", _machine(report)),
        ("data", _data(report["data_set"])),
        ("memory", _memory(report["data_set"])),
    ):
        head.add_row(name, text)
    console.print(head, markup=False)
    console.print()
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 1, 0, 0))
    for name, justify in _COLUMNS:
        table.add_column(name, justify=justify, no_wrap=True)  # type: ignore[arg-type]
    for row in report["stages"]:
        table.add_row(
            str(row["resolution"]),
            epochs_in_words(Stage(row["resolution"], row["first_epoch"], row["epochs"])),
            _rate(row["loader_images_per_s"]),
            _rate(row["loader_images_per_s_per_core"]),
            _rate(row["step_images_per_s"]),
            _rate(row["images_per_s"]),
            row["bottleneck"],
            f"{row['cores_to_balance']} core{'s' if row['cores_to_balance'] > 1 else ''}",
            duration(row["epoch_seconds"]),
        )
    console.print(table)
    console.print()
    seconds, epochs = report["training_seconds"], report["run"]["epochs"]
    for text in (
        "Images/s: loader and step alone, both together. Balance: cores with which the loader keeps up with the step.",
        f"Training: about {duration(seconds)} for {epochs} epochs; validation and start-up come on top.",
        report["advice"],
    ):
        console.print(text, markup=False)


def _rate(images_per_s: float) -> str:
    return f"{images_per_s:,.0f}" if images_per_s >= 99.5 else f"{images_per_s:.1f}"


def _run(report: dict[str, Any]) -> str:
    run = report["run"]
    passes = f" × {run['accumulate']} passes" if run["accumulate"] > 1 else ""
    precision = "float32" if run["amp"] == "off" else run["amp"]
    return (
        f"{run['arch']}, {run['num_classes']} classes, {precision}{', compiled' if run['compile'] else ''}, batch "
        f"{run['batch_per_device']} × {_devices(report)}{passes}, {run['steps_per_epoch']:,} steps an epoch"
    )


def _machine(report: dict[str, Any]) -> str:
    machine = report["machine"]
    text = f"{machine['device']}, {machine['cores']} cores, {machine['loader_threads']} decoding threads"
    if machine["devices"] > 1:
        text += f" shared by {machine['devices']} processes, of which one device was measured and multiplied"
    if machine["device_type"] == "cpu":
        text += "; step and loader share the cores"
    if machine["cores_of_other_programs"] >= _BUSY * machine["cores"]:
        text += (
            f"; other programs took {machine['cores_of_other_programs']:.1f} of them: repeat this on an idle machine"
        )
    memory = machine["device_memory"]
    if memory is not None:
        text += f"; {gib(memory['peak_bytes'])} of {gib(memory['total_bytes'])} device memory used"
    return text


def _devices(report: dict[str, Any]) -> str:
    count = report["machine"]["devices"]
    return f"{count} device{'s' if count > 1 else ''}"


def _data(data: dict[str, Any]) -> str:
    return (
        f"{data['path']}: {data['samples']:,} images of {data['median_width']} × {data['median_height']} pixels "
        f"(median), {data['jpeg_share']:.0%} JPEG, {gib(data['file_bytes'])}; as raw pixels {gib(data['raw_bytes'])}"
    )


def _memory(data: dict[str, Any]) -> str:
    needed, available = gib(data["needed_bytes"]), gib(data["available_bytes"])
    if not data["in_memory"]:
        text = f"pages of at most {needed} are held, {available} available"
    elif data["fits"]:
        text = f"{needed} needed, {available} available"
    else:
        text = f"{needed} needed, only {available} available: measured with --data.in_memory=0"
    cached = data["cached_share"]
    if cached is None:
        return f"{text}; this system does not say what the page cache holds"
    # Rounded down: only all of it is 100%.
    reading = "" if cached == 1 or not data["in_memory"] else "; the first epoch reads the rest from storage"
    return f"{text}; {int(cached * 100)}% of the images were in the page cache{reading}"
