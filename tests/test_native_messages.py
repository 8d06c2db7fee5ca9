"""A provider that speaks Anthropic's Messages itself: its bytes are relayed, and a chain may mix it with others."""

from __future__ import annotations

import asyncio
import json
import threading
from pathlib import Path
from typing import Any

import pytest

from manallm_proxy.contract.provider import Call
from manallm_proxy.doors.carried import Carried, pack
from manallm_proxy.doors.messages.native import NativeForm
from manallm_proxy.gateway.client_keys import digest_of
from tests.native_servers import (
    SIGNED,
    blocks,
    event,
    message_begin,
    message_end,
    message_object,
    message_words,
    messages_stream,
    speaks_messages,
)
from tests.proxy import Proxy, everything, openai, proxy, settings
from tests.upstreams import Connection, Seen, answers, each, status, upstream
from tests.waiting import until

NATIVE = ["messages"]
USER = {"role": "user", "content": "hi"}
ASKED = {"max_tokens": 100, "messages": [USER]}


async def stream(p: Proxy, **body: Any) -> tuple[int, bytes]:
    async with p.client.post(f"{p.url}/v1/messages", json={**ASKED, "stream": True, **body}) as response:
        return response.status, await everything(response)


def rows(data: bytes) -> list[dict[str, Any]]:
    return [json.loads(line[6:]) for line in data.split(b"\n") if line.startswith(b"data: ")]


async def test_a_whole_answer(http: None, tmp_path: Path) -> None:
    """Every field both ways, the model replaced; the key in both places where servers look for one."""
    async with upstream(each(speaks_messages)) as up:
        config = settings({"p": openai(up.url, speaks=NATIVE, api_key="sk-own-key")})
        async with proxy(config, tmp_path) as p:
            tools = [{"type": "web_search_20250305", "name": "web_search"}]
            body = {**ASKED, "model": "mana/test", "tools": tools, "top_k": 3, "cache_control": {"type": "ephemeral"}}
            sent_headers = {
                "anthropic-version": "2026-10-21",
                "anthropic-beta": "a-1,b-2",
                "x-api-key": "sk-client-key",
            }
            code, told, headers = await p.post("/v1/messages", body, headers=sent_headers)
            assert (code, told) == (200, {**message_object(blocks()), "model": "p/m"})
            assert headers["x-mana-llm-resolved"] == "p/m"
            sent = up.posts[-1]
            assert (sent.path, sent.json) == ("/v1/messages", {**body, "model": "m"})
            assert sent.headers["anthropic-version"] == "2026-10-21"
            assert sent.headers["anthropic-beta"] == "a-1,b-2"
            assert (sent.headers["authorization"], sent.headers["x-api-key"]) == ("Bearer sk-own-key", "sk-own-key")
            await p.post("/v1/messages", body)
            assert up.posts[-1].headers["anthropic-version"] == "2023-06-01"
            assert "anthropic-beta" not in up.posts[-1].headers
            ended = [json.loads(row) for row in p.log.getvalue().splitlines()]
            row = next(row for row in ended if row["event"] == "request")
            assert (row["prompt_tokens"], row["completion_tokens"]) == (7, 5)


@pytest.mark.parametrize(
    ("given", "sent"),
    [
        (["a-1", "b-2"], "a-1,b-2"),  # Go's SDK adds a line for each
        (["a-1", ""], "a-1"),
        (["a" * 4096], "a" * 4096),
        (["a" * 4097], None),
        (["\u00e9"], None),
        (["a\tb"], None),
    ],
)
async def test_what_a_client_asks_for_by_a_header(given: list[str], sent: str | None, tmp_path: Path) -> None:
    """What is no list of names is not sent on."""
    async with (
        upstream(each(speaks_messages)) as up,
        proxy(settings({"p": openai(up.url, speaks=NATIVE)}), tmp_path) as p,
    ):
        headers = [("anthropic-beta", each_) for each_ in given]
        assert (await p.post("/v1/messages", ASKED, headers=headers))[0] == 200
        assert up.posts[-1].headers.get("anthropic-beta") == sent


async def test_configured_headers_win(tmp_path: Path) -> None:
    """Over the defaults and over the client's."""
    async with upstream(each(speaks_messages)) as up:
        headers = {"anthropic-version": "2025-01-01", "x-api-key": "sk-configured"}
        async with proxy(settings({"p": openai(up.url, speaks=NATIVE, headers=headers)}), tmp_path) as p:
            await p.post("/v1/messages", ASKED, headers={"anthropic-version": "2026-10-21"})
            sent = up.posts[-1].headers
            assert (sent["anthropic-version"], sent["x-api-key"]) == ("2025-01-01", "sk-configured")
            assert "authorization" not in sent


