"""Whoever asks for the supervisor's end has an answer to that, however quickly the end comes."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

SUPERVISOR = """
import os, selectors, sys
from supervisor.parent.control import Wishes
from supervisor.parent.http import sockets
from supervisor.parent.http.thread import Serving
from supervisor.policy.actions import Say
from supervisor import logs

listener = sockets.control(sys.argv[1], True, logs.get_logger())
wishes = Wishes()
serving = Serving(lambda: None, wishes, None, listener)
serving.tend()
print("ready", flush=True)
with selectors.DefaultSelector() as selector:
    selector.register(wishes, selectors.EVENT_READ)
    selector.select()
if sys.argv[2] == "answered":
    for asked in wishes.take():
        wishes.answer(asked, [Say("supervisor.stopping", "info", "workq drain")], None)
wishes.end()
serving.finish()
os._exit(0)
"""
"""One that has nothing to do before its end."""


@pytest.fixture(params=["answered", "too late"])
def end(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[str, Path]]:
    path = tmp_path / "control"
    command = ["setpriv", "--pdeathsig", "KILL", sys.executable, "-c", SUPERVISOR, str(path), request.param]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None and process.stdout.readline() == "ready\n"
        yield request.param, path
        process.kill()


def ask(path: Path) -> bytes:
    with closing(socket.socket(socket.AF_UNIX)) as client:
        client.connect(str(path))
        client.sendall(b"POST /drain HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: 0\r\n\r\n")
        return b"".join(iter(lambda: client.recv(65536), b""))


def test_a_request_that_ends_the_supervisor_is_answered_whole(end: tuple[str, Path]) -> None:
    how, path = end
    head, _, body = ask(path).partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 200" if how == "answered" else b"HTTP/1.1 409"), head
    assert json.loads(body)["because"] == ("workq drain" if how == "answered" else "the supervisor has stopped")
