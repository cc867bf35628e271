"""Removes broker passwords from text. Redact first, then cut: a cut between `amqp://user:pass` and its `@` hides that
it is a URL. If the cut came first, say which end is torn."""

from __future__ import annotations

import re
from typing import Final

SCHEME: Final = re.compile(r"(amqps?://)", re.IGNORECASE)
_REDACTED: Final = re.compile(r"[\w.~%-]*:\*\*\*")
_AHEAD: Final = 4096
"""Characters searched after a cut: a URL that begins before the cut must end within them, or is dropped."""


def redact(text: str, *, begins_torn: bool = False, ends_torn: bool = False) -> str:
    """`amqp://user:password@host` -> `amqp://***@host`, everywhere in the text.

    Everything up to the last `@` of the line is removed, as a password may have an unescaped `/`, `@` or blank.
    `begins_torn`: the start was cut off, so the first line may be the rest of a URL. `ends_torn`: the end was cut off,
    so everything after the last scheme of the last line is dropped.
    """
    if not begins_torn and "://" not in text:
        return text
    head, *rest = SCHEME.split(text)
    parts = [_bare(head) if begins_torn else head]
    for scheme, tail in zip(rest[::2], rest[1::2], strict=True):
        parts += [scheme, _bare(tail)]
    if ends_torn and rest and "\n" not in rest[-1]:
        parts[-1] = "***"
    return "".join(parts)


def _bare(tail: str) -> str:
    """The text after a scheme, without user and password."""
    line, newline, others = tail.partition("\n")
    at = line.rfind("@")
    # An Endpoint's text is redacted already, and shows the user on purpose.
    is_clean = at < 0 or _REDACTED.fullmatch(line[:at])
    return tail if is_clean else f"***{line[at:]}{newline}{others}"


def clip_start(text: str, limit: int) -> str:
    """The start of `text`, `limit` bytes of UTF-8 at most, redacted."""
    ahead = text[: limit + _AHEAD]
    shown = redact(ahead, ends_torn=len(ahead) < len(text))
    return shown.encode("utf-8", "replace")[:limit].decode("utf-8", "ignore")


def clip_end(text: str, limit: int) -> str:
    """The end of `text`, `limit` bytes of UTF-8 at most, redacted. Costs no more for a longer text."""
    kept = text[-limit:] if limit else ""
    shown = redact(kept, begins_torn=len(kept) < len(text)).encode("utf-8", "replace")
    # There may be more bytes than characters: then cut again, in the redacted text.
    return shown[-limit:].decode("utf-8", "ignore") if limit else ""
