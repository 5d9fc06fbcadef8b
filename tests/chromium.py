"""A headless Chromium to look into, for tests and for the pictures of guides.

Over a pipe, so that neither a driver nor a port is needed.
"""

from __future__ import annotations

import base64
import contextlib
import json
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

OPTIONS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--remote-debugging-pipe",
    "--no-first-run", "--disable-background-networking", "--hide-scrollbars", "--force-prefers-reduced-motion",
)  # fmt: skip
KEYS = {"Enter": ("\r", 13), "Tab": ("\t", 9), " ": (" ", 32)}


class Page:
    """One page, spoken to in the DevTools protocol.

    ``complaints`` holds what the page wrote to the console as a warning or error, and what it could not load.
    """

    def __init__(self, to: int, back: int) -> None:
        self._to, self._back = to, back
        self._rest = b""
        self._number = 0
        self._session = ""
        self._events: list[dict[str, Any]] = []
        self.complaints: list[str] = []
        target = self._call("Target.createTarget", url="about:blank")["targetId"]
        self._session = self._call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self._call(f"{domain}.enable")

    def open(self, path: Path, *, width: int = 1280, height: int = 900, dark: bool = False) -> None:
        """Load a file and wait until it is there."""
        self.look(width=width, height=height, dark=dark)
        self._events.clear()
        self._call("Page.navigate", url=path.resolve().as_uri())
        while not any(event["method"] == "Page.loadEventFired" for event in self._events):
            self._receive()

    def go(self, address: str, *, width: int, height: int) -> None:
        """Open an address; what it shows is to be waited for."""
        self.look(width=width, height=height)
        self._call("Page.navigate", url="about:blank")  # what differs in its fragment only is not loaded anew
        self._call("Page.navigate", url=address)

    def wait(self, condition: str, seconds: float = 240) -> None:
        """Until a JavaScript expression is true.

        Raises:
            AssertionError: it is not in time; says what the page shows instead.
        """
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            with contextlib.suppress(AssertionError):  # the page is being replaced
                if self.run(f"Boolean({condition})"):
                    return
            time.sleep(0.3)
        raise AssertionError(f"not in {seconds} s: {condition}; the page says: {self.run('document.body.innerText')}")

    def settle(self, seconds: float) -> None:
        """Until the page has not changed for so long: charts come late and move."""
        last, since, until = "", time.monotonic(), time.monotonic() + 12
        while time.monotonic() < min(since + seconds, until):
            shown = str(self.run("document.body?.innerText"))
            if shown != last:
                last, since = shown, time.monotonic()
            time.sleep(0.3)

    def look(self, *, width: int = 1280, height: int = 900, dark: bool = False, media: str = "") -> None:
        """Choose window and colour scheme, and ``media="print"`` for the look of paper."""
        size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600}
        self._call("Emulation.setDeviceMetricsOverride", **size)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self._call("Emulation.setEmulatedMedia", media=media, features=[scheme])

    def run(self, script: str) -> Any:
        """The value of a JavaScript expression; promises are waited for."""
        done = self._call("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in done, done["exceptionDetails"]
        return done["result"].get("value")

    def press(self, key: str) -> None:
        """Press a key and let it go."""
        text, code = KEYS[key]
        about = {"key": key, "code": "Space" if key == " " else key, "windowsVirtualKeyCode": code}
        self._call("Input.dispatchKeyEvent", type="keyDown", text="" if key == "Tab" else text, **about)
        self._call("Input.dispatchKeyEvent", type="keyUp", **about)

    def click(self, selector: str) -> None:
        """Click in the middle of an element with the mouse."""
        element = f"document.querySelector({json.dumps(selector)})"
        self.run(f"{element}.scrollIntoView({{block: 'center'}})")
        x, y = self.run(f"(b => [b.x + b.width / 2, b.y + b.height / 2])({element}.getBoundingClientRect())")
        for kind in ("mousePressed", "mouseReleased"):
            self._call("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", clickCount=1)

    def screenshot(self, path: Path, *, whole: bool = True) -> None:
        """Save what is seen as PNG."""
        shot = self._call("Page.captureScreenshot", format="png", captureBeyondViewport=whole)
        path.write_bytes(base64.b64decode(shot["data"]))

    def pdf(self, path: Path) -> None:
        """Print to a file."""
        printed = self._call("Page.printToPDF", printBackground=True, preferCSSPageSize=True)
        path.write_bytes(base64.b64decode(printed["data"]))

    def close(self) -> None:
        """End the browser."""
        self._session = ""
        with contextlib.suppress(OSError, AssertionError):
            self._call("Browser.close")

    def _call(self, method: str, **parameters: Any) -> dict[str, Any]:
        self._number += 1
        number = self._number
        session = {"sessionId": self._session} if self._session else {}
        message = {"id": number, "method": method, "params": parameters, **session}
        self._write(message)
        while True:
            answer = self._receive()
            if answer.get("id") == number:
                assert "error" not in answer, (method, answer["error"])
                result: dict[str, Any] = answer["result"]
                return result

    def _write(self, message: Mapping[str, Any]) -> None:
        content = memoryview(json.dumps(message).encode() + b"\0")
        while content:
            content = content[os.write(self._to, content) :]

    def _receive(self) -> dict[str, Any]:
        while b"\0" not in self._rest:
            part = os.read(self._back, 1 << 20)
            assert part, "the browser ended"
            self._rest += part
        raw, _, self._rest = self._rest.partition(b"\0")
        message: dict[str, Any] = json.loads(raw)
        if "method" in message:
            self._events.append(message)
            self._note(message)
        return message

    def _note(self, event: Mapping[str, Any]) -> None:
        about = event.get("params", {})
        if event["method"] == "Runtime.exceptionThrown":
            self.complaints.append(str(about["exceptionDetails"].get("exception", about["exceptionDetails"])))
        if event["method"] == "Runtime.consoleAPICalled" and about["type"] in ("warning", "error", "assert"):
            self.complaints.append(str(about["args"]))
        if event["method"] == "Log.entryAdded" and about["entry"]["level"] in ("warning", "error"):
            self.complaints.append(f"{about['entry']['text']} {about['entry'].get('url', '')}")
        asked = about["request"]["url"] if event["method"] == "Network.requestWillBeSent" else "about:"
        if not asked.startswith(("file:", "data:", "about:")):
            self.complaints.append(f"asks the network for {asked}")


@contextlib.contextmanager
def browser(folder: Path) -> Iterator[Page]:
    """A page in a browser of its own, whose profile lies in ``folder``."""
    program = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))))
    out_read, out_write = os.pipe()
    in_read, in_write = os.pipe()

    def wire() -> None:
        a, b = os.dup(out_read), os.dup(in_write)
        os.dup2(a, 3)
        os.dup2(b, 4)

    with (folder / "chromium.log").open("wb") as log:
        process = subprocess.Popen(
            [program, *OPTIONS, f"--user-data-dir={folder / 'profile'}"], stdout=log, stderr=log,
            close_fds=False, preexec_fn=wire, start_new_session=True,
        )  # fmt: skip
    os.close(out_read)
    os.close(in_write)
    try:
        page = Page(out_write, in_read)
        yield page
        page.close()
    finally:
        os.close(out_write)
        os.close(in_read)
        try:
            process.wait(timeout=20)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
