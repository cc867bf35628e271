"""Handlers, in the image of the tests."""

import os
import sys
import time

import humanize


def resize(task):
    """The body is seconds to sleep."""
    time.sleep(float(task.text))
    print("resized", humanize.naturalsize(len(task.body)))
    print("and to stderr", file=sys.stderr)


def eat(task):
    """The body is MB to take."""
    eaten = [b"x" * (1 << 20) for _ in range(int(task.text))]
    print(len(eaten))


def orphan(task):
    """Leaves a grandchild behind that ends at once: nobody but PID 1 can reap it."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        grandchild = os.fork()
        if grandchild == 0:
            os.setsid()
            os._exit(0)
        os.write(writer, str(grandchild).encode())
        os._exit(0)
    os.waitpid(child, 0)
    print("grandchild", os.read(reader, 100).decode())
