"""What is fuzzed: each target takes bytes, and raises where a promise is broken.

The first byte says where the rest is cut, so that a fuzzer finds cuts as it finds bytes.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
from collections.abc import Callable
from typing import Any, Final
from unittest.mock import Mock

from aiohttp import web

from manallm_proxy.config.model import Limits
from manallm_proxy.contract.answers import Answer, Delta
from manallm_proxy.contract.door import Client, Door
from manallm_proxy.contract.errors import InvalidRequest, ProxyError
from manallm_proxy.contract.provider import Endpoint
from manallm_proxy.contract.provider_errors import ProviderError
from manallm_proxy.doors.form import read_form
from manallm_proxy.doors.messages.door import MessagesDoor
from manallm_proxy.doors.ollama.chat import OllamaChatDoor
from manallm_proxy.doors.ollama.embed import OllamaEmbedDoor
from manallm_proxy.doors.ollama.generate import OllamaGenerateDoor
from manallm_proxy.http_server.aiohttp_server import Server
from manallm_proxy.openai import sse
from manallm_proxy.openai.errors import error_body
from manallm_proxy.openai.request import read_summary, rewrite
from manallm_proxy.providers.openai.wire import OpenAIWire
from tests import test_wire_ollama as ollama
from tests import test_wire_openai as openai

Target = Callable[[bytes], None]


def cut(data: bytes) -> tuple[bytes, list[bytes]]:
    """The bytes, and the same in pieces of a length that the first one names."""
    size, whole = (data[0] % 31 + 1, data[1:]) if data else (1, b"")
    return whole, [whole[at : at + size] for at in range(0, len(whole), size)]


def events(data: bytes) -> None:
    """SSE frames: the same data however it is cut, and every line is kept."""
    whole, pieces = cut(data)

    def read(parts: list[bytes]) -> list[sse.Frame]:
        decoder = sse.Decoder()
        frames = [frame for part in parts for frame in decoder.feed(part)]
        rest = decoder.close()
        return [*frames, sse.parse(rest)] if rest else frames

    def lines(raw: bytes) -> list[bytes]:
        return [line for line in raw.replace(b"\r", b"\n").split(b"\n") if line]

    frames, once = read(pieces), read([whole])
    assert [(f.data, f.event, f.fields) for f in frames] == [(f.data, f.event, f.fields) for f in once]
    assert lines(b"".join(f.raw for f in frames)) == lines(whole.removeprefix(b"\xef\xbb\xbf"))


def openai_stream(data: bytes) -> None:
    """A relayed stream ends in an end or an error, and never has ``[DONE]`` before its end."""
    whole, pieces = cut(data)
    for parts in (pieces, [whole]):
        out, batch, _ = openai.play(*parts)
        assert batch.done is not (batch.error is not None)
        assert out.count(b"data: [DONE]") <= whole.count(b"[DONE]")


def ndjson(data: bytes) -> None:
    """Ollama's lines: the same events however they are cut, and an end or an error."""
    whole, pieces = cut(data)
    told, batch = ollama.poured(pieces)
    once, last = ollama.poured([whole])
    assert batch.done is not (batch.error is not None)
    assert batch.done == last.done
    assert not batch.done or told == once


def bodies(data: bytes) -> None:
    """Whole answers and refusals: an answer, or a provider's failure."""
    for of in (openai.call(), openai.call(Endpoint.EMBEDDINGS)):
        with contextlib.suppress(ProviderError):
            json.loads(OpenAIWire().answer(of, openai.ENTRY, data).body or b"{}")
    for status in (400, 404, 429, 500):
        for wire in (OpenAIWire(), ollama.WIRE):
            assert wire.failure(status, {}, data).message


def request(data: bytes) -> None:
    """A request's body is refused, or rewritten to sound JSON with the target's model."""
    try:
        head = read_summary(data, ("messages", list))
    except InvalidRequest:
        return
    sent = json.loads(bytes(rewrite(head, data, "p/m", ask_usage=True)))
    assert (sent["model"], sent["stream_options"]["include_usage"]) == ("p/m", True)


def messages(data: bytes) -> None:
    """A request in Anthropic's form is refused, or becomes a chat request that is read as one."""
    try:
        call, reply = MessagesDoor().read(data, Client("req-1"))
    except InvalidRequest:
        return
    if call.refusal is not None:
        return
    assert json.loads(call.body)["messages"]
    assert json.loads(reply.whole(openai.ENTRY.target, Answer(choices=(Delta("x"),))))["content"]


def ollama_door(data: bytes) -> None:
    """A request of Ollama's API is refused, or becomes a sound one in OpenAI's words."""
    doors: list[Door] = [OllamaChatDoor(), OllamaGenerateDoor(), OllamaEmbedDoor()]
    for door in doors:
        with contextlib.suppress(InvalidRequest):
            reading = door.read(data, Client("req-1"))
            assert isinstance(reading, tuple)
            of, _ = reading
            assert read_summary(of.body, ("model", str)).model == of.summary.model


def form(data: bytes) -> None:
    """A form is refused, or is the same after its model has been replaced, but for that."""
    kind = "multipart/form-data; boundary=b"
    try:
        before = read_form(data, kind)
        model = before.text("model")
    except InvalidRequest:
        return
    if model is None:
        return
    start, end = before.spans["model"][0]
    after = read_form(data[:start] + b"p/m" + data[end:], kind)
    assert after.text("model") == "p/m"
    assert {name: len(spans) for name, spans in after.spans.items()} == {
        name: len(spans) for name, spans in before.spans.items()
    }


_LOOP: Final = asyncio.new_event_loop()
_SOUND: Final = re.compile(rb"HTTP/1\.[01] \d{3} ")


def http(data: bytes) -> None:
    """Bytes on a connection: each answer is one of ours, nothing is repeated, and none comes after a refusal."""
    _, pieces = cut(data)
    _LOOP.run_until_complete(_connection(pieces))


async def _connection(pieces: list[bytes]) -> None:
    async def echo(asked: web.BaseRequest) -> web.Response:
        return web.Response(text=str(len(await asked.read())))

    told: list[ProxyError] = []

    def refusal(error: ProxyError) -> tuple[str, bytes]:
        told.append(error)
        return "id-1", error_body(error)

    server = Server(echo, header=256, head_timeout=lambda: 60.0, limits=Limits, refusal=refusal)
    connection: Any = server()
    wire = Mock(spec=asyncio.Transport)
    wire.is_closing.return_value = False
    wire.get_write_buffer_size.return_value = 0
    wire.get_extra_info.return_value = None
    connection.connection_made(wire)
    for batch in pieces:
        connection.data_received(batch)
        await asyncio.sleep(0)
    for _ in range(10):
        await asyncio.sleep(0)
    sent = b"".join(bytes(part) for call in wire.write.call_args_list for part in call.args)
    sent += b"".join(bytes(part) for call in wire.writelines.call_args_list for part in call.args[0])
    assert not sent or _SOUND.match(sent)
    refusals = sent.count(b'"source":"manallm-proxy"')
    assert refusals <= 1
    assert len(told) >= refusals
    connection.connection_lost(None)


TARGETS: Final[dict[str, Target]] = {
    "events": events,
    "openai_stream": openai_stream,
    "ndjson": ndjson,
    "bodies": bodies,
    "request": request,
    "messages": messages,
    "ollama_door": ollama_door,
    "form": form,
    "http": http,
}
