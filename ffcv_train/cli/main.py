"""The command `ffcv-train`, the same as `python -m ffcv_train`: one word chooses what runs."""

import difflib
import faulthandler
import importlib
import sys
from collections.abc import Callable
from typing import NoReturn

from ffcv_train.system.errors import UserError
from ffcv_train.system.streams import open_closed_streams, silence_stdout, stdout_fails

COMMANDS = {
    "write": ("write", "photographs to a .beton file, or check one, or pack a folder into zips"),
    "train": ("train", "train a classifier"),
    "eval": ("evaluate", "metrics of a checkpoint on a data set"),
    "predict": ("predict", "the likeliest classes of images"),
    "export": ("export", "the network for other programs: ONNX, torch.export, timm, torchvision, safetensors"),
    "push": ("push", "publish the network on the Hugging Face hub, with a model card"),
    "compare": ("compare", "train and compare criteria, each from several seeds"),
    "doctor": ("doctor", "is it the loader or the step that limits a run on this machine?"),
    "gpu-check": ("gpu_check", "does everything work on this GPU, and how fast?"),
    "logits": ("logits", "write every sample's logits and features to a file"),
    "analysis": ("logit_figures", "figures and tables of logits"),
    "features": ("features", "how far apart features lie, within classes and over all"),
    "projection": ("projection", "features on the plane of three class templates"),
    "transfer": ("transfer", "linear transfer of features to another data set"),
    "gradcam": ("gradcam", "where the evidence for a class lies in an image"),
    "reliability": ("reliability", "reliability diagram of evaluations"),
    "report": ("report", "one HTML page of runs, or of a comparison"),
    "measure": ("measure", "what a comparison takes of one finished run"),
    "quickstart": ("quickstart", "the whole job on handwritten digits, in minutes"),
}
"""Name of each command: its module in this room, and what it does"""


def run_main(main: Callable[[], None]) -> None:
    """Run a script's `main`; a `UserError` becomes one line on stderr and exit status 2.

    Ctrl-C exits with status 130, and 141, as by SIGPIPE, where nobody reads what is printed. Any other exception keeps
    its traceback, for it is a defect of ours, unless stdout's disk is full or the system starts no more threads.
    """
    open_closed_streams()
    if not faulthandler.is_enabled():
        faulthandler.enable()  # where a library failed or a mapped file was cut off, beside the shell's one word
    try:
        main()
        sys.stdout.flush()
    except UserError as error:
        _refuse(str(error))
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(130)
    except BrokenPipeError:
        silence_stdout()  # Python flushes once more when it ends
        sys.exit(141)
    except OSError:
        reason = stdout_fails()
        if reason is None:
            raise
        silence_stdout()
        _refuse(f"cannot write to standard output: {reason}; free space where it goes to")
    except RuntimeError as error:
        if "can't start new thread" not in str(error):
            raise
        _refuse(
            "the system starts no more threads; raise the limit on processes (ulimit -u, in a container its "
            "pids-limit), or lower the number of workers"
        )


def run(command: str) -> None:
    """Run `command` with this process's arguments; what users did wrong ends in one line and exit status 2."""
    # Only what is asked for is imported: conversion's worker processes start with the script's own file.
    module, _ = COMMANDS[command]
    run_main(lambda: importlib.import_module(f"ffcv_train.cli.{module}").main(sys.argv[1:]))


def main() -> None:
    """`ffcv-train COMMAND …`."""
    name, *rest = sys.argv[1:] or ["--help"]
    if name in ("-h", "--help"):
        run_main(lambda: print(usage()))
    elif name == "--version":
        from ffcv_train import __version__

        print(f"ffcv-train {__version__}")
    elif name not in COMMANDS:
        run_main(lambda: _unknown(name))
    else:
        sys.argv = [f"ffcv-train {name}", *rest]
        run(name)


def usage() -> str:
    """What `ffcv-train --help` prints."""
    lines = [f"  {name:<12} {what}" for name, (_, what) in COMMANDS.items()]
    return "\n".join(
        [
            "usage: ffcv-train COMMAND [--option …]",
            "",
            *lines,
            "",
            "ffcv-train COMMAND --help describes a command's options; ffcv-train --version prints the version",
        ]
    )


def _refuse(sentence: str) -> NoReturn:
    print(f"error: {sentence}", file=sys.stderr)
    sys.exit(2)


def _unknown(name: str) -> None:
    near = difflib.get_close_matches(name, COMMANDS, n=1)
    hint = f", did you mean {near[0]!r}" if near else ""
    raise UserError(f"unknown command {name!r}{hint}; ffcv-train --help lists them")
