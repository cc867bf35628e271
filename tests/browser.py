"""A real browser for tests: headless Chromium, driven by its own protocol over a pipe.

`--remote-debugging-pipe` makes Chromium read commands from descriptor 3 and write answers and events to 4, JSON with a
NUL behind each (https://chromedevtools.github.io/devtools-protocol/): no port that another test could take, no
websocket, no package beside Chromium; and the browser leaves when the pipe ends, so also when the test is killed.
"""

from __future__ import annotations

import base64
import json
import os
import select
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests import debian
from tests.supervision import PATIENCE, eventually

FLAGS = (
    "--headless", "--remote-debugging-pipe", "--no-sandbox", "--disable-gpu", "--no-first-run", "--hide-scrollbars",
    "--disable-background-networking", "--disable-component-update", "--disable-sync", "--disable-dev-shm-usage",
    "--disable-extensions", "--mute-audio", "--force-color-profile=srgb",
)  # fmt: skip
"""No sandbox: root may not have one, and the only page it opens is ours."""
BECOME = """
import fcntl, os, sys
down, up = [fcntl.fcntl(int(number), fcntl.F_DUPFD, 10) for number in sys.argv[1:3]]
os.dup2(down, 3)
os.dup2(up, 4)
os.closerange(5, 1024)
os.execv(sys.argv[3], sys.argv[3:])
"""
"""Puts the pipes where Chromium looks for them, wherever they were, and becomes Chromium."""

FAINT = """(() => {
    const canvas = document.createElement("canvas").getContext("2d", {willReadFrequently: true});
    const over = (colours) => {
        canvas.clearRect(0, 0, 1, 1);
        for (const colour of colours) { canvas.fillStyle = colour; canvas.fillRect(0, 0, 1, 1); }
        return [...canvas.getImageData(0, 0, 1, 1).data];
    };
    const light = (rgb) => rgb.slice(0, 3).map((c) => c / 255)
        .map((c) => (c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4))
        .reduce((sum, c, n) => sum + c * [0.2126, 0.7152, 0.0722][n], 0);
    const grounds = (node) => node
        ? [...grounds(node.parentElement), getComputedStyle(node).backgroundColor] : ["white"];
    const faint = [];
    for (const node of document.querySelectorAll("body *")) {
        const own = [...node.childNodes].filter((child) => child.nodeType === 3);
        const text = own.map((child) => child.data).join("").trim();
        if (!text || ["SCRIPT", "NOSCRIPT"].includes(node.tagName) || !node.checkVisibility()) continue;
        const behind = grounds(node);
        const [one, other] = [over(behind), over([...behind, getComputedStyle(node).color])].map(light);
        const ratio = (Math.max(one, other) + 0.05) / (Math.min(one, other) + 0.05);
        if (ratio < 4.5) faint.push(`${ratio.toFixed(2)} ${node.className} ${text}`);
    }
    return faint;
})()"""
"""What has less contrast to what is behind it than WCAG 2.2 asks for (1.4.3, level AA)."""


def installed() -> str:
    """Chromium's path; Google's own browser will do. Skips the test where neither is to be had."""
    return shutil.which("google-chrome") or debian.install("chromium", "chromium")


