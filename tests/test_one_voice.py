"""Streams over real sockets, from providers that do anything in any order: the client hears one of them, or none."""

from __future__ import annotations

import asyncio
import json
import tempfile
from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st

from manallm_proxy.contract.provider_errors import ProviderError
from tests.examples import examples
from tests.proxy import openai, proxy
from tests.proxy import settings as configured
from tests.upstreams import DONE, Connection, Seen, chunk, each, upstream

STEPS = ["role", "comment", "word", "word", "half", "error", "finish", "done", "end", "reset", "garbage"]
scripts = st.lists(st.lists(st.sampled_from(STEPS), max_size=6), min_size=2, max_size=3)


async def play(connection: Connection, name: str, steps: list[str]) -> None:
    """One provider's answer; its words begin with its name."""
    await connection.head()
    for number, step in enumerate(steps):
        match step:
            case "role":
                await connection.chunk(chunk(role=True))
            case "comment":
                await connection.chunk(b": wait\n\n")
            case "word":
                await connection.chunk(chunk(f"{name}-{number}"))
            case "half":
                await connection.chunk(chunk(f"{name}-{number}")[:-9])
            case "error":
                await connection.chunk(b'data: {"error":{"message":"no","type":"server_error","code":500}}\n\n')
            case "finish":
                await connection.chunk(chunk(finish="stop"))
            case "done":
                await connection.chunk(DONE)
            case "garbage":
                await connection.chunk(b"data: {]\n\n")
            case "reset":
                connection.reset()
                return
            case _:
                break
    await connection.end()
    connection.writer.close()


async def one_request(plans: list[list[str]], folder: Path) -> None:
    names = [f"p{number}" for number in range(len(plans))]

    async def answer(connection: Connection, seen: Seen) -> None:
        name = seen.json["model"]
        await play(connection, name, plans[names.index(name)])

    async with upstream(each(answer)) as gpu:
        providers = {name: openai(gpu.url, timeouts={"first_byte": 1, "idle": 1}) for name in names}
        async with proxy(configured(providers, [f"{name}/{name}" for name in names]), folder) as p:
            payload = {"messages": [], "stream": True}
            body, whole = b"", True
            async with p.client.post(f"{p.url}/v1/chat/completions", json=payload) as response:
                code, resolved = response.status, response.headers.get("X-Mana-LLM-Resolved", "")
                attempts = int(response.headers["X-Mana-LLM-Attempts"])
                try:
                    async for part in response.content.iter_any():
                        body += part
                except Exception:  # cut, so that no client takes it for the end
                    whole = False
            asked = [seen.json["model"] for seen in gpu.posts]
            [line] = [row for row in map(json.loads, p.log.getvalue().splitlines()) if row["event"] == "request"]
            assert asked == names[: len(asked)], "in order, each once"
            assert attempts == line["attempts"] == len(asked)
            if code != 200:
                assert code in {503, *(kind.status for kind in ProviderError.__subclasses__())}
                assert [name for name in names if f"{name}-".encode() in body] == []
                if code == 503:
                    told = [row["model"] for row in json.loads(body)["error"]["attempts"]]
                    assert told == [f"{name}/{name}" for name in names]
                return
            voice = asked[-1]
            assert resolved == f"{voice}/{voice}", "nobody is asked after the one that answers"
            heard = [name for name in names if f"{name}-".encode() in body]
            assert heard in ([], [voice])
            frames = body.split(b"\n\n")
            errors = sum(frame.startswith(b'data: {"error"') for frame in frames)
            assert [frames.count(b"data: [DONE]"), errors] in ([1, 0], [0, 1]), "one end, and only one kind of it"
            assert whole is not bool(errors), "what broke has no clean end"
            assert (line["outcome"] == "ok") == whole


@given(scripts)
@settings(max_examples=examples(30))
def test_one_voice_and_one_end(plans: list[list[str]]) -> None:
    """Whatever fails where: no splice, no second try after the first byte, a whole log."""
    with tempfile.TemporaryDirectory() as folder:
        asyncio.run(asyncio.wait_for(one_request(plans, Path(folder)), 30))
