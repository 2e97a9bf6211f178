"""Standard output and error where nobody reads them: a launcher may start programs with either closed."""

import os
import sys


def open_closed_streams() -> None:
    """Let standard streams that were closed when the program started go nowhere.

    Otherwise the next file that is opened takes their number, and what a library prints ends in it.
    """
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        if getattr(sys, name) is not None:
            continue
        try:
            os.fstat(number)
        except OSError:
            nowhere = os.open(os.devnull, os.O_RDWR)
            if nowhere == number:
                os.set_inheritable(number, True)
            else:
                os.dup2(nowhere, number)
                os.close(nowhere)
        setattr(sys, name, open(os.devnull, "w" if number else "r", encoding="utf-8"))  # noqa: SIM115, PTH123


def silence_stdout() -> None:
    """Let stdout go nowhere from now on, because nobody reads it."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, sys.stdout.fileno())
    os.close(nowhere)


def stdout_fails() -> str | None:
    """Why nothing more can be printed, or None; an empty line where it can."""
    try:
        print(flush=True)
    except OSError as error:
        return error.strerror or str(error)
    return None
