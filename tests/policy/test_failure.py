"""What an exception looks like as text, and that it costs no more the larger it is."""

from __future__ import annotations

import sys
import traceback
import tracemalloc
from collections.abc import Callable
from types import TracebackType

import pytest

from supervisor import failure
from supervisor.policy.settle import TRACEBACK_MAX, Raised
from supervisor.worker.handler import CannotLoad, Handler

FRAMES = 200_000


def deep() -> BaseException:
    """Raised so many calls down. Real ones would take half a gigabyte."""
    frame = sys._getframe()
    step = None
    for _ in range(FRAMES):
        step = TracebackType(step, frame, frame.f_lasti, frame.f_lineno)
    return RecursionError("deep down").with_traceback(step)


def huge() -> BaseException:
    return ValueError("begin" + "x" * 10_000_000 + "the end")


def circle() -> BaseException:
    one, two = ValueError("one"), KeyError("two")
    one.__cause__, two.__cause__ = two, one
    return one


def chain() -> BaseException:
    last: BaseException = ValueError("the first")
    for number in range(5000):
        error = LookupError(f"number {number}")
        error.__context__, last = last, error
    return last


def group() -> BaseException:
    return ExceptionGroup("many", [huge(), *(ValueError(number) for number in range(5000))])


def nested() -> BaseException:
    error: Exception = ValueError("the innermost")
    for number in range(3000):
        error = ExceptionGroup(f"group {number}", [error])
    return error


def noted() -> BaseException:
    error = ValueError("noted")
    for number in range(5000):
        error.add_note("x" * 1000 + f"note {number}")
    return error


class Unsayable(Exception):
    def __str__(self) -> str:
        raise SystemExit(3)


@pytest.mark.parametrize(
    ("make", "shown"),
    [
        (deep, ["RecursionError: deep down\n", f"{FRAMES - 40:,} frames are left out"]),
        (huge, ["ValueError: begin", "[10,000,012 characters]", "the end\n"]),
        (chain, ["LookupError: number 4999\n", "LookupError: number 4998\n", "earlier exceptions are left out"]),
        (group, ["ExceptionGroup: many (5001 sub-exceptions)", "ValueError: begin", "and 4,998 more"]),
        (nested, ["ExceptionGroup: group 2999 (1 sub-exception)", "group 2998"]),
        (noted, ["ValueError: noted\n", "note 4999\n"]),
    ],
)
def test_f71_a_large_failure_is_rendered_in_brief_by_bounded_memory_and_its_end_is_kept(
    make: Callable[[], BaseException], shown: list[str]
) -> None:
    error = make()
    failure.rendered(error, error.__traceback__)  # has read the source by now
    tracemalloc.start()
    try:
        text = failure.rendered(error, error.__traceback__)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 1_000_000 and len(text) < 16_000
    assert [part for part in shown if part not in text] == []
    outcome = Handler("raises", lambda _: _raise(error)).runner()(None)  # type: ignore[arg-type]
    assert isinstance(outcome, Raised)
    assert len(outcome.traceback) <= TRACEBACK_MAX and len(outcome.error) < 5000
    assert outcome.traceback.endswith(text[-12:])


def _raise(error: BaseException) -> None:
    raise error


@pytest.mark.parametrize("make", [circle, lambda: ValueError("small"), lambda: ExceptionGroup("two", [ValueError(1)])])
def test_f71_any_other_failure_is_rendered_as_python_does(make: Callable[[], BaseException]) -> None:
    error = make()
    expected = "".join(traceback.format_exception(error))
    assert failure.rendered(error, error.__traceback__) == expected


def test_f71_an_exception_that_cannot_be_rendered_is_named() -> None:
    assert failure.rendered(Unsayable(), None) == "tests.policy.test_failure.Unsayable: <exception str() failed>\n"


def test_f71_a_handler_that_cannot_be_loaded_fits_on_the_link_whatever_it_has_to_say() -> None:
    failed = CannotLoad("begin" + "é" * 1_000_000, "x" * 1_000_000 + "the end")
    assert failed.error.startswith("begin") and failed.error.endswith("…[1,000,005 characters]")
    assert failed.traceback.endswith("the end")
    assert len(failed.error.encode() + failed.traceback.encode()) < 16 * 1024
