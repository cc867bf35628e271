"""The task that every contender runs, and what its import costs. Needs nothing but the standard library: it is imported
by our workers, and by the others' in an environment of their own.

    BENCH_IMPORT=0.5            the import takes half a second, as somebody's application would
    BENCH_IMPORT_MODULE=numpy   the import brings this module along
    BENCH_NOTES=FILE            when tasks begin and end is noted there, see `notes`; without it nothing is
"""

from __future__ import annotations

import importlib
import os
import re
import signal
import time
from typing import Any

NUMBER = re.compile(rb"\d+(?:\.\d+)?")


def work(body: bytes) -> None:
    """Sleep for as many seconds as the body begins with, segfault when it begins with `die`, else do nothing."""
    if body:
        if body.startswith(b"die"):
            os.kill(os.getpid(), signal.SIGSEGV)
        number = NUMBER.match(body)
        if number:
            time.sleep(float(number[0]))


def noted(body: bytes) -> None:
    """`work`, with a note before and after, by the number that is the body's second word: 4 us."""
    began = time.monotonic()
    words = body.split(maxsplit=2)
    number = int(words[1]) if len(words) > 1 and words[1].isdigit() else 0
    _pen.begin(number, began)
    work(body)
    _pen.end(number)


def handle(task: Any) -> None:
    """The same for workq-supervise, whose handlers are given a task."""
    run(task.body)


if "BENCH_IMPORT" in os.environ:
    time.sleep(float(os.environ["BENCH_IMPORT"]))
if "BENCH_IMPORT_MODULE" in os.environ:
    importlib.import_module(os.environ["BENCH_IMPORT_MODULE"])
if "BENCH_NOTES" in os.environ:
    from . import notes

    _pen = notes.Pen(os.environ["BENCH_NOTES"])
    run = noted
else:
    run = work
