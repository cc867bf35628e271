"""Handler modules written by a test into its own directory."""

from __future__ import annotations

from pathlib import Path

THREADED = """
import threading, time
threading.Thread(target=time.sleep, args=(3600,), daemon=True, name="left-behind").start()
from handlers import work
"""

FORK_AWARE = """
import os, threading
from handlers import note, work
note("imported", os.getpid())
asked = threading.Event()
thread = threading.Thread(target=asked.wait, daemon=True, name="fork-aware")
thread.start()

def end():
    asked.set()
    thread.join()

os.register_at_fork(before=end)
"""

HANGS = """
import time
print("importing, for ever")
time.sleep(3600)
"""

RAISES = """
def work(task):
    pass
1 / 0
"""

EXITS = """
import sys
sys.exit("this module is a script")
"""


def write(directory: Path, name: str, text: str) -> None:
    (directory / f"{name}.py").write_text(text)
