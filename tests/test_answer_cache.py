"""Answers that are kept: the same request again costs nothing, through every door, whole or streamed."""

from __future__ import annotations

import asyncio
import hashlib
import json
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from manallm_proxy.config.load import load
from manallm_proxy.config.structure import ConfigError
from manallm_proxy.doors.replay.forms import REPLAYS
from manallm_proxy.gateway.answers import canonical
from tests.cases import every
from tests.figures import value
from tests.proxy import Proxy, everything, openai, proxy, settings, written
from tests.upstreams import DONE, Connection, Seen, chunk, each, endless, status, upstream
from tests.waiting import until

CALL = {"id": "call_1", "type": "function", "function": {"name": "look", "arguments": '{"at": "Rome"}'}}
USAGE = {"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5}


async def talks(connection: Connection, seen: Seen) -> None:
    """Reasoning, text in three pieces and a tool call in two, whole or streamed, with an id of its own each time."""
    asked = seen.json
    id_ = f"chatcmpl-{len(connection.upstream.posts)}"
    common = {"id": id_, "created": 7, "model": "m", "system_fingerprint": "fp"}
    if "input" in asked:
        rows = [{"object": "embedding", "index": 0, "embedding": [0.5, -0.25]}]
        await connection.reply({"object": "list", "data": rows, "model": "m", "usage": USAGE})
        return
    if "prompt" in asked:
        choices: list[dict[str, Any]] = [{"index": 0, "text": "Hello", "finish_reason": "stop"}]
        pieces: list[dict[str, Any]] = [{"text": "Hel"}, {"text": "lo"}, {"text": "", "finish_reason": "stop"}]
        kind, part = "text_completion", "text_completion"
    else:
        message = {"role": "assistant", "content": "Hello", "reasoning_content": "Hm, so", "tool_calls": [CALL]}
        choices = [{"index": 0, "message": message, "finish_reason": "tool_calls"}]
        first = {**CALL, "index": 0, "function": {"name": "look", "arguments": '{"at":'}}
        steps: list[dict[str, Any]] = [
            {"role": "assistant", "content": ""},
            {"reasoning_content": "Hm,"},
            {"reasoning_content": " so"},
            {"content": "Hel"},
            {"content": "lo"},
            {"tool_calls": [first]},
            {"tool_calls": [{"index": 0, "function": {"arguments": ' "Rome"}'}}]},
        ]
        pieces = [*({"delta": step} for step in steps), {"delta": {}, "finish_reason": "tool_calls"}]
        kind, part = "chat.completion", "chat.completion.chunk"
    if not asked.get("stream"):
        await connection.reply({**common, "object": kind, "choices": choices, "usage": USAGE})
        return
    await connection.head()
    for piece in pieces:
        row = {"index": 0, "finish_reason": None, **piece}
        await connection.chunk(b"data: " + json.dumps({**common, "object": part, "choices": [row]}).encode() + b"\n\n")
    if asked.get("stream_options", {}).get("include_usage"):
        row = {**common, "object": part, "choices": [], "usage": USAGE}
        await connection.chunk(b"data: " + json.dumps(row).encode() + b"\n\n")
    await connection.chunk(DONE)
    await connection.end()


def kept(url: str, **more: Any) -> dict[str, Any]:
    """One alias whose answers are kept."""
    config = settings({"up": openai(url)}, **more)
    config["aliases"]["mana/test"]["cache"] = {"ttl": "1h"}
    return config


DOORS: dict[str, tuple[str, dict[str, Any]]] = {
    "chat/completions": ("/v1/chat/completions", {"messages": [{"role": "user", "content": "hi"}]}),
    "completions": ("/v1/completions", {"prompt": "hi"}),
    "messages": ("/v1/messages", {"max_tokens": 9, "messages": [{"role": "user", "content": "hi"}]}),
    "responses": ("/v1/responses", {"input": "hi"}),
    "api/chat": ("/api/chat", {"messages": [{"role": "user", "content": "hi"}]}),
    "api/generate": ("/api/generate", {"prompt": "hi"}),
}


async def ask(
    gate: Proxy, path: str, body: dict[str, Any], *, stream: bool, headers: dict[str, str] | None = None
) -> tuple[bytes, str | None, aiohttp.ClientResponse]:
    """Body, what X-Mana-LLM-Cache says, and the response."""
    payload = {"model": "mana/test", **body, "stream": stream}
    async with gate.client.post(gate.url + path, json=payload, headers=headers or {}) as response:
        assert response.status == 200, await response.text()
        return await everything(response), response.headers.get("X-Mana-LLM-Cache"), response


def without_ids(whole: bytes) -> Any:
    """An answer without what is new in each: ids and times."""

    def plain(value: Any) -> Any:
        if isinstance(value, list):
            return [plain(each) for each in value]
        if not isinstance(value, dict):
            return value
        new = ("id", "created", "created_at", "completed_at", "total_duration", "eval_duration")
        return {k: plain(v) for k, v in value.items() if k not in (*new, "prompt_eval_duration")}

    return plain(json.loads(whole))


@pytest.mark.parametrize("door", DOORS)
async def test_every_door_gives_the_same_answer_again(door: str, tmp_path: Path) -> None:
    """Whole, then whole and streamed; streamed, then whole and streamed: one entry, ids included."""
    path, body = DOORS[door]
    replay = REPLAYS[door]
    async with upstream(each(talks)) as server, proxy(kept(server.url), tmp_path) as gate:
        first, cache, response = await ask(gate, path, body, stream=False)
        assert (cache, response.headers["X-Mana-LLM-Resolved"]) == ("miss", "up/m")
        again, cache, response = await ask(gate, path, body, stream=False)
        assert (cache, response.headers["X-Mana-LLM-Resolved"]) == ("hit", "up/m")
        assert (again, response.headers["X-Mana-LLM-Attempts"]) == (first, "0")
        streamed, cache, response = await ask(gate, path, body, stream=True)
        assert cache == "hit"
        assert response.content_type in ("text/event-stream", "application/x-ndjson")
        assert json.loads(replay.to_whole(streamed, None) or b"").keys() >= {"model"}
        assert len(server.posts) == 1
        other = {**body, "temperature": 0.5}
        live, cache, _ = await ask(gate, path, other, stream=True)
        assert cache == "miss"
        whole, cache, _ = await ask(gate, path, other, stream=False)
        assert cache == "hit"
        told, seen = without_ids(whole), without_ids(first)
        told.pop("temperature", None), seen.pop("temperature", None)
        assert told == seen, "what was streamed first says the same as what was not"
        if ids := json.loads(whole).get("id"):
            assert ids.encode() in live
            assert ids.encode() in (await ask(gate, path, other, stream=True))[0]
        assert len(server.posts) == 2


@pytest.mark.parametrize("door", DOORS)
async def test_a_stream_of_a_kept_answer_says_what_it_does(door: str, tmp_path: Path) -> None:
    """Turned into a stream and back, an answer is itself, but for what only the live one counts."""
    path, body = DOORS[door]
    async with upstream(each(talks)) as server, proxy(kept(server.url), tmp_path) as gate:
        whole, _, _ = await ask(gate, path, body, stream=False)
        replay = REPLAYS[door]
        stream = replay.to_stream(whole, True) or b""
        for end in (b"\n", b"\r\n", *((b"\r",) if not door.startswith("api") else ())):
            assert json.loads(replay.to_whole(stream.replace(b"\n", end), None) or b"") == json.loads(whole)


async def test_embeddings_are_kept_for_a_provider_that_says_so(tmp_path: Path) -> None:
    """By the provider's own ttl, named directly or through an alias; its other answers are not."""
    async with upstream(each(talks)) as server:
        config = settings({"up": openai(server.url, cache={"ttl": "1h"})})
        async with proxy(config, tmp_path) as gate:
            for path, body in (
                ("/v1/embeddings", {"input": "a"}),
                ("/v1/embeddings", {"input": "a", "model": "up/m"}),
                ("/v1/embeddings", {"input": "a", "encoding_format": "base64"}),
                ("/api/embed", {"input": "a"}),
                ("/api/embeddings", {"prompt": "a", "input": "a"}),
            ):
                before = len(server.posts)
                first, cache, _ = await ask(gate, path, body, stream=False)
                assert cache == "miss", (path, body)
                assert (await ask(gate, path, body, stream=False))[:2] == (first, "hit")
                assert len(server.posts) == before + 1
            for _ in range(2):
                assert (await ask(gate, *DOORS["chat/completions"], stream=False))[1] is None


async def test_what_cache_control_asks(tmp_path: Path) -> None:
    """no-store: neither read nor kept; no-cache and max-age=0: not read, but kept; max-age: not older than that."""
    path, body = DOORS["chat/completions"]
    async with upstream(each(talks)) as server, proxy(kept(server.url), tmp_path) as gate:

        async def told(control: str) -> tuple[str | None, int]:
            got = await ask(gate, path, body, stream=False, headers={"Cache-Control": control})
            return got[1], len(server.posts)

        assert await told("no-store") == ("bypass", 1)
        assert await told("max-age=60") == ("miss", 2)
        assert await told("max-age=60") == ("hit", 2)
        assert await told("no-store, max-age=60") == ("bypass", 3)
        assert await told("no-cache") == ("miss", 4)
        assert await told("max-age=0") == ("miss", 5)
        assert await told("max-age=soon, public") == ("hit", 5)
        assert await told("max-stale=0, min-fresh=0, s-maxage=0") == ("hit", 5), "which say nothing of its age"
        latest = await ask(gate, path, body, stream=False)
        assert (json.loads(latest[0])["id"], latest[1]) == ("chatcmpl-5", "hit")


async def test_one_caller_never_gets_anothers_answer(tmp_path: Path) -> None:
    """The key's name is part of what is asked; so is the chain's content, and every field."""
    keys = [{"name": name, "sha256": digest} for name, digest in SHA.items()]
    path, body = DOORS["chat/completions"]
    async with upstream(each(talks)) as server:
        config = kept(server.url, auth={"keys": keys})
        async with proxy(config, tmp_path) as gate:

            async def told(key: str, **more: Any) -> str | None:
                headers = {"Authorization": f"Bearer {key}"}
                return (await ask(gate, path, {**body, **more}, stream=False, headers=headers))[1]

            assert [await told("alice-key"), await told("bob-key")] == ["miss", "miss"]
            assert [await told("alice-key"), await told("bob-key")] == ["hit", "hit"]
            assert [await told("alice-key", seed=1), await told("alice-key", seed=2)] == ["miss", "miss"]
            config["aliases"]["mana/test"]["chain"] = [{"target": "up/m", "timeouts": {"idle": 4}}]
            gate.write(config)
            gate.app.reload()
            await until(lambda: "reloaded" in gate.log.getvalue())
            assert [await told("alice-key"), await told("alice-key")] == ["miss", "hit"]


SHA = {name: hashlib.sha256(f"{name}-key".encode()).hexdigest() for name in ("alice", "bob")}


async def test_only_complete_successful_answers_are_kept(tmp_path: Path) -> None:
    """Not an error, not a stream that broke, not an answer that ended in an error, not loopback's."""
    path, body = DOORS["chat/completions"]

    async def breaks(connection: Connection, seen: Seen) -> None:
        await connection.head()
        await connection.chunk(b'data: {"id":"1","choices":[{"index":0,"delta":{"content":"a"}}]}\n\n')
        connection.reset()

    async def fails(connection: Connection, seen: Seen) -> None:
        row = {"index": 0, "message": {"role": "assistant", "content": "a"}, "finish_reason": "error"}
        await connection.reply({"id": "1", "object": "chat.completion", "choices": [row]})

    async with upstream(each(breaks)) as server, proxy(kept(server.url), tmp_path) as gate:
        for _ in range(2):
            assert b'"error"' in (await ask(gate, path, body, stream=True))[0]
        assert len(server.posts) == 2
    async with upstream(each(fails)) as server, proxy(kept(server.url), tmp_path) as gate:
        assert [(await ask(gate, path, body, stream=False))[1] for _ in range(2)] == ["miss", "miss"]
    async with upstream(each(status("400 Bad Request"))) as server, proxy(kept(server.url), tmp_path) as gate:
        told = [(await gate.chat(model="mana/test"))[::2] for _ in range(2)]
        assert [(code, headers["x-mana-llm-cache"]) for code, headers in told] == [(400, "miss"), (400, "miss")]
    config = kept("http://127.0.0.1:9")
    config["providers"] = {"echo": {"kind": "loopback"}}
    config["aliases"]["mana/test"]["chain"] = ["echo/m"]
    async with proxy(config, tmp_path) as gate:
        assert [(await ask(gate, path, body, stream=False))[1] for _ in range(2)] == ["miss", "miss"]


async def test_a_stream_that_said_nothing_is_not_kept(tmp_path: Path) -> None:
    """It is handed on as the empty answer that it is; whoever asks next may be luckier."""

    async def says_nothing(connection: Connection, seen: Seen) -> None:
        await connection.head()
        await connection.end()

    async with upstream(each(says_nothing)) as server, proxy(kept(server.url), tmp_path) as gate:
        for path, body in DOORS.values():
            for _ in range(2):
                assert (await ask(gate, path, body, stream=True))[1] == "miss", path
        assert len(server.posts) == 2 * len(DOORS)


async def test_hits_and_saved_tokens_are_counted(tmp_path: Path) -> None:
    """A hit is no answer of a model: its tokens are saved, and not spent again."""
    path, body = DOORS["chat/completions"]
    async with upstream(each(talks)) as server, proxy(kept(server.url), tmp_path) as gate:
        for _ in range(3):
            await ask(gate, path, body, stream=False)
        async with gate.client.get(gate.url + "/metrics") as response:
            text = await response.text()
        for outcome, number in (("hit", 2), ("miss", 1)):
            assert value(text, "mana_llm_cache_requests_total", alias="mana/test", outcome=outcome) == number
        assert value(text, "mana_llm_cache_saved_tokens_total", alias="mana/test", type="prompt") == 6
        assert value(text, "mana_llm_tokens_total", provider="up", model="m", type="prompt") == 3
        assert value(text, "mana_llm_llm_requests_total", provider="up", model="m", streaming="false") == 1


async def test_a_response_that_is_gone_is_no_hit(tmp_path: Path) -> None:
    """Its id is in the answer, and a client may refer to it."""
    path, body = DOORS["responses"]
    async with upstream(each(talks)) as server, proxy(kept(server.url), tmp_path) as gate:
        first, _, _ = await ask(gate, path, body, stream=False)
        id_ = json.loads(first)["id"]
        assert (await ask(gate, path, body, stream=False))[1] == "hit"
        more = {"input": "and?", "previous_response_id": id_}
        assert (await ask(gate, path, more, stream=False))[1] == "miss"
        async with gate.client.delete(f"{gate.url}/v1/responses/{id_}") as response:
            assert response.status == 200
        new, cache, _ = await ask(gate, path, body, stream=False)
        assert (cache, json.loads(new)["id"] == id_) == ("miss", False)


async def test_identical_requests_in_flight_are_one(tmp_path: Path) -> None:
    """Streams hear what was said before they came; a whole answer is waited for; the first may leave."""
    path, body = DOORS["chat/completions"]
    async with upstream(each(endless)) as server, proxy(kept(server.url), tmp_path) as gate:
        payload = {"model": "mana/test", **body}
        first = await gate.client.post(gate.url + path, json={**payload, "stream": True})
        assert b"one" in await first.content.readany()
        second = await gate.client.post(gate.url + path, json={**payload, "stream": True})
        assert (second.headers["X-Mana-LLM-Cache"], b"one" in await second.content.readany()) == ("hit", True)
        third = asyncio.ensure_future(ask(gate, path, body, stream=False))
        await until(lambda: len(gate.app.gateway.pipeline.exchanges) == 3)
        first.close()
        await until(lambda: len(gate.app.gateway.pipeline.exchanges) == 2)
        server.go.set()
        assert DONE in await everything(second)
        whole, cache, _ = await third
        assert (json.loads(whole)["choices"][0]["message"]["content"], cache) == ("one", "hit")
        assert len(server.posts) == 1
        assert (await ask(gate, path, body, stream=True))[1] == "hit"
        assert not gate.app.gateway.generation.answers.flights


async def test_a_shared_stream_is_heard_word_by_word(tmp_path: Path) -> None:
    """By who began it and by who came later: each word when it is there, and once."""
    path, body = DOORS["chat/completions"]

    async def slow(connection: Connection, seen: Seen) -> None:
        await connection.head()
        await connection.chunk(chunk(role=True) + chunk("0"))
        for word in "123":
            await connection.upstream.go.wait()
            connection.upstream.go.clear()
            await connection.chunk(chunk(word))
        usage = b'data: {"choices":[],"usage":%b}\n\n' % json.dumps(USAGE).encode()
        await connection.chunk(chunk(finish="stop") + usage + DONE)
        await connection.end()

    async with upstream(each(slow)) as server, proxy(kept(server.url), tmp_path) as gate:
        payload = {"model": "mana/test", **body, "stream": True}
        both = [await gate.client.post(gate.url + path, json=payload) for _ in range(2)]
        heard = [b"", b""]
        for word in "0123":
            for n, response in enumerate(both):
                while f'"{word}"'.encode() not in heard[n]:
                    heard[n] += await response.content.readany()
            server.go.set()
        for n, response in enumerate(both):
            heard[n] += await everything(response)
            rows = [json.loads(line[6:]) for line in heard[n].splitlines() if line.startswith(b"data: {")]
            said = [row["choices"][0]["delta"].get("content") or "" for row in rows if row["choices"]]
            assert ("".join(said), heard[n].endswith(DONE)) == ("0123", True)
        whole, cache, _ = await ask(gate, path, body, stream=False)
        assert (json.loads(whole)["choices"][0]["message"]["content"], cache) == ("0123", "hit")
        assert len(server.posts) == 1
        text = await (await gate.client.get(gate.url + "/metrics")).text()
        saved = value(text, "mana_llm_cache_saved_tokens_total", alias="mana/test", type="prompt")
        assert saved == 2 * USAGE["prompt_tokens"], "of who came later, and of the kept one"


async def test_a_shared_stream_that_breaks_breaks_for_all_who_hear_it(tmp_path: Path) -> None:
    """With an error event and a cut connection, and in the log of each; nothing of it is kept."""
    path, body = DOORS["chat/completions"]

    async def breaks(connection: Connection, seen: Seen) -> None:
        await connection.head()
        await connection.chunk(chunk("one"))
        await connection.upstream.go.wait()
        connection.reset()

    async with upstream(each(breaks)) as server, proxy(kept(server.url), tmp_path) as gate:
        payload = {"model": "mana/test", **body, "stream": True}
        both = [await gate.client.post(gate.url + path, json=payload) for _ in range(2)]
        for response in both:
            assert b"one" in await response.content.readany()
        rests = [asyncio.ensure_future(everything(response)) for response in both]
        await asyncio.sleep(0)  # aiohttp forgets what came before a connection's end, unless somebody waits for it
        server.go.set()
        for response, rest in zip(both, await asyncio.gather(*rests), strict=True):
            assert json.loads(rest.removeprefix(b"data: "))["error"]["code"] == "stream_interrupted"
            assert isinstance(response.content.exception(), aiohttp.ClientPayloadError)
            response.close()
        rows = [json.loads(line) for line in gate.log.getvalue().splitlines() if '"event":"request"' in line]
        assert [(row["outcome"], row["error"]) for row in rows] == [("broken", "disconnected")] * 2
        again = await gate.client.post(gate.url + path, json=payload)
        assert (again.headers["X-Mana-LLM-Cache"], len(server.posts)) == ("miss", 2)
        again.close()


async def test_the_last_who_leaves_ends_it(tmp_path: Path) -> None:
    """Upstream too, and whoever comes then asks anew."""
    path, body = DOORS["chat/completions"]
    async with upstream(each(endless)) as server, proxy(kept(server.url), tmp_path) as gate:
        payload = {"model": "mana/test", **body, "stream": True}
        both = [await gate.client.post(gate.url + path, json=payload) for _ in range(2)]
        for response in both:
            assert b"one" in await response.content.readany()
        assert len(server.posts) == 1
        both[0].close()
        await until(lambda: len(gate.app.gateway.pipeline.exchanges) == 1)
        assert not server.connections[-1].closed.is_set()
        both[1].close()
        await asyncio.wait_for(server.connections[-1].closed.wait(), 1)
        server.go.set()
        assert (await ask(gate, path, body, stream=True))[1] == "miss"


async def test_a_failure_is_each_ones_own(tmp_path: Path) -> None:
    """Whoever waited for a request that failed asks for itself, and may fare better."""
    path, body = DOORS["chat/completions"]
    go = asyncio.Event()

    async def once(connection: Connection, seen: Seen) -> None:
        if len(connection.upstream.posts) == 1:
            await go.wait()
            await connection.reply({"error": {"message": "no"}}, "400 Bad Request")
        else:
            await talks(connection, seen)

    async with upstream(each(once)) as server, proxy(kept(server.url), tmp_path) as gate:
        for stream in (False, True):
            server.seen.clear()
            go.clear()
            other = {**body, "seed": int(stream)}
            first = asyncio.ensure_future(gate.chat(model="mana/test", **other, stream=stream))
            await until(lambda: len(server.posts) == 1)
            rest = [asyncio.ensure_future(ask(gate, path, other, stream=stream)) for _ in range(3)]
            await until(lambda: len(gate.app.gateway.pipeline.exchanges) == 4)
            go.set()
            assert (await first)[0] == 400
            assert [(await each_)[1] for each_ in rest] == ["miss"] * 3
            assert len(server.posts) == 4


SAME = [
    (b'{"b":1,"a":{"y":[1,2],"x":"\xc3\xa9"}}', b'{ "a": {"x": "\xc3\xa9", "y": [1, 2]}, "b": 1 }'),
    (b'{"a":1,"stream":true,"stream_options":{"include_usage":true}}', b'{"a":1}'),
    (b'{"a":1e5,"b":2}', b'{"b": 2, "a": 1e5, "stream": false}'),
]
OTHER = [
    (b'{"a":1}', b'{"a":1.0}'),
    (b'{"a":{"x":1,"x":2}}', b'{"a":{"x":2}}'),
    (b'{"a":{"x":1,"x":2}}', b'{"a":{"x":2,"x":2}}'),
    (b'{"a":0.1000000000000000055}', b'{"a":0.1}'),
    (b'{"a":"1"}', b'{"a":1}'),
    (b'{"a":null}', b"{}"),
]


def test_a_request_has_one_form() -> None:
    """White space and the order of keys say nothing; a key given twice, digits and types do."""
    for one, other in SAME:
        assert canonical(one) == canonical(other) is not None
    for one, other in OTHER:
        assert canonical(one) != canonical(other)
    assert canonical(b"[1]") is None
    text = "x" * 2**20
    long = json.dumps({"model": "m", "messages": [text], "stream": True}).encode()
    assert canonical(long) == canonical(long.replace(b"true", b"false")) is not None, "of megabytes, the order of keys"
    assert canonical(long) == canonical(json.dumps({"messages": [text], "model": "m"}).encode())
    assert canonical(long) != canonical(long.replace(b'"m"', b'"n"'))
    assert canonical(long[:-1] + b',"model":"m"}') is None, "a key given twice"


@pytest.mark.parametrize(
    ("change", "place"),
    [
        ({"aliases": {"mana/a": {"chain": ["up/m"], "cache": {"ttl": 0}}}}, "mana/a.cache.ttl"),
        ({"aliases": {"mana/a": {"chain": ["up/m"], "cache": {}}}}, "mana/a.cache.ttl"),
        ({"cache": {"memory": "much"}}, "cache.memory"),
        ({"providers": {"up": {**openai("http://a"), "cache": {"ttl": "-1s"}}}}, "providers.up.cache.ttl"),
    ],
)
def test_mistakes_are_named_by_path(change: dict[str, Any], place: str, tmp_path: Path) -> None:
    """As in every part of the configuration."""
    config = {"providers": {"up": openai("http://a")}, **change}
    (tmp_path / "proxy.yaml").write_text(written(config))
    with pytest.raises(ConfigError) as raised:
        load(tmp_path / "proxy.yaml", {})
    assert any(place in mistake for mistake in raised.value.mistakes), raised.value.mistakes


async def test_heartbeats_of_a_shared_stream_come_from_one_mouth(tmp_path: Path) -> None:
    """Before anybody answers and in mid-stream: all who hear it get the same events, and each event once."""
    path, body = DOORS["responses"]
    words = asyncio.Event()

    async def slow(connection: Connection, seen: Seen) -> None:
        await connection.upstream.go.wait()
        await connection.head()
        await connection.chunk(chunk("one"))
        await words.wait()
        await connection.chunk(chunk("two") + chunk(finish="stop") + DONE)
        await connection.end()

    config_ = {"streaming": {"early_heartbeat": 0.02, "heartbeat": 0.02}}
    async with upstream(each(slow)) as server, proxy(kept(server.url, **config_), tmp_path) as gate:
        payload = {"model": "mana/test", **body, "stream": True}
        both = [await gate.client.post(gate.url + path, json=payload) for _ in range(2)]
        assert [response.headers["X-Mana-LLM-Cache"] for response in both] == ["miss", "hit"]
        server.go.set()
        begun = [b""] * 2
        for n, response in enumerate(both):
            while b"one" not in begun[n] or b"in_progress" not in begun[n].partition(b"one")[2]:
                begun[n] += await response.content.readany()
        words.set()
        told = [begun[n] + await everything(response) for n, response in enumerate(both)]
        assert told[0] == told[1]
        events = [json.loads(line[6:]) for line in told[0].splitlines() if line.startswith(b"data: ")]
        assert [event["sequence_number"] for event in events] == list(range(len(events)))
        assert [event["type"] for event in events].count("response.created") == 1
        assert events[-1]["type"] == "response.completed"
        assert len(server.posts) == 1
        whole, cache, _ = await ask(gate, path, body, stream=False)
        assert (json.loads(whole), cache) == (events[-1]["response"], "hit")


@pytest.mark.parametrize("door", ["responses", "chat/completions"])
async def test_who_heard_the_heartbeats_of_a_stream_that_fails_is_told_so(door: str, tmp_path: Path) -> None:
    """They begin a response, which no other one may follow, so all get the same failure. A chat is asked for again."""
    path, body = DOORS[door]
    failed = asyncio.Event()

    async def fails_once(connection: Connection, seen: Seen) -> None:
        if failed.is_set():
            await talks(connection, seen)
        else:
            await connection.upstream.go.wait()
            failed.set()
            await connection.reply({"error": {"message": "broken"}}, "500 Internal Server Error")

    config = {"streaming": {"early_heartbeat": 0.02}}
    async with upstream(each(fails_once)) as server, proxy(kept(server.url, **config), tmp_path) as gate:
        payload = {"model": "mana/test", **body, "stream": True}
        both = [await gate.client.post(gate.url + path, json=payload) for _ in range(2)]
        assert [response.headers["X-Mana-LLM-Cache"] for response in both] == ["miss", "hit"]
        begun = [await response.content.readany() for response in both]
        rest = [asyncio.ensure_future(everything(response)) for response in both]
        await asyncio.sleep(0)  # both read
        server.go.set()
        told = [begun[n] + await each for n, each in enumerate(rest)]
        for response in both:
            response.close()
        if door == "chat/completions":
            assert b"error" in told[0] and b"[DONE]" in told[1]
            return
        assert told[0] == told[1]
        events = [json.loads(line[6:]) for line in told[0].splitlines() if line.startswith(b"data: ")]
        assert [event["sequence_number"] for event in events] == list(range(len(events)))
        assert [event["type"] for event in events].count("response.created") == 1
        assert [event["type"] for event in events][-2:] == ["response.failed", "error"]
        assert len(server.posts) == 1
        *_, one, other = [row for row in map(json.loads, gate.log.getvalue().splitlines()) if row["event"] == "request"]
        assert one["outcome"] == other["outcome"] == "error"


def test_what_anthropics_own_server_streams_becomes_whole() -> None:
    """Its prompt is counted at the start only; a block that we do not know is not kept."""

    def event(**told: Any) -> bytes:
        return f"event: {told['type']}\ndata: {json.dumps(told)}\n\n".encode()

    start = {"id": "msg_1", "type": "message", "content": [], "usage": {"input_tokens": 9, "output_tokens": 1}}
    text = {"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}}
    rest = (
        event(type="content_block_delta", index=0, delta={"type": "text_delta", "text": "Hi"}),
        event(type="message_delta", delta={"stop_reason": "end_turn"}, usage={"output_tokens": 4}),
        event(type="message_stop"),
    )
    to_whole = REPLAYS["messages"].to_whole
    whole = json.loads(
        to_whole(b"".join((event(type="message_start", message=start), event(**text), *rest)), None) or b""
    )
    assert whole["usage"] == {"input_tokens": 9, "output_tokens": 4}
    assert (whole["content"], whole["stop_reason"]) == ([{"type": "text", "text": "Hi"}], "end_turn")
    text["content_block"] = {"type": "server_tool_use", "id": "1"}
    assert to_whole(b"".join((event(type="message_start", message=start), event(**text), *rest)), None) is None


def test_the_package_that_is_missing_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the command that installs it."""
    monkeypatch.setattr("manallm_proxy.config.state_url.find_spec", lambda name: None)
    path = tmp_path / "proxy.yaml"
    path.write_text(written({"providers": {"up": openai("http://a")}, "state": "redis://127.0.0.1"}))
    with pytest.raises(ConfigError, match=r"state: .*pip install 'manallm-proxy\[redis\]'"):
        load(path, {})


ODD: tuple[Any, ...] = (None, 1, "x", [], {}, [1], [None], [{}], {"type": "message"}, [{"type": "message"}])


def test_what_a_provider_may_have_sent_breaks_nothing() -> None:
    """Relayed bytes are kept as they came: what cannot be turned into the other form is asked for again."""
    wholes: dict[str, tuple[str, dict[str, Any]]] = {
        "chat/completions": ("choices", {"id": "1", "choices": [{"index": 0, "message": {"content": "a"}}]}),
        "completions": ("choices", {"id": "1", "choices": [{"index": 0, "text": "a"}]}),
        "messages": ("content", {"id": "1", "content": [], "usage": {}, "stop_reason": "end_turn"}),
        "responses": ("output", {"id": "1", "status": "completed", "output": []}),
        "api/chat": ("message", {"model": "m", "message": {"content": "a"}, "done": True}),
    }
    for door, (member, whole) in wholes.items():
        replay = REPLAYS[door]
        assert replay.to_stream(json.dumps(whole).encode(), True), door
        for odd in ODD:
            for body in (odd, {**whole, member: odd}, {member: odd}):
                data = json.dumps(body).encode()
                replay.to_stream(data, True)
                replay.is_success(data)
                replay.to_whole(b"event: x\ndata: " + data + b"\n\n", None)
                replay.to_whole(data, None)


def test_what_is_odd_in_a_whole_answer_is_not_so_in_its_stream() -> None:
    """An empty error, which SDKs raise in a chunk; calls that all have one number, which they take for one call."""
    calls = [{"id": f"c{n}", "index": 0, "function": {"name": "f", "arguments": "{}"}} for n in range(2)]
    choices = [{"index": 0, "message": {"content": None, "tool_calls": calls}, "finish_reason": "tool_calls"}]
    whole = json.dumps({"id": "x", "error": {"message": "", "code": 0}, "choices": choices}).encode()
    chunks = [
        json.loads(row[6:]) for row in (REPLAYS["chat/completions"].to_stream(whole, True) or b"").split(b"\n\n")[:-2]
    ]
    assert not any("error" in each for each in chunks)
    assert [(call["index"], call["id"]) for call in chunks[0]["choices"][0]["delta"]["tool_calls"]] == [
        (0, "c0"),
        (1, "c1"),
    ]


def events(*payloads: Any) -> bytes:
    return b"".join(
        b"data: %b\n\n" % (json.dumps(each).encode() if each != "[DONE]" else b"[DONE]") for each in payloads
    )


def said(delta: Any, finish: str | None = None, **more: Any) -> dict[str, Any]:
    return {"id": "1", "choices": [{"index": 0, "delta": delta, "finish_reason": finish, **more}]}


def test_calls_that_are_all_numbered_0_stay_apart_in_a_whole_answer() -> None:
    """As some servers stream them: whose ids differ are two."""
    parts = [("a", '{"x":'), ("", "1}"), ("b", "{}"), ("b", " ")]
    rows = [{"index": 0, "id": id_, "function": {"name": "f", "arguments": text}} for id_, text in parts]
    stream = events(*[said({"tool_calls": [row]}) for row in rows], said({}, "tool_calls"), "[DONE]")
    (choice,) = json.loads(REPLAYS["chat/completions"].to_whole(stream, None) or b"")["choices"]
    assert [(call["id"], call["function"]["arguments"]) for call in choice["message"]["tool_calls"]] == [
        ("a", '{"x":1}'),
        ("b", "{} "),
    ]


STREAMS: list[tuple[bytes, dict[str, Any] | None]] = [
    (events(said({"content": "a"}), said({}, "stop")), {"role": "assistant", "content": "a"}),
    (events(said({"content": "a"})) + b": ping\n\n" + events(None, said({"content": "b"}, "stop")),
     {"role": "assistant", "content": "ab"}),
    (events(said({"content": "", "tool_calls": []}, "stop")), {"role": "assistant", "content": None, "tool_calls": []}),
    (events({"id": "1", "choices": [{"index": 0, "finish_reason": "stop"}]}), {"role": "assistant", "content": None}),
    (events(said({"content": "a"})), None),
    (events(said({"content": "a"}, "error")), None),
    (events({"id": "1", "choices": []}), None),
]  # fmt: skip


@every(STREAMS)
def test_a_stream_becomes_whole_if_it_is(stream: bytes, message: dict[str, Any] | None) -> None:
    """One without a reason for its end may have been cut, and one that failed is nobody else's answer."""
    whole = REPLAYS["chat/completions"].to_whole(stream, None)
    assert (whole and json.loads(whole)["choices"][0]["message"]) == message


def test_usage_is_for_who_asks_for_it() -> None:
    """Others read ``choices[0]`` of each chunk."""
    whole = json.dumps({"id": "1", "choices": [{"index": 0, "message": {}}], "usage": {"prompt_tokens": 1}}).encode()
    for with_usage in (True, False):
        assert (b"usage" in (REPLAYS["chat/completions"].to_stream(whole, with_usage) or b"")) is with_usage


def test_all_that_a_response_may_hold_is_streamed() -> None:
    """In the order of a live one; a comment behind it is not its end."""
    part = {"type": "output_text", "text": "", "annotations": [{"type": "url_citation"}]}
    refusal, other = {"type": "refusal", "refusal": "no"}, {"type": "reasoning_text", "text": "hm"}
    output: list[dict[str, Any]] = [
        {"type": "reasoning", "id": "r1", "summary": [{"type": "summary_text", "text": "hm"}], "content": [other]},
        {"type": "reasoning", "id": "r2", "summary": None, "encrypted_content": "x"},
        {"type": "message", "id": "m1", "content": [part, refusal, other]},
        {"type": "message", "id": "m2", "content": None},
        {"type": "custom_tool_call", "id": "c1", "name": "f", "input": ""},
        {"type": "custom_tool_call", "id": "c2", "name": "f", "input": "x"},
    ]
    whole = {"id": "resp_1", "status": "completed", "output": output}
    replay = REPLAYS["responses"]
    stream = replay.to_stream(json.dumps(whole).encode(), True) or b""
    rows = [json.loads(row.split(b"data: ", 1)[1]) for row in stream.split(b"\n\n") if row]
    inside = {each["id"]: [row["type"][9:] for row in rows if row.get("item_id") == each["id"]] for each in output}
    summary = ["part.added", "text.delta", "text.done", "part.done"]
    assert inside == {
        "r1": [f"reasoning_summary_{kind}" for kind in summary],
        "r2": [],
        "m1": [
            *("content_part.added", "output_text.annotation.added", "output_text.done", "content_part.done"),
            *("content_part.added", "refusal.delta", "refusal.done", "content_part.done"),
            *("content_part.added", "content_part.done"),
        ],
        "m2": [],
        "c1": ["custom_tool_call_input.done"],
        "c2": ["custom_tool_call_input.delta", "custom_tool_call_input.done"],
    }
    assert [row["item"] for row in rows if row["type"].endswith("item.done")] == output
    assert json.loads(replay.to_whole(stream + b": ping\n\n", None) or b"") == whole


async def test_a_kept_answer_without_the_other_form_is_asked_for(tmp_path: Path) -> None:
    """Whole it is a hit all the same."""
    path, body = DOORS["chat/completions"]

    async def odd(connection: Connection, seen: Seen) -> None:
        if seen.json.get("stream"):
            await talks(connection, seen)
        else:
            await connection.reply({"id": "1", "choices": [{"index": 0, "message": "odd", "finish_reason": "stop"}]})

    async with upstream(each(odd)) as server, proxy(kept(server.url), tmp_path) as gate:
        assert [(await ask(gate, path, body, stream=False))[1] for _ in range(2)] == ["miss", "hit"]
        assert (await ask(gate, path, body, stream=True))[1] == "miss"
