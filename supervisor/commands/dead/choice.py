"""Which dead letters are meant: by id, by what they say, by when they were first seen. Pure."""

from __future__ import annotations

import datetime
import difflib
import os
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Final, Self

import supervisor.commands.dead.groups as groups
from supervisor import queues
from supervisor.amqp.properties import NAMES
from supervisor.commands.dead.letter import Letter, as_text
from supervisor.commands.plain import plain
from supervisor.settings.parsers import parse_duration
from supervisor.values import dataclass

_TEXTS: Final[Mapping[str, Callable[[Letter], str]]] = {
    "id": lambda letter: letter.id,
    "group": groups.name,
    "reason": lambda letter: letter.reason,
    "cause": lambda letter: letter.text(queues.CAUSE),
    "error": lambda letter: letter.error,
    "traceback": lambda letter: letter.text(queues.TRACEBACK),
    "evidence": lambda letter: letter.text(queues.EVIDENCE),
    "host": lambda letter: letter.text(queues.HOST),
    "queue": lambda letter: letter.queue,
}
_BODY: Final = "body"
_HEADER: Final = "header."
_PROPERTY: Final = "property."
_PROPERTIES: Final = tuple(name for name in NAMES if name not in ("headers", "message_id"))
FIELDS: Final = (*_TEXTS, _BODY, f"{_HEADER}NAME", f"{_PROPERTY}NAME")
_DAYS: Final = re.compile(r"([0-9]{1,5})\s*d")
_DURATION: Final = re.compile(r".*(?:ms|s|m|h)")


@dataclass(frozen=True, slots=True)
class Condition:
    """What a field of a dead letter says."""

    field: str
    text: str
    is_exact: bool
    """The whole of it; else a part."""

    @classmethod
    def parse(cls, said: str) -> Self:
        """`FIELD~TEXT`, contains, or `FIELD=TEXT`, is. Raises ValueError."""
        found = re.search("[~=]", said)
        if found is None:
            raise ValueError("expected FIELD~TEXT (it contains this text) or FIELD=TEXT (it is this text)")
        field, text, is_exact = said[: found.start()], said[found.end() :], found[0] == "="
        if not _is_known(field):
            raise ValueError(f"there is no field {plain(field)}.{_nearest(field)} The fields are {', '.join(FIELDS)}")
        if not text and not is_exact:
            raise ValueError(f"{plain(field)}~ has no text, and every dead letter contains that; {field}= is: has none")
        return cls(field, text, is_exact)

    def holds(self, letter: Letter) -> bool:
        if self.field == _BODY:
            part = os.fsencode(self.text)
            return part == letter.body if self.is_exact else part in letter.body
        value = self._value(letter)
        # Also as `list` shows it, which is where the text may have been copied from.
        return any(
            self.text == shown if self.is_exact else self.text in shown
            for shown in dict.fromkeys((value, plain(value)))
        )

    def _value(self, letter: Letter) -> str:
        if self.field.startswith(_HEADER):
            return letter.text(self.field.removeprefix(_HEADER))
        if self.field.startswith(_PROPERTY):
            return as_text(letter.part(self.field.removeprefix(_PROPERTY)))
        return _TEXTS[self.field](letter)


def _is_known(field: str) -> bool:
    if field.startswith(_HEADER):
        return field != _HEADER and field.isprintable()
    return field in _TEXTS or field == _BODY or (field.removeprefix(_PROPERTY) in _PROPERTIES and "." in field)


def _nearest(field: str) -> str:
    kind, dot, name = field.partition(".")
    if dot and (like := difflib.get_close_matches(f"{kind}.", (_HEADER, _PROPERTY), 1)):
        names = difflib.get_close_matches(name, _PROPERTIES, 1) if like[0] == _PROPERTY else [name or "NAME"]
        return f" Did you mean {like[0]}{plain(names[0])}?" if names else ""
    if field in _PROPERTIES:
        return f" Did you mean {_PROPERTY}{field}?"
    likely = difflib.get_close_matches(field, (*_TEXTS, _BODY), 1)
    return f" Did you mean {likely[0]}?" if likely else ""


def moment(said: str, present: datetime.datetime) -> datetime.datetime:
    """So long before `present` (`30m`, `2h`, `3d`), or an ISO 8601 time, in UTC unless it says otherwise. Raises
    ValueError."""
    text = said.strip()
    try:
        if days := _DAYS.fullmatch(text):
            return present - datetime.timedelta(days=int(days[1]))
        if _DURATION.fullmatch(text):
            return present - datetime.timedelta(seconds=parse_duration(text))
        time = datetime.datetime.fromisoformat(text)
        return time.astimezone(datetime.UTC) if time.tzinfo else time.replace(tzinfo=datetime.UTC)
    except (ValueError, OverflowError):
        raise ValueError("expected a time ago such as 30m, 2h or 3d, or a time such as 2026-01-31T08:00Z") from None


@dataclass(frozen=True, slots=True)
class Conditions:
    """All of them must hold."""

    where: Sequence[Condition] = ()
    since: datetime.datetime | None = None
    until: datetime.datetime | None = None
    """Not included."""

    def __bool__(self) -> bool:
        return bool(self.where) or self.is_timed

    @property
    def is_timed(self) -> bool:
        return self.since is not None or self.until is not None


_ANY = Conditions()


class Choice:
    """Those with one of these ids; or, without ids, those to which the conditions apply, which may be all.

    Notes what it comes across while asked: ids that are there, and dead letters without a time.
    """

    def __init__(
        self,
        identities: Sequence[str] = (),
        conditions: Conditions = _ANY,
        shown: set[int] | None = None,
    ) -> None:
        """`shown`: only among those with these fingerprints, since somebody has agreed to them and to no others."""
        self.identities = frozenset(identities)
        self.conditions = conditions
        self.found: Counter[str] = Counter()
        """How often each of the ids."""
        self.undated = 0
        """How many were not chosen because they do not say when they were first seen."""
        self._shown = shown

    @property
    def is_everything(self) -> bool:
        return not self.identities and not self.conditions and self._shown is None

    @property
    def missing(self) -> list[str]:
        """Ids that have not been found."""
        return sorted(identity for identity in self.identities if not self.found[identity])

    def among(self, shown: set[int]) -> Choice:
        return Choice(tuple(self.identities), self.conditions, shown)

    def has(self, letter: Letter) -> bool:
        if self._shown is not None and letter.fingerprint not in self._shown:
            return False
        if self.identities:
            # Its own id, or that as `list` shows it.
            meant = next((name for name in (letter.id, plain(letter.id)) if name in self.identities), None)
            if meant is not None:
                self.found[meant] += 1
            return meant is not None
        return all(condition.holds(letter) for condition in self.conditions.where) and self._is_in_time(letter)

    def _is_in_time(self, letter: Letter) -> bool:
        if not self.conditions.is_timed:
            return True
        seen = letter.first_seen
        if seen is None:
            self.undated += 1
            return False
        since, until = self.conditions.since, self.conditions.until
        return (since is None or since <= seen) and (until is None or seen < until)
