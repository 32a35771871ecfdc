"""A report in a headless Chromium: pictures of it, and what its page says about itself.

    python tools/screenshot.py REPORT.html -o FILE.png [--width PX] [--height PX] [--dark] [--scroll PX | --at SELECTOR]

``Browser`` speaks the DevTools protocol over a pipe, so it needs nothing but the browser. The browser runs without a
network.
"""

from __future__ import annotations

import argparse
import base64
import fcntl
import json
import os
import select
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from types import TracebackType
from typing import Any

_NAMES = ("chromium", "chromium-browser", "google-chrome")
_FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--disable-dev-shm-usage",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-default-apps",
    "--disable-sync",
    "--no-first-run",
    "--no-default-browser-check",
    "--hide-scrollbars",
    "--force-color-profile=srgb",
    "--host-resolver-rules=MAP * ~NOTFOUND",
    "--remote-debugging-pipe",
)
_READY_S = 60.0
_LAUNCHER = """
import os, sys
os.dup2(int(sys.argv[1]), 3)
os.dup2(int(sys.argv[2]), 4)
os.execv(sys.argv[3], sys.argv[3:])
"""
"""The protocol's pipes are the descriptors 3 and 4."""
_FREE_DESCRIPTOR = 10


def find_browser() -> str | None:
    """The program, or ``None`` where there is no Chromium."""
    return next((path for name in _NAMES if (path := shutil.which(name))), None)


