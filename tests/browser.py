"""A real Chromium without a window, driven over its own debugging protocol."""

from __future__ import annotations

import asyncio
import atexit
import base64
import os
import subprocess
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
from attrs import define, field

from tests.needs import require
from tests.waiting import until

WITHOUT = (
    *("IsolateOrigins", "site-per-process", "SpareRendererForSitePerProcess"),
    *("WebUIOmniboxPopup", "WebUIOmniboxAimPopup", "WebUIOmniboxFullPopup"),
)
"""Chromium's features that are off. One process shows all pages, which are ours, and none is kept ready: each takes a
tenth of a second of CPU or more. The address bar's suggestions, which nobody sees, are pages that take 0.7 s."""


@define(eq=False)
class Page:
    """One tab. ``problems``: what the console said of errors, and every address outside that was asked for."""

    socket: aiohttp.ClientWebSocketResponse
    problems: list[str] = field(factory=list)
    asked: list[str] = field(factory=list)
    _number: int = 0
    _answers: dict[int, asyncio.Future[Any]] = field(factory=dict)

    async def listen(self) -> None:
        async for message in self.socket:
            told = message.json()
            if "id" in told:
                self._answers.pop(told["id"]).set_result(told)
            elif told["method"] == "Runtime.exceptionThrown":
                self.problems.append(str(told["params"]["exceptionDetails"]))
            elif told["method"] == "Log.entryAdded" and told["params"]["entry"]["source"] == "security":
                self.problems.append(told["params"]["entry"]["text"])
            elif told["method"] == "Network.requestWillBeSent":
                self.asked.append(told["params"]["request"]["url"])

    async def send(self, method: str, **params: Any) -> Any:
        self._number += 1
        answer = self._answers[self._number] = asyncio.get_running_loop().create_future()
        await self.socket.send_json({"id": self._number, "method": method, "params": params})
        told = await asyncio.wait_for(answer, 40)
        assert "error" not in told, told
        return told["result"]

    async def open(self, url: str) -> None:
        for domain in ("Runtime", "Log", "Network", "Page"):
            await self.send(f"{domain}.enable")
        await self.send("Page.navigate", url=url)

    async def value(self, script: str) -> Any:
        """Of an expression, which may be a promise."""
        told = await self.send("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in told, told
        return told["result"].get("value")

    async def until(self, script: str, seconds: float = 40.0) -> None:
        """Returns once the expression is true. A look costs the browser and us some milliseconds."""
        pause = 0.02
        async with asyncio.timeout(seconds):
            while not await self.value(script):
                await asyncio.sleep(pause)
                pause = min(2 * pause, 0.2)

    async def text(self) -> str:
        return str(await self.value("document.body.innerText"))

    async def key(self, name: str, code: int) -> None:
        for kind in ("keyDown", "keyUp"):
            text = {"text": "\r"} if name == "Enter" and kind == "keyDown" else {}
            await self.send(
                "Input.dispatchKeyEvent", type=kind, key=name, code=name, windowsVirtualKeyCode=code, **text
            )

    async def looks(self, width: int, *, dark: bool = False, height: int = 900) -> None:
        await self.send(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False
        )
        scheme = [{"name": "prefers-color-scheme", "value": "dark" if dark else "light"}]
        await self.send("Emulation.setEmulatedMedia", features=scheme)

    async def picture(self, path: Path) -> None:
        shot = await self.send("Page.captureScreenshot")
        await asyncio.to_thread(path.write_bytes, base64.b64decode(shot["data"]))


@asynccontextmanager
async def chromium() -> AsyncIterator[Page]:
    """The one tab of this process's browser, which shows nothing at the end. What was set for it ends with this.

    What it keeps is its proxy's, whose port no other test has. A tab of its own takes each test 0.1 s of CPU, and a
    profile half a second.
    """
    async with aiohttp.ClientSession() as client, client.ws_connect(await _tab(client), max_msg_size=0) as socket:
        page = Page(socket)
        reading = asyncio.ensure_future(page.listen())
        yield page
        await page.send("Page.navigate", url="about:blank")
        reading.cancel()


_folders: list[Path] = []
_tabs: list[str] = []


async def _tab(client: aiohttp.ClientSession) -> str:
    """Where to speak with the tab. The browser ends with this process: a start takes half a second of CPU."""
    if not _folders:
        _folders.append(_start())
    told = _folders[0] / "DevToolsActivePort"
    await until(lambda: told.exists() and told.read_text().count("\n") == 1, 30)
    if not _tabs:
        async with client.put(f"http://127.0.0.1:{told.read_text().split()[0]}/json/new?about:blank") as made:
            _tabs.append((await made.json())["webSocketDebuggerUrl"])
    return _tabs[0]


def _start() -> Path:
    """Its profile."""
    program = require("chromium", "Debian: apt-get install chromium")
    folder = tempfile.TemporaryDirectory(ignore_cleanup_errors=True)
    child = subprocess.Popen(
        [
            program,
            *("--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run"),
            *("--hide-scrollbars", "--disable-background-networking", "--remote-debugging-port=0"),
            "--renderer-process-limit=1",
            f"--disable-features={','.join(WITHOUT)}",
            *(f"--user-data-dir={folder.name}", "--no-startup-window"),
        ],
        env={**os.environ, "DBUS_SESSION_BUS_ADDRESS": "unix:path=/nowhere"},
        stderr=subprocess.DEVNULL,
    )
    for each in (folder.cleanup, child.wait, child.kill):  # called in the reverse order
        atexit.register(each)
    return Path(folder.name)
