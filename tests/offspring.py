"""Handlers that start processes and threads, or leave them behind. See `handlers` for how they tell what they did."""

import asyncio
import atexit
import concurrent.futures
import ctypes
import logging
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time

from handlers import note

SLEEP = ["sleep", "600"]


def leave(task):
    """Start what the order names, once for each message id, and sleep. A second run tells what is alive of it."""
    order = task.json()
    name = task.message_id
    for pid in told("child", name):
        if is_alive(pid):
            note("survivor", f"{name} {pid}")
    if not told("child", name):
        for kind in order["start"]:
            START[kind](name)
        note("started", name)
        time.sleep(order.get("sleep", 0))
    note("done", name)


def told(word, name):
    with open(os.environ["TEST_RUNS"]) as runs:
        return [int(line.split()[2]) for line in runs if line.startswith(f"{word} {name} ")]


def is_alive(pid):
    """Not if it is about to exit: it runs nothing more, and has closed its connection before it is a zombie."""
    try:
        with open(f"/proc/{pid}/stat") as stat:
            state, *fields = stat.read().rpartition(")")[2].split()
    except OSError:
        return False
    is_exiting = int(fields[5]) & 0x4  # proc_pid_stat(5), (9) flags: PF_EXITING
    is_killed = int(fields[27]) & 1 << signal.SIGKILL - 1  # (31) signal
    return state not in "ZX" and not is_exiting and not is_killed


def child(name, pid):
    note("child", f"{name} {pid}")


def forked(name):
    """Holds everything the worker has: its AMQP connection and its output."""
    pid = os.fork()
    if pid == 0:
        while True:
            signal.pause()
    child(name, pid)


def daemon(name):
    """By the book: two forks, a session, no descriptors, an empty environment, another program."""
    reader, writer = os.pipe()
    first = os.fork()
    if first == 0:
        os.setsid()
        second = os.fork()
        if second == 0:
            child(name, os.getpid())
            os.close(writer)
            os.closerange(0, 256)
            os.execve("/usr/bin/env", ["env", "-i", *SLEEP], {})
        os._exit(0)
    os.waitpid(first, 0)
    os.close(writer)
    os.read(reader, 1)
    os.close(reader)


def nested(name):
    """A session in a session in a session."""
    reader, writer = os.pipe()
    if os.fork() == 0:
        for _ in range(3):
            os.setsid()
            child(name, os.getpid())
            if os.fork():
                break
        else:
            os.write(writer, b".")
        while True:
            signal.pause()
    os.read(reader, 1)


START = {
    "same group": lambda name: child(name, subprocess.Popen(SLEEP).pid),
    "own group": lambda name: child(name, subprocess.Popen(SLEEP, process_group=0).pid),
    "own session": lambda name: child(name, subprocess.Popen(SLEEP, start_new_session=True, env={}).pid),
    "forked": forked,
    "daemon": daemon,
    "nested": nested,
}


# ------------------------------------------------------------------------------------------- what shall just work


def square(number):
    logging.getLogger("offspring").warning("squaring %s", number)
    print("squaring", number)
    return number * number


def with_subprocess(_):
    out = subprocess.run(["sh", "-c", "echo $((6 * 7))"], capture_output=True, text=True, check=True).stdout
    assert out == "42\n"
    # SIGINT is how ffmpeg, tcpdump and friends are told to end well.
    with subprocess.Popen([sys.executable, "-c", "import time; print(1, flush=True); time.sleep(600)"], stdout=-1) as p:
        p.stdout.read(1)
        p.send_signal(signal.SIGINT)
    assert p.returncode == -signal.SIGINT


def with_pool(context):
    with multiprocessing.get_context(context).Pool(2) as pool:
        assert pool.map(square, range(5)) == [0, 1, 4, 9, 16]
    # ... and leaving the block was Pool.terminate(): SIGTERM to each child.


def with_terminate(_):
    """Pools that are given up as soon as they are made, and a process that only SIGTERM can end."""
    context = multiprocessing.get_context("fork")
    for _ in range(5):
        pool = context.Pool(2)
        pool.terminate()
        pool.join()
    process = context.Process(target=time.sleep, args=(600,))
    process.start()
    process.terminate()
    process.join()
    assert process.exitcode == -signal.SIGTERM


def with_executor(context):
    context = multiprocessing.get_context(context)
    with concurrent.futures.ProcessPoolExecutor(2, mp_context=context) as pool:
        assert list(pool.map(square, range(5))) == [0, 1, 4, 9, 16]


KEPT = concurrent.futures.ProcessPoolExecutor(2, mp_context=multiprocessing.get_context("fork"))


def with_kept_executor(_):
    """One for all tasks, never shut down: as people do."""
    assert list(KEPT.map(square, range(5))) == [0, 1, 4, 9, 16]


def with_threads(_):
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        assert list(pool.map(square, range(5))) == [0, 1, 4, 9, 16]
        # From a thread that is not the main one.
        assert pool.submit(subprocess.run, ["true"]).result().returncode == 0
        pool.submit(with_pool, "fork").result()


def with_asyncio(_):
    async def main():
        process = await asyncio.create_subprocess_exec("echo", "42", stdout=subprocess.PIPE)
        out, _ = await process.communicate()
        return out, await asyncio.to_thread(square, 3)

    assert asyncio.run(main()) == (b"42\n", 9)


WAYS = {
    "subprocess": with_subprocess,
    "pool": with_pool,
    "terminate": with_terminate,
    "executor": with_executor,
    "kept executor": with_kept_executor,
    "threads": with_threads,
    "asyncio": with_asyncio,
}


def use(task):
    """The order names a way, its argument, and for how long to sleep before."""
    order = task.json()
    time.sleep(order.get("sleep", 0))
    WAYS[order["way"]](order.get("with"))
    note("done", f"{task.message_id} {os.getpid()}")


# ------------------------------------------------------------------------------------- a child that is not a worker


def fork_and(task):
    """Fork; the child ends in the ordered way, the worker tells its exit code."""
    atexit.register(note, "atexit", str(os.getpid()))
    order = task.json()
    pid = os.fork()
    if pid:
        note("status", f"{order['end']} {os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])}")
        return
    match order["end"]:
        case "return":
            print("a child's last words, unflushed", end="")
            return
        case "raise":
            raise ValueError("in the child")
        case "exit":
            sys.exit(order["code"])


# ---------------------------------------------------------------------------------------------------- bad endings


def hang_at_exit(task):
    if task.text == "thread":
        threading.Thread(target=time.sleep, args=(600,)).start()
    else:
        atexit.register(time.sleep, 600)
    note("done", task.message_id)


def read_at_zero(_):
    ctypes.string_at(0)


def eat(task):
    """Take memory, a mebibyte at a time, as many as the body says."""
    note("began", task.message_id)
    eaten = [b"x" * (1 << 20) for _ in range(int(task.text))]
    note("done", f"{task.message_id} {len(eaten)}")