class Browser:
    """A headless Chromium with one page; close it, or use it in a ``with`` block.

    Attributes:
        requests: addresses that the page asked for, beside its own file and data URIs.
        problems: uncaught exceptions and errors on the page's console.
    """

    def __init__(self, program: str) -> None:
        self.requests: list[str] = []
        self.problems: list[str] = []
        self._profile = tempfile.mkdtemp(prefix="livemoments-browser-")
        ours = [*os.pipe(), *os.pipe()]
        # Out of the way of 3 and 4.
        read_commands, self._write, self._read, write_answers = (
            fcntl.fcntl(descriptor, fcntl.F_DUPFD_CLOEXEC, _FREE_DESCRIPTOR) for descriptor in ours
        )
        for descriptor in ours:
            os.close(descriptor)
        self._buffer = b""
        self._number = 0
        profile = f"--user-data-dir={self._profile}"
        self._process = subprocess.Popen(
            [sys.executable, "-c", _LAUNCHER, str(read_commands), str(write_answers), program, *_FLAGS, profile],
            pass_fds=(read_commands, write_answers),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        os.close(read_commands)
        os.close(write_answers)
        try:
            target = self._call("Target.createTarget", {"url": "about:blank"}, session=False)["targetId"]
            attached = self._call("Target.attachToTarget", {"targetId": target, "flatten": True}, session=False)
            self._session = attached["sessionId"]
            for domain in ("Page", "Runtime", "Log", "Network"):
                self._call(f"{domain}.enable")
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Browser:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """End the browser and remove its profile."""
        self._process.kill()
        self._process.wait()
        os.close(self._write)
        os.close(self._read)
        shutil.rmtree(self._profile, ignore_errors=True)

    def open(self, path: Path, *, width: int, height: int = 900, dark: bool = False, suffix: str = "") -> None:
        """Show a file at a size in CSS pixels, and wait until its page says that it is ready.

        Raises:
            TimeoutError: it never does.
        """
        self._url = path.resolve().as_uri()
        self.requests, self.problems = [], []
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self._call("Emulation.setEmulatedMedia", {"features": [scheme]})
        self.resize(width, height)
        self._call("Page.navigate", {"url": "about:blank"})
        self._call("Page.navigate", {"url": self._url + suffix})
        deadline = time.monotonic() + _READY_S
        while self.evaluate("document.documentElement?.dataset.ready") != "true":
            if time.monotonic() > deadline:
                raise TimeoutError(f"{path}: the page did not get ready: {self.problems}")
            time.sleep(0.05)

    def resize(self, width: int, height: int) -> None:
        """The window's size in CSS pixels."""
        size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
        self._call("Emulation.setDeviceMetricsOverride", size)

    def evaluate(self, expression: str) -> Any:
        """A JavaScript expression's value, a promise's awaited.

        Raises:
            RuntimeError: it throws.
        """
        asked = {"expression": expression, "returnByValue": True, "awaitPromise": True}
        answer = self._call("Runtime.evaluate", asked)
        if "exceptionDetails" in answer:
            raise RuntimeError(f"{expression}: {answer['exceptionDetails']}")
        return answer["result"].get("value")

    def press(self, key: str, code: int) -> None:
        """A key, by its name and its virtual key code."""
        for kind in ("rawKeyDown", "keyUp"):
            asked = {"type": kind, "key": key, "code": key, "windowsVirtualKeyCode": code}
            self._call("Input.dispatchKeyEvent", asked)

    def point_at(self, x: float, y: float, *, click: bool = False) -> None:
        """The mouse at a place of the window, in CSS pixels; perhaps with a click."""
        at = {"x": x, "y": y}
        self._call("Input.dispatchMouseEvent", {"type": "mouseMoved", **at})
        for kind in ("mousePressed", "mouseReleased") if click else ():
            self._call("Input.dispatchMouseEvent", {"type": kind, "button": "left", "clickCount": 1, **at})

    def screenshot(self) -> bytes:
        """What the window shows, as PNG."""
        return base64.b64decode(self._call("Page.captureScreenshot", {"format": "png"})["data"])

    def print_pdf(self) -> bytes:
        """The page as it prints."""
        return base64.b64decode(self._call("Page.printToPDF", {"printBackground": True})["data"])

    def _call(self, method: str, parameters: dict[str, Any] | None = None, *, session: bool = True) -> dict[str, Any]:
        self._number += 1
        message: dict[str, Any] = {"id": self._number, "method": method, "params": parameters or {}}
        if session:
            message["sessionId"] = self._session
        content = json.dumps(message).encode() + b"\0"
        while content:
            content = content[os.write(self._write, content) :]
        while True:
            answer = self._receive()
            if answer.get("id") == self._number:
                if "error" in answer:
                    raise RuntimeError(f"{method}: {answer['error']}")
                result: dict[str, Any] = answer["result"]
                return result
            self._note(answer)

    def _receive(self) -> dict[str, Any]:
        while b"\0" not in self._buffer:
            if not select.select([self._read], [], [], _READY_S)[0]:
                raise TimeoutError("the browser does not answer")
            data = os.read(self._read, 1 << 20)
            if not data:
                raise RuntimeError("the browser ended")
            self._buffer += data
        message, self._buffer = self._buffer.split(b"\0", 1)
        decoded: dict[str, Any] = json.loads(message)
        return decoded

    def _note(self, event: dict[str, Any]) -> None:
        method, facts = event.get("method"), event.get("params", {})
        if method == "Network.requestWillBeSent":
            url = facts["request"]["url"]
            if not url.startswith(("data:", "about:", self._url)):
                self.requests.append(url)
        elif method == "Runtime.exceptionThrown":
            self.problems.append(json.dumps(facts["exceptionDetails"]))
        elif method == "Log.entryAdded" and facts["entry"]["level"] in ("error", "warning"):
            self.problems.append(facts["entry"]["text"])
        elif method == "Runtime.consoleAPICalled" and facts["type"] in ("error", "warning", "assert"):
            self.problems.append(json.dumps(facts["args"]))

    _url = ""
    _session = ""


def main() -> int:
    parser = argparse.ArgumentParser(description="A picture of a report.")
    parser.add_argument("report", type=Path)
    parser.add_argument("-o", "--output", type=Path, required=True)
    parser.add_argument("--width", type=int, default=1440)
    parser.add_argument("--height", type=int, default=900)
    parser.add_argument("--dark", action="store_true")
    parser.add_argument("--scroll", type=int, default=0, help="CSS pixels from the top")
    parser.add_argument("--at", help="a CSS selector to scroll to")
    options = parser.parse_args()
    program = find_browser()
    if program is None:
        print(f"none of {', '.join(_NAMES)} is installed")
        return 2
    with Browser(program) as browser:
        browser.open(options.report, width=options.width, height=options.height, dark=options.dark)
        if options.at:
            browser.evaluate(f"document.querySelector({json.dumps(options.at)}).scrollIntoView()")
        else:
            browser.evaluate(f"scrollTo(0, {options.scroll})")
        options.output.write_bytes(browser.screenshot())
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
