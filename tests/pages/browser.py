"""A Chromium without a window and without a network, told what to do over two pipes."""

import base64
import fcntl
import json
import os
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import Any

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
OPTIONS = (
    *("--headless=new", "--no-sandbox", "--disable-gpu", "--remote-debugging-pipe", "--no-first-run"),
    *("--host-resolver-rules=MAP * ~NOTFOUND", "--disable-background-networking", "--hide-scrollbars"),
)


def find_chromium() -> str | None:
    """Where it is, if it is."""
    return next(filter(None, map(shutil.which, NAMES)), None)


class Browser:
    """One page of it, which shows one address after the other. To be used in a ``with`` statement."""

    def __init__(self, program: str) -> None:
        self.profile = tempfile.TemporaryDirectory(ignore_cleanup_errors=True)
        reads, writes = os.pipe(), os.pipe()
        theirs = [fcntl.fcntl(end, fcntl.F_DUPFD_CLOEXEC, 10) for end in (reads[0], writes[1])]

        def hand_over() -> None:  # Chromium reads from descriptor 3 and writes to 4
            for number, end in enumerate(theirs, start=3):
                os.dup2(end, number)

        command = [program, *OPTIONS, f"--user-data-dir={self.profile.name}", "about:blank"]
        quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        self.process = subprocess.Popen(command, pass_fds=(3, 4), preexec_fn=hand_over, **quiet)
        for end in (reads[0], writes[1], *theirs):
            os.close(end)
        self.to, self.of = os.fdopen(reads[1], "wb", buffering=0), os.fdopen(writes[0], "rb", buffering=0)
        self.session: str | None = None
        self.unread = b""
        self.number = 0
        self.events: list[dict[str, Any]] = []
        page = next(target for target in self.call("Target.getTargets")["targetInfos"] if target["type"] == "page")
        self.session = self.call("Target.attachToTarget", targetId=page["targetId"], flatten=True)["sessionId"]
        for domain in ("Page", "Network", "Runtime"):
            self.call(f"{domain}.enable")

    def __enter__(self) -> "Browser":
        return self

    def __exit__(self, *exception: object) -> None:
        self.session = None
        self.call("Browser.close")
        self.process.wait(timeout=30)
        self.to.close()
        self.of.close()
        self.profile.cleanup()

    def call(self, method: str, **params: object) -> dict[str, Any]:
        """The answer to a command of the DevTools protocol; what happens meanwhile goes to ``events``."""
        self.number += 1
        message = {"id": self.number, "method": method, "params": params}
        if self.session is not None:
            message["sessionId"] = self.session
        self.to.write(json.dumps(message).encode() + b"\0")
        while (told := self.read()).get("id") != self.number:
            self.events.append(told)
        if "error" in told:
            raise RuntimeError(f"{method}: {told['error']['message']}")
        answer: dict[str, Any] = told["result"]
        return answer

    def read(self) -> dict[str, Any]:
        """The next message."""
        while b"\0" not in self.unread:
            more = self.of.read(1 << 16)
            if not more:
                raise RuntimeError("Chromium has ended")
            self.unread += more
        first, _, self.unread = self.unread.partition(b"\0")
        message: dict[str, Any] = json.loads(first)
        return message

    def resize(self, width: int, height: int) -> None:
        """As a window of this size shows pages; below 500 pixels, as a phone does."""
        self.call(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=width < 500
        )

    def open(self, address: str) -> list[str]:
        """Show a page, wait until all of it has been loaded, and give the addresses that it asked for."""
        self.events.clear()
        self.call("Page.navigate", url=address)
        while not any(event.get("method") == "Page.loadEventFired" for event in self.events):
            self.events.append(self.read())
        return [
            event["params"]["request"]["url"]
            for event in self.events
            if event.get("method") == "Network.requestWillBeSent"
        ]

    def run(self, script: str) -> Any:
        """What an expression of JavaScript gives, after what it promises."""
        answer = self.call("Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True)
        if "exceptionDetails" in answer:
            raise RuntimeError(answer["exceptionDetails"]["exception"].get("description", script))
        return answer["result"].get("value")

    def screenshot(self, path: Path) -> None:
        """The whole page, as long as it is."""
        drawn = self.call("Page.captureScreenshot", captureBeyondViewport=True)
        path.write_bytes(base64.b64decode(drawn["data"]))
