"""Dead letters that died of the same: by exception type and last frame, or by reason and cause. Pure."""

from __future__ import annotations

import datetime
import re
from dataclasses import dataclass
from typing import Any, Final

from supervisor import queues
from supervisor.commands.dead.letter import Letter
from supervisor.commands.plain import plain

MOST: Final = 1000
"""Groups: their names are foreign text, and there could be one for each dead letter."""
OTHERS: Final = "(more groups)"
_NAME_MOST: Final = 500
_FRAME: Final = re.compile(r'^(?:  \| )?  File "(.+)", line (\d+), in (.+)$', re.MULTILINE)
"""A frame of the exception itself, not of a member of an exception group, which is indented further."""
_CONCLUSION: Final = re.compile(r"^(?:  \| )?([A-Za-z_][\w.]*)(?::|$)", re.MULTILINE)
_KIND: Final = re.compile(r"[A-Za-z_][\w.]*(?=:|$)")
_INSTALLED: Final = re.compile(r".*/(?:site|dist)-packages/")


def name(letter: Letter) -> str:
    """The group's: what is the same for all in it, in one line."""
    if letter.trouble:
        return "unreadable"
    reason = plain(letter.reason) or "unknown"
    told = letter.text(queues.TRACEBACK)
    if frames := list(_FRAME.finditer(told)):
        frame = frames[-1]
        raised = _CONCLUSION.search(told, frame.end())
        kind = raised[1] if raised else _kind(letter) or reason
        return _line(f"{kind} at {_INSTALLED.sub('', frame[1])}:{frame[2]} in {frame[3]}")
    if letter.reason == "exception" and (kind := _kind(letter)):
        return _line(kind)
    cause = letter.text(queues.CAUSE)
    return _line(f"{reason}: {cause}" if cause and cause != reason else reason)


def _kind(letter: Letter) -> str:
    found = _KIND.match(letter.error)
    return found[0] if found else ""


def _line(text: str) -> str:
    return plain(text)[:_NAME_MOST]


@dataclass(slots=True)
class Group:
    count: int = 0
    first: datetime.datetime | None = None
    last: datetime.datetime | None = None
    example: str = ""
    """The id of the latest; of those without a time, of the first that came."""

    def add(self, letter: Letter) -> None:
        self.count += 1
        seen = letter.first_seen
        if seen is not None and (self.first is None or seen < self.first):
            self.first = seen
        if seen is not None and (self.last is None or seen > self.last):
            self.last, self.example = seen, letter.id
        self.example = self.example or letter.id


class Groups:
    """All of them, with what is known of each. Keeps no dead letter."""

    def __init__(self) -> None:
        self._groups: dict[str, Group] = {}

    def add(self, letter: Letter) -> None:
        called = name(letter)
        if called not in self._groups and len(self._groups) >= MOST:
            called = OTHERS
        self._groups.setdefault(called, Group()).add(letter)

    def rows(self) -> list[dict[str, Any]]:
        """The largest first; of the same size, the latest first."""
        largest = sorted(self._groups.items(), key=lambda item: (-item[1].count, -_stamp(item[1].last), item[0]))
        return [
            {
                "group": called,
                "count": group.count,
                "first": group.first.isoformat() if group.first else None,
                "last": group.last.isoformat() if group.last else None,
                "example": group.example,
            }
            for called, group in largest
        ]


def _stamp(time: datetime.datetime | None) -> float:
    return time.timestamp() if time else 0.0
