"""A running `workq ui`, and requests to it as a browser, or somebody else, would make them."""

from __future__ import annotations

import http.client
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit


@dataclass
class Reply:
    status: int
    headers: dict[str, str]
    body: str

    @property
    def because(self) -> str:
        return str(json.loads(self.body)["because"])


@dataclass
class Ui:
    url: str
    """As it was printed."""
    process: subprocess.Popen[str]
    cookie: str = ""
    """The session's, once entered."""
    _parts: Any = field(init=False)

    def __post_init__(self) -> None:
        self._parts = urlsplit(self.url)

    @property
    def path(self) -> str:
        return str(self._parts.path)

    @property
    def token(self) -> str:
        return str(self._parts.query).removeprefix("token=")

    @property
    def port(self) -> int:
        return int(self._parts.port)

    @property
    def origin(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def ask(self, method: str, path: str, body: object = None, **headers: str | None) -> Reply:
        """One request below the secret path, unless `path` begins with a slash; with the session's cookie, if there is
        one, and for a POST with what a browser sends. A header that is None is left out; `_` stands for `-`."""
        usual: dict[str, str | None] = {"cookie": self.cookie or None}
        payload = None
        if method == "POST":
            usual |= {"origin": self.origin, "content-type": "application/json"}
            payload = body if isinstance(body, bytes) else json.dumps(body or {}).encode()
        given = usual | {name.replace("_", "-"): value for name, value in headers.items()}
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        try:
            connection.putrequest(method, path if path.startswith("/") else self.path + path, skip_host="host" in given)
            for name, value in given.items():
                if value is not None:
                    connection.putheader(name, value)
            if payload is not None and "transfer-encoding" not in given and "content-length" not in given:
                connection.putheader("content-length", str(len(payload)))
            connection.endheaders(payload if "content-length" not in given else None)
            answer = connection.getresponse()
            return Reply(answer.status, {k.lower(): v for k, v in answer.getheaders()}, answer.read().decode())
        finally:
            connection.close()

    def enter(self) -> Ui:
        """Use the printed URL, as a browser would."""
        reply = self.ask("GET", f"?token={self.token}")
        assert reply.status == 303, reply
        self.cookie = reply.headers["set-cookie"].partition(";")[0]
        return self


@contextmanager
def ui(*options: str, **variables: str) -> Iterator[Ui]:
    """`workq ui` on a free port, for the length of a block."""
    environ = {name: value for name, value in os.environ.items() if not name.startswith("WORKQ_")}
    process = subprocess.Popen(
        ["setpriv", "--pdeathsig", "KILL", Path(sys.executable).with_name("workq"), "ui", "--port", "0", *options],
        stdout=subprocess.PIPE,
        env=environ | variables,
        text=True,
    )
    try:
        assert process.stdout is not None
        printed = process.stdout.readline()
        found = re.fullmatch(r"workq ui: (http://127\.0\.0\.1:\d+/\S+)\n", printed)
        assert found is not None, printed
        yield Ui(found[1], process)
    finally:
        process.terminate()
        process.wait()
