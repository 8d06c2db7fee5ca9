"""Traces: real spans, received by a collector on loopback and read by the protocol's own classes."""

from __future__ import annotations

import asyncio
import hashlib
import importlib
import importlib.util
import json
import os
import threading
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from attrs import define, field
from multidict import CIMultiDict, CIMultiDictProxy

from manallm_proxy.config.load import load
from manallm_proxy.config.model import Traces
from manallm_proxy.config.structure import Mistakes
from manallm_proxy.config.tracing import traces_of
from manallm_proxy.contract.targets import Target
from manallm_proxy.contract.trace import Trace
from manallm_proxy.gateway.trace_context import headers_for, start_trace
from tests.cases import every
from tests.proxy import FAST, Proxy, openai, proxy, settings
from tests.upstreams import Connection, Seen, Upstream, answers, each, status, upstream
from tests.waiting import until

PARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
SECRET = "CANARY-PROMPT"
IS_THERE = importlib.util.find_spec("opentelemetry") is not None
if not IS_THERE and os.environ.get("CI"):
    pytest.fail("opentelemetry is not here: it is among the test extras")
needs_library = pytest.mark.skipif(not IS_THERE, reason="opentelemetry is not here: pip install '.[otel]'")


@define
class Span:
    """One span as it was received. ``kind``: SERVER or CLIENT; ids in hexadecimal; times in nanoseconds."""

    name: str
    kind: str
    trace: str
    id: str
    parent: str
    starts: int
    ends: int
    is_error: bool
    attributes: dict[str, Any]
    events: list[tuple[str, dict[str, Any]]]


@define(eq=False)
class Collector:
    """``raw``: all that came."""

    upstream: Upstream
    spans: list[Span] = field(factory=list)
    services: set[str] = field(factory=set)

    @property
    def endpoint(self) -> dict[str, str]:
        return {"endpoint": self.upstream.url}

    @property
    def raw(self) -> bytes:
        return b"".join(seen.body for seen in self.upstream.posts)

    def of(self, kind: str) -> list[Span]:
        return sorted((span for span in self.spans if span.kind == kind), key=lambda span: span.starts)

    async def take(self, connection: Connection, seen: Seen) -> None:
        protocol: Any = importlib.import_module("opentelemetry.proto.collector.trace.v1.trace_service_pb2")
        kinds: Any = importlib.import_module("opentelemetry.proto.trace.v1.trace_pb2").Span.SpanKind
        assert (seen.path, seen.headers["content-type"]) == ("/v1/traces", "application/x-protobuf")
        for resource in protocol.ExportTraceServiceRequest.FromString(seen.body).resource_spans:
            self.services.add(values(resource.resource.attributes)["service.name"])
            for each_span in (span for scope in resource.scope_spans for span in scope.spans):
                self.spans.append(
                    Span(
                        each_span.name,
                        kinds.Name(each_span.kind).removeprefix("SPAN_KIND_"),
                        each_span.trace_id.hex(),
                        each_span.span_id.hex(),
                        each_span.parent_span_id.hex(),
                        each_span.start_time_unix_nano,
                        each_span.end_time_unix_nano,
                        each_span.status.code == 2,
                        values(each_span.attributes),
                        [(event.name, values(event.attributes)) for event in each_span.events],
                    )
                )
        await connection.reply(b"", content_type="application/x-protobuf")


def values(pairs: Any) -> dict[str, Any]:
    return {pair.key: getattr(pair.value, pair.value.WhichOneof("value")) for pair in pairs}


@asynccontextmanager
async def collector() -> AsyncIterator[Collector]:
    made: list[Collector] = []

    async def take(connection: Connection, seen: Seen) -> None:
        await made[0].take(connection, seen)

    async with upstream(each(take)) as at:
        made.append(Collector(at))
        yield made[0]


async def ask(p: Proxy, headers: dict[str, str], **body: Any) -> int:
    """Status of one chat, read to its end."""
    sent = {"messages": [{"role": "user", "content": SECRET}], **body}
    async with p.client.post(f"{p.url}/v1/chat/completions", json=sent, headers=headers) as response:
        await response.read()
        return response.status


