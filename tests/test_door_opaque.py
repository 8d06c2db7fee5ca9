"""Audio, images, reranking, moderations: walked as every request, and passed through as bytes."""

from __future__ import annotations

import asyncio
import contextlib
import json
from email.parser import BytesParser
from email.policy import HTTP
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from hypothesis import given
from hypothesis import strategies as st

from manallm_proxy.contract.errors import InvalidRequest
from manallm_proxy.doors.form import read_form
from tests.proxy import everything, openai, proxy, settings
from tests.sdks import python
from tests.upstreams import Connection, Seen, answers, each, status, upstream

MP3 = b"\xff\xf3\x00not json\r\n\r\n\x00" * 50
SHA = "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08"  # "test"
BODIES: dict[str, dict[str, Any]] = {
    "audio/speech": {"input": "hi", "voice": "alloy"},
    "images/generations": {"prompt": "a dot"},
    "rerank": {"query": "a", "documents": ["b"]},
    "moderations": {"input": "hi"},
}
FORMS = ("audio/transcriptions", "audio/translations", "images/edits")


def form(*fields: tuple[str, bytes], boundary: str = "b0") -> bytes:
    """A form as browsers write it."""
    parts = [f'--{boundary}\r\nContent-Disposition: form-data; name="{name}"\r\n\r\n'.encode() for name, _ in fields]
    bodies = [part + value + b"\r\n" for part, (_, value) in zip(parts, fields, strict=True)]
    return b"".join(bodies) + f"--{boundary}--\r\n".encode()


def fields_of(seen: Seen) -> dict[str, Any]:
    """The form that a provider got, as Python's own parser reads it."""
    message = BytesParser(policy=HTTP).parsebytes(
        b"Content-Type: " + seen.headers["content-type"].encode() + b"\r\n\r\n" + seen.body
    )
    return {
        str(part.get_param("name", header="content-disposition")): part.get_payload(decode=True)
        for part in message.iter_parts()
    }


async def media(connection: Connection, seen: Seen) -> None:
    """A provider of all of it."""
    if "speech" in seen.path:
        await connection.head(content_type="audio/mpeg")
        for at in range(0, len(MP3), 100):
            await connection.chunk(MP3[at : at + 100])
        await connection.end()
    elif "transcriptions" in seen.path:
        await connection.reply(b"1\n00:00 --> 00:01\nhi\n", content_type="text/plain; charset=utf-8")
    else:
        answer = {"text": "hi", "data": [{"b64_json": "aGk="}], "results": [{"flagged": False}], "created": 1}
        await connection.reply({"id": 1, "model": "m", "usage": {"input_tokens": 4, "output_tokens": 6}, **answer})


@pytest.mark.usefixtures("http")
async def test_everything_passes(tmp_path: Path) -> None:
    """With and without /v1: the model replaced in JSON and in a form, all other bytes kept, counted by its path."""
    async with upstream(each(media)) as gpu, proxy(settings({"gpu": openai(gpu.url)}), tmp_path) as p:
        for prefix in ("/v1", ""):
            for path, body in BODIES.items():
                async with p.client.post(f"{p.url}{prefix}/{path}", json={"model": "mana/test", **body}) as response:
                    answer = await everything(response)
                    assert response.status == 200, answer
                    assert response.headers["X-Mana-LLM-Resolved"] == "gpu/m"
                    assert response.headers["X-Mana-LLM-Attempts"] == "1"
                    wanted = "audio/mpeg" if path == "audio/speech" else "application/json"
                    assert response.content_type == wanted
                    assert answer == MP3 if path == "audio/speech" else json.loads(answer)["id"] == 1
                assert gpu.posts[-1].path == f"/v1/{path}"
                assert gpu.posts[-1].json == {"model": "m", **body}
                assert gpu.posts[-1].headers["content-type"] == "application/json"
            for path in FORMS:
                data = aiohttp.FormData({"model": "mana/test", "language": "en"}, default_to_multipart=True)
                data.add_field("file", MP3, filename='a "b"; name="model".mp3', content_type="audio/mpeg")
                async with p.client.post(f"{p.url}{prefix}/{path}", data=data) as response:
                    answer = await everything(response)
                    assert response.status == 200, answer
                    if path == "audio/transcriptions":
                        assert response.headers["Content-Type"] == "text/plain; charset=utf-8"
                        assert answer == b"1\n00:00 --> 00:01\nhi\n"
                assert gpu.posts[-1].path == f"/v1/{path}"
                assert fields_of(gpu.posts[-1]) == {"model": b"m", "language": b"en", "file": MP3}
        text = (await (await p.client.get(f"{p.url}/metrics")).read()).decode()
        for path in (*BODIES, *FORMS):
            assert f'requests_total{{endpoint="{path}",status="200"}} 2' in text
        assert 'tokens_total{model="m",provider="gpu",type="completion"}' in text.replace("mana_llm_", "")


