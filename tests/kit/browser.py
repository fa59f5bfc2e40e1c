# SPDX-License-Identifier: Apache-2.0
"""A headless chromium, told what to do by the DevTools protocol over two pipes.

Messages are JSON, each ended by a zero byte, on descriptors 3 (to the browser) and 4 (from it).
"""
import base64
import json
import os
import select
import subprocess
import time
from pathlib import Path
from typing import Any, Dict, List

from tests.kit.processes import clean_env, end, peer


class Browser:
    """One page of a browser of its own, whose profile is below ``folder``."""

    def __init__(self, folder: Path) -> None:
        to_browser, self._write = os.pipe()
        self._read, from_browser = os.pipe()
        theirs = [os.dup(fd) for fd in (to_browser, from_browser)]  # from 5 up: neither is overwritten below

        def connect() -> None:
            for fd, number in zip(theirs, (3, 4)):
                os.dup2(fd, number)

        with (folder / "chromium.log").open("wb") as log:
            self._process = subprocess.Popen(
                [peer("chromium"), "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage",
                 "--no-first-run", "--no-proxy-server", "--disable-background-networking", "--hide-scrollbars",
                 "--user-data-dir=%s" % (folder / "profile"), "--remote-debugging-pipe", "about:blank"],
                stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT, env=clean_env(folder),
                close_fds=False, preexec_fn=connect)
        for fd in (to_browser, from_browser, *theirs):
            os.close(fd)
        self._data = b""
        self._number = 0
        self._session: Dict[str, str] = {}
        self.events: List[Dict[str, Any]] = []
        targets = self.call("Target.getTargets")["targetInfos"]
        [page] = [target for target in targets if target["type"] == "page"]
        attached = self.call("Target.attachToTarget", targetId=page["targetId"], flatten=True)
        self._session = {"sessionId": attached["sessionId"]}
        for domain in ("Page", "Network", "Log"):
            self.call(domain + ".enable")

    def close(self) -> None:
        os.close(self._write)
        end(self._process)
        os.close(self._read)

    def call(self, method: str, **params: Any) -> Any:
        """Call a method of the protocol; events that come before its answer are kept."""
        self._number += 1
        message = {"id": self._number, "method": method, "params": params, **self._session}
        os.write(self._write, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._message()
            if answer.get("id") == self._number:
                assert "error" not in answer, (method, answer)
                return answer["result"]
            self.events.append(answer)

    def wait(self, method: str) -> Dict[str, Any]:
        """Wait for an event that has not been seen yet."""
        while True:
            for number, event in enumerate(self.events):
                if event.get("method") == method:
                    return dict(self.events.pop(number)["params"])
            self.events.append(self._message())

    def _message(self) -> Dict[str, Any]:
        last = time.monotonic() + 60
        while b"\0" not in self._data:
            ready, _, _ = select.select([self._read], [], [], last - time.monotonic())
            piece = os.read(self._read, 1 << 16) if ready else b""
            if not piece:
                raise RuntimeError("chromium does not answer; it ended with %s" % self._process.poll())
            self._data += piece
        text, _, self._data = self._data.partition(b"\0")
        return dict(json.loads(text))

    # What a person does.

    def size(self, width: int, height: int = 900, dark: bool = False) -> None:
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1,
                  mobile=width < 500)
        self.call("Emulation.setEmulatedMedia", features=[
            {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}])

    def open(self, url: str) -> None:
        self.forget("Page.loadEventFired")
        self.call("Page.navigate", url=url)
        self.wait("Page.loadEventFired")

    def forget(self, method: str) -> None:
        self.events = [event for event in self.events if event.get("method") != method]

    def evaluate(self, expression: str) -> Any:
        """Return the value of a JavaScript expression, which the page's own policy does not forbid us."""
        result = self.call("Runtime.evaluate", expression=expression, returnByValue=True)
        assert "exceptionDetails" not in result, result
        return result["result"].get("value")

    def press(self, key: str, code: int, text: str = "") -> None:
        fields = {"key": key, "code": key, "windowsVirtualKeyCode": code}
        self.call("Input.dispatchKeyEvent", type="keyDown", **dict(fields, **({"text": text} if text else {})))
        self.call("Input.dispatchKeyEvent", type="keyUp", **fields)

    def click(self, selector: str) -> None:
        """Click on an element as a mouse does."""
        spot = self.evaluate(
            "(e => {e.scrollIntoView({block: 'center'}); const r = e.getBoundingClientRect();"
            "return {x: r.x + 9, y: r.y + 9}})(document.querySelector(%s))" % json.dumps(selector))
        for kind in ("mousePressed", "mouseReleased"):
            self.call("Input.dispatchMouseEvent", type=kind, button="left", clickCount=1, **spot)

    def screenshot(self, path: Path, whole: bool = True) -> bytes:
        """Save the page as a PNG; ``whole`` is all of it, however long."""
        shot = self.call("Page.captureScreenshot", format="png", captureBeyondViewport=whole)
        path.write_bytes(base64.b64decode(shot["data"]))
        return path.read_bytes()
