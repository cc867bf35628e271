"""Foreign text (a message id, an exception), made safe for a terminal."""

from __future__ import annotations

import shlex


def plain(text: str) -> str:
    """The text in one line, with control and invisible characters escaped."""
    if text.isprintable():
        return text
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in text)


def argument(name: str) -> str:
    """A name as the last argument in a shell line that is shown: also one that begins like an option."""
    return shlex.join(["--", name] if name.startswith("-") else [name])
