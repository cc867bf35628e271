"""Foreign text (a message id, an exception), made safe for a terminal."""

from __future__ import annotations


def plain(text: str) -> str:
    """The text in one line, with control and invisible characters escaped."""
    if text.isprintable():
        return text
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in text)
