"""N processes of one program, and nothing else: python -m benches.peers.pool N PROGRAM ARGUMENT...

What somebody has who starts his workers from a shell script. None is started again. They end with this process, however
it ends.
"""

import signal
import subprocess
import sys


def main() -> int:
    count, program = int(sys.argv[1]), sys.argv[2:]
    running = [subprocess.Popen(["setpriv", "--pdeathsig", "KILL", *program]) for _ in range(count)]
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    for process in running:
        process.wait()
    return 0


if __name__ == "__main__":
    sys.exit(main())
