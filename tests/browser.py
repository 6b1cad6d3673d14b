"""A real browser, headless, driven over pipes by the DevTools protocol.

Pipes need neither a port nor a driver program: Chromium reads commands from file
descriptor 3 and writes answers and events to 4, as JSON texts that end in a zero byte.
"""

from __future__ import annotations

import base64
import json
import os
import select
import shutil
import subprocess
import time
from pathlib import Path
from typing import Any

FLAGS = (
    "--headless=new --no-sandbox --disable-gpu --disable-quic --no-first-run "
    "--no-default-browser-check --disable-background-networking --disable-sync "
    "--disable-component-update --disable-default-apps --disable-extensions "
    "--disable-dev-shm-usage --hide-scrollbars --remote-debugging-pipe"
).split()

# Key names to the codes that make a browser act on them.
_CODES = {
    "Tab": 9, "Enter": 13, "Escape": 27, " ": 32, "ArrowLeft": 37, "ArrowUp": 38,
    "ArrowRight": 39, "ArrowDown": 40, "Home": 36, "End": 35,
}  # fmt: skip


def executable() -> str | None:
    names = ("chromium", "chromium-browser", "google-chrome", "chrome")
    return next(filter(None, map(shutil.which, names)), None)


class Browser:
    """One browser with one page at a time."""

    def __init__(self, profile: Path) -> None:
        program = executable()
        assert program is not None
        # The pipes are set up as standard input and output, and moved by the shell.
        self._process = subprocess.Popen(
            [
                *("sh", "-c", 'exec "$@" 3<&0 4>&1 </dev/null >/dev/null', "sh"),
                *(program, *FLAGS, f"--user-data-dir={profile}", "about:blank"),
            ],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            bufsize=0,
        )
        self._buffer = b""
        self._number = 0
        self._session: str | None = None
        self._context: str | None = None
        self.events: list[dict[str, Any]] = []

    def close(self) -> None:
        try:
            self._command("Browser.close", {}, None)
            self._process.wait(10)
        except (OSError, RuntimeError, subprocess.TimeoutExpired):
            self._process.kill()
            self._process.wait()
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        self._process.stdout.close()

    # --- pages ---------------------------------------------------------------------

    def open(
        self, url: str, width: int = 1280, height: int = 800, dark: bool = False
    ) -> None:
        """Opens a page afresh, recording its requests, messages and errors."""
        if self._context is not None:
            self._command(
                "Target.disposeBrowserContext",
                {"browserContextId": self._context},
                None,
            )
        created = self._command("Target.createBrowserContext", {}, None)
        self._context = created["browserContextId"]
        target = self._command(
            "Target.createTarget",
            {"url": "about:blank", "browserContextId": self._context},
            None,
        )
        attached = self._command(
            "Target.attachToTarget",
            {"targetId": target["targetId"], "flatten": True},
            None,
        )
        self._session = attached["sessionId"]
        self.events = []
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.do(f"{domain}.enable")
        self.resize(width, height)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.do("Emulation.setEmulatedMedia", features=[scheme])
        self.do("Page.navigate", url=url)
        self.until("document.readyState === 'complete'")

    def resize(self, width: int, height: int) -> None:
        self.do(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=1,
            mobile=False,
        )

    def evaluate(self, expression: str) -> Any:
        """The value of a JavaScript expression; promises are waited for."""
        answer = self.do(
            "Runtime.evaluate",
            expression=expression,
            returnByValue=True,
            awaitPromise=True,
        )
        if "exceptionDetails" in answer:
            raise RuntimeError(str(answer["exceptionDetails"]))
        return answer["result"].get("value")

    def until(self, expression: str, seconds: float = 20.0) -> None:
        """Waits until an expression is true."""
        end = time.monotonic() + seconds
        while not self.evaluate(expression):
            if time.monotonic() > end:
                raise TimeoutError(f"still not true: {expression}")
            time.sleep(0.02)

    def screenshot(self) -> bytes:
        return base64.b64decode(self.do("Page.captureScreenshot", format="png")["data"])

    # --- what went wrong, what was fetched -----------------------------------------

    def errors(self) -> list[str]:
        """Errors and warnings on the console, exceptions, violations of the policy."""
        self.evaluate("0")  # lets pending events arrive
        found = []
        for event in self.events:
            name, params = event["method"], event["params"]
            if name == "Runtime.exceptionThrown" or (
                name == "Log.entryAdded"
                and params["entry"]["level"] in ("error", "warning")
            ):
                found.append(json.dumps(params))
            if name == "Runtime.consoleAPICalled" and params["type"] != "log":
                found.append(json.dumps(params))
        return found

    def requests(self) -> list[str]:
        """Addresses of everything that the page asked for, itself included."""
        self.evaluate("0")
        return [
            event["params"]["request"]["url"]
            for event in self.events
            if event["method"] == "Network.requestWillBeSent"
        ]

    # --- hands ---------------------------------------------------------------------

    def move(self, x: float, y: float) -> None:
        self.do("Input.dispatchMouseEvent", type="mouseMoved", x=x, y=y)

    def click(self, x: float, y: float) -> None:
        self.move(x, y)
        for kind in ("mousePressed", "mouseReleased"):
            self.do(
                "Input.dispatchMouseEvent",
                type=kind,
                x=x,
                y=y,
                button="left",
                clickCount=1,
            )

    def tap(self, x: float, y: float) -> None:
        self.do(
            "Input.dispatchTouchEvent",
            type="touchStart",
            touchPoints=[{"x": x, "y": y}],
        )
        self.do("Input.dispatchTouchEvent", type="touchEnd", touchPoints=[])

    def press(self, key: str) -> None:
        code = {"key": key, "code": key, "windowsVirtualKeyCode": _CODES[key]}
        text = {"text": "\r"} if key == "Enter" else {}
        self.do("Input.dispatchKeyEvent", type="keyDown", **code, **text)
        self.do("Input.dispatchKeyEvent", type="keyUp", **code)

    def write(self, text: str) -> None:
        self.do("Input.insertText", text=text)

    # --- the protocol --------------------------------------------------------------

    def do(self, method: str, **params: Any) -> dict[str, Any]:
        """Sends a command to the page and returns the answer."""
        return self._command(method, params, self._session)

    def _command(
        self, method: str, params: dict[str, Any], session: str | None
    ) -> dict[str, Any]:
        self._number += 1
        message = {"id": self._number, "method": method, "params": params}
        if session is not None:
            message["sessionId"] = session
        assert self._process.stdin is not None
        content = memoryview(json.dumps(message).encode() + b"\0")
        while content:
            content = content[self._process.stdin.write(content) :]
        while (answer := self._receive()).get("id") != self._number:
            if answer.get("sessionId") == self._session:
                self.events.append(answer)
        if "error" in answer:
            raise RuntimeError(f"{method}: {answer['error']}")
        return answer["result"]

    def _receive(self, seconds: float = 30.0) -> dict[str, Any]:
        assert self._process.stdout is not None
        while b"\0" not in self._buffer:
            ready, _, _ = select.select([self._process.stdout], [], [], seconds)
            if not ready:
                raise TimeoutError("the browser does not answer")
            received = os.read(self._process.stdout.fileno(), 1 << 16)
            if not received:
                raise RuntimeError("the browser has ended")
            self._buffer += received
        message, self._buffer = self._buffer.split(b"\0", 1)
        return json.loads(message)