async def test_a_stream_keeps_its_bytes(tmp_path: Path) -> None:
    """All but the model in its first event, and pings before there is an answer."""
    async with upstream(each(speaks_messages)) as up:
        async with proxy(settings({"p": openai(up.url, speaks=NATIVE)}), tmp_path) as p:
            code, data = await stream(p)
            wanted = b"".join(frame for frame in messages_stream() if b"ping" not in frame)
            assert (code, data) == (200, wanted.replace(b'"m-2026-01-01"', b'"p/m"'))
            ended = [json.loads(row) for row in p.log.getvalue().splitlines()]
            row = next(row for row in ended if row["event"] == "request")
            assert (row["prompt_tokens"], row["completion_tokens"]) == (7, 9)


@pytest.mark.parametrize("step", [1, 7, 64, 10_000])
async def test_however_it_is_cut(step: int, tmp_path: Path) -> None:
    """Reads have nothing to do with events; and an event without a name gets one, or SDKs would drop it."""
    frames = [frame.split(b"\n", 1)[1] for frame in messages_stream()]
    whole = b"".join(frames)

    async def answer(connection: Connection, seen: Seen) -> None:
        await connection.head()
        for at in range(0, len(whole), step):
            await connection.chunk(whole[at : at + step])
        await connection.end()

    async with upstream(each(answer)) as up:
        async with proxy(settings({"p": openai(up.url, speaks=NATIVE)}), tmp_path) as p:
            _, data = await stream(p)
            wanted = b"".join(frame for frame in messages_stream() if b"ping" not in frame)
            assert data == wanted.replace(b'"m-2026-01-01"', b'"p/m"')


OVERLOADED = event("error", error={"type": "overloaded_error", "message": "Overloaded"})
BREAKS = {"an error": [OVERLOADED], "cut": [], "no json": [b"event: x\ndata: {\n\n"]}


@pytest.mark.parametrize("how", BREAKS)
async def test_a_break(how: str, tmp_path: Path) -> None:
    """Before a word was said the next target serves, which needs a translation; after it an error event is the end."""

    def server(said: bool) -> Any:
        async def answer(connection: Connection, seen: Seen) -> None:
            await connection.head()
            for frame in [*message_begin(), *(message_words() if said else []), *BREAKS[how]]:
                await connection.chunk(frame)
            await connection.end()

        return answer

    for said in (False, True):
        async with upstream(each(server(said))) as up, upstream(each(answers)) as other:
            async with proxy(settings({"a": openai(up.url, speaks=NATIVE), "b": openai(other.url)}), tmp_path) as p:
                code, data = await stream(p)
                told = rows(data)
                assert code == 200
                if not said:
                    assert told[0]["message"]["model"] == "b/m"
                    assert told[-1]["type"] == "message_stop"
                    continue
                assert told[0]["message"]["model"] == "a/m"
                assert told[-1]["type"] == "error"
                assert told[-1]["error"]["type"] == ("overloaded_error" if how == "an error" else "api_error")
                assert not [row for row in told if row["type"] in ("message_delta", "message_stop")]
                assert not other.posts


WRONG: dict[str, dict[str, Any]] = {
    "an error": {"type": "error", "error": {"type": "overloaded_error", "message": "Overloaded"}},
    "a chat": {"id": "c", "object": "chat.completion", "choices": [{"message": {"content": "x"}}]},
}


@pytest.mark.parametrize("what", WRONG)
async def test_a_200_that_is_no_answer(what: str, tmp_path: Path) -> None:
    """The next target serves, streamed and not."""

    async def answer(connection: Connection, seen: Seen) -> None:
        await connection.reply(WRONG[what])

    async with upstream(each(answer)) as up, upstream(each(speaks_messages)) as other:
        providers = {"a": openai(up.url, speaks=NATIVE), "b": openai(other.url, speaks=NATIVE)}
        async with proxy(settings(providers, health={"failure_threshold": 99}), tmp_path) as p:
            assert (await p.post("/v1/messages", ASKED))[1]["model"] == "b/m"
            assert rows((await stream(p))[1])[0]["message"]["model"] == "b/m"


