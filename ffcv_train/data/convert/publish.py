"""Files that were written under temporary names take their places."""

import contextlib
from collections.abc import Sequence
from pathlib import Path

from ffcv_train.system.errors import UserError
from ffcv_train.system.files import sync_file, sync_folder


def publish(moves: Sequence[tuple[Path, Path]], mark: Path | None = None, outdated: Sequence[Path] = ()) -> None:
    """Rename each first path to the second one of its pair, in this order, which is the disk's order too.

    All lie in one folder. Several files cannot be replaced in one step, so readers must notice what is between: by what
    the files say of each other, by `mark`, a file that lists the targets as long as some may be new and some old, or
    because what is `outdated` is removed first.

    Raises `OSError` where nothing was renamed, `UserError` where it went wrong later.
    """
    moved = False
    folder = moves[0][1].parent
    try:
        if mark is not None:
            with mark.open("w", encoding="utf-8") as file:
                file.writelines(f"{target.name}\n" for _, target in moves)
                sync_file(file)
            sync_folder(folder)
        for path in outdated:
            moved = moved or path.exists()
            path.unlink(missing_ok=True)
        if outdated:
            sync_folder(folder)
        for temporary, target in moves:
            temporary.replace(target)
            moved = True
            sync_folder(folder)
        if mark is not None:
            mark.unlink()
            sync_folder(folder)
    except OSError as error:
        if moved:
            raise UserError(
                f"{moves[-1][1]}: {error.strerror or error}, just as the new files took their places; what lies there "
                f"now may be old in part, and is then refused: run this again"
            ) from error
        if mark is not None:
            with contextlib.suppress(OSError):
                mark.unlink()
        raise
