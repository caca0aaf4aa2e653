"""A headless Chromium, driven over its debugging pipe: open a page, run JavaScript in it, take a picture."""

import base64
import json
import os
import shutil
import subprocess
import time
from pathlib import Path


CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


class Browser:
    """A page in a browser of its own; use it as a context manager.

    Args:
        profile (`Path`): An empty directory for the browser's files.
    """

    def __init__(self, profile: Path):
        to_browser, self._writing = os.pipe()
        self._reading, from_browser = os.pipe()
        # Chromium reads commands from descriptor 3 and answers on 4, each message ended by a zero byte.
        command = (
            f"exec {CHROMIUM} --headless=new --no-sandbox --disable-gpu --remote-debugging-pipe "
            f"--window-size=1200,1000 --user-data-dir={profile} 3<&{to_browser} 4>&{from_browser}"
        )
        self._process = subprocess.Popen(
            ["bash", "-c", command],
            pass_fds=(to_browser, from_browser),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        os.close(to_browser)
        os.close(from_browser)
        self._pending, self._number, self._session = b"", 0, None

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._process.terminate()
        self._process.wait(timeout=30)
        os.close(self._writing)
        os.close(self._reading)

    def open(self, url: str) -> None:
        """Open the page."""
        target = self._call("Target.createTarget", url=url)["targetId"]
        self._session = self._call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]

    def run(self, javascript: str):
        """The value of an expression in the page."""
        return self._call("Runtime.evaluate", expression=javascript, returnByValue=True)["result"].get("value")

    def wait_for(self, javascript: str, seconds: float = 120):
        """The value of an expression as soon as it is true."""
        end = time.monotonic() + seconds
        while not (value := self.run(javascript)):
            assert time.monotonic() < end, f"{javascript} has not become true; the page says: {self.text()}"
            time.sleep(0.2)
        return value

    def text(self) -> str:
        """The visible text of the page."""
        return self.run("document.body.innerText")

    def screenshot(self, path: Path) -> None:
        """Write a PNG of the page."""
        path.write_bytes(base64.b64decode(self._call("Page.captureScreenshot", format="png")["data"]))

    def _call(self, method: str, **params) -> dict:
        self._number += 1
        message = {"id": self._number, "method": method, "params": params}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._writing, json.dumps(message).encode() + b"\0")
        while True:
            while b"\0" not in self._pending:
                read = os.read(self._reading, 2**20)
                assert read, "Chromium has ended"
                self._pending += read
            answer, self._pending = self._pending.split(b"\0", 1)
            answer = json.loads(answer)
            if answer.get("id") == self._number:
                assert "error" not in answer, answer
                return answer["result"]