async def test_a_providers_refusal_keeps_its_words(tmp_path: Path) -> None:
    """In Anthropic's form, which is the door's own."""
    body = {"type": "error", "error": {"type": "invalid_request_error", "message": "max_tokens: 9 > 8"}}
    async with upstream(each(status("400 Bad Request", body))) as up:
        async with proxy(settings({"p": openai(up.url, speaks=NATIVE)}), tmp_path) as p:
            code, told, _ = await p.post("/v1/messages", ASKED)
            assert (code, told["type"], told["error"]["type"]) == (400, "error", "invalid_request_error")
            assert told["error"]["message"] == "max_tokens: 9 > 8"
            assert (told["error"]["source"], told["error"]["target"]) == ("provider", "p/m")


async def test_thoughts_go_to_whoever_signed_them(tmp_path: Path) -> None:
    """Those that carry what another provider wants are left out; the rest keeps its bytes."""
    async with upstream(each(speaks_messages)) as up:
        async with proxy(settings({"p": openai(up.url, speaks=NATIVE)}), tmp_path) as p:
            carried = "manallm1.eyJpZCI6ImMxIiwiZXh0cmEiOnt9fQ=="
            turn = [
                {"type": "thinking", "thinking": "a", "signature": carried},
                {"type": "thinking", "thinking": "b", "signature": carried},
                {"type": "thinking", "thinking": "c", "signature": SIGNED},
                {"type": "thinking", "thinking": "d", "signature": ""},
                {"type": "text", "text": "so"},
            ]
            messages = [
                USER,
                {"role": "assistant", "content": turn},
                USER,
                {"role": "assistant", "content": turn[:1]},
                USER,
            ]
            await p.post("/v1/messages", {**ASKED, "messages": messages})
            assert up.posts[-1].json["messages"] == [USER, {"role": "assistant", "content": turn[2:]}, USER, USER]
            odd = [None, {"role": "assistant", "content": []}, 1]  # no turns: to say so is the provider's part
            await p.post("/v1/messages", {**ASKED, "messages": [*odd, *messages]})
            assert up.posts[-1].json["messages"][:4] == [*odd, USER]


async def test_a_call_that_has_lost_its_thought(tmp_path: Path) -> None:
    """Its turn goes on without thinking, which its provider would refuse; the next one thinks again."""
    async with upstream(each(speaks_messages)) as up:
        async with proxy(settings({"p": openai(up.url, speaks=NATIVE)}), tmp_path) as p:
            thought = {"type": "thinking", "thinking": "a", "signature": pack(Carried("other", "hm"))}
            use = {"type": "tool_use", "id": "t1", "name": "add", "input": {}}
            called = {"role": "assistant", "content": [thought, use]}
            result = {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "t1", "content": "2"}]}
            thinking = {"type": "enabled", "budget_tokens": 2048}
            body = {**ASKED, "thinking": thinking, "messages": [USER, called, result]}
            await p.post("/v1/messages", body)
            sent = up.posts[-1].json
            assert (sent["thinking"], sent["messages"][1]["content"]) == ({"type": "disabled"}, [use])
            own = {"role": "assistant", "content": [{**thought, "signature": SIGNED}, use]}
            for more in ([own], [{"role": "assistant", "content": "so"}, USER]):
                await p.post("/v1/messages", {**body, "messages": [USER, called, result, *more]})
                assert up.posts[-1].json["thinking"] == thinking


async def test_what_has_no_translation_goes_to_who_needs_none(tmp_path: Path) -> None:
    """Past a target that would need one; where there is no other it is refused by name, and nobody is asked."""
    async with upstream(each(answers)) as chats, upstream(each(speaks_messages)) as up:
        providers = {"a": openai(chats.url), "p": openai(up.url, speaks=NATIVE)}
        async with proxy(settings(providers, chain=["a/m", "p/m"]), tmp_path) as p:
            document = {"type": "document", "source": {"type": "url", "url": "https://x/y.pdf"}}
            uploaded = {"type": "image", "source": {"type": "file", "file_id": "file_1"}}
            for body in (
                {"tools": [{"type": "bash_20250124", "name": "bash"}]},
                {"mcp_servers": [{"type": "url", "url": "https://x", "name": "x"}]},
                {"tools": [{"name": "f", "input_schema": {}, "allowed_callers": ["code_execution_20260120"]}]},
                {"messages": [{"role": "user", "content": [document]}]},
                {"messages": [{"role": "user", "content": [uploaded]}]},
            ):
                code, told, _ = await p.post("/v1/messages", {**ASKED, **body})
                assert (code, told["model"]) == (200, "p/m")
                code, told, _ = await p.post("/v1/messages", {**ASKED, "model": "a/m", **body})
                assert (code, told["error"]["type"]) == (400, "invalid_request_error")
                assert told["error"]["source"] == "manallm-proxy"
            assert not chats.posts
            code, told, _ = await p.post("/v1/messages", {**ASKED, "thread": {"type": "create"}})
            assert told["error"]["details"]["error_code"] == "thread_unsupported_request"
            assert (await p.post("/v1/messages", ASKED))[1]["model"] == "a/m"


