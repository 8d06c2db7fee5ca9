"""A stream has limits of time, but no timers of its own: for each it would pay, and nearly all end long before."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from tests.proxy import openai, proxy, settings
from tests.upstreams import answers, each, upstream

STREAM = (
    b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Length: 29\r\n\r\n" + b'{"messages":[],"stream":true}'
)


@pytest.mark.built_in
async def test_a_stream_arms_no_timer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """After the first one, over the same connections: the limits of first byte, silence, heartbeats and slow clients
    are those that its predecessors have left."""
    loop = asyncio.get_running_loop()
    armed: list[Any] = []
    real = loop.call_at

    def call_at(when: float, callback: Any, *arguments: Any, **more: Any) -> asyncio.TimerHandle:
        armed.append(callback)
        return real(when, callback, *arguments, **more)

    async with upstream(each(answers)) as u, proxy(settings({"gpu": openai(u.url)}), tmp_path) as p:
        reader, writer = await asyncio.open_connection("127.0.0.1", p.port)
        for _ in range(3):
            writer.write(STREAM)
            await reader.readuntil(b"\r\n0\r\n\r\n")
        monkeypatch.setattr(loop, "call_at", call_at)
        for _ in range(3):
            writer.write(STREAM)
            assert (await reader.readuntil(b"\r\n0\r\n\r\n")).startswith(b"HTTP/1.1 200")
        writer.close()
    assert [callback for callback in armed if "manallm_proxy" in callback.__module__] == []
