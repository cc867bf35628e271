"""The demo's handler. It notes what it does in the file named by DEMO_NOTES, so that the account at the end rests on
what the handler did, and not on what the supervisor says about it."""

import os
import time
from typing import Any

from benches.notes import Pen

_pen = Pen(os.environ["DEMO_NOTES"])


def work(task: Any) -> None:
    """Takes as many seconds as the body says. Its number is in the message id: task-17."""
    number = int(task.message_id.removeprefix("task-"))
    _pen.begin(number, time.monotonic())
    time.sleep(float(task.text))
    _pen.end(number)
