"""Handlers that real workers run in tests. Each notes what it does in the file named by TEST_RUNS, one atomic line
each."""

import asyncio
import os
import signal
import sys
import time


def note(word, name):
    path = os.environ.get("TEST_RUNS")
    if path:
        fd = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
        os.write(fd, f"{word} {name}\n".encode())
        os.close(fd)


def work(task):
    """The body is seconds to sleep."""
    note("began", task.message_id)
    time.sleep(float(task.text or 0))
    note("done", task.message_id)


def reported(event):
    note("reported", event["event"])


def spin(task):
    """The body is seconds to compute, in Python."""
    note("began", task.message_id)
    until = time.monotonic() + float(task.text or 0)
    while time.monotonic() < until:
        pass
    note("done", task.message_id)


def narrate(task):
    """The body is how many characters to log."""
    task.log.info("narrated", text="x" * int(task.text or 0))


async def work_async(task):
    note("began", task.message_id)
    await asyncio.sleep(float(task.text or 0))
    note("done", task.message_id)


def act(task):
    """The body is a JSON object that says what to do."""
    note("began", task.message_id)
    order = task.json()
    if "print" in order:
        print(order["print"])
        print(order["print"] + " on stderr", file=sys.stderr)
    if "raise" in order:
        raise {"ValueError": ValueError, "SystemExit": SystemExit, "KeyboardInterrupt": KeyboardInterrupt}[
            order["raise"]
        ]("as told")
    if "reject" in order:
        import supervisor

        raise supervisor.Reject(order["reject"])
    if "exit" in order:
        os._exit(order["exit"])
    if "sys_exit" in order:
        sys.exit(order["sys_exit"])
    if "kill" in order:
        os.kill(os.getpid(), getattr(signal, order["kill"]))
    if "sleep" in order:
        time.sleep(order["sleep"])
    note("done", task.message_id)


def weather(task):
    """The body is seconds to sleep; with the word `fails` behind it, the first try fails."""
    note("began", task.message_id)
    seconds, *fails = task.text.split()
    time.sleep(float(seconds))
    if fails and task.attempt == 1:
        raise ValueError("as told")
    note("done", task.message_id)


def stubborn(task):
    """Ignores every request to stop."""
    note("began", task.message_id)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    while True:
        time.sleep(60)