async def test_what_is_kept_of_it(tmp_path: Path) -> None:
    """Whole and streamed are one answer; who asks in another way of its API has another, also in a mixed chain."""
    async with upstream(each(speaks_messages)) as up, upstream(each(answers)) as chats:
        providers = {"p": openai(up.url, speaks=NATIVE), "b": openai(chats.url)}
        for chain in (["p/m"], ["p/m", "b/m"]):
            config = settings(providers, chain=chain)
            config["aliases"]["mana/test"]["cache"] = {"ttl": "1h"}
            async with proxy(config, tmp_path) as p:
                _, whole, told = await p.post("/v1/messages", ASKED)
                assert told["x-mana-llm-cache"] == "miss"
                _, data = await stream(p)
                first, last = rows(data)[0], rows(data)[-1]
                assert (first["message"]["id"], last["type"]) == (whole["id"], "message_stop")
                beta = {"anthropic-beta": "a-1"}
                assert (await p.post("/v1/messages", ASKED, headers=beta))[2]["x-mana-llm-cache"] == "miss"
                assert (await p.post("/v1/messages", ASKED, headers=beta))[2]["x-mana-llm-cache"] == "hit"
        assert len(up.posts) == 4


async def test_it_counts_tokens_itself(tmp_path: Path) -> None:
    """If it is the first that would be asked; otherwise, and where it fails, they are estimated."""
    async with upstream(each(answers)) as chats, upstream(each(speaks_messages)) as up:
        providers = {"p": openai(up.url, speaks=NATIVE), "a": openai(chats.url)}
        async with proxy(settings(providers), tmp_path) as p:
            body = {"model": "mana/test", "messages": [USER]}
            code, told, _ = await p.post("/v1/messages/count_tokens", body, headers={"anthropic-beta": "a-1"})
            assert (code, told) == (200, {"input_tokens": 42})
            sent = up.posts[-1]
            assert (sent.path, sent.json) == ("/v1/messages/count_tokens", {**body, "model": "m"})
            assert sent.headers["anthropic-beta"] == "a-1"
            served = {"type": "bash_20250124", "name": "bash"}
            assert (await p.post("/v1/messages/count_tokens", {**body, "tools": [served]}))[1] == {"input_tokens": 42}
            code, told, _ = await p.post("/v1/messages/count_tokens", {**body, "model": "a/m", "tools": [served]})
            assert (code, told["error"]["param"]) == (400, "tools[0]")
            _, told, _ = await p.post("/v1/messages/count_tokens", {**body, "model": "a/m"})
            assert told["input_tokens"] < 42
            for post in (body, {**body, "model": "p/m"}):
                local = {"X-Mana-Locality": "local"}
                assert (await p.post("/v1/messages/count_tokens", post, headers=local))[1]["input_tokens"] < 42
            assert len(up.posts) == 2
            assert not chats.posts
            await up.stop()
            assert (await p.post("/v1/messages/count_tokens", body))[1]["input_tokens"] < 42
            _, health = await p.get("/v1/health")
            assert health["providers"]["p"]["consecutive_failures"] == 0


async def test_a_count_by_a_provider_is_a_request_of_its_key(tmp_path: Path) -> None:
    """Within its minute and its places, of which an estimate takes none; what is over them reaches no provider."""
    go = asyncio.Event()

    async def waits(connection: Connection, seen: Seen) -> None:
        await go.wait()
        await speaks_messages(connection, seen)

    async def count(p: Proxy, key: str, model: str = "p/m") -> tuple[int, Any, dict[str, str]]:
        body = {"model": model, "messages": [USER]}
        return await p.post("/v1/messages/count_tokens", body, headers={"x-api-key": key})

    keys = [
        {"name": "minute", "sha256": digest_of("sk-minute"), "requests_per_minute": 2},
        {"name": "places", "sha256": digest_of("sk-places"), "concurrent_requests": 1},
    ]
    async with upstream(each(answers)) as chats, upstream(each(waits)) as up:
        providers = {"p": openai(up.url, speaks=NATIVE), "a": openai(chats.url)}
        async with proxy(settings(providers, auth={"keys": keys}), tmp_path) as p:
            first = asyncio.ensure_future(count(p, "sk-places"))
            await until(lambda: up.posts)
            code, told, _ = await count(p, "sk-places")
            assert (code, told["error"]["type"]) == (429, "rate_limit_error")
            assert (await count(p, "sk-places", "a/m"))[0] == 200
            go.set()
            assert (await first)[1] == (await count(p, "sk-places"))[1] == {"input_tokens": 42}
            for _ in range(3):
                assert (await count(p, "sk-minute", "a/m"))[0] == 200
            assert [(await count(p, "sk-minute"))[0] for _ in range(3)] == [200, 200, 429]
            code, told, headers = await count(p, "sk-minute")
            assert "2 requests within a minute" in told["error"]["message"] and int(headers["retry-after"]) > 50
            assert (await p.post("/v1/messages", {**ASKED, "model": "p/m"}, headers={"x-api-key": "sk-minute"}))[
                0
            ] == 429
            assert len(up.posts) == 4