@needs_library
@pytest.mark.usefixtures("http")
async def test_a_request_and_its_attempts(tmp_path: Path) -> None:
    """The client's trace goes on: one span for the request, one for each attempt, which is what the provider is told;
    what was skipped is an event. No prompt, no answer, no key.
    """
    keys = [{"name": "alice", "sha256": hashlib.sha256(b"sk-alice-secret").hexdigest()}]
    async with (
        collector() as seen,
        upstream(each(status("503 No", {"error": {"message": "no"}}))) as bad,
        upstream(each(answers)) as good,
    ):
        providers = {
            "keyless": openai("http://127.0.0.1:9", api_key="${NOSUCH}"),
            "bad": openai(bad.url),
            "good": openai(good.url, api_key="sk-provider-secret"),
        }
        async with proxy(settings(providers, traces=seen.endpoint, auth={"keys": keys}), tmp_path) as p:
            given = {"traceparent": PARENT, "tracestate": "a=1,b=2", "Authorization": "Bearer sk-alice-secret"}
            assert await ask(p, {**given, "X-Request-Id": "r1"}, model="mana/test") == 200
        [request], attempts = seen.of("SERVER"), seen.of("CLIENT")
        assert len(attempts) == 2 and len(seen.spans) == 3 and seen.services == {"manallm-proxy"}
        assert (request.name, request.trace, request.parent) == ("POST /v1/chat/completions", *PARENT.split("-")[1:3])
        assert {each.trace for each in attempts} == {request.trace}
        assert {each.parent for each in attempts} == {request.id}
        for provider, attempt in ((bad, attempts[0]), (good, attempts[1])):
            told = provider.posts[-1].headers
            assert told["traceparent"] == f"00-{attempt.trace}-{attempt.id}-01"
            assert told["tracestate"] == "a=1,b=2"
            assert attempt.attributes.pop("server.port") == provider.port
        assert request.attributes == {
            "http.request.method": "POST",
            "http.route": "/v1/chat/completions",
            "http.response.status_code": 200,
            "gen_ai.operation.name": "chat",
            "gen_ai.request.model": "mana/test",
            "gen_ai.request.stream": False,
            "gen_ai.response.model": "good/m",
            "gen_ai.usage.input_tokens": 3,
            "gen_ai.usage.output_tokens": 2,
            "manallm.request_id": "r1",
            "manallm.alias": "mana/test",
            "manallm.key": "alice",
            "manallm.outcome": "ok",
            "manallm.attempts": 2,
        }
        assert request.events == [("target skipped", {"manallm.target": "keyless/m", "manallm.reason": "unconfigured"})]
        both = {"gen_ai.operation.name": "chat", "gen_ai.request.model": "m", "gen_ai.request.stream": False}
        both["server.address"] = "127.0.0.1"
        assert attempts[0].attributes == {
            **both,
            "gen_ai.provider.name": "bad",
            "error.type": "http_5xx",
            "http.response.status_code": 503,
        }
        assert attempts[1].attributes == {
            **both,
            "gen_ai.provider.name": "good",
            "gen_ai.response.model": "m",
            "gen_ai.usage.input_tokens": 3,
            "gen_ai.usage.output_tokens": 2,
        }
        assert [each.name for each in attempts] == ["chat m", "chat m"]
        assert [each.is_error for each in (request, *attempts)] == [False, True, False]
        assert request.starts <= attempts[0].starts <= attempts[0].ends <= attempts[1].starts <= attempts[1].ends
        assert attempts[1].ends <= request.ends + 1_000_000  # of two clocks
        assert abs(request.ends - time.time_ns()) < 20e9
        for word in (SECRET, "sk-alice-secret", "sk-provider-secret", "Hello"):
            assert word.encode() not in seen.raw


@needs_library
async def test_a_stream_and_its_end(tmp_path: Path) -> None:
    """The first chunk's time; without the client's trace one begins; a break and a refusal are errors."""

    async def breaks(connection: Connection, seen: Seen) -> None:
        if seen.json["model"] == "m":
            await answers(connection, seen)
        else:
            await connection.head()
            await connection.chunk(b'data: {"choices":[{"index":0,"delta":{"content":"x"}}]}\n\n')
            connection.reset()

    async with collector() as seen, upstream(each(breaks), ["m", "n"]) as gpu:
        async with proxy(settings({"gpu": openai(gpu.url)}, traces=seen.endpoint), tmp_path) as p:
            assert await ask(p, {"traceparent": "nonsense", "tracestate": "a=1"}, stream=True) == 200
            with pytest.raises(Exception, match="payload"):
                await ask(p, {}, stream=True, model="gpu/n")
            assert await ask(p, {}, model="mana/none") == 404
        whole, broken, unknown = seen.of("SERVER")
        served, cut = seen.of("CLIENT")
        assert (whole.parent, served.parent, "tracestate" in gpu.posts[0].headers) == ("", whole.id, False)
        assert served.trace == whole.trace != broken.trace
        assert 0 < served.attributes["gen_ai.response.time_to_first_chunk"] < 5
        assert served.attributes["gen_ai.usage.output_tokens"] == 2
        assert (cut.is_error, broken.is_error, unknown.is_error) == (True, True, False)
        assert cut.attributes["error.type"] == broken.attributes["error.type"] == "disconnected"
        assert unknown.attributes["error.type"] == "model_not_found"


