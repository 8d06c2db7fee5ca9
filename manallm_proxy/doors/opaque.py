"""Audio, images, reranking and moderations in OpenAI's format: routed like all requests, and relayed as bytes."""

from __future__ import annotations

from typing import ClassVar, Final

from attrs import evolve, field

from manallm_proxy.contract.answers import Answer, StreamBatch, Usage
from manallm_proxy.contract.door import Client
from manallm_proxy.contract.errors import InvalidRequest, ProxyError
from manallm_proxy.contract.provider import Call, Endpoint, RequestSummary
from manallm_proxy.contract.records import define
from manallm_proxy.contract.targets import Target
from manallm_proxy.doors.form import is_form, read_form
from manallm_proxy.doors.openai_reply import no_headers
from manallm_proxy.openai import sse
from manallm_proxy.openai.errors import error_body
from manallm_proxy.openai.request import read_summary, refuse_case_variants

FORMS: Final = frozenset({Endpoint.TRANSCRIPTIONS, Endpoint.TRANSLATIONS, Endpoint.IMAGE_EDITS})
"""Endpoints that upload a file, and so accept a form; some providers accept JSON as well."""


@define
class OpaqueDoor:
    """See `door.Door`. The model must be named: the default alias is for text."""

    endpoint: Endpoint
    name: str = field(init=False)
    scans: bool = False

    error_body = staticmethod(error_body)
    headers = staticmethod(no_headers)

    def __attrs_post_init__(self) -> None:
        self.name = self.endpoint.path

    def read(self, body: bytes, client: Client) -> tuple[Call, OpaqueReply]:
        content_type = client.headers.get("Content-Type", "")
        if is_form(content_type):
            form = read_form(body, content_type)
            refuse_case_variants(form.spans)
            stream = (form.text("stream") or "").lower() in ("true", "1")
            spans = {"model": form.spans["model"][0]} if form.text("model") is not None else {}
            summary = RequestSummary(form.text("model") or "", stream, False, frozenset(), spans)
            content_type = form.content_type
        elif self.endpoint in FORMS and "json" not in content_type.lower():
            raise InvalidRequest("send multipart/form-data, with its boundary in Content-Type")
        else:
            summary, content_type = read_summary(body, ("model", str)), "application/json"
        if not summary.model:
            raise InvalidRequest("'model' is missing", param="model")
        if self.endpoint is Endpoint.SPEECH:
            summary = evolve(summary, stream=True)  # it is played while it arrives, whether as events or not
        call = Call(self.endpoint, summary, body, client.request_id, content_type=content_type)
        return call, OpaqueReply()


@define
class OpaqueReply:
    """Relays the provider's bytes, with its own content type."""

    ends_long: ClassVar[bool] = False

    content_type: str = "application/octet-stream"
    _tail: bytes = field(default=b"\n\n", repr=False)

    def whole(self, target: Target, answer: Answer) -> bytes:
        return answer.body or b""

    def start(self, target: Target) -> None:
        """Nothing: a header names the target, and the body is not changed."""

    def events(self, batch: StreamBatch) -> bytes:
        self._tail = (self._tail + batch.frames[-2:])[-2:]
        return batch.frames

    def end(self, usage: Usage | None) -> bytes:
        return b""

    def error(self, error: ProxyError) -> bytes:
        """An error event, after completing one that was cut. Empty for audio: there the broken connection shows it."""
        if not self.content_type.startswith("text/event-stream"):
            return b""
        return (b"" if self._tail == b"\n\n" else b"\n\n") + sse.event(error_body(error))

    def heartbeat(self) -> bytes:
        """Empty: binary data has no bytes that could be ignored."""
        return b""
