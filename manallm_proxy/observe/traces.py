"""Exports requests as OpenTelemetry spans by OTLP over HTTP: one for the request, one for each attempt. No prompts.

Spans are created when a request has ended, from its `RequestEnded` event. The SDK's own thread exports them from a
bounded queue: if the collector is unreachable spans are dropped, and requests never wait.

Attribute names follow OpenTelemetry's GenAI conventions (open-telemetry/semantic-conventions-genai,
docs/gen-ai/client-inference.md). The constants in opentelemetry-semantic-conventions are marked deprecated since the
conventions moved to that repository, so the names are written out here. Attributes of our own start with ``manallm``.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Final

from attrs import field
from opentelemetry.context import Context
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExportResult
from opentelemetry.sdk.trace.id_generator import IdGenerator
from opentelemetry.trace import (
    NonRecordingSpan,
    SpanContext,
    SpanKind,
    Status,
    StatusCode,
    TraceFlags,
    Tracer,
    set_span_in_context,
)

from manallm_proxy import __version__
from manallm_proxy.contract.attempts import AttemptRecord
from manallm_proxy.contract.events import Event, RequestEnded
from manallm_proxy.contract.records import define
from manallm_proxy.contract.trace import Trace
from manallm_proxy.observe.request_log import is_for_a_model, legible

Attributes = dict[str, str | int | float | bool]

_OPERATIONS: Final[Mapping[str, str]] = {
    **dict.fromkeys(("chat/completions", "responses", "messages", "api/chat"), "chat"),
    **dict.fromkeys(("completions", "api/generate"), "text_completion"),
    **dict.fromkeys(("embeddings", "api/embed", "api/embeddings"), "embeddings"),
}
"""``gen_ai.operation.name`` by endpoint; other endpoints use their own name."""
_NANO: Final = 1_000_000_000


@define
class _GivenIds(IdGenerator):
    """Returns ids that were already sent in headers."""

    trace: int = 1
    span: int = 1

    def generate_trace_id(self) -> int:
        return self.trace

    def generate_span_id(self) -> int:
        return self.span


class _Exporter(OTLPSpanExporter):
    """Reports whether the collector takes spans, when that changes; the library's own lines name neither."""

    def __init__(self, endpoint: str, changed: Callable[[bool], None]) -> None:
        super().__init__(endpoint)
        self._changed, self._is_well = changed, True
        logging.getLogger(OTLPSpanExporter.__module__).setLevel(logging.CRITICAL)

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        result = super().export(spans)
        if (is_well := result is SpanExportResult.SUCCESS) is not self._is_well:
            self._is_well = is_well
            self._changed(is_well)
        return result


@define(eq=False)
class Traces:
    """An observer. ``endpoint``: the full URL. ``describe``: a provider's attributes, by its name.

    ``changed`` is called in the SDK's thread: the collector takes no more spans (False), or takes them again.

    ``clock``: nanoseconds since the epoch.
    """

    endpoint: str
    describe: Callable[[str], Attributes]
    changed: Callable[[bool], None] = lambda is_well: None
    clock: Callable[[], int] = time.time_ns
    _ids: _GivenIds = field(factory=_GivenIds)
    _exporter: _Exporter = field(init=False)
    _provider: TracerProvider = field(init=False)
    _tracer: Tracer = field(init=False)

    def __attrs_post_init__(self) -> None:
        named = "OTEL_SERVICE_NAME" in os.environ or "service.name=" in os.environ.get("OTEL_RESOURCE_ATTRIBUTES", "")
        ours = {"service.version": __version__, **({} if named else {"service.name": "manallm-proxy"})}
        self._provider = TracerProvider(resource=Resource.create(ours), id_generator=self._ids, shutdown_on_exit=False)
        self._exporter = _Exporter(self.endpoint, self.changed)
        self._provider.add_span_processor(BatchSpanProcessor(self._exporter))
        self._tracer = self._provider.get_tracer("manallm-proxy", __version__)

    def __call__(self, event: Event) -> None:
        if type(event) is RequestEnded and event.trace is not None and event.trace.sampled and is_for_a_model(event):
            self._record(event, event.trace)

    def close(self) -> None:
        """Exports queued spans. Blocks until the collector answers, so call it in a thread."""
        self._provider.shutdown()

    def give_up(self) -> None:
        """Ends the retries of a `close` that takes too long. Does not block."""
        self._exporter.shutdown()

    def _record(self, event: RequestEnded, trace: Trace) -> None:
        ends = self.clock()
        starts = ends - int(event.duration * _NANO)
        context = _below(trace.trace_id, trace.parent_id, remote=True) if trace.parent_id is not None else Context()
        self._ids.trace, self._ids.span = trace.trace_id, trace.span_id
        span = self._tracer.start_span(_name(event), context, SpanKind.SERVER, _of_request(event), start_time=starts)
        for line in event.log:
            if line.duration is None:
                at = starts if line.at is None else starts + int((line.at - event.started) * _NANO)
                span.add_event("target skipped", {"manallm.target": line.model, "manallm.reason": line.reason}, at)
        if event.status >= 500 or event.outcome == "broken":
            span.set_status(Status(StatusCode.ERROR))
        span.end(ends)
        if not span.is_recording() and not span.get_span_context().trace_flags.sampled:
            return
        inside = _below(trace.trace_id, trace.span_id, remote=False)
        waiting = list(trace.attempts)
        for target, begun, ended, attributes in _attempts(event):
            self._ids.span = _taken(waiting, target)
            provider, _, model = target.partition("/")
            attributes |= {"gen_ai.operation.name": _operation(event), "gen_ai.request.model": model}
            attributes |= {"gen_ai.request.stream": event.streaming, **self.describe(provider)}
            times = [starts + int((each - event.started) * _NANO) for each in (begun, ended)]
            attempt = self._tracer.start_span(
                f"{_operation(event)} {model}", inside, SpanKind.CLIENT, attributes, start_time=times[0]
            )
            if "error.type" in attributes:
                attempt.set_status(Status(StatusCode.ERROR))
            attempt.end(times[1])


