"""What it costs to write a long history anew: not more than a few times its bytes, and time that grows as they do."""

from __future__ import annotations

import json
import threading
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from manallm_proxy.providers.mending.history import short_id
from manallm_proxy.providers.openai.wire import OpenAIWire
from tests.histories import MESSAGE, ODD, strict
from tests.proxy import openai, process, proxy, settings
from tests.stall import peak, raw_post
from tests.upstreams import Connection, Seen, answers, each, upstream

MIB = 2**20
LONG = 9 * MIB // 2
"""Bytes: more than one call may scan or join, see test_peak_memory."""
PATIENT: dict[str, Any] = {"timeouts": {"first_byte": 60}}
"""A loaded machine takes more than the usual five seconds for so much."""


def unwanted(asked: Any) -> str:
    """As servers say what the model's name asks for."""
    rows = asked["messages"]
    roles = [row["role"] for row in rows]
    match asked["model"]:
        case "reasoning" if any("reasoning_content" in row for row in rows):
            return "property 'reasoning_content' is unsupported"
        case "alternate" if any(one == other for one, other in pairwise(roles)):
            return "Conversation roles must alternate user/assistant/user/assistant/..."
        case "system" if "system" in roles[1:]:
            return "System message must be at the beginning."
    return ""


@pytest.mark.parametrize("size", [LONG // 2, 2000])
async def test_the_memory_of_a_history_that_is_written_anew(size: int, tmp_path: Path) -> None:
    """Of long texts, in letters that take Python four times as much, and of many texts: three times its bytes and a
    megabyte or two are taken, and some of the 4 MiB that malloc keeps for each thread."""
    async with upstream(each(strict(unwanted, answers))) as gpu:
        async with process(settings({"gpu": openai(gpu.url)}, **PATIENT), tmp_path) as running:
            port = int(running.url.rpartition(":")[2])
            for model in ("reasoning", "alternate", "system"):
                role = "system" if model == "system" else "user"
                row = {"role": role, "content": "x" * size + "\U0001f600"}
                odd: dict[str, Any] = {"role": "assistant", "content": "hm"}
                odd |= {"reasoning_content": "Hm."} if model == "reasoning" else {}
                rows = [row] * (LONG // size) + [odd, {"role": "user", "content": "go"}]
                asked = {"model": f"gpu/{model}", "stream": False, "messages": rows}
                body = json.dumps(asked, ensure_ascii=False).encode()
                gpu.seen.clear()
                for requests in (2, 3):
                    with peak(running.pid) as taken:
                        assert (await raw_post(port, "/v1/chat/completions", body)).startswith(b"HTTP/1.1 200")
                    assert len(gpu.posts) == requests
                    assert taken.mib <= 4.2 * len(body) / MIB + 3, (model, requests)


@pytest.mark.parametrize("size", [LONG, 2000])
@pytest.mark.parametrize("is_signed", [True, False])
async def test_the_memory_of_turns_of_anthropics(size: int, is_signed: bool, tmp_path: Path) -> None:
    """Untranslated, with other ids or without a signed thought. The rest keeps its bytes, as a long number shows."""
    long = "x" * size + "\U0001f600"
    called = {"type": "tool_use", "id": ODD, "name": "f", "input": {"a": long, "n": 10**29}}
    thought = {"type": "thinking", "thinking": "Hm.", "signature": "Zm9v"}
    said = [thought, {**called, "id": "c"}, {"type": "text", "text": "so"}] if is_signed else [called]
    told = {"type": "tool_result", "tool_use_id": "c" if is_signed else ODD, "content": long}
    turns = [{"role": "assistant", "content": said}, {"role": "user", "content": [told]}] * (LONG // size)

    async def answered(connection: Connection, seen: Seen) -> None:
        if ODD.encode() in seen.body or b"Zm9v" in seen.body:
            words = (
                "Invalid `signature` in `thinking` block" if is_signed else "messages.1.tool_use.id: String should be"
            )
            error = {"type": "error", "error": {"type": "invalid_request_error", "message": words}}
            await connection.reply(error, "400 Bad Request")
        else:
            await connection.reply(MESSAGE)

    asked = {"model": "p/m", "max_tokens": 9, "messages": [{"role": "user", "content": "go"}, *turns]}
    body = json.dumps(asked, ensure_ascii=False, separators=(",", ":")).encode()
    async with upstream(each(answered)) as up:
        async with process(settings({"p": openai(up.url, speaks=["messages"])}, **PATIENT), tmp_path) as running:
            with peak(running.pid) as taken:
                answer = await raw_post(int(running.url.rpartition(":")[2]), "/v1/messages", body)
            assert answer.startswith(b"HTTP/1.1 200")
            assert taken.mib <= 5.5 * len(body) / MIB
            sent = body.replace(f'"{ODD}"'.encode(), f'"{short_id(ODD)}"'.encode()).replace(b'"p/m"', b'"m"')
            sent = sent.replace(json.dumps(thought, separators=(",", ":")).encode() + b",", b"")
            off = b'{"thinking":{"type":"disabled"},' if is_signed else b"{"
            assert up.posts[-1].body == sent.replace(b"{", off, 1)


@pytest.mark.parametrize(("size", "asked"), [(100, 100), (60_000, 100), (100, 60_000)])
async def test_a_long_refusal_is_read_in_a_thread(
    size: int, asked: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One of 64 KiB takes 6 to 15 ms, whatever the request: a server that quotes prompts lets callers choose it. So it
    is with one of a long request, in which its words are looked for."""
    threads: list[str] = []
    reshape = OpenAIWire.reshape

    def noted(*args: Any) -> Any:
        threads.append(threading.current_thread().name)
        return reshape(*args)

    monkeypatch.setattr(OpenAIWire, "reshape", noted)
    async with upstream(each(strict(lambda asked: "no: " + "reasoning " * (size // 10), answers))) as gpu:
        async with proxy(settings({"gpu": openai(gpu.url)}), tmp_path) as p:
            messages = [{"role": "user", "content": "reasoning " * (asked // 10)}]
            assert (await p.chat(model="gpu/m", messages=messages))[0] == 400
    assert [name.startswith("large") for name in threads] == [size > 1000 or asked > 1000]
