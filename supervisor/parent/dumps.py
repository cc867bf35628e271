"""The stacks that faulthandler writes, without the frames that called the handler: they are ours in every dump.

Line by line, because a dump is logged as it comes. A thread's innermost frame is its first. What is left out is what
follows a frame of somebody else's, from our first one on; a thread that runs only our code and Python's is shown whole,
for it may hang there.
"""

from __future__ import annotations

import os
import re
from typing import Final

_FRAME: Final = re.compile(r'  File "(.+)", line (?:\d+|\?\?\?) in .')
"""Not a traceback's, which has a comma before `in`."""
_OURS: Final = f"{os.path.dirname(os.path.dirname(__file__))}/"  # noqa: PTH120 - a string, as a frame's file is
_PYTHON: Final = f"{os.path.dirname(os.__file__)}/"  # noqa: PTH120
_INSTALLED: Final = ("site-packages/", "dist-packages/")
LEFT_OUT: Final = "  … frames of workq-supervise, which called this, are left out"


class Dumps:
    """Reads lines of output, in their order."""

    def __init__(self) -> None:
        self._has_theirs = self._is_cutting = False

    def shown(self, line: str) -> str | None:
        """What to show of this line; None: nothing."""
        frame = _FRAME.match(line)
        if frame is None:
            self._has_theirs = self._is_cutting = False
            return line
        if self._is_cutting:
            return None
        path = frame[1]
        if path.startswith(_OURS):
            self._is_cutting = self._has_theirs
            return LEFT_OUT if self._is_cutting else line
        self._has_theirs |= not _is_pythons(path)
        return line

    @classmethod
    def trimmed(cls, text: str) -> str:
        """All of a text's lines."""
        dumps = cls()
        lines = (dumps.shown(line) for line in text.split("\n"))
        return "\n".join(line for line in lines if line is not None)


def _is_pythons(path: str) -> bool:
    return path.startswith("<") or (path.startswith(_PYTHON) and not path.removeprefix(_PYTHON).startswith(_INSTALLED))