def _below(trace_id: int, span_id: int, *, remote: bool) -> Context:
    """A context whose current span is the given one."""
    parent = SpanContext(trace_id, span_id, is_remote=remote, trace_flags=TraceFlags(TraceFlags.SAMPLED))
    return set_span_in_context(NonRecordingSpan(parent), Context())


def _taken(waiting: list[tuple[str, int]], target: str) -> int:
    """Removes the first attempt at `target` from `waiting` and returns its span id."""
    found = next((each for each in waiting if each[0] == target), None)
    if found is None:
        return _random_id()
    waiting.remove(found)
    return found[1]


def _random_id() -> int:
    return int.from_bytes(os.urandom(8), "big") or 1


def _attempts(event: RequestEnded) -> Iterator[tuple[str, float, float, Attributes]]:
    """Target, start and end (monotonic seconds) and attributes of each attempt."""
    for line in event.log:
        if line.duration is not None and line.at is not None:
            yield line.model, line.at, line.at + line.duration, _of_failure(line)
    if event.last is None or event.last_at is None:
        return
    began = event.to_first_byte is not None
    if event.outcome != "ok" and not (event.outcome == "client_gone" and began):
        yield (
            str(event.last),
            event.last_at,
            event.started + event.duration,
            {"error.type": event.error or event.outcome},
        )
        return
    served: Attributes = {"gen_ai.response.model": event.last.model}
    if event.streaming and event.to_first_byte is not None:
        served["gen_ai.response.time_to_first_chunk"] = event.started + event.to_first_byte - event.last_at
    if event.prompt_tokens is not None:
        served["gen_ai.usage.input_tokens"] = event.prompt_tokens
    if event.completion_tokens is not None:
        served["gen_ai.usage.output_tokens"] = event.completion_tokens
    yield str(event.last), event.last_at, event.started + event.duration, served


def _of_failure(line: AttemptRecord) -> Attributes:
    return {"error.type": line.reason, **({} if line.status is None else {"http.response.status_code": line.status})}


def _operation(event: RequestEnded) -> str:
    return _OPERATIONS.get(event.endpoint, event.endpoint)


def _name(event: RequestEnded) -> str:
    return f"POST {_route(event)}"


def _route(event: RequestEnded) -> str:
    return f"/{event.endpoint}" if event.endpoint.startswith("api/") else f"/v1/{event.endpoint}"


def _of_request(event: RequestEnded) -> Attributes:
    """Attributes of the request's span."""
    found: dict[str, str | int | float | bool | None] = {
        "http.request.method": "POST",
        "http.route": _route(event),
        "http.response.status_code": event.status,
        "error.type": event.error if event.outcome != "ok" else None,
        "gen_ai.operation.name": _operation(event),
        "gen_ai.request.model": legible(event.requested) or None,
        "gen_ai.request.stream": event.streaming,
        "gen_ai.response.model": f"{event.provider}/{event.model}" if event.provider is not None else None,
        "gen_ai.usage.input_tokens": event.prompt_tokens,
        "gen_ai.usage.output_tokens": event.completion_tokens,
        "manallm.request_id": event.request_id,
        "manallm.alias": event.alias,
        "manallm.key": event.key,
        "manallm.outcome": event.outcome,
        "manallm.attempts": event.attempts,
    }
    return {name: value for name, value in found.items() if value is not None}
