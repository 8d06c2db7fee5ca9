"""The HTTP surface: routes, bad input, limits, headers. Nothing bad reaches a provider."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from aiohttp.streams import EMPTY_PAYLOAD, StreamReader

from manallm_proxy.http_server import aiohttp_internals as internals
from manallm_proxy.http_server.aiohttp_internals import OneTaskHandler
from tests.proxy import BIG, HI, POST, Proxy, everything, openai, proxy, settings
from tests.upstreams import Connection, Seen, answers, chunk, completion, each, upstream
from tests.waiting import until

pytestmark = pytest.mark.usefixtures("http")

LOOPBACK = settings({"loopback": {"kind": "loopback"}}, ["loopback/echo"])


@pytest.mark.built_in
@pytest.mark.parametrize("prefix", ["/v1", ""])
async def test_every_route_with_and_without_v1(tmp_path: Path, prefix: str) -> None:
    """Continue drops the /v1 of a base URL without a trailing slash."""
    async with proxy(LOOPBACK, tmp_path) as p:
        assert (await p.post(f"{prefix}/chat/completions", {"messages": []}))[0] == 200
        assert (await p.post(f"{prefix}/completions", {"prompt": "x"}))[0] == 200
        code, body, _ = await p.post(f"{prefix}/embeddings", {"input": ["a", "b"]})
        assert (code, len(body["data"]), len(body["data"][0]["embedding"])) == (200, 2, 8)
        code, body = await p.get(f"{prefix}/models")
        assert [row["id"] for row in body["data"]] == ["mana/test", "loopback/echo"]
        assert (await p.get(f"{prefix}/models/loopback/echo"))[1]["owned_by"] == "loopback"
        assert (await p.get(f"{prefix}/models/nosuch"))[0] == 404
        code, body = await p.get(f"{prefix}/aliases")
        assert body == {
            "default": "mana/test",
            "aliases": [{"name": "mana/test", "description": "", "chain": ["loopback/echo"]}],
        }


@pytest.mark.built_in
async def test_a_stream_that_we_compose(tmp_path: Path) -> None:
    """The loopback provider says that it is only that; headers as on a relayed stream."""
    async with proxy(LOOPBACK, tmp_path) as p:
        code, body, headers = await p.stream(stream_options={"include_usage": True})
        rows = [line[6:] for line in body.decode().splitlines() if line.startswith("data: ")]
        assert rows[-1] == "[DONE]"
        chunks = [json.loads(row) for row in rows[:-1]]
        assert chunks[0]["choices"][0]["delta"]["role"] == "assistant"
        assert "loopback" in chunks[0]["choices"][0]["delta"]["content"]
        assert chunks[-2]["choices"][0]["finish_reason"] == "stop"
        assert (chunks[-1]["choices"], chunks[-1]["usage"]["completion_tokens"] > 0) == ([], True)
        assert code == 200
        assert headers["x-mana-llm-resolved"] == "loopback/echo"
        assert headers["content-type"].startswith("text/event-stream")
        assert headers["x-accel-buffering"] == "no"


@pytest.mark.built_in
async def test_health_liveness_readiness_root(tmp_path: Path) -> None:
    """Status and body of each, HEAD too; the answer to a wrong method names the right ones."""
    async with proxy(LOOPBACK, tmp_path) as p:
        assert (await p.get("/health"))[0] == (await p.get("/readyz"))[0] == 200
        code, body = await p.get("/v1/health")
        assert (code, body["status"], body["providers"]["loopback"]["status"]) == (200, "healthy", "healthy")
        assert (await p.get("/"))[1]["name"] == "manallm-proxy"
        async with p.client.head(f"{p.url}/v1/models") as response:
            assert response.status == 200
        async with p.client.get(f"{p.url}/v1/chat/completions") as response:
            assert (response.status, response.headers["Allow"]) == (405, "POST")
            assert (await response.json())["error"]["code"] == "method_not_allowed"
        code, body, _ = await p.post("/v1/nosuch", {})
        assert (code, "/v1/chat/completions" in body["error"]["message"]) == (404, True)


@pytest.mark.built_in
async def test_a_request_has_the_clients_id(tmp_path: Path) -> None:
    """If that is 1 to 128 visible characters of ASCII; else a new one. The provider gets the same."""
    async with upstream(each(answers)) as gpu, proxy(settings({"gpu": openai(gpu.url)}), tmp_path) as p:
        for given, kept in (("x", True), ("~" * 128, True), ("~" * 129, False), ("a b", False), ("", False)):
            _, _, headers = await p.post("/v1/chat/completions", HI, headers={"X-Request-Id": given})
            assert (headers["x-request-id"] == given) is kept, given
            assert gpu.posts[-1].headers["x-request-id"] == headers["x-request-id"]
        ids = {(await p.chat())[2]["x-request-id"] for _ in range(3)}
        assert len(ids) == 3


STRAIGHT: dict[str, tuple[str, dict[str, Any], int]] = {
    "chat": ("/v1/chat/completions", {"messages": []}, 200),
    "large": ("/v1/chat/completions", {"messages": [{"role": "user", "content": "x" * 100_000}]}, 200),
    "without /v1": ("/chat/completions", {"messages": []}, 200),
    "stream": ("/v1/chat/completions", {"messages": [], "stream": True}, 200),
    "legacy": ("/v1/completions", {"prompt": "x"}, 200),
    "embeddings": ("/v1/embeddings", {"input": "x"}, 200),
    "unknown model": ("/v1/chat/completions", {"messages": [], "model": "mana/nosuch"}, 404),
    "nobody left": ("/v1/chat/completions", {"messages": [], "model": "mana/dead"}, 503),
}


@pytest.mark.built_in
@pytest.mark.parametrize("state", ["plain", "a page", "another page", "draining"])
async def test_a_client_that_expects_100_continue_gets_the_same_answer(tmp_path: Path, state: str) -> None:
    """Status, headers and connection are the same, whether or not the client waits before it sends its body."""
    config = settings({"loopback": {"kind": "loopback"}, "dead": openai("http://127.0.0.1:9")}, ["loopback/echo"])
    config["aliases"]["mana/dead"] = {"chain": ["dead/m"]}
    config |= {"cors": {"origins": ["http://home"]}, "health": {"failure_threshold": 100, "probe_interval": 600}}

    async def answered(path: str, body: dict[str, Any], **expects: str) -> tuple[int, dict[str, str], bool, bool]:
        headers = {"X-Request-Id": "x", "X-Mana-Test": "1", **expects}
        if "page" in state:
            headers["Origin"] = "http://home" if state == "a page" else "http://evil"
        async with p.client.post(p.url + path, json=body, headers=headers) as response:
            raw = await response.read()
            told = {name.lower(): value for name, value in response.headers.items()}
        told.pop("date")
        if response.status == 503:
            told.pop("content-length")  # the attempt's milliseconds may have a digit more
        return response.status, told, bool(raw), response.connection is None

    async with proxy(config, tmp_path) as p:
        p.app.gateway.serving.draining = state == "draining"
        for what, (path, body, status) in STRAIGHT.items():
            waited = await answered(path, body, Expect="100-continue")
            assert waited == await answered(path, body), what
            code, told, _, _ = waited
            assert code == (403 if state == "another page" else status), what
            assert told["server"] == "manallm-proxy", what
            assert (told.get("connection") == "close") is (state == "draining"), what


@pytest.mark.built_in
async def test_a_client_of_http_1_0_gets_one_answer_whatever_it_expects(tmp_path: Path) -> None:
    """It knows no 100, and would take that for the answer."""
    async with proxy(LOOPBACK, tmp_path) as p:
        reader, writer = await asyncio.open_connection("127.0.0.1", p.port)
        head, body = POST.replace(b"HTTP/1.1\r\n", b"HTTP/1.0\r\nExpect: 100-continue\r\n").split(b"\r\n\r\n")
        writer.write(head + b"\r\n\r\n")
        await until(lambda: bool(p.app.gateway.pipeline.exchanges))
        writer.write(body)
        assert (await asyncio.wait_for(reader.read(), 5)).startswith(b"HTTP/1.0 200 OK")
        writer.close()


@pytest.mark.built_in
@pytest.mark.parametrize(("version", "asked", "stays"), [("1.1", "", 1), ("1.1", "close", 0), ("1.0", "", 0)])
async def test_a_connection_goes_on_unless_somebody_wants_its_end(
    tmp_path: Path, version: str, asked: str, stays: bool
) -> None:
    """HTTP's rules for complete answers, small ones too, which we write ourselves."""
    async with proxy(LOOPBACK, tmp_path) as p:
        reader, writer = await asyncio.open_connection("127.0.0.1", p.port)
        line = f"Connection: {asked}\r\n".encode() if asked else b""
        for _ in range(2 if stays else 1):
            writer.write(POST.replace(b"HTTP/1.1\r\n", b"HTTP/" + version.encode() + b"\r\n" + line))
            head = (await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 5)).lower()
            assert head.startswith(b"http/" + version.encode() + b" 200 ok\r\n")
            assert (b"connection: close" in head) is not bool(stays)
            length = int(head.partition(b"content-length: ")[2].partition(b"\r")[0])
            assert json.loads(await reader.readexactly(length))["object"] == "chat.completion"
        if not stays:
            assert await asyncio.wait_for(reader.read(), 5) == b""
        writer.close()


