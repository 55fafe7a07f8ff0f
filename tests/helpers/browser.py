"""A real browser without a window, driven over its debugging pipe (Chrome DevTools Protocol), no library needed."""

import base64
import contextlib
import json
import os
import select
import shutil
import subprocess
import time

import pytest

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
PATIENCE = 400  # seconds for an answer, on a machine that does other work


class Browser:
    """One page. Key strokes, clicks and drops come as a person's do, as events of the browser."""

    def __init__(self, program, folder):
        (there, self._out), (self._in, back) = os.pipe(), os.pipe()
        flags = ["--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--remote-debugging-pipe",
                 "--window-size=1100,1250", f"--user-data-dir={folder}", "about:blank"]  # fmt: skip
        # The browser reads 3 and writes 4.
        command = ["bash", "-c", f'exec "$0" "$@" 3<&{there} 4>&{back}', program, *flags]
        quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        self._process = subprocess.Popen(command, pass_fds=(there, back), **quiet)
        os.close(there), os.close(back)
        self._rest, self._number, self._session = b"", 0, {}
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        attached = self.call("Target.attachToTarget", targetId=target, flatten=True)
        self._session = {"sessionId": attached["sessionId"]}

    def call(self, method, **params):
        """The result of a command of the protocol."""
        self._number += 1
        message = {"id": self._number, "method": method, "params": params} | self._session
        os.write(self._out, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._receive()
            if answer.get("id") == self._number:
                assert "error" not in answer, answer
                return answer["result"]

    def _receive(self):
        while b"\0" not in self._rest:
            assert select.select([self._in], [], [], PATIENCE)[0], "the browser does not answer"
            data = os.read(self._in, 2**16)
            assert data, "the browser has ended"
            self._rest += data
        message, self._rest = self._rest.split(b"\0", 1)
        return json.loads(message)

    def open(self, url):
        self.call("Page.navigate", url=url)
        self.wait("document.readyState === 'complete' && location.href !== 'about:blank'")

    def evaluate(self, code):
        """The value of a JavaScript expression."""
        answer = self.call("Runtime.evaluate", expression=code, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in answer, answer
        return answer["result"].get("value")

    def wait(self, code):
        """Until an expression is true."""
        end = time.monotonic() + PATIENCE
        while not self.evaluate(code):
            assert time.monotonic() < end, f"never: {code}"
            time.sleep(0.05)

    def click(self, name):
        """The middle of the element of this id."""
        x, y = self._middle(name)
        for kind in ("mousePressed", "mouseReleased"):
            self.call("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", clickCount=1)

    def type(self, name, text):
        """Replaces what is in a field."""
        self.evaluate(f"document.getElementById({name!r}).value = ''")
        self.click(name)
        self.call("Input.insertText", text=text)

    def drop(self, name, path):
        """Drags a file into the element of this id."""
        x, y = self._middle(name)
        data = {"items": [], "files": [str(path)], "dragOperationsMask": 1}
        for kind in ("dragEnter", "dragOver", "drop"):
            self.call("Input.dispatchDragEvent", type=kind, x=x, y=y, data=data)

    def _middle(self, name):
        return self.evaluate(
            "(e => { e.scrollIntoView({block: 'center'}); const r = e.getBoundingClientRect(); "
            f"return [r.x + r.width / 2, r.y + r.height / 2]; }})(document.getElementById({name!r}))"
        )

    def screenshot(self, path):
        """The page as PNG."""
        self.evaluate("scrollTo(0, 0)")
        data = self.call("Page.captureScreenshot", format="png", captureBeyondViewport=True)["data"]
        path.write_bytes(base64.b64decode(data))

    def close(self):
        os.close(self._out), os.close(self._in)
        self._process.kill()
        self._process.wait()


@contextlib.contextmanager
def started(folder):
    """Yields a Browser; skips where there is none."""
    program = next(filter(None, map(shutil.which, NAMES)), None)
    if program is None:
        pytest.skip(f"no browser: none of {', '.join(NAMES)}")
    browser = Browser(program, folder)
    try:
        yield browser
    finally:
        browser.close()
