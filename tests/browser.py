"""Opens a page in a real browser, headless Chromium, and tells what the browser had to say about it."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
MISSING = f"no browser: none of {', '.join(NAMES)} is on PATH; on Debian: apt-get install chromium"
# `[pid:tid:time:INFO:CONSOLE(line)] "message", source: url (line)` is how Chromium logs what goes to its console.
CONSOLE = re.compile(r':CONSOLE[:(]\d*\)?\] "(?P<message>.*)", source: (?P<source>\S*)')
BROWSER_ITSELF = "not an origin"  # The initiator, in the log of the network, of what no page asked for.
# A page's request for a resource that has to leave the machine ends here: the proxy does not exist.
NO_NETWORK = ("--proxy-server=http://127.0.0.1:9", "--proxy-bypass-list=<-loopback>")


@dataclass(frozen=True, slots=True)
class Page:
    """`dom`: the page as the browser built it. `console`: what went to its console, all errors among it, such as what a
    Content Security Policy blocked. `requests`: the addresses on a network that the page asked for, reached or not."""

    dom: str
    console: tuple[str, ...]
    requests: tuple[str, ...]


def find_browser() -> str | None:
    """The path of a Chromium; None if there is none (`MISSING` says what to do)."""
    return next((path for name in NAMES if (path := shutil.which(name)) is not None), None)


def open_page(path: Path, *, width: int = 1280, screenshot: Path | None = None, seconds: float = 60) -> Page:
    """Open a file and see what the browser says. Nothing leaves the machine.

    Raises:
        FileNotFoundError: there is no browser.
        AssertionError: the browser did not end well, or not in time.
    """
    browser = find_browser()
    if browser is None:
        raise FileNotFoundError(MISSING)
    address = path.resolve().as_uri()
    with tempfile.TemporaryDirectory(prefix="bramble-browser-") as profile:
        netlog = Path(profile) / "netlog.json"
        command = [
            *(browser, "--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--hide-scrollbars"),
            *("--no-first-run", "--disable-background-networking", "--disable-component-update", "--disable-sync"),
            *(f"--user-data-dir={profile}/profile", f"--log-net-log={netlog}", f"--window-size={width},1200"),
            *("--enable-logging=stderr", "--v=0", *NO_NETWORK),
            *([f"--screenshot={screenshot}"] if screenshot is not None else ["--dump-dom"]),
            address,
        ]
        try:
            done = subprocess.run(
                command,
                capture_output=True,
                text=True,
                errors="replace",
                timeout=seconds,
                check=False,
                env=os.environ | {"HOME": profile},
            )
        except subprocess.TimeoutExpired as error:
            raise AssertionError(f"{browser} did not end in {seconds:.0f} s on {address}") from error
        assert done.returncode == 0, f"{browser} ended with {done.returncode}:\n{done.stderr}"
        told = netlog.read_text(encoding="utf-8", errors="replace") if netlog.exists() else ""
    console = tuple(f"{found['message']} ({found['source']})" for found in CONSOLE.finditer(done.stderr))
    return Page(done.stdout, console, requested(told))


def requested(netlog: str) -> tuple[str, ...]:
    """The addresses that pages asked for, in Chromium's log of the network; not those that it asks itself."""
    try:
        events = json.loads(netlog)["events"]
    except (ValueError, KeyError) as error:
        raise AssertionError(f"the browser's log of the network cannot be read: {error}") from error
    asked = [event.get("params") or {} for event in events]
    return tuple(
        dict.fromkeys(each["url"] for each in asked if each.get("initiator", BROWSER_ITSELF) != BROWSER_ITSELF)
    )
