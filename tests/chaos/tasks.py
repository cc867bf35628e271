"""The handler of the long run: its message names a kind, and each kind ends in its own way.

Every run is noted in the file named by TEST_RUNS, one JSON object a line, written at once: its beginning, its end, and
what it left behind.
"""

import asyncio
import ctypes
import json
import os
import time

from supervisor import Reject, Retry

PAGE = 4096
FOR_GOOD = 600.0
"""Seconds: longer than anything waits for it."""
hoard = []
"""What this worker will not give back."""


def note(**fields):
    fd = os.open(os.environ["TEST_RUNS"], os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC)
    os.write(fd, json.dumps(fields).encode() + b"\n")
    os.close(fd)


def boot(pid="self"):
    """When this process was started, in ticks: tells two processes of one pid apart. None: it is gone."""
    try:
        with open(f"/proc/{pid}/stat") as stat:
            fields = stat.read().rpartition(")")[2].split()
    except OSError:
        return None
    return None if fields[0] == "Z" else fields[19]


def run(task):
    order = task.json()
    name = f"{os.getpid()}-{time.monotonic_ns()}"
    note(
        began=name, task=task.message_id, attempt=task.attempt, pid=os.getpid(), boot=boot(), parent=os.getppid(),
        at=time.time(),
    )  # fmt: skip
    if order["kind"] == "async":
        return asynchronous(order, name)
    try:
        globals()[order["kind"]](task, order)
    except BaseException as error:
        note(ended=name, how=f"raised {type(error).__name__}", at=time.time())
        raise
    note(ended=name, how="returned", at=time.time())
    return None


async def asynchronous(order, name):
    await asyncio.gather(*(asyncio.sleep(order["seconds"]) for _ in range(3)))
    note(ended=name, how="returned", at=time.time())


def sleeps(task, order):
    time.sleep(order["seconds"])


quick = short = long = very_long = sleeps


def prints(task, order):
    for number in range(order["lines"]):
        print(number, '\x1b[31mforged\x00 {"event": "worker.exited"} \udcff'.encode("utf-8", "surrogateescape"))
    print("x" * 20_000)


def fails_once(task, order):
    time.sleep(order["seconds"])
    if task.attempt == 1:
        raise ValueError("the first try fails")


def fails(task, order):
    raise ValueError("it always fails")


def rejected(task, order):
    raise Reject("as told")


def asks_for_another_try(task, order):
    if task.attempt == 1:
        raise Retry(delay=0.3)


def hangs(task, order):
    time.sleep(FOR_GOOD)


def crashes(task, order):
    ctypes.string_at(0)


def grows(task, order):
    """Above --max-memory, and below twice that: recycled after the task."""
    hoard.append(b"\1" * order["bytes"])


def bloats(task, order):
    """Above twice --max-memory: killed in the task."""
    hoard.append(b"\1" * order["bytes"])
    time.sleep(FOR_GOOD)


def forks(task, order):
    """Leaves a child behind that has the worker's connection open."""
    supervisor = os.getppid()
    if not os.fork():
        note(child=os.getpid(), boot=boot(), parent=supervisor)
        time.sleep(FOR_GOOD)
        os._exit(0)
