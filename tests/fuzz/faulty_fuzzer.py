"""A fuzzer whose cases go wrong in every way that the supervisor must notice."""

import ctypes
import time
from pathlib import Path

from fuzz.supervisor import Outcome

FAULTS = {3: "crash", 5: "exception", 6: "hang", 8: "hang", 9: "wrong"}
"""Case 6 computes for ever, case 8 waits for ever."""


class FaultyFuzzer:
    """Cases of `FAULTS` go wrong."""

    def run(self, case: int) -> Outcome:
        """Do what the case is for."""
        if case == 3:
            ctypes.string_at(0)
        if case == 5:
            raise ValueError("of case five")
        while case == 6:
            pass
        if case == 8:
            time.sleep(1000)
        return Outcome("image", ("none",), "it is nine" if case == 9 else "")

    def save(self, case: int, folder: Path) -> Path:
        """Write the number."""
        file = folder / f"{case}.txt"
        file.write_text(str(case))
        return file
