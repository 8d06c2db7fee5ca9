"""``make picture``: the status page as README shows it, by a real browser before a running proxy.

Its providers are scripted, its requests real: a box that is busy, then switched off, and a cloud that steps in. They
are made within seconds, by a clock that has them over the last quarter of an hour.
"""

from __future__ import annotations

import asyncio
import base64
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from tests.browser import chromium
from tests.proxy import openai, proxy, settings
from tests.upstreams import DONE, USAGE, Connection, Seen, chunk, completion, each, upstream

WIDTH, HEIGHT = 1100, 1460
QUALITY = 75
SPAN = 15 * 60
"""Seconds that the charts show."""


def answering(model: str, pace: float) -> Any:
    """A server that takes its time: `pace` seconds to the first word, and a fifth of it to each other."""

    async def answer(connection: Connection, seen: Seen) -> None:
        await asyncio.sleep(pace)
        if not seen.json.get("stream"):
            await connection.reply(completion("Done.", model))
            return
        await connection.head()
        for word in ("One ", "moment, ", "please."):
            await connection.chunk(chunk(word, model=model))
            await asyncio.sleep(pace / 5)
        await connection.chunk(chunk(finish="stop", model=model) + USAGE + DONE)
        await connection.end()

    return each(answer)


async def picture(to: Path) -> None:
    """Writes the picture to `to`, as WebP."""
    box = upstream(answering("qwen2.5:7b", 0.1), ["qwen2.5:7b", "qwen2.5:32b"])
    cloud = upstream(answering("llama-3.1-8b-instant", 0.05), ["llama-3.1-8b-instant", "llama-3.3-70b-versatile"])
    async with box as box_at, cloud as cloud_at:
        providers = {
            "box": openai(box_at.url),
            "groq": openai(cloud_at.url),
            "openrouter": openai("http://127.0.0.1:9", api_key="${OPENROUTER_API_KEY}"),
            "loopback": {"kind": "loopback"},
        }
        config = settings(providers, timeouts={"first_byte": 0.3})
        chains = {
            "mana/fast-text": ["box/qwen2.5:7b", "groq/llama-3.1-8b-instant", "openrouter/claude-3-haiku"],
            "mana/long-form": ["box/qwen2.5:32b", "groq/llama-3.3-70b-versatile", "loopback/echo"],
        }
        config |= {"aliases": {name: {"chain": chain} for name, chain in chains.items()}, "default": "mana/fast-text"}
        with tempfile.TemporaryDirectory() as folder:
            async with proxy(config, Path(folder)) as p, chromium() as page:
                names = (*chains, "groq/llama-3.1-8b-instant")
                for half_minute in range(30):
                    # mypy knows no defaults of a lambda
                    p.app.requests.clock = lambda n=half_minute: time.time() - SPAN + 30 * (n + 0.5)  # type: ignore[misc]
                    if half_minute == 26:
                        await p.chat(model="mana/fast-txt")
                        await box_at.stop()
                    many = (3 * half_minute) % 7 + 1
                    await asyncio.gather(*(p.stream(model=names[n % 3]) for n in range(many)))
                await page.looks(WIDTH, height=HEIGHT)
                await page.open(p.url)
                await page.until("document.querySelector('.target.serves b')?.textContent.startsWith('groq')")
                await page.until("document.querySelectorAll('#requests > li').length > 20")
                await page.value(
                    "[...document.querySelectorAll('#requests summary')].find((each) => each.nextSibling && "
                    "each.innerText.includes('mana/long-form') && each.innerText.includes('groq')).click()"
                )
                await page.until("document.querySelectorAll('#requests .line-of').length > 1")
                await asyncio.sleep(0.3)  # until what slides has slid
                shot = await page.send("Page.captureScreenshot", format="webp", quality=QUALITY)
                await asyncio.to_thread(to.write_bytes, base64.b64decode(shot["data"]))


if __name__ == "__main__":
    asyncio.run(picture(Path(sys.argv[1])))
