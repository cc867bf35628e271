"""`workq ui`: who is let in, and that nobody else is. What it shows and does: tests/broker/test_ui.py."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.ui import Ui, ui

NOBODY = ("--control", "/nonexistent/workq.sock")
VERBS = ("scale", "reload", "pause", "resume", "drain", "kill", "letters/requeue", "letters/drop", "letters/list")


@pytest.fixture(scope="module")
def entered() -> Iterator[Ui]:
    with ui(*NOBODY) as page:
        yield page.enter()


def test_the_printed_url_opens_the_page_once_and_sets_a_cookie_that_no_script_and_no_other_site_has() -> None:
    with ui(*NOBODY) as page:
        assert len(page.token) >= 43 and len(page.path) >= 12
        wrong = page.ask("GET", "?token=" + "x" * len(page.token))
        assert wrong.status == 403 and "is wrong" in wrong.because and "set-cookie" not in wrong.headers
        assert page.ask("GET", "?token=").status == page.ask("GET", "").status == 403
        first = page.ask("GET", f"?token={page.token}")
        assert (first.status, first.headers["location"]) == (303, page.path)
        cookie, *attributes = [part.strip().lower() for part in first.headers["set-cookie"].split(";")]
        assert {"httponly", "samesite=strict", f"path={page.path.lower()}"} == set(attributes)
        assert page.token.lower() not in cookie
        again = page.ask("GET", f"?token={page.token}")
        assert again.status == 403 and "has been used" in again.because and "set-cookie" not in again.headers


def test_without_the_session_nothing_is_answered(entered: Ui) -> None:
    for path in ("", "style.css", "live.js", "hands.js", "look"):
        assert entered.ask("GET", path, cookie=None).status == 403, path
        assert entered.ask("GET", path).status == 200, path
    assert entered.ask("POST", "supervisors/0/reload", cookie=None).status == 403
    with ui(*NOBODY) as other:
        assert entered.ask("GET", "look", cookie=other.enter().cookie).status == 403
        assert other.ask("GET", "look").status == 200
    for cookie in ("workq-ui=", "workq-ui=x", "workq-ui=\udcff", "a=b", '"', "workq-ui=" + "x" * 5000):
        raw = cookie.encode("utf-8", "surrogateescape").decode("latin-1")
        assert entered.ask("GET", "look", cookie=raw).status == 403, cookie


def test_outside_of_the_secret_path_there_is_nothing(entered: Ui) -> None:
    """A browser sends the cookie below that path only, so no other server on this host is sent it."""
    for path in (
        "/",
        "/look",
        "/style.css",
        f"/?token={entered.token}",
        entered.path[:-1],
        entered.path[:-2] + "/look",
    ):
        reply = entered.ask("GET", path)
        assert reply.status == 404 and entered.path.strip("/") not in reply.body, path


@pytest.mark.parametrize("host", ["example.org", "127.0.0.1", "127.0.0.1:1", "evil.localhost:{}", "0.0.0.0:{}", ""])
def test_a_foreign_host_is_refused(entered: Ui, host: str) -> None:
    reply = entered.ask("GET", "look", host=host.format(entered.port))
    assert reply.status == 421 and "the same port" in reply.because
    assert entered.ask("POST", "supervisors/0/reload", host=host.format(entered.port)).status == 421


def test_loopbacks_other_names_are_its_own(entered: Ui) -> None:
    for name in ("localhost", "[::1]"):
        assert entered.ask("GET", "look", host=f"{name}:{entered.port}").status == 200


@pytest.mark.parametrize(
    "origin", ["http://example.org", "http://127.0.0.1:1", "https://127.0.0.1:{}", "null", "http://localhost:{}"]
)
def test_a_foreign_origin_is_refused(entered: Ui, origin: str) -> None:
    for method, path in (("GET", "look"), ("POST", "supervisors/0/reload")):
        assert entered.ask(method, path, origin=origin.format(entered.port)).status == 403


def test_a_post_is_refused_unless_it_can_only_come_from_our_script(entered: Ui) -> None:
    assert entered.ask("POST", "supervisors/0/reload", origin=None).status == 403
    for kind in ("text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x", None):
        assert entered.ask("POST", "supervisors/0/reload", content_type=kind).status == 415, kind
    assert entered.ask("POST", "supervisors/0/reload", content_length=str(256 * 1024 + 1)).status == 413
    assert (
        entered.ask("POST", "supervisors/0/reload", b"", transfer_encoding="chunked", content_length=None).status == 411
    )
    assert entered.ask("POST", "supervisors/0/reload", b"[]").status == 400
    assert entered.ask("POST", "supervisors/0/reload", b"[" * 50_000).status == 400


@pytest.mark.parametrize("verb", VERBS)
def test_what_acts_is_asked_for_by_post_alone(entered: Ui, verb: str) -> None:
    for method in ("GET", "HEAD", "PUT", "DELETE", "PATCH", "OPTIONS"):
        assert entered.ask(method, f"supervisors/0/{verb}").status == 405, method
    # The supervisor is not there: this one request would have reached it.
    assert entered.ask("POST", f"supervisors/0/{verb}").status in (403, 404, 502)


def test_there_is_no_supervisor_but_those_on_the_page(entered: Ui) -> None:
    assert entered.ask("POST", "supervisors/1/reload").status == 404
    assert entered.ask("POST", "supervisors/-1/reload").status == 404
    assert entered.ask("GET", "look?of=7").status == entered.ask("GET", "look?of=x").status == 200


def test_the_page_loads_nothing_from_elsewhere_has_nothing_inline_and_cannot_be_framed(entered: Ui) -> None:
    page = entered.ask("GET", "")
    policy = dict(each.split(" ", 1) for each in page.headers["content-security-policy"].split("; "))
    assert policy["default-src"] == policy["frame-ancestors"] == policy["form-action"] == policy["base-uri"] == "'none'"
    assert policy["script-src"] == policy["style-src"] == policy["connect-src"] == "'self'"
    assert policy["require-trusted-types-for"] == "'script'" and "unsafe" not in str(policy)
    assert not re.search(r"<style|<script(?! src=\"\w+\.js\" defer></script>)|\son\w+=|\sstyle=", page.body)
    assert set(re.findall(r'(?:src|href)="([^"]+)"', page.body)) == {
        "live.js", "hands.js", "style.css", "data:,", "#header",
    }  # fmt: skip
    for reply in (page, entered.ask("GET", "look"), entered.ask("GET", "/"), entered.ask("GET", "", cookie=None)):
        assert reply.headers["x-frame-options"] == "DENY"
        assert reply.headers["cache-control"] == "no-store"
        assert reply.headers["referrer-policy"] == "no-referrer"
        assert reply.headers["x-content-type-options"] == "nosniff"
        assert "server" not in reply.headers


def test_it_listens_on_loopback_alone(entered: Ui) -> None:
    tables = [Path(f"/proc/{entered.process.pid}/net/{name}").read_text() for name in ("tcp", "tcp6")]
    rows = [line.split() for table in tables for line in table.splitlines()[1:]]
    assert {row[1] for row in rows if row[3] == "0A" and row[1].endswith(f":{entered.port:04X}")} == {
        f"0100007F:{entered.port:04X}"
    }


def test_a_port_that_is_taken_is_an_error_only_if_it_was_asked_for(entered: Ui) -> None:
    workq = Path(sys.executable).with_name("workq")
    done = subprocess.run([workq, "ui", "--port", str(entered.port)], capture_output=True, text=True, timeout=60)
    assert done.returncode == 69 and "choose another --port" in done.stderr and not done.stdout


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_it_ends_on_a_signal_and_the_session_with_it(number: int) -> None:
    with ui(*NOBODY) as page:
        page.enter()
        page.process.send_signal(number)
        assert page.process.wait(60) == 0
        with pytest.raises(ConnectionRefusedError):
            page.ask("GET", "look")


def test_without_the_extra_it_says_how_to_get_it() -> None:
    script = (
        "import sys; sys.modules['starlette'] = None; from supervisor.commands import main; main(['ui', '--port', '0'])"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60)
    assert done.returncode == 78 and f"{sys.executable} -m pip install 'starlette>=1' 'uvicorn>=0.30' (" in done.stderr