@needs_library
async def test_what_the_client_does_not_record(tmp_path: Path) -> None:
    """No span of ours; the provider is told so. A reload switches traces off, and on."""
    async with collector() as seen, upstream(each(answers)) as gpu:
        on = settings({"gpu": openai(gpu.url)}, traces=seen.endpoint)
        off = settings({"gpu": openai(gpu.url)})
        async with proxy(on, tmp_path) as p:
            await ask(p, {"traceparent": f"{PARENT[:-2]}00"})
            told = gpu.posts[-1].headers["traceparent"]
            assert told.startswith(PARENT[:36]) and told.endswith("-00") and PARENT[36:52] not in told
            p.write(off)
            await p.app.reload()
            await ask(p, {"traceparent": PARENT})
            assert "traceparent" not in gpu.posts[-1].headers
            assert len(p.app.observe.listeners) == 4
            p.write(on)
            await p.app.reload()
            await ask(p, {})
        assert len(seen.spans) == 2


@needs_library
async def test_a_collector_that_takes_nothing_costs_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It hangs, and what waits for it is bounded: requests go on, and the end waits for so long at most."""
    monkeypatch.setattr("manallm_proxy.process.tracing.LAST_SPANS", 0.2)
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_TIMEOUT", "60")  # whoever waited for it would not end in time
    monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "1")
    monkeypatch.setenv("OTEL_BSP_MAX_QUEUE_SIZE", "8")
    monkeypatch.setenv("OTEL_BSP_MAX_EXPORT_BATCH_SIZE", "4")

    async def hangs(connection: Connection, seen: Seen) -> None:
        await connection.gone()

    async with upstream(each(hangs)) as dead, upstream(each(answers)) as gpu:
        config = settings({"gpu": openai(gpu.url)}, traces={"endpoint": dead.url})
        async with proxy(config, tmp_path) as p:
            await ask(p, {})
            await until(lambda: dead.posts)
            began = time.monotonic()
            assert await asyncio.gather(*(ask(p, {}) for _ in range(50))) == [200] * 50
        assert time.monotonic() - began < 30
        assert len(dead.posts) == 1
    await until(lambda: not [each.name for each in threading.enumerate() if each.name.startswith("OtelBatch")])


@needs_library
async def test_a_collector_that_is_away_is_named_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The library's own lines, four for each export, say neither what is lost nor where it should have gone."""
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_TIMEOUT", "1")
    monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "1")
    async with collector() as seen, upstream(each(answers)) as gpu:
        await seen.upstream.stop()
        async with proxy(settings({"gpu": openai(gpu.url)}, traces=seen.endpoint), tmp_path) as p:
            for _ in range(2):
                await ask(p, {})
                await until(lambda: "traces are lost" in p.log.getvalue())
            await seen.upstream.start()
            await ask(p, {})
            await until(lambda: "traces are taken again" in p.log.getvalue())
            lines = [json.loads(line) for line in p.log.getvalue().splitlines()]
            told = [(line["event"], line["server"]) for line in lines if line["event"].startswith("traces")]
            place = f"{seen.upstream.url}/v1/traces"
            assert told == [("traces are lost", place), ("traces are taken again", place)]
            assert "library" not in {line["event"] for line in lines}


async def test_off_nobody_is_told(tmp_path: Path) -> None:
    """A client's headers stay here."""
    async with upstream(each(answers)) as gpu, proxy(settings({"gpu": openai(gpu.url)}), tmp_path) as p:
        await ask(p, {"traceparent": PARENT, "tracestate": "a=1"})
        assert not {"traceparent", "tracestate"} & gpu.posts[-1].headers.keys()


def context(*parents: str, state: str = "") -> Trace:
    headers = CIMultiDict([("traceparent", parent) for parent in parents])
    if state:
        headers.add("TraceState", state)
    return start_trace(CIMultiDictProxy(headers))


