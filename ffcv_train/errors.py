"""The one exception users see, and the exit codes it turns into."""

import sys
from collections.abc import Callable


class UserError(Exception):
    """What is wrong, where, and what to do about it, in one sentence."""


def run_main(main: Callable[[], None]) -> None:
    """Run a script's `main`; a `UserError` becomes one line on stderr and exit status 2.

    Ctrl-C exits with status 130. Any other exception keeps its traceback, for it is a defect of ours.
    """
    try:
        main()
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(130)