@pytest.mark.parametrize("kind", ["loopback", "openai"])
@pytest.mark.parametrize(("version", "asked", "stays"), [("1.1", "", 1), ("1.1", "close", 0), ("1.0", "", 0)])
async def test_a_streams_connection_goes_on_unless_somebody_wants_its_end(
    tmp_path: Path, kind: str, version: str, asked: str, stays: bool
) -> None:
    """The same of streams, of those that we compose and of those that we relay."""
    body = b'{"messages":[{"role":"user","content":"hi"}],"stream":true}'
    line = f"Connection: {asked}\r\n" if asked else ""
    head = f"POST /v1/chat/completions HTTP/{version}\r\nHost: x\r\n{line}Content-Length: {len(body)}\r\n\r\n"
    async with upstream(each(answers)) as gpu:
        provider = {"kind": "loopback"} if kind == "loopback" else openai(gpu.url)
        async with proxy(settings({"p": provider}), tmp_path) as p:
            reader, writer = await asyncio.open_connection("127.0.0.1", p.port)
            for _ in range(2 if stays else 1):
                writer.write(head.encode() + body)
                told = (await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 5)).lower()
                assert told.startswith(b"http/" + version.encode() + b" 200 ok\r\n")
                assert (b"connection: close" in told) is not bool(stays)
                if stays:
                    assert (await asyncio.wait_for(reader.readuntil(b"\r\n0\r\n\r\n"), 5)).count(b"[DONE]") == 1
                else:
                    assert (await asyncio.wait_for(reader.read(), 5)).count(b"[DONE]") == 1
            writer.close()


