"""An exception as text, within about 100 ms and bounded memory; abbreviated if necessary."""

from __future__ import annotations

import traceback
from types import TracebackType
from typing import Final

from supervisor.redaction import clip_end, clip_start

_EXCEPTIONS_MOST: Final = 64
_FRAMES_MOST: Final = 1200
"""Of all exceptions together; enough for one that met the usual recursion limit."""
_TEXT_MOST: Final = 64 * 1024
"""Characters of all messages together; more than is kept of any rendering."""
_BRIEF_CHAIN: Final = 4
_BRIEF_FRAMES: Final = 20
_ROUND: Final = range(_BRIEF_FRAMES)
_BRIEF_MEMBERS: Final = 3
_BRIEF_START: Final = 1024
_BRIEF_END: Final = 1024
_STEPS_MOST: Final = 2_000_000
"""Frames counted, some 50 ns each."""
_CAUSED: Final = "\nThe above exception was the direct cause of the following exception:\n\n"
_DURING: Final = "\nDuring handling of the above exception, another exception occurred:\n\n"


def rendered(error: BaseException, start: TracebackType | None) -> str:
    """Its traceback from `start` on, with the exceptions that led to it. Raises nothing, not even SystemExit."""
    try:
        if _is_modest(error):
            return "".join(traceback.format_exception(type(error), error, start))
    except BaseException:  # noqa: BLE001 - __str__, and all else, is theirs
        pass
    try:
        return _in_brief(error, start)
    except BaseException:  # noqa: BLE001 - as above
        return f"{type(error).__name__}\n"


def kind(error: BaseException) -> str:
    """Its class, as in a traceback."""
    cls = type(error)
    has_module = cls.__module__ not in ("builtins", "__main__")
    return f"{cls.__module__}.{cls.__qualname__}" if has_module else cls.__qualname__


def _is_modest(error: BaseException) -> bool:
    """Whether it can be rendered in full."""
    pending, seen = [error], set[int]()
    frames = text = 0
    while pending:
        each = pending.pop()
        if id(each) in seen:
            continue
        seen.add(id(each))
        step = each.__traceback__
        while step is not None and frames <= _FRAMES_MOST:
            frames, step = frames + 1, step.tb_next
        text += len(_said(each)) + sum(map(len, getattr(each, "__notes__", ())))
        if isinstance(each, SyntaxError) and each.text:
            text += len(each.text)
        pending += [other for other in (each.__cause__, each.__context__) if other is not None]
        if isinstance(each, BaseExceptionGroup):
            pending += each.exceptions
        if len(seen) + len(pending) > 2 * _EXCEPTIONS_MOST or frames > _FRAMES_MOST or text > _TEXT_MOST:
            return False
    return True


def _said(error: BaseException) -> str:
    try:
        return str.__str__(str(error))
    except BaseException:  # noqa: BLE001 - theirs, and it may raise SystemExit
        return ""


def _in_brief(error: BaseException, start: TracebackType | None) -> str:
    blocks: list[str] = []
    seen = set[int]()
    steps = _STEPS_MOST
    each: BaseException | None = error
    while each is not None and id(each) not in seen:
        if len(seen) == _BRIEF_CHAIN:
            blocks.append("… earlier exceptions are left out\n")
            break
        seen.add(id(each))
        frames, taken = _frames(start if each is error else each.__traceback__, steps)
        steps -= taken
        blocks.append(frames + _conclusion(each))
        each, link = (
            (each.__cause__, _CAUSED)
            if each.__cause__ is not None or each.__suppress_context__
            else (each.__context__, _DURING)
        )
        if each is not None and id(each) not in seen:
            blocks.append(link)
    return "".join(reversed(blocks))


def _frames(begin: TracebackType | None, most: int) -> tuple[str, int]:
    """The last of these frames, `_BRIEF_FRAMES` to twice as many; and how many were counted."""
    # One pass, with a mark that lags behind: a second pass would take as long again.
    shown = mark = step = begin
    rounds = 0
    while step is not None and rounds * _BRIEF_FRAMES < most:
        shown, mark, rounds = mark, step, rounds + 1
        for _ in _ROUND:
            if step is None:
                break
            step = step.tb_next
    counted = rounds * _BRIEF_FRAMES
    if begin is None:
        return "", 0
    head = "Traceback (most recent call last):\n"
    if step is not None:
        return f"{head}  … {counted:,} frames and more are left out\n", counted
    left_out = max(0, counted - 2 * _BRIEF_FRAMES)
    note = f"  … {left_out:,} frames are left out\n" if left_out else ""
    return head + note + "".join(traceback.format_tb(shown)), counted


def _conclusion(error: BaseException) -> str:
    lines = [_line(error, _BRIEF_START, _BRIEF_END)]
    if isinstance(error, BaseExceptionGroup):
        members = error.exceptions
        lines += [f"  | {_line(each, 256, 0)}" for each in members[:_BRIEF_MEMBERS]]
        if len(members) > _BRIEF_MEMBERS:
            lines.append(f"  | … and {len(members) - _BRIEF_MEMBERS:,} more")
    notes = getattr(error, "__notes__", ())
    lines += [_shortened(str(note), 256, 256) for note in notes[-_BRIEF_MEMBERS:]]
    return "\n".join(lines) + "\n"


def _line(error: BaseException, start: int, end: int) -> str:
    said = _said(error)
    return f"{kind(error)}: {_shortened(said, start, end)}" if said else kind(error)


def _shortened(text: str, start: int, end: int) -> str:
    if len(text) <= start + end:
        return text
    return f"{clip_start(text, start)}…[{len(text):,} characters]…{clip_end(text, end)}"
