"""The demo's handler. It notes what it does in the file named by DEMO_RUNS, so that the account at the end rests on
what the handler did, and not on what the supervisor says about it."""

import os
import time
from typing import Any


def work(task: Any) -> None:
    """Takes as many seconds as the body says."""
    note("began", task.message_id)
    time.sleep(float(task.text))
    note("done", task.message_id)


def note(word: str, message_id: str) -> None:
    # One write of one short line with O_APPEND: lines of several processes do not mix (write(2)), and a SIGKILL between
    # two lines leaves no half of one.
    fd = os.open(os.environ["DEMO_RUNS"], os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    try:
        os.write(fd, f"{word} {message_id} {os.getpid()} {time.monotonic()}\n".encode())
    finally:
        os.close(fd)
