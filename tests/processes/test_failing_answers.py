"""An error in an answer of the health port costs that answer only."""

from __future__ import annotations

import json
import subprocess
import sys
from http.client import HTTPConnection

SUPERVISOR = """
import os, socket, sys
from supervisor import logs
from supervisor.parent.control import Wishes
from supervisor.parent.http.thread import Serving

lock = os.memfd_create("lock")
logs.configure(role="supervisor", queue="q", fd=2, lock_fd=lock, format="json", level="info")
health = socket.create_server(("127.0.0.1", 0))

class Broken:
    def __getattr__(self, name):
        raise KeyError("broken " + name)

serving = Serving(Broken, Wishes(), health, None)
serving.tend()
print(health.getsockname()[1], flush=True)
sys.stdin.read()
"""
"""One whose answers fail."""


def test_the_client_gets_500_and_the_log_the_traceback() -> None:
    command = ["setpriv", "--pdeathsig", "KILL", sys.executable, "-c", SUPERVISOR]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, text=True, stdin=pipe, stdout=pipe, stderr=pipe) as process:
        try:
            assert process.stdout is not None
            link = HTTPConnection("127.0.0.1", int(process.stdout.readline()), timeout=60)
            for _ in range(2):  # by one connection
                link.request("GET", "/status?x", headers={"Host": "127.0.0.1"})
                answer = link.getresponse()
                assert (answer.status, json.loads(answer.read())["ok"]) == (500, False)
            link.close()
            _, err = process.communicate("", timeout=60)
        finally:
            process.kill()
    [event] = [json.loads(line) for line in err.splitlines()]
    assert (event["event"], event["level"]) == ("health.answer_failed", "error")
    assert "GET /status failed: KeyError" in event["because"]
    assert "Traceback" in event["exception"]
