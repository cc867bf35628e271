"""N processes of bare_pika.py, forked from this one, which has imported it: python -m benches.peers.forked N

They share the pages of its memory as far as nobody writes to them, and so the processor's caches. The collector is kept
from writing to them as https://docs.python.org/3/library/gc.html#gc.freeze advises.
"""

import ctypes
import gc
import os
import signal
import sys

from benches.peers import bare_pika

PR_SET_PDEATHSIG = 1  # linux/prctl.h; see prctl(2)
libc = ctypes.CDLL(None)


def fork() -> int:
    """A worker; its pid. It ends with this process, however it ends."""
    pid = os.fork()
    if pid == 0:
        libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        gc.enable()
        bare_pika.consume_forever()
        os._exit(0)
    return pid


def main() -> int:
    gc.disable()
    gc.freeze()
    running = [fork() for _ in range(int(sys.argv[1]))]
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    for pid in running:
        os.waitpid(pid, 0)
    return 0


if __name__ == "__main__":
    sys.exit(main())