async def test_a_count_keeps_its_provider_through_a_reload(tmp_path: Path) -> None:
    """A request holds the configuration that it began with, this one too."""
    go = asyncio.Event()

    async def waits(connection: Connection, seen: Seen) -> None:
        await go.wait()
        await speaks_messages(connection, seen)

    async with upstream(each(waits)) as up:
        async with proxy(settings({"p": openai(up.url, speaks=NATIVE)}), tmp_path) as p:
            body = {"model": "mana/test", "messages": [USER]}
            counting = asyncio.ensure_future(p.post("/v1/messages/count_tokens", body))
            await until(lambda: up.posts)
            p.write(settings({"p": openai(up.url, speaks=NATIVE, headers={"X-New": "1"})}))
            p.app.reload()
            await until(lambda: '"reloaded"' in p.log.getvalue())
            go.set()
            assert (await counting)[1] == {"input_tokens": 42}


async def test_a_silence_is_filled_with_pings(tmp_path: Path) -> None:
    """Before its first event and after it."""
    go = asyncio.Event()

    async def answer(connection: Connection, seen: Seen) -> None:
        await connection.upstream.go.wait()
        await connection.head()
        for frame in [*message_begin(), *message_words()]:
            await connection.chunk(frame)
        await go.wait()
        for frame in message_end():
            await connection.chunk(frame)
        await connection.end()

    async with upstream(each(answer)) as up:
        streaming = {"heartbeat": 0.05, "early_heartbeat": 0.05}
        async with proxy(settings({"p": openai(up.url, speaks=NATIVE)}, streaming=streaming), tmp_path) as p:
            data = b""
            async with p.client.post(f"{p.url}/v1/messages", json={**ASKED, "stream": True}) as response:
                async for part in response.content.iter_any():
                    data += part
                    up.go.set()
                    if data.endswith(b'"ping"}\n\n') and b"message_start" in data:
                        go.set()
            kinds = [row["type"] for row in rows(data)]
            assert kinds[0] == "ping" and kinds.count("message_start") == 1
            assert kinds[-1] == "message_stop"


@pytest.mark.parametrize(
    ("base", "path"),
    [("", "/v1/messages"), ("/anthropic", "/anthropic/v1/messages"), ("/api/v1", "/api/v1/messages")],
)
async def test_where_it_is_asked(base: str, path: str, tmp_path: Path) -> None:
    """``/v1/messages`` below the base URL, which may have its version already."""
    async with upstream(each(speaks_messages)) as up:
        provider = {"kind": "openai", "base_url": up.url + base, "speaks": NATIVE}
        async with proxy(settings({"p": provider}), tmp_path) as p:
            assert (await p.post("/v1/messages", ASKED))[0] == 200
            assert up.posts[-1].path == path


async def test_a_large_request_is_rewritten_beside_the_loop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Thoughts are left out of it, for which all of it is decoded: others are served meanwhile."""
    threads: list[bool] = []
    write = NativeForm.write

    def watched(form: NativeForm, provider: str) -> Call:
        threads.append(threading.current_thread() is threading.main_thread())
        return write(form, provider)

    monkeypatch.setattr(NativeForm, "write", watched)
    foreign = {"type": "thinking", "thinking": "hm", "signature": pack(Carried("other", "hm"))}
    async with upstream(each(speaks_messages)) as up:
        async with proxy(settings({"p": openai(up.url, speaks=NATIVE)}), tmp_path) as p:
            for size in (10, 400_000):
                said = {"role": "assistant", "content": [foreign, {"type": "text", "text": "x" * size}]}
                code, *_ = await p.post("/v1/messages", {**ASKED, "model": "p/m", "messages": [USER, said, USER]})
                assert code == 200
                assert b"thinking" not in up.posts[-1].body
    assert threads == [True, False]