BAD: dict[str, tuple[bytes, int, str | None]] = {
    "empty": (b"", 400, None),
    "not JSON": (b"{", 400, None),
    "an array": (b"[]", 400, None),
    "too deep": (b'{"messages":' + b"[" * 100_000 + b"]" * 100_000 + b"}", 400, None),
    "bad UTF-8": (b'{"messages":["\xff"]}', 400, None),
    "NaN": (b'{"messages":[NaN]}', 400, None),
    "model twice": (b'{"model":"a","messages":[],"model":"b"}', 400, "model"),
    "model of a wrong type": (b'{"model":7,"messages":[]}', 400, "model"),
    "messages missing": (b'{"model":"mana/test"}', 400, "messages"),
    "messages of a wrong type": (b'{"messages":"hi"}', 400, "messages"),
    "stream of a wrong type": (b'{"messages":[],"stream":"yes"}', 400, "stream"),
    "unknown alias": (b'{"model":"mana/nosuch","messages":[]}', 404, "model"),
    "unknown provider": (b'{"model":"nosuch/m","messages":[]}', 404, "model"),
    "model with a line break": (b'{"model":"gpu/a\\r\\nX-Evil: 1","messages":[]}', 404, "model"),
    "model with quotes": (b'{"model":"gpu/a\\"} 1\\nevil{","messages":[]}', 404, "model"),
    "10 KB of model": (b'{"model":"gpu/' + b"a" * 10_000 + b'","messages":[]}', 404, "model"),
}


@pytest.mark.built_in
async def test_bad_input_touches_no_provider(tmp_path: Path) -> None:
    """OpenAI's shape, the right param, one log line without what was sent, no new series."""
    async with upstream(each(answers)) as gpu, proxy(settings({"gpu": openai(gpu.url)}), tmp_path) as p:
        before = await series(p)
        headers = {"Content-Type": "application/json", "Authorization": "Bearer sk-CANARY", "X-Request-Id": "a b"}
        for number, (what, (body, code, param)) in enumerate(BAD.items(), 1):
            async with p.client.post(f"{p.url}/v1/chat/completions", data=body, headers=headers) as response:
                answer = await response.json()
                assert response.status == code, what
                assert response.headers["X-Request-Id"] != "a b", what
            assert set(answer["error"]) >= {"message", "type", "param", "code", "source"}, what
            assert answer["error"]["param"] == param, what
            assert gpu.posts == [], what
            assert "CANARY" not in p.log.getvalue() + json.dumps(answer), what
            ended = [json.loads(line) for line in p.log.getvalue().splitlines() if '"status":' in line]
            assert (len(ended), ended[-1]["status"]) == (number, code), what
            assert await series(p) - before <= {"endpoint+status"}, what


async def series(p: Proxy) -> set[str]:
    """Kinds of series with labels that a request could have made: those that name a model or a provider."""
    async with p.client.get(f"{p.url}/metrics") as response:
        lines = (await response.text()).splitlines()
    return {line.split(" ")[0] for line in lines if "model=" in line or "alias=" in line}


@pytest.mark.built_in
async def test_the_body_has_a_limit(tmp_path: Path) -> None:
    """413 before the body is read where its length is told, and as soon as it is over where it is not; also of one
    that came with its head."""
    async with upstream(each(answers)) as gpu:
        async with proxy(settings({"gpu": openai(gpu.url)}, limits={"body": 1000}), tmp_path) as p:
            url = f"{p.url}/v1/chat/completions"

            async def endless() -> Any:
                while True:
                    yield b"x" * 500

            for data in (b"x" * 2000, endless()):
                async with p.client.post(url, data=data) as response:
                    assert (response.status, (await response.json())["error"]["code"]) == (413, "body_too_large")
                    assert response.headers["Connection"] == "close", "the rest is not read"
            head = b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nConnection: close\r\n"
            chunks = b"7d0\r\n" + b"x" * 2000 + b"\r\n0\r\n\r\n"
            answer = await raw(p, head + b"Transfer-Encoding: chunked\r\n\r\n" + chunks)
            assert answer.startswith(b"HTTP/1.1 413") and b'"body_too_large"' in answer
            async with p.client.post(url, data=b"x", headers={"Content-Encoding": "gzip"}) as response:
                assert response.status == 415
        assert gpu.posts == []