class Chromium:
    """One browser process. `call` sends a command and returns its answer; events gather meanwhile."""

    def __init__(self, program: str, place: Path) -> None:
        down, self._commands = os.pipe()
        self._answers, up = os.pipe()
        os.set_blocking(self._answers, False)
        self._process = subprocess.Popen(
            [sys.executable, "-c", BECOME, str(down), str(up), program, *FLAGS, f"--user-data-dir={place}",
             "about:blank"],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            pass_fds=(down, up),
            env={**os.environ, "HOME": str(place), "TZ": "UTC"},
            start_new_session=True,
        )  # fmt: skip
        os.close(down)
        os.close(up)
        self._number = 0
        self._rest = b""
        self._replies: dict[int, dict[str, Any]] = {}
        self.events: list[dict[str, Any]] = []

    def call(self, method: str, session: str | None = None, **parameters: Any) -> dict[str, Any]:
        self._number += 1
        number = self._number
        command = {"id": number, "method": method, "params": parameters} | ({"sessionId": session} if session else {})
        os.write(self._commands, json.dumps(command).encode() + b"\0")
        deadline = time.monotonic() + PATIENCE
        while number not in self._replies:
            self.read(deadline - time.monotonic(), method)
        reply = self._replies.pop(number)
        assert "error" not in reply, f"{method}: {reply['error']}"
        return dict(reply["result"])

    def read(self, timeout: float, waiting_for: str = "") -> None:
        """Take in what the browser has said, or wait for it to say something."""
        if not select.select([self._answers], [], [], max(0.0, timeout))[0]:
            assert not waiting_for, f"Chromium has not answered {waiting_for}"
            return
        data = os.read(self._answers, 1 << 20)
        assert data, "Chromium is gone"
        *messages, self._rest = (self._rest + data).split(b"\0")
        for message in map(json.loads, messages):
            if "id" in message:
                self._replies[message["id"]] = message
            else:
                self.events.append(message)

    def end(self) -> None:
        """Close it; kill it and what it has started if it does not go by itself."""
        os.close(self._commands)
        try:
            self._process.wait(5)
        except subprocess.TimeoutExpired:
            pass
        try:
            os.killpg(self._process.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass
        self._process.wait()
        os.close(self._answers)


class Tab:
    """One page of the browser, and everything that it did and complained of."""

    def __init__(self, browser: Chromium, *, width: int = 1280, height: int = 900) -> None:
        self._browser = browser
        self._target = browser.call("Target.createTarget", url="about:blank")["targetId"]
        self._session = browser.call("Target.attachToTarget", targetId=self._target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Network", "Log"):
            self._call(f"{domain}.enable")
        self.resize(width, height)

    def _call(self, method: str, **parameters: Any) -> dict[str, Any]:
        return self._browser.call(method, self._session, **parameters)

    def close(self) -> None:
        self._browser.call("Target.closeTarget", targetId=self._target)

    # ------------------------------------------------------------------------------------------------- to act

    def resize(self, width: int, height: int, scale: float = 1) -> None:
        size = {"width": width, "height": height, "deviceScaleFactor": scale, "mobile": width < 600}
        self._call("Emulation.setDeviceMetricsOverride", **size)

    def prefer(self, **media: str) -> None:
        """What the reader's system prefers: `prefer(color_scheme="dark")`."""
        features = [{"name": f"prefers-{name.replace('_', '-')}", "value": value} for name, value in media.items()]
        self._call("Emulation.setEmulatedMedia", features=features)

    def front(self) -> None:
        """Have this be the tab that is seen; the others are hidden."""
        self._call("Page.bringToFront")

    def forbid_scripts(self) -> None:
        """As a reader does who has turned JavaScript off. `run` still works."""
        self._call("Emulation.setScriptExecutionDisabled", value=True)

    def open(self, url: str) -> Tab:
        self._call("Page.navigate", url=url)
        eventually(lambda: self.run("document.readyState") == "complete" and self.run("location.href") == url)
        return self

    def go(self, url: str) -> None:
        """Open a URL that leads elsewhere."""
        self._call("Page.navigate", url=url)

    def key(self, name: str) -> None:
        """Press and release a key: `Enter`, `Tab`, `ArrowDown`, `Escape`."""
        codes = {"Enter": 13, "Tab": 9, "ArrowDown": 40, "Escape": 27}
        about: dict[str, Any] = {"key": name, "code": name, "windowsVirtualKeyCode": codes[name]}
        if name == "Enter":
            about["text"] = "\r"
        self._call("Input.dispatchKeyEvent", type="keyDown", **about)
        self._call("Input.dispatchKeyEvent", type="keyUp", **about)

    def type(self, text: str) -> None:
        """Put this in where the focus is, in place of what is selected."""
        self._call("Input.insertText", text=text)

    def cookies(self) -> list[dict[str, Any]]:
        """Those of the page's URL."""
        return list(self._call("Network.getCookies")["cookies"])

    def run(self, script: str) -> Any:
        """The value of an expression, evaluated in the page; a promise's when it is there."""
        answer = self._call(
            "Runtime.evaluate",
            expression=script,
            returnByValue=True,
            awaitPromise=True,
            allowUnsafeEvalBlockedByCSP=False,
        )
        assert "exceptionDetails" not in answer, answer["exceptionDetails"]
        return answer["result"].get("value")

    def screenshot(self, whole: bool = False) -> bytes:
        """A PNG of what is in view, or of all of the page."""
        return base64.b64decode(self._call("Page.captureScreenshot", format="png", captureBeyondViewport=whole)["data"])

    # ------------------------------------------------------------------------------------------------ to look

    def text(self, selector: str = "body") -> str:
        """What a reader sees of the first such element; nothing where there is none."""
        return str(self.run(f"(document.querySelector({json.dumps(selector)}) || {{}}).innerText || ''"))

    def texts(self, selector: str) -> list[str]:
        return list(self.run(f"[...document.querySelectorAll({json.dumps(selector)})].map((node) => node.innerText)"))

    def sees(self, happens: Callable[[Tab], Any], timeout: float = PATIENCE) -> Any:
        """Wait until this is so, and return it. When it never is, the page as it stands is in the failure."""
        try:
            return eventually(lambda: happens(self), timeout)
        except AssertionError:
            raise AssertionError(f"never seen within {timeout} s; the page:\n{self.text()}") from None

    def _of(self, method: str) -> list[dict[str, Any]]:
        self._browser.read(0)
        return [
            event["params"]
            for event in self._browser.events
            if event.get("sessionId") == self._session and event["method"] == method
        ]

    @property
    def complaints(self) -> list[str]:
        """Errors, warnings, and violations of the Content-Security-Policy, as the browser's console has them."""
        self.run("0")  # what happened before this answer has been told before it
        said = [json.dumps(entry["entry"]) for entry in self._of("Log.entryAdded")]
        said += [json.dumps(call) for call in self._of("Runtime.consoleAPICalled")]
        return said + [json.dumps(thrown) for thrown in self._of("Runtime.exceptionThrown")]

    @property
    def requests(self) -> list[str]:
        """Every URL that was asked for."""
        self.run("0")
        return [sent["request"]["url"] for sent in self._of("Network.requestWillBeSent")]


@contextmanager
def chromium(program: str, place: Path) -> Iterator[Chromium]:
    """A browser for the length of a block, with a profile of its own in `place`. `program`: see `installed`."""
    browser = Chromium(program, place)
    try:
        yield browser
    finally:
        browser.end()