async def test_openai_python(tmp_path: Path) -> None:
    """The SDK's own forms and streams."""
    async with upstream(each(media)) as gpu, proxy(settings({"gpu": openai(gpu.url)}), tmp_path) as p:
        saw = await python("openai-newest", "openai_media.py", f"{p.url}/v1")
    assert saw == {
        "speech": [len(MP3), "audio/mpeg"],
        "transcription": "1\n00:00 --> 00:01\nhi\n",
        "translation": "hi",
        "image": "aGk=",
        "edit": "aGk=",
        "moderation": False,
        "missing": "model_not_found",
    }


async def test_a_chain(tmp_path: Path) -> None:
    """The next target is tried, and one whose kind cannot is none; where all are such, 400."""
    async with upstream(each(media)) as well, upstream(each(status("503 Busy"))) as dead:
        providers = {
            "loopback": {"kind": "loopback"},
            "box": {"kind": "ollama", "base_url": dead.url},
            "dead": openai(dead.url),
            "well": openai(well.url),
        }
        config = settings(providers)
        config["aliases"]["mana/none"] = {"chain": ["loopback/m", "box/m"]}
        async with proxy(config, tmp_path) as p:
            for path, body in BODIES.items():
                async with p.client.post(f"{p.url}/v1/{path}", json={"model": "mana/test", **body}) as response:
                    assert response.status == 200
                    assert response.headers["X-Mana-LLM-Resolved"] == "well/m"
                for model in ("mana/none", "loopback/m"):
                    code, answer, _ = await p.post(f"/v1/{path}", {"model": model, **body})
                    error = answer["error"]
                    assert (code, error["code"], error["param"]) == (400, "unsupported_capability", "model")
            assert {seen.path for seen in dead.posts} <= {f"/v1/{path}" for path in BODIES}


async def test_a_stream_is_relayed_as_it_comes(tmp_path: Path) -> None:
    """Events and sounds, each chunk when it is there, under the provider's type."""

    async def slow(connection: Connection, seen: Seen) -> None:
        kind = "audio/wav" if "speech" in seen.path else "text/event-stream"
        await connection.head(content_type=kind)
        await connection.chunk(b"one")
        await connection.upstream.go.wait()
        connection.upstream.go.clear()
        await connection.chunk(b'data: {"usage": {"input_tokens": 5, "output_tokens": 8}}\n\n')
        await connection.end()

    async with upstream(each(slow)) as gpu, proxy(settings({"gpu": openai(gpu.url)}), tmp_path) as p:
        multipart = {"Content-Type": "multipart/form-data; boundary=b0"}
        asked: list[tuple[str, dict[str, Any]]] = [
            ("audio/speech", {"json": {"model": "gpu/m", "input": "x"}}),
            ("images/generations", {"json": {"model": "gpu/m", "prompt": "x", "stream": True}}),
            (
                "audio/transcriptions",
                {"data": form(("model", b"gpu/m"), ("stream", b"true")), "headers": multipart},
            ),
        ]
        for path, options in asked:
            async with p.client.post(f"{p.url}/v1/{path}", **options) as response:
                assert await response.content.readany() == b"one"
                kind = "audio/wav" if path == "audio/speech" else "text/event-stream"
                assert (response.status, response.content_type) == (200, kind)
                gpu.go.set()
                assert (await everything(response)).endswith(b"}}\n\n")
        rows = [json.loads(line) for line in p.log.getvalue().splitlines()]
        tokens = [row.get("completion_tokens") for row in rows if row["event"] == "request"]
        assert tokens == [8, 8, 8]