@every(
    [
        (),
        ("",),
        (PARENT.upper(),),
        (PARENT[:-1],),
        (f"{PARENT}-x",),
        (PARENT.replace("00-", "ff-", 1),),
        (f"00-{'0' * 32}-b7ad6b7169203331-01",),
        (f"00-0af7651916cd43dd8448eb211c80319c-{'0' * 16}-01",),
        (PARENT, PARENT),
        (PARENT.replace("-b7", "-\r\nX: 7"),),
    ]
)
def test_an_unsound_parent_begins_a_trace(parents: tuple[str, ...]) -> None:
    """As the recommendation has it, and the client's state is left out."""
    trace = context(*parents, state="a=1")
    assert (trace.parent_id, trace.sampled, trace.state) == (None, True, "")
    assert trace.trace_id != int(PARENT[3:35], 16) and trace.trace_id and trace.span_id


def test_a_sound_parent_is_followed() -> None:
    """Also of a later version, which may say more; each attempt is a span of its own."""
    trace = context(PARENT, state="a=1")
    assert (f"{trace.trace_id:032x}", f"{trace.parent_id:016x}", trace.sampled, trace.state) == (
        *PARENT.split("-")[1:3],
        True,
        "a=1",
    )
    later = context(f"01{PARENT[2:]}-more")
    assert later.trace_id == trace.trace_id and later.span_id != trace.span_id
    assert context(PARENT, state="a=\r\nb").state == context(PARENT, state="x" * 513).state == ""
    first, second = (headers_for(trace, Target("a", "m"))["traceparent"] for _ in range(2))
    assert first[:36] == second[:36] == PARENT[:36] and first != second
    assert [name for name, _ in trace.attempts] == ["a/m", "a/m"]


@every(
    [
        (None, {}, None),
        ("http://127.0.0.1:4318", {}, "http://127.0.0.1:4318/v1/traces"),
        ("http://127.0.0.1:4318/v1/traces", {}, "http://127.0.0.1:4318/v1/traces"),
        ("http://a", {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://b"}, "http://a/v1/traces"),
        (None, {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://b:1/"}, "http://b:1/v1/traces"),
        (
            None,
            {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://b", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "http://c/x/"},
            "http://c/x/",
        ),
        (None, {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://b", "OTEL_SDK_DISABLED": "true"}, None),
        (None, {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://b", "OTEL_TRACES_EXPORTER": "none"}, None),
        (None, {"OTEL_EXPORTER_OTLP_ENDPOINT": "b:4317"}, None),
    ]
)
def test_where_they_go(endpoint: str | None, environ: dict[str, str], wanted: str | None) -> None:
    """The file wins; OpenTelemetry's own variables mean what they mean to its SDKs."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("manallm_proxy.config.tracing._is_installed", lambda: True)
        assert traces_of(Traces(endpoint), environ, Mistakes(), []).endpoint == wanted


def test_where_the_library_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Asked for in the file it is a mistake, by a variable a note; both say what to install."""
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    monkeypatch.setattr("manallm_proxy.config.tracing.how_to_install", lambda extra: f"install {extra}")
    mistakes, notes = Mistakes(), list[str]()
    traces_of(Traces("http://a"), {}, mistakes, notes)
    assert (list(mistakes), notes) == (
        ["traces.endpoint: needs OpenTelemetry: install otel"],
        [],
    )
    assert traces_of(Traces(), {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://a"}, Mistakes(), notes) == Traces()
    assert len(notes) == 1 and "install otel" in notes[0]


def test_a_wrong_address_is_told_by_its_place(tmp_path: Path) -> None:
    """As any other."""
    path = tmp_path / "proxy.yaml"
    path.write_text("traces: {endpoint: 127.0.0.1}\nproviders: {l: {kind: loopback}}\naliases: {}\n")
    with pytest.raises(Exception, match=r"traces\.endpoint: expected a URL with http"):
        load(path, {})
    assert FAST.get("traces") is None


@needs_library
@pytest.mark.built_in
async def test_an_exporter_that_cannot_be_made_costs_the_traces(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The SDK refuses values of its own variables: the proxy serves without traces, at a reload too, and logs it."""
    async with collector() as seen, upstream(each(answers)) as gpu:
        off, on = settings({"gpu": openai(gpu.url)}), settings({"gpu": openai(gpu.url)}, traces=seen.endpoint)
        monkeypatch.setenv("OTEL_BSP_MAX_QUEUE_SIZE", "0")
        async with proxy(on, tmp_path) as p:
            assert await ask(p, {}) == 200
            assert p.log.getvalue().count('"where":"traces"') == 1
            p.write(off)
            await p.app.reload()
            p.write(on)
            await p.app.reload()
            assert await ask(p, {}) == 200
            assert p.app.generation.config.traces.endpoint is not None and not p.app.gateway.serving.traced
            assert p.log.getvalue().count('"where":"traces"') == 2
