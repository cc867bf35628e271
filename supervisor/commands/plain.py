"""What somebody else wrote (a message id, an exception), fit for a terminal."""

from __future__ import annotations


def plain(text: str) -> str:
    """The text in one line, with every character that could do something to a terminal, or hide, as an escape."""
    if text.isprintable():
        return text
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in text)