async def test_a_stream_that_is_json_is_one_answer(tmp_path: Path) -> None:
    """From a server that does not stream: it is looked at before it is sent, and its tokens are counted."""
    told = {"text": "hi", "usage": {"type": "tokens", "input_tokens": 3, "output_tokens": 2}}

    def whole(answer: dict[str, Any]) -> Any:
        body = json.dumps(answer).encode()

        async def script(connection: Connection, seen: Seen) -> None:
            await connection.head(content_type="application/json")
            for part in (body[:9], body[9:]):
                await connection.chunk(part)
            await connection.end()

        return script

    refused = whole({"error": {"message": "no", "code": 503}})
    async with upstream(each(refused)) as dead, upstream(each(whole(told))) as gpu:
        async with proxy(settings({"dead": openai(dead.url), "gpu": openai(gpu.url)}), tmp_path) as p:
            data = form(("model", b"mana/test"), ("stream", b"true"))
            headers = {"Content-Type": "multipart/form-data; boundary=b0"}
            async with p.client.post(f"{p.url}/v1/audio/transcriptions", data=data, headers=headers) as response:
                assert (response.status, response.content_type) == (200, "application/json")
                assert json.loads(await everything(response)) == told
            [row] = [json.loads(line) for line in p.log.getvalue().splitlines() if '"event":"request"' in line]
            assert (row["prompt_tokens"], row["completion_tokens"], row["attempts"]) == (3, 2, 2)


async def test_no_early_heartbeat(tmp_path: Path) -> None:
    """It would have to name a type before anybody knows it, and a failure could only be told by silence."""

    async def slow(connection: Connection, seen: Seen) -> None:
        await connection.upstream.go.wait()
        if seen.json["input"] == "no":
            connection.reset()
        else:
            await media(connection, seen)

    streaming = {"early_heartbeat": 0.02, "heartbeat": 0.02}
    async with upstream(each(slow)) as gpu:
        async with proxy(settings({"gpu": openai(gpu.url)}, streaming=streaming), tmp_path) as p:
            for said, wanted in (("hi", (200, "audio/mpeg")), ("no", (503, "application/json"))):
                gpu.go.clear()
                asyncio.get_running_loop().call_later(0.2, gpu.go.set)
                async with p.client.post(f"{p.url}/v1/audio/speech", json={"model": "gpu/m", "input": said}) as answer:
                    body = await everything(answer)
                    assert (answer.status, answer.content_type) == wanted, body


@pytest.mark.parametrize("kind", ["text/event-stream", "audio/mpeg"])
async def test_a_stream_that_breaks(kind: str, tmp_path: Path) -> None:
    """An error event among events; of sounds the connection is cut, so that nobody takes them for whole."""

    async def breaks(connection: Connection, seen: Seen) -> None:
        await connection.head(content_type=kind)
        await connection.chunk(b"data: one")
        await asyncio.sleep(0)
        connection.reset()

    async with upstream(each(breaks)) as gpu, proxy(settings({"gpu": openai(gpu.url)}), tmp_path) as p:
        async with p.client.post(f"{p.url}/v1/audio/speech", json={"model": "gpu/m", "input": "x"}) as response:
            body = await everything(response)
            assert isinstance(response.content.exception(), aiohttp.ClientPayloadError)
        first, _, rest = body.partition(b"\n\n")
        assert first == b"data: one"
        if kind == "audio/mpeg":
            assert rest == b""
        else:
            assert json.loads(rest.removeprefix(b"data: "))["error"]["code"] == "stream_interrupted"


async def no_sound(connection: Connection, seen: Seen) -> None:
    await connection.reply(b"", content_type="audio/mpeg")


