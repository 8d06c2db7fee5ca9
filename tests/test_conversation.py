"""``chat`` as a conversation and ``status --watch``, in a real terminal."""

from __future__ import annotations

import asyncio
import json
from contextlib import AsyncExitStack
from pathlib import Path

import pytest

from tests.ports import free_port
from tests.proxy import openai, proxy, settings
from tests.terminal import terminal
from tests.upstreams import Connection, Seen, chunk, each, status, upstream

pytestmark = [pytest.mark.packages, pytest.mark.built_in]


def ends(usage: int = 3) -> bytes:
    finish = {"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]}
    counted = {"choices": [], "usage": {"prompt_tokens": 1, "completion_tokens": usage, "total_tokens": 1 + usage}}
    return b"".join(b"data: %b\n\n" % json.dumps(each).encode() for each in (finish, counted)) + b"data: [DONE]\n\n"


async def answers_by_text(connection: Connection, seen: Seen) -> None:
    """Says how many messages there were; "slow" goes on for ever, "wait" says nothing."""
    asked = seen.json["messages"][-1]["content"]
    if asked == "wait":
        await connection.gone()
        return
    await connection.head()
    await connection.chunk(chunk(f"{len(seen.json['messages'])} \033[2Jsaid"))
    if asked == "slow":
        await connection.gone()
        return
    await connection.chunk(ends())
    await connection.end()


async def test_a_conversation(tmp_path: Path) -> None:
    """With all turns before it; Ctrl-C ends an answer, before its first word too, and a line; earlier lines come back;
    /exit ends it. What is stopped ends at the provider.
    """
    async with upstream(each(answers_by_text)) as gpu, proxy(settings({"gpu": openai(gpu.url)}), tmp_path) as p:
        async with terminal(tmp_path, "chat", "--url", p.url) as t:
            await t.until(lambda seen: seen.rstrip().endswith("\n>"))
            await t.type("first")
            screen = await t.until(lambda seen: "-- gpu/m, 1 attempt, first token after 0." in seen)
            assert "\n1 [2Jsaid\n" in screen
            await t.type("slow")
            await t.until(lambda seen: "\n3 [2Jsaid" in seen)
            await t.type("", "C-c")
            await t.until(lambda seen: seen.count("-- gpu/m") == 2 and "3 [2Jsaid^C (stopped)\n" in seen)
            async with asyncio.timeout(5):
                await gpu.connections[-1].closed.wait()
            await t.type("wait")
            async with asyncio.timeout(5):
                while gpu.posts[-1].json["messages"][-1]["content"] != "wait":
                    await asyncio.sleep(0.01)
            await t.type("", "C-c")
            await t.until(lambda seen: "^C(stopped)\n>" in seen)
            await t.type("half a line", "Left")
            await t.until(lambda seen: seen.rstrip().endswith("\n> half a line"))
            await t.type("", "C-c")
            await t.until(lambda seen: "half a line" in seen and seen.rstrip().endswith("\n>"))
            await t.type("", "Up", "Up", "Up", "Enter")  # "wait" and "slow" came after it
            await t.until(lambda seen: seen.count("-- gpu/m") == 3)
            said = [message["content"] for message in gpu.posts[-1].json["messages"]]
            assert said == ["first", "1 \033[2Jsaid", "slow", "3 \033[2Jsaid", "first"]
            await t.type("/exit")
            await t.until(lambda seen: "ended with 0" in seen)


async def test_a_conversation_survives_what_fails(tmp_path: Path) -> None:
    """The proxy's words, and the next line; what had no answer was not said. Ctrl-D ends it."""
    async with upstream(each(status("500 Oops"))) as gpu, proxy(settings({"gpu": openai(gpu.url)}), tmp_path) as p:
        async with terminal(tmp_path, "chat", "--url", p.url, "-m", "gpu/m", width=200) as t:
            await t.until(lambda seen: seen.rstrip().endswith("\n>"))
            for number in (1, 2):
                await t.type("hello")
                # mypy knows no defaults of a lambda
                await t.until(lambda seen, n=number: seen.count("no provider could serve gpu/m") == n)  # type: ignore[misc]
            assert [len(post.json["messages"]) for post in gpu.posts] == [1, 1]
            await t.type("", "C-d")
            await t.until(lambda seen: "ended with 0" in seen)
    async with terminal(tmp_path, "chat", "--url", f"http://127.0.0.1:{free_port()}", width=200) as t:
        screen = await t.until(lambda seen: "ended with" in seen)
        assert "ended with 1" in screen and "no proxy answers at 127.0.0.1:" in screen


async def test_a_status_that_is_watched(tmp_path: Path) -> None:
    """In one place, as it changes, also while the proxy is away; Ctrl-C ends it well."""
    config = settings({"gpu": openai("http://127.0.0.1:9"), "loop": {"kind": "loopback"}}, chain=["gpu/m", "loop/m"])
    async with AsyncExitStack() as stack:
        async with proxy(config, tmp_path) as p:
            t = await stack.enter_async_context(terminal(tmp_path, "status", "--watch", "--url", p.url))
            await t.until(lambda seen: "gpu       degraded" in seen)
            await p.chat()
            await p.chat()
            screen = await t.until(lambda seen: "gpu       unhealthy" in seen)
            assert "(Ctrl-C ends)" in screen and screen.count("PROVIDER") == 1
        screen = await t.until(lambda seen: "no proxy answers at" in seen)
        assert "gpu" not in screen
        await t.type("", "C-c")
        await t.until(lambda seen: "ended with 0" in seen)
