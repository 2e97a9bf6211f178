"""The one exception users see, and the exit codes it turns into."""

import os
import sys
from collections.abc import Callable


class UserError(Exception):
    """What is wrong, where, and what to do about it, in one sentence."""


def run_main(main: Callable[[], None]) -> None:
    """Run a script's `main`; a `UserError` becomes one line on stderr and exit status 2.

    Ctrl-C exits with status 130, and 141, as by SIGPIPE, where nobody reads what is printed. Any other exception keeps
    its traceback, for it is a defect of ours.
    """
    try:
        main()
        sys.stdout.flush()
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(130)
    except BrokenPipeError:
        # Python flushes once more when it ends.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(141)