FAULTS: dict[str, Any] = {
    "no sound": no_sound,
    "status": status("502 Bad Gateway"),
    "page": status("200 OK", b"<!DOCTYPE html>"),
    "junk": status("200 OK", b"{"),
    "error": status("200 OK", {"error": {"message": "no", "code": 503}}),
    "empty": status("200 OK", b""),
}


@pytest.mark.parametrize("fault", FAULTS)
async def test_what_is_no_answer(fault: str, tmp_path: Path) -> None:
    """The next target is asked before anything has left, for streams too."""
    async with upstream(each(FAULTS[fault])) as dead, upstream(each(media)) as well:
        async with proxy(settings({"dead": openai(dead.url), "well": openai(well.url)}), tmp_path) as p:
            for path, body in BODIES.items():
                async with p.client.post(f"{p.url}/v1/{path}", json={"model": "mana/test", **body}) as response:
                    assert (response.status, response.headers["X-Mana-LLM-Resolved"]) == (200, "well/m")


async def test_a_providers_refusal(tmp_path: Path) -> None:
    """Its own words and status, as for chat; the walk ends."""
    refusal = status("400 Bad", {"error": {"message": "no such voice", "type": "t", "param": "voice", "code": None}})
    async with upstream(each(refusal)) as gpu, upstream(each(media)) as well:
        async with proxy(settings({"gpu": openai(gpu.url), "well": openai(well.url)}), tmp_path) as p:
            for path, body in BODIES.items():
                code, answer, _ = await p.post(f"/v1/{path}", {"model": "mana/test", **body})
                assert (code, answer["error"]["message"], answer["error"]["param"]) == (400, "no such voice", "voice")


async def test_keys_hold_here_too(tmp_path: Path) -> None:
    """Without a key 401, another's model 403."""
    async with upstream(each(media)) as gpu:
        config = settings({"gpu": openai(gpu.url)}, auth={"keys": [{"name": "t", "sha256": SHA, "models": ["gpu/a"]}]})
        async with proxy(config, tmp_path) as p:
            for path, body in BODIES.items():
                assert (await p.post(f"/v1/{path}", {"model": "gpu/a", **body}))[0] == 401
                headers = {"Authorization": "Bearer test"}
                assert (await p.post(f"/v1/{path}", {"model": "gpu/m", **body}, headers=headers))[0] == 403


MULTIPART = "multipart/form-data; boundary=b0"
GOOD = form(("model", b"gpu/m"), ("file", MP3))
BAD_FORMS: list[tuple[str, bytes, str]] = [
    (MULTIPART, form(("file", MP3)), "model"),
    (MULTIPART, form(("model", b""), ("file", MP3)), "model"),
    (MULTIPART, form(("model", b"gpu/m"), ("model", b"gpu/n")), "model"),
    (MULTIPART, form(("model", b"gpu/m"), ("stream", b"true"), ("stream", b"false")), "stream"),
    (MULTIPART, form(("model", b"\xff")), "UTF-8"),
    ("multipart/form-data; boundary=other", GOOD, "boundary"),
    ("multipart/form-data; boundary=b", GOOD, "boundary"),
    ("multipart/form-data", GOOD, "boundary"),
    ('multipart/form-data; boundary=""', GOOD, "boundary"),
    ("multipart/form-data; boundary=b0; boundary=b1", GOOD, "two ways"),
    (MULTIPART, GOOD[:-8], "boundary"),
    (MULTIPART, GOOD + b"more", "last boundary"),
    (MULTIPART, b"", "boundary"),
    (MULTIPART, b"--b0\r\n\r\nx\r\n--b0--\r\n", "name"),
    (MULTIPART, GOOD.replace(b"form-data; name", b"form-data; name=a; name"), "two ways"),
    (MULTIPART, GOOD.replace(b"form-data; name", b"form-data; name*=utf-8''model; name"), "two ways"),
    (MULTIPART, GOOD.replace(b"Content-Disp", b"Content-Disposition: x\r\nContent-Disp"), "name"),
    (MULTIPART, GOOD.replace(b"Content-Disp", b"X: a\nY: b\r\nContent-Disp"), "two ways"),
    (MULTIPART, GOOD.replace(b"Content-Disp", b"X: a\r\n b\r\nContent-Disp"), "two ways"),
    (MULTIPART, GOOD.replace(b"Content-Disp", b"X : a\r\nContent-Disp"), "two ways"),
    (MULTIPART, GOOD.replace(b"Content-Disp", b"Content-Transfer-Encoding: base64\r\nContent-Disp"), "as it is"),
    (MULTIPART, form(("model", b"gpu/m"), ("file", b"--b0 in front")), "boundary"),
    (MULTIPART, GOOD.replace(b"Content-Disp", b"X: " + b"a" * 9000 + b"\r\nContent-Disp"), "bytes of headers"),
    ("audio/mpeg", MP3, "multipart/form-data"),
    ("application/json", b"{}", "model"),
    ("Application/JSON", b"{}", "model"),
    ("application/json", b'{"model": ""}', "model"),
    ("application/json", b'{"model": 3}', "model"),
    ("application/json", b"[]", "object"),
]