@pytest.mark.built_in
async def test_a_body_that_stalls_is_408(tmp_path: Path) -> None:
    """One byte of ten, then silence; and one of which nothing came is not called slow."""
    async with proxy({**LOOPBACK, "limits": {"body_timeout": 0.1}}, tmp_path) as p:
        for begun in (b"{", b""):
            head = b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Length: 10\r\n\r\n"
            answer = await raw(p, head + begun)
            assert answer.startswith(b"HTTP/1.1 408")
            assert b'"body_timeout"' in answer
        assert b"stalled" in answer


@pytest.mark.built_in
async def test_a_bug_in_a_list_is_a_500(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In the shape of all errors, with nothing of it for the client and all of it in the log."""

    def broken(*_: object) -> Any:
        raise ZeroDivisionError("CANARY")

    monkeypatch.setattr("manallm_proxy.gateway.gateway.alias_list", broken)
    async with proxy(LOOPBACK, tmp_path) as p:
        code, body = await p.get("/v1/aliases")
        assert (code, body["error"]["code"]) == (500, "internal_error")
        assert "CANARY" not in json.dumps(body)
        [row] = [json.loads(line) for line in p.log.getvalue().splitlines() if '"event":"internal error"' in line]
        assert (row["exception"], row["where"]) == ("builtins.ZeroDivisionError", "GET request")
        assert (await p.get("/v1/models"))[0] == 200


@pytest.mark.built_in
async def test_a_body_whose_chunks_break_is_refused_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where the break comes in a later packet: aiohttp's parser then has its error as the next message, and leaves
    the body as it is. So nobody waits until the body counts as stalled."""
    whole = b"{}\r\n0\r\n\r\n"

    def take(handler: OneTaskHandler, data: bytes) -> StreamReader | None:
        return parse(handler, data) if data != whole else EMPTY_PAYLOAD  # as for a next message

    parse = OneTaskHandler.take
    monkeypatch.setattr(OneTaskHandler, "take", take)
    monkeypatch.setattr(internals, "unusual", lambda _: None)  # which looks at that message
    async with upstream(each(answers)) as gpu, proxy(settings({"gpu": openai(gpu.url)}), tmp_path) as p:
        reader, writer = await asyncio.open_connection("127.0.0.1", p.port)
        writer.write(b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n2\r\n")
        await until(lambda: p.app.gateway.pipeline.exchanges)
        writer.write(whole)
        answer = await asyncio.wait_for(reader.read(), 5)
        assert answer.startswith(b"HTTP/1.1 400 ")
        assert b"transfer encoding is broken" in answer
        writer.close()
        assert gpu.posts == []
        assert '"level":"error"' not in p.log.getvalue()


@pytest.mark.built_in
@pytest.mark.parametrize(
    ("sent", "told"),
    [
        (b"", b""),
        (b"POST /v1/chat/comp", b"HTTP/1.1 408 "),
        (b"GET /health HTTP/1.1\r\nHost: x\r\nA: b", b"HTTP/1.1 408 "),
    ],
    ids=["nothing", "half a line", "half a head"],
)
@pytest.mark.parametrize("kept_alive", [False, True])
async def test_a_slow_head_does_not_hold_a_place(tmp_path: Path, sent: bytes, told: bytes, kept_alive: bool) -> None:
    """A connection on which nothing, or half a head, comes is closed; an idle one between requests may wait."""
    async with proxy({**LOOPBACK, "limits": {"body_timeout": 0.1}}, tmp_path) as p:
        reader, writer = await asyncio.open_connection("127.0.0.1", p.port)
        if kept_alive:
            writer.write(b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n")
            await reader.readuntil(b'{"status":"ok"}')
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(reader.read(1), 0.2)
            if not sent:
                writer.close()
                return
        writer.write(sent)
        answer = await asyncio.wait_for(reader.read(), 3)
        assert answer.startswith(told)
        assert bool(answer) is bool(told)
        assert (b'"body_timeout"' in answer) is bool(told)
        writer.close()


@pytest.mark.built_in
async def test_heads_that_come_in_pieces_are_served(tmp_path: Path) -> None:
    """Also one byte at a time, and more than one request in one packet: no timer is left behind."""
    request = b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n"
    async with proxy({**LOOPBACK, "limits": {"body_timeout": 0.3}}, tmp_path) as p:
        reader, writer = await asyncio.open_connection("127.0.0.1", p.port)
        for byte in request:
            writer.write(bytes([byte]))
            await writer.drain()
        await reader.readuntil(b'{"status":"ok"}')
        writer.write(request * 3)
        for _ in range(3):
            await reader.readuntil(b'{"status":"ok"}')
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(reader.read(1), 0.5)
        writer.close()


@pytest.mark.built_in
async def test_malformed_http_gets_an_error_of_ours_and_is_not_repeated(tmp_path: Path) -> None:
    """aiohttp would echo the offending line into answer and log, key and all."""
    async with proxy(LOOPBACK, tmp_path) as p:
        answer = await raw(p, b"GET / HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer sk-CANARY\x00z\r\n\r\n")
        assert answer.split(b" ")[1] == b"400"
        assert b'"error"' in answer
        assert b"CANARY" not in answer
        assert "CANARY" not in p.log.getvalue()


async def raw(p: Proxy, data: bytes) -> bytes:
    """All that comes back for raw bytes, until the proxy closes."""
    reader, writer = await asyncio.open_connection("127.0.0.1", p.port)
    writer.write(data)
    answer = await asyncio.wait_for(reader.read(), 5)
    writer.close()
    return answer


async def test_more_than_it_may_have_in_hand_is_shed(tmp_path: Path) -> None:
    """503 at once with Retry-After, while liveness and what is in flight go on."""

    async def waits(connection: Connection, seen: Seen) -> None:
        await connection.upstream.go.wait()
        await answers(connection, seen)

    async with upstream(each(waits)) as gpu:
        async with proxy(settings({"gpu": openai(gpu.url)}, limits={"concurrent_requests": 1}), tmp_path) as p:
            first = asyncio.ensure_future(p.chat())
            async with asyncio.timeout(5):
                while not gpu.posts:
                    await asyncio.sleep(0.01)
            code, body, headers = await p.chat()
            assert (code, body["error"]["type"], headers["retry-after"]) == (503, "overloaded_error", "1")
            assert (await p.get("/health"))[0] == 200
            gpu.go.set()
            assert (await first)[0] == 200


async def test_a_saturated_provider_is_skipped(tmp_path: Path) -> None:
    """max_concurrent sheds to the next of the chain at once."""

    async def waits(connection: Connection, seen: Seen) -> None:
        await connection.upstream.go.wait()
        await answers(connection, seen)

    async with upstream(each(waits)) as gpu, upstream(each(answers)) as cloud:
        config = settings({"gpu": openai(gpu.url, max_concurrent=1), "cloud": openai(cloud.url)})
        async with proxy(config, tmp_path) as p:
            first = asyncio.ensure_future(p.chat())
            async with asyncio.timeout(5):
                while not gpu.posts:
                    await asyncio.sleep(0.01)
            code, _, headers = await p.chat()
            assert (code, headers["x-mana-llm-resolved"], headers["x-mana-llm-attempts"]) == (200, "cloud/m", "1")
            gpu.go.set()
            assert (await first)[0] == 200


async def test_what_a_client_sends_along_stays_here(tmp_path: Path) -> None:
    """Only an allow-list goes upstream, and only one comes back."""

    async def with_cookie(connection: Connection, seen: Seen) -> None:
        extra = "Set-Cookie: a=b\r\nServer: secret-engine\r\nAccess-Control-Allow-Origin: *\r\n"
        await connection.reply(b'{"choices":[{"index":0,"message":{"content":"x"}}]}', extra=extra)

    cors = {"origins": ["http://home"]}
    async with upstream(each(with_cookie)) as gpu, proxy(settings({"gpu": openai(gpu.url)}, cors=cors), tmp_path) as p:
        sent = {
            "Authorization": "Bearer client",
            "Cookie": "c=1",
            "Origin": "http://home",
            "Referer": "http://evil",
            "X-Forwarded-For": "1.2.3.4",
            "api-key": "client",
            "x-goog-api-key": "client",
            "Connection": "x-foo",
            "x-foo": "1",
            "X-Request-Id": "mine-1",
        }
        _, _, headers = await p.post("/v1/chat/completions", {"messages": []}, headers=sent)
        assert headers["x-request-id"] == "mine-1"
        assert "set-cookie" not in headers
        assert headers["access-control-allow-origin"] == "http://home"
        assert "secret-engine" not in headers["server"]
        seen = gpu.posts[0].headers
        assert seen["x-request-id"] == "mine-1"
        assert not seen.keys() & {"authorization", "cookie", "origin", "referer", "x-forwarded-for", "api-key", "x-foo"}
        assert seen["host"] == gpu.url.removeprefix("http://")


async def test_redirects_are_not_followed(tmp_path: Path) -> None:
    """No request, no key and no prompt reaches the other host; the next of the chain serves."""
    async with upstream(each(answers)) as other, upstream(each(answers)) as cloud:

        async def redirects(connection: Connection, seen: Seen) -> None:
            await connection.reply(
                b"", "307 Temporary Redirect", extra=f"Location: {other.url}/v1/chat/completions\r\n"
            )

        async with upstream(each(redirects)) as gpu:
            async with proxy(
                settings({"gpu": openai(gpu.url, api_key="k"), "cloud": openai(cloud.url)}), tmp_path
            ) as p:
                assert (await p.chat())[2]["x-mana-llm-resolved"] == "cloud/m"
        assert other.seen == []


async def test_a_silent_stream_gets_comments_between_events(tmp_path: Path) -> None:
    """The heartbeat is a comment, never inside an event."""

    async def pauses(connection: Connection, seen: Seen) -> None:
        await connection.head()
        half = chunk("two")
        await connection.chunk(chunk("one") + half[:20])
        await connection.upstream.go.wait()
        await connection.chunk(half[20:] + chunk(finish="stop") + b"data: [DONE]\n\n")
        await connection.end()

    async with upstream(each(pauses)) as gpu:
        async with proxy(settings({"gpu": openai(gpu.url)}, streaming={"heartbeat": 0.05}), tmp_path) as p:
            payload = {"messages": [], "stream": True}
            async with p.client.post(f"{p.url}/v1/chat/completions", json=payload) as response:
                body = b""
                async with asyncio.timeout(5):
                    while b": keep-alive\n" not in body:
                        body += await response.content.readany()
                gpu.go.set()
                body += await response.read()
            frames = [f for f in body.split(b"\n\n") if f]
            assert all(f.split(b"\n")[-1].startswith(b"data: ") for f in frames)
            assert frames[-1] == b"data: [DONE]"


@pytest.mark.parametrize("saved", [True, False])
async def test_early_heartbeats_keep_an_impatient_client(tmp_path: Path, saved: bool) -> None:
    """200 and comments while the chain is still walked; then the answer, or the failure in-band."""

    async def slow(connection: Connection, seen: Seen) -> None:
        await connection.upstream.go.wait()
        if saved:
            await answers(connection, seen)

    async with upstream(each(slow)) as gpu:
        config = settings({"gpu": openai(gpu.url)}, streaming={"early_heartbeat": 0.05})
        async with proxy(config, tmp_path) as p:
            payload = {"messages": [], "stream": True}
            async with p.client.post(f"{p.url}/v1/chat/completions", json=payload) as response:
                assert response.status == 200
                first = await asyncio.wait_for(response.content.readany(), 5)
                assert first.startswith(b": ")
                if not saved:
                    await gpu.stop()
                gpu.go.set()
                body = await everything(response)
            assert (b"[DONE]" in body) is saved
            assert (b'"no_healthy_provider"' in body) is not saved


@pytest.mark.parametrize("composed", [False, True])
async def test_a_client_that_stops_reading_is_cut(tmp_path: Path, composed: bool) -> None:
    """After write_timeout without progress; its upstream request ends too."""
    big = "x" * 60_000

    async def floods(connection: Connection, seen: Seen) -> None:
        if composed:
            await connection.head(content_type="application/x-ndjson")
            line = json.dumps({"message": {"role": "assistant", "content": big}, "done": False}).encode() + b"\n"
        else:
            await connection.head()
            line = chunk(big)
        while True:
            await connection.chunk(line)

    async with upstream(each(floods)) as gpu:
        provider = {"kind": "ollama", "base_url": gpu.url} if composed else openai(gpu.url)
        async with proxy(settings({"gpu": provider}, limits={"write_timeout": 0.2}), tmp_path) as p:
            body = json.dumps({"messages": [{"role": "user", "content": "x"}], "stream": True}).encode()
            client = socket.create_connection(("127.0.0.1", p.port))
            head = b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % len(body)
            client.sendall(head + body)
            async with asyncio.timeout(10):
                while not gpu.posts:
                    await asyncio.sleep(0.01)
                await gpu.connections[-1].closed.wait()
                while "client_gone" not in p.log.getvalue():
                    await asyncio.sleep(0.01)
            client.close()
            _, health = await p.get("/v1/health")
            assert health["providers"]["gpu"]["consecutive_failures"] == 0


@pytest.mark.built_in
async def test_a_whole_answer_that_nobody_reads_is_cut(tmp_path: Path) -> None:
    """After write_timeout, as a stream is; the log says that the client is gone."""

    async def huge(connection: Connection, seen: Seen) -> None:
        await connection.reply(completion("x" * BIG))

    async with upstream(each(huge)) as gpu:
        async with proxy(settings({"gpu": openai(gpu.url)}, limits={"write_timeout": 0.2}), tmp_path) as p:
            with socket.create_connection(("127.0.0.1", p.port)) as client:
                client.sendall(POST)
                await until(lambda: "client_gone" in p.log.getvalue())
            assert p.app.gateway.pipeline.exchanges == set()


@pytest.mark.built_in
async def test_small_answers_that_nobody_reads_are_cut(tmp_path: Path) -> None:
    """A client pipelines, and reads nothing: each answer is small enough to leave at once, all of them are not."""

    async def medium(connection: Connection, seen: Seen) -> None:
        await connection.reply(completion("x" * 60_000))

    async with upstream(each(medium)) as gpu:
        async with proxy(settings({"gpu": openai(gpu.url)}, limits={"write_timeout": 0.2}), tmp_path) as p:
            with socket.create_connection(("127.0.0.1", p.port)) as client:
                client.sendall(POST * 200)
                async with asyncio.timeout(10):
                    while "client_gone" not in p.log.getvalue():
                        await asyncio.sleep(0.01)
            assert p.app.gateway.pipeline.exchanges == set()


@pytest.mark.built_in
async def test_a_whole_answer_that_is_read_slowly_arrives(tmp_path: Path) -> None:
    """Longer than write_timeout, but never that long without a byte; and it is in hand until its last byte left.

    The kernel's buffer takes more in steps of up to a megabyte: the reader is fast enough for two steps a second.
    """

    async def huge(connection: Connection, seen: Seen) -> None:
        await connection.reply(completion("x" * (2 * BIG)))

    async with upstream(each(huge)) as gpu:
        async with proxy(settings({"gpu": openai(gpu.url)}, limits={"write_timeout": 0.75}), tmp_path) as p:
            reader, writer = await asyncio.open_connection("127.0.0.1", p.port, limit=2**16)
            writer.write(POST)
            head = await reader.readuntil(b"\r\n\r\n")
            assert len(p.app.gateway.pipeline.exchanges) == 1
            left = int(head.lower().partition(b"content-length: ")[2].partition(b"\r")[0])
            ends = asyncio.get_running_loop().time() + 1.0
            while left > 0:
                part = await reader.read(200_000)
                assert part
                left -= len(part)
                if asyncio.get_running_loop().time() < ends:
                    await asyncio.sleep(0.04)
            writer.write(b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n")  # the connection is as good as before
            await asyncio.wait_for(reader.readuntil(b'{"status":"ok"}'), 3)
            writer.close()


def _first_byte(connection: Connection) -> Any:
    return connection.gone()


SILENT: dict[str, tuple[Callable[[Connection], Any], str]] = {
    "says nothing": (_first_byte, "first_byte_timeout"),
    "half a head": (lambda c: c.send(b"HTTP/1.1 200 OK\r\nContent-Ty"), "first_byte_timeout"),
    "only comments": (
        lambda c: c.send(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\n: wait\n\n"),
        "first_byte_timeout",
    ),
}


@pytest.mark.parametrize("streaming", [True, False])
@pytest.mark.parametrize("how", SILENT)
async def test_silence_before_the_first_byte_falls_back(tmp_path: Path, how: str, streaming: bool) -> None:
    """At the limit, not before; the silent provider's connection is closed."""
    act, reason = SILENT[how]

    async def silent(connection: Connection, seen: Seen) -> None:
        await act(connection)
        await connection.gone()

    async with upstream(each(silent)) as gpu, upstream(each(answers)) as cloud:
        silent_one = openai(gpu.url, timeouts={"first_byte": 0.1, "idle": 0.2})
        config = settings({"gpu": silent_one, "cloud": openai(cloud.url)})
        async with proxy(config, tmp_path) as p:
            if streaming:
                code, _, headers = await p.stream()
            else:
                code, _, headers = await p.chat()
            assert (code, headers["x-mana-llm-resolved"]) == (200, "cloud/m")
            _, health = await p.get("/v1/health")
            last = health["providers"]["gpu"]["targets"]["m"]["last_error"]
            assert last == (reason if streaming or how != "only comments" else "read_timeout")
            await asyncio.wait_for(gpu.connections[-1].closed.wait(), 1)


@pytest.mark.parametrize("broken", [False, True])
async def test_silence_after_commit_breaks_the_stream(tmp_path: Path, broken: bool) -> None:
    """At the idle limit, also after a broken chunk, where aiohttp's own timer sleeps for ever."""

    async def falls_silent(connection: Connection, seen: Seen) -> None:
        await connection.head()
        await connection.chunk(chunk("one"))
        await connection.upstream.go.wait()
        if broken:
            await connection.send(b"zz\r\n")
        await connection.gone()

    async with upstream(each(falls_silent)) as gpu:
        async with proxy(settings({"gpu": openai(gpu.url, timeouts={"idle": 0.15})}), tmp_path) as p:
            payload = {"messages": [], "stream": True}
            async with p.client.post(f"{p.url}/v1/chat/completions", json=payload) as response:
                await response.content.readany()
                gpu.go.set()
                rest = await asyncio.wait_for(everything(response), 3)
            assert b'"stream_interrupted"' in rest
            assert b"[DONE]" not in rest


@pytest.mark.built_in
async def test_browsers_are_let_in_as_configured(tmp_path: Path) -> None:
    """A configured origin may call, also a stream; any other gets no permission; without configuration nobody does."""
    home = {"Origin": "http://home"}
    async with proxy({**LOOPBACK, "cors": {"origins": ["http://home"]}}, tmp_path) as p:
        url = f"{p.url}/v1/chat/completions"
        async with p.client.options(url, headers={**home, "Access-Control-Request-Method": "POST"}) as response:
            assert (response.status, response.headers["Access-Control-Allow-Methods"]) == (204, "POST")
            assert response.headers["Access-Control-Allow-Origin"] == "http://home"
        for asked, granted in (
            ("authorization,content-type, x-stainless-lang", "authorization,content-type, x-stainless-lang"),
            ("a b", "Authorization, Content-Type, X-Request-Id"),
        ):
            sent = {**home, "Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": asked}
            async with p.client.options(url, headers=sent) as response:
                assert response.headers["Access-Control-Allow-Headers"] == granted
        async with p.client.get(f"{p.url}/v1/models") as response:  # a cache must not give this to a browser
            assert response.headers["Vary"] == "Origin"
        async with p.client.post(url, json={"messages": [], "stream": True}, headers=home) as response:
            assert response.headers["Access-Control-Allow-Origin"] == "http://home"
        async with p.client.post(url, json={"messages": []}, headers={"Origin": "http://evil"}) as response:
            assert response.status == 403
            assert "Access-Control-Allow-Origin" not in response.headers
    async with proxy(LOOPBACK, tmp_path) as p:
        async with p.client.options(f"{p.url}/v1/models", headers=home) as response:
            assert response.status == 405
            assert "Access-Control-Allow-Origin" not in response.headers


@pytest.mark.built_in
@pytest.mark.parametrize("origin", ["http://evil", "null", "http://127.0.0.1.evil:3025", "http://home.evil", ""])
async def test_a_web_page_cannot_spend_our_money(tmp_path: Path, origin: str) -> None:
    """A page may send a POST that needs no preflight, or make its own name mean 127.0.0.1: browsers say where from."""
    async with upstream(each(answers)) as gpu:
        origins: list[str]
        for origins in ([], ["http://home"]):
            async with proxy(settings({"gpu": openai(gpu.url)}, cors={"origins": origins}), tmp_path) as p:
                sent = {"Origin": origin, "Content-Type": "text/plain", "Host": "evil:3025"}
                url = f"{p.url}/v1/chat/completions"
                async with p.client.post(url, data=b'{"messages":[]}', headers=sent) as response:
                    assert response.status == 403
                    error = (await response.json())["error"]
                    assert (error["code"], "cors.origins" in error["message"]) == ("origin_not_allowed", True)
                    assert "Access-Control-Allow-Origin" not in response.headers
                assert '"status":403' in p.log.getvalue()
        assert gpu.posts == []
        for origins in (["*"], [origin or "http://home"]):
            async with proxy(settings({"gpu": openai(gpu.url)}, cors={"origins": origins}), tmp_path) as p:
                sent = {"Origin": origin or "http://home"}
                assert (await p.post("/v1/chat/completions", {"messages": []}, headers=sent))[0] == 200


@pytest.mark.built_in
async def test_metrics_can_be_switched_off(tmp_path: Path) -> None:
    """404, in our shape."""
    async with proxy({**LOOPBACK, "metrics": {"enabled": False}}, tmp_path) as p:
        assert (await p.get("/metrics"))[0] == 404


async def test_a_bug_is_500_and_its_words_stay_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No fallback hides it; the traceback's frames are in the log, the prompt nowhere."""

    async def bug(self: object, call: object, entry: object) -> None:
        raise RuntimeError("CANARY of a prompt")

    monkeypatch.setattr("manallm_proxy.providers.loopback.LoopbackProvider.complete", bug)
    async with upstream(each(answers)) as cloud:
        config = settings({"loopback": {"kind": "loopback"}, "cloud": openai(cloud.url)})
        async with proxy(config, tmp_path) as p:
            code, body, _ = await p.chat()
            assert (code, body["error"]["code"]) == (500, "internal_error")
            assert cloud.posts == []
            assert "CANARY" not in p.log.getvalue() + json.dumps(body)
            assert "builtins.RuntimeError" in p.log.getvalue()
            _, health = await p.get("/v1/health")
            assert health["providers"]["loopback"]["in_flight"] == 0


@pytest.mark.parametrize("composed", [False, True])
async def test_a_bug_in_the_middle_of_a_stream_is_reported_in_band(
    tmp_path: Path, composed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An error event, no [DONE], never a second answer in the body; the provider's connection is closed."""
    wire = "ollama.wire.OllamaTranslator" if composed else "openai.stream.EventRelay"

    async def goes_on(connection: Connection, seen: Seen) -> None:
        line = json.dumps({"message": {"role": "assistant", "content": "one"}, "done": False}).encode() + b"\n"
        await connection.head(content_type="application/x-ndjson" if composed else "text/event-stream")
        await connection.chunk(line if composed else chunk("one"))
        await connection.upstream.go.wait()
        await connection.chunk(line if composed else chunk("two"))
        await connection.gone()

    def bug(self: object, data: bytes) -> None:
        raise RuntimeError("CANARY of a prompt")

    async with upstream(each(goes_on)) as gpu:
        provider = {"kind": "ollama", "base_url": gpu.url} if composed else openai(gpu.url)
        async with proxy(settings({"gpu": provider}), tmp_path) as p:
            payload = {"messages": [{"role": "user", "content": "x"}], "stream": True}
            async with p.client.post(f"{p.url}/v1/chat/completions", json=payload) as response:
                first = await response.content.readany()
                monkeypatch.setattr(f"manallm_proxy.providers.{wire}.feed", bug)
                gpu.go.set()
                rest = await asyncio.wait_for(everything(response), 3)
            assert b"one" in first
            assert b'"internal_error"' in rest
            assert b"[DONE]" not in rest
            assert b"HTTP/1.1" not in rest
            assert "CANARY" not in p.log.getvalue() + rest.decode()
            assert "builtins.RuntimeError" in p.log.getvalue()
            await asyncio.wait_for(gpu.connections[-1].closed.wait(), 1)
            _, health = await p.get("/v1/health")
            assert health["providers"]["gpu"]["in_flight"] == 0
