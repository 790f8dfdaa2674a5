"""A headless Chromium over the WebDriver protocol (W3C), with what the tests of the page need."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import urllib.request
from pathlib import Path
from typing import Any

CHROMIUM = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
)
DRIVER = shutil.which("chromedriver")
MISSING = "no Chromium with chromedriver on this machine" if not (CHROMIUM and DRIVER) else ""
_FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--hide-scrollbars",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)


class Browser:
    """One browser with one page; use it as a context manager."""

    def __init__(self, profile: Path) -> None:
        assert CHROMIUM
        assert DRIVER
        self._driver = subprocess.Popen([DRIVER, "--port=0"], stdout=subprocess.PIPE, text=True)
        assert self._driver.stdout is not None
        port = next(
            m[1]
            for line in self._driver.stdout
            if (m := re.search(r"started successfully on port (\d+)", line))
        )
        self._root = f"http://127.0.0.1:{port}/session"
        options = {"binary": CHROMIUM, "args": [*_FLAGS, f"--user-data-dir={profile}"]}
        wanted = {
            "goog:chromeOptions": options,
            "goog:loggingPrefs": {"browser": "ALL", "performance": "ALL"},
        }
        session = self._call("", {"capabilities": {"alwaysMatch": wanted}})
        self._root += f"/{session['sessionId']}"
        # A machine that is busy with other tests is slow, not broken.
        self._call("/timeouts", {"script": 100_000, "pageLoad": 100_000})

    def __enter__(self) -> Browser:
        return self

    def __exit__(self, *_: object) -> None:
        try:
            self._call("", method="DELETE")
        finally:
            self._driver.terminate()
            self._driver.communicate()

    def _call(self, path: str, body: Any = None, method: str = "POST") -> Any:
        data = None if method == "DELETE" else json.dumps(body or {}).encode()
        # A proxy of the environment has no business between this process and its driver.
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        request = urllib.request.Request(
            self._root + path, data, {"Content-Type": "application/json"}, method=method
        )
        with opener.open(request, timeout=120) as answer:
            return json.loads(answer.read())["value"]

    def open(self, page: Path) -> None:
        """Load *page* from the disk."""
        self._call("/url", {"url": page.resolve().as_uri()})

    def run(self, script: str, *args: Any) -> Any:
        """What *script*, the body of an asynchronous function, returns."""
        wrapped = f"const done = arguments[arguments.length - 1]; (async (...args) => {{ {script} }})(...arguments).then(done, e => done(String(e)));"
        return self._call("/execute/async", {"script": wrapped, "args": list(args)})

    def command(self, name: str, **parameters: Any) -> Any:
        """A command of the DevTools protocol."""
        return self._call("/goog/cdp/execute", {"cmd": name, "params": parameters})

    def console(self) -> list[str]:
        """Everything that the page wrote to its console, errors of loading and of its policy
        included.
        """
        return [entry["message"] for entry in self._call("/se/log", {"type": "browser"})]

    def requested(self) -> list[str]:
        """Every address that a page from the disk, its frame's own included, asked for since the
        last call.
        """
        events = [
            json.loads(entry["message"])["message"]
            for entry in self._call("/se/log", {"type": "performance"})
        ]
        sent = [e["params"] for e in events if e["method"] == "Network.requestWillBeSent"]
        # The browser's own first page may still be at work.
        return [p["request"]["url"] for p in sent if p["documentURL"].startswith("file:")]

    def screenshot(self) -> str:
        """The visible part of the page, a PNG in base64."""
        return str(self._get("/screenshot"))

    def _get(self, path: str) -> Any:
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        with opener.open(self._root + path, timeout=120) as answer:
            return json.loads(answer.read())["value"]