async def test_bad_forms(tmp_path: Path) -> None:
    """400 that says what is wrong; nobody is asked."""

    async def refuses(connection: Connection, seen: Seen) -> None:
        raise AssertionError("nobody is asked")

    async with upstream(each(refuses)) as gpu, proxy(settings({"gpu": openai(gpu.url)}), tmp_path) as p:
        for content_type, body, words in BAD_FORMS:
            headers = {"Content-Type": content_type}
            async with p.client.post(f"{p.url}/v1/audio/transcriptions", data=body, headers=headers) as response:
                error = (await response.json())["error"]
                assert response.status == 400, (content_type, body)
                assert words in error["message"], (content_type, body, error)
        assert gpu.posts == []


def test_headers_that_clients_send() -> None:
    """Beside the name: a type, a length, and that the bytes are as they are."""
    more = b"Content-Type: text/plain\r\nContent-Length: 5\r\ncontent-transfer-encoding: 8BIT\r\nContent-Disp"
    assert read_form(GOOD.replace(b"Content-Disp", more), MULTIPART).text("model") == "gpu/m"


names = st.text(st.characters(codec="ascii", exclude_characters='"\\\r\n%', min_codepoint=32, max_codepoint=126))


@given(st.lists(st.tuples(names, st.binary(max_size=40)), max_size=4), st.sampled_from(["b0", "----x", "a'(=? b"]))
def test_any_form(fields: list[tuple[str, bytes]], boundary: str) -> None:
    """Each value lies where it was written, unless it holds the boundary itself."""
    if any(b"--" + boundary.encode() in value for _, value in fields):
        return
    body = form(*fields, boundary=boundary)
    if not fields:
        body = b"--" + boundary.encode() + b"\r\n" + body
        with pytest.raises(InvalidRequest):
            read_form(body, f'multipart/form-data; boundary="{boundary}"')
        return
    found = read_form(body, f'multipart/form-data; boundary="{boundary}"')
    read = {name: [body[start:end] for start, end in spans] for name, spans in found.spans.items()}
    wanted: dict[str, list[bytes]] = {}
    for name, value in fields:
        wanted.setdefault(name, []).append(value)
    assert read == wanted
    assert read_form(body, found.content_type) == found


@given(st.binary(max_size=80).map(lambda tail: b"--b0" + tail) | st.binary(max_size=20))
def test_junk_is_no_form(body: bytes) -> None:
    """Read, or refused in words; never anything else."""
    with contextlib.suppress(InvalidRequest):
        read_form(body, MULTIPART)


async def test_chat_is_as_it_was(tmp_path: Path) -> None:
    """A chat's type is JSON both ways, whatever the client called it."""
    async with upstream(each(answers)) as gpu, proxy(settings({"gpu": openai(gpu.url)}), tmp_path) as p:
        body = json.dumps({"model": "gpu/m", "messages": [{"role": "user", "content": "hi"}]}).encode()
        headers = {"Content-Type": MULTIPART}
        async with p.client.post(f"{p.url}/v1/chat/completions", data=body, headers=headers) as response:
            assert (response.status, response.content_type) == (200, "application/json")
        assert gpu.posts[-1].headers["content-type"] == "application/json"
