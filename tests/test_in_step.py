"""Requests of one turn of the event loop go on together where they are many, and each at once where they are few."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from manallm_proxy.gateway import exchange
from manallm_proxy.gateway.exchange_state import MANY
from tests.proxy import POST, openai, proxy, settings
from tests.upstreams import answers, each, upstream


@pytest.mark.parametrize("number", [MANY, 3 * MANY])
async def test_many_go_in_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    """Of many, the last ones are all read before any of them is sent on."""
    steps: list[str] = []

    def noted(name: str) -> None:
        real = getattr(exchange, name)

        def call(*arguments: Any) -> Any:
            steps.append(name)
            return real(*arguments)

        monkeypatch.setattr(exchange, name, call)

    noted("chain_of")
    noted("plan_request")
    async with upstream(each(answers)) as u, proxy(settings({"gpu": openai(u.url)}), tmp_path) as p:
        ends = [await asyncio.open_connection("127.0.0.1", p.port) for _ in range(number)]
        for _, writer in ends:
            writer.write(POST)
        for reader, writer in ends:
            assert (await reader.readuntil(b"\r\n")).startswith(b"HTTP/1.1 200")
            writer.close()
    assert steps.count("chain_of") == steps.count("plan_request") == number
    in_turn = ["chain_of", "plan_request"] * number
    assert (steps == in_turn) is (number <= MANY)
    assert number <= MANY or steps[-MANY:] == ["plan_request"] * MANY
