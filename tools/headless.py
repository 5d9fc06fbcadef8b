"""Headless Chromium, driven by its debugging protocol: go somewhere, wait, click, take a picture."""

from __future__ import annotations

import asyncio
import base64
import io
import itertools
import json
import shutil
import subprocess
import time
import urllib.request
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Self

PROGRAMS = ("chromium", "chromium-browser", "google-chrome")
COLOURS = 96  # of a picture: pages of text and a few charts need no more, and files stay small


class Browser:
    """One page of a headless Chromium; a context manager.

    Args:
        folder: for the browser's profile, new and empty.
        size: width and height of the window in pixels.
    """

    def __init__(self, folder: Path, size: tuple[int, int] = (1400, 860)) -> None:
        """Nothing is started before ``with``."""
        self._folder, self._size = folder, size
        self._loop = asyncio.new_event_loop()
        self._numbers = itertools.count(1)
        self._socket: Any = None
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        """Start the browser and connect to its page."""
        program = next(filter(None, map(shutil.which, PROGRAMS)), None)
        if program is None:
            raise SystemExit(f"none of {', '.join(PROGRAMS)} is installed")
        width, height = self._size
        options = ["--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run"]
        options += [f"--window-size={width},{height}", f"--user-data-dir={self._folder}", "--remote-debugging-port=0"]
        quiet = subprocess.DEVNULL
        self._process = subprocess.Popen([program, *options, "about:blank"], stdout=quiet, stderr=quiet)  # noqa: S603
        self._socket = self._loop.run_until_complete(_connect(_page(self._folder)))
        metrics = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
        self.call("Emulation.setDeviceMetricsOverride", **metrics)
        self.call("Page.enable")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End the browser."""
        if self._socket is not None:
            self._socket.close()
        if self._process is not None:
            self._process.terminate()
            self._process.wait(timeout=20)
        self._loop.close()

    def call(self, method: str, **params: Any) -> dict[str, Any]:
        """One command of the protocol, and its answer."""
        return self._loop.run_until_complete(self._call(method, params))

    async def _call(self, method: str, params: dict[str, Any]) -> dict[str, Any]:
        number = next(self._numbers)
        await self._socket.write_message(json.dumps({"id": number, "method": method, "params": params}))
        while True:
            answer = json.loads(await self._socket.read_message())
            if answer.get("id") == number:
                if "error" in answer:
                    raise RuntimeError(f"{method}: {answer['error']['message']}")
                result: dict[str, Any] = answer["result"]
                return result

    def run(self, script: str) -> Any:
        """The value of a JavaScript expression on the page."""
        answer = self.call("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        if "exceptionDetails" in answer:
            raise RuntimeError(answer["exceptionDetails"]["exception"]["description"])
        return answer["result"].get("value")

    def go(self, address: str) -> None:
        """Open an address; what it shows is to be waited for."""
        self.call("Page.navigate", url="about:blank")  # an address that differs in its fragment only is not loaded anew
        self.call("Page.navigate", url=address)

    def wait(self, condition: str, seconds: float = 240) -> None:
        """Until a JavaScript expression is true.

        Raises:
            TimeoutError: it is not in time; says what the page shows instead.
        """
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            with suppress(RuntimeError):
                if self.run(f"Boolean({condition})"):
                    return
            time.sleep(0.3)
        raise TimeoutError(f"not in {seconds} s: {condition}; the page says: {self.run('document.body.innerText')}")

    def wait_for_text(self, text: str) -> None:
        """Until the page shows a text."""
        self.wait(f"document.body.innerText.includes({json.dumps(text)})")

    def settle(self, seconds: float = 1.2) -> None:
        """Until the page has not changed for so long: charts come late and move."""
        last, since, until = "", time.monotonic(), time.monotonic() + 12
        while time.monotonic() < min(since + seconds, until):
            shown = str(self.run("document.body?.innerText"))
            if shown != last:
                last, since = shown, time.monotonic()
            time.sleep(0.3)

    def click(self, element: str) -> None:
        """Click on what a JavaScript expression names, as a mouse would."""
        self.wait(element)
        box = self.run(
            f"(() => {{ const e = {element}; e.scrollIntoView({{block: 'nearest'}}); "
            "const b = e.getBoundingClientRect(); return [b.x + b.width / 2, b.y + b.height / 2]; })()"
        )
        place = {"x": box[0], "y": box[1], "button": "left", "clickCount": 1}
        for kind in ("mouseMoved", "mousePressed", "mouseReleased"):
            self.call("Input.dispatchMouseEvent", type=kind, **place)

    def picture(self, file: Path, box: tuple[int, int, int, int] | None = None) -> None:
        """Write the page as a PNG of few colours.

        Args:
            file: where to.
            box: left, top, right, bottom in pixels; the whole window if none.
        """
        from PIL import Image

        shot = base64.b64decode(self.call("Page.captureScreenshot", format="png")["data"])
        image = Image.open(io.BytesIO(shot)).convert("RGB")
        image = image.crop(box) if box else image
        file.parent.mkdir(parents=True, exist_ok=True)
        image.quantize(COLOURS, dither=Image.Dither.NONE).save(file, optimize=True)


def _page(folder: Path) -> str:
    """The address of the page's debugging socket, once the browser has written its port."""
    note, until = folder / "DevToolsActivePort", time.monotonic() + 60
    while time.monotonic() < until:
        with suppress(OSError, ValueError, IndexError):
            port = int(note.read_text(encoding="utf-8").splitlines()[0])
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/json/list", timeout=5) as answer:
                pages = [page for page in json.load(answer) if page["type"] == "page"]
            return str(pages[0]["webSocketDebuggerUrl"])
        time.sleep(0.2)
    raise TimeoutError("Chromium does not answer")


async def _connect(address: str) -> Any:
    from tornado.websocket import websocket_connect

    return await websocket_connect(address, max_message_size=1 << 27)
