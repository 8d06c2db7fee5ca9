"""Endpoints whose bodies pass through as bytes: audio, images, reranking, moderations. Only the model is replaced.

An answer is examined only as far as needed to distinguish it from a failure under status 200.
"""

from __future__ import annotations

import re
from typing import Any, Final

from attrs import field

from manallm_proxy.contract.answers import Answer, AnswerLimits, StreamBatch, Usage
from manallm_proxy.contract.provider import Call
from manallm_proxy.contract.provider_errors import BadResponse, ProviderError
from manallm_proxy.contract.records import define
from manallm_proxy.contract.spliced import Spliced
from manallm_proxy.contract.targets import Entry
from manallm_proxy.openai.json_object import DecodeErrors, decode
from manallm_proxy.openai.request import rewrite
from manallm_proxy.providers.answer_bounds import EVENT_BYTES, refuse_too_much, too_long
from manallm_proxy.providers.openai.reply import decoded, refuse_error, reply_object
from manallm_proxy.providers.wire import Request

TAIL: Final = 4096
"""Bytes at the end of a stream that are searched for its usage."""
_PAGE: Final = re.compile(rb"\s*<(?:!doctype|html)", re.IGNORECASE)
_USAGE: Final = re.compile(rb'"usage"\s*:\s*(\{[^{}]*(?:\{[^{}]*\}[^{}]*)*\})')


def opaque_request(call: Call, entry: Entry) -> Request:
    """The client's own bytes except for the model, in JSON or in a form."""
    model = entry.target.model
    if call.content_type == "application/json":
        return Request(call.endpoint.path, rewrite(call.summary, call.body, model))
    start, end = call.summary.spans["model"]
    form = memoryview(call.body)
    return Request(call.endpoint.path, Spliced((form[:start], model.encode(), form[end:])), call.content_type)


def opaque_answer(body: bytes, content_type: str) -> Answer:
    """The answer. Raises BadResponse for a web page, broken JSON or an empty body, and the error inside of a 200."""
    kind = _kind(content_type)
    if kind == "text/html" or _PAGE.match(body):
        raise BadResponse("its answer is a web page", detail="html")
    usage = None
    if _is_json(kind):
        if body.lstrip()[:1] != b"[":
            values, _ = reply_object(body)
            refuse_error(values)
            usage = _usage(decoded(values["usage"])) if "usage" in values else None
    elif not body and not kind.startswith("text/"):  # silence in a recording is an empty text
        raise BadResponse("its answer is empty", detail="empty body")
    return Answer(body=body, usage=usage, content_type=content_type or "application/octet-stream")


@define
class ByteRelay:
    """See `wire.Translator`. Relays bytes as they arrive, the first commits; JSON and pages are held and checked."""

    _content_type: str
    _limits: AnswerLimits = AnswerLimits()
    usage: Usage | None = None
    _begun: bool = False
    _held: list[bytes] = field(factory=list, repr=False)
    _size: int = 0
    _tail: bytes = field(default=b"", repr=False)

    @property
    def _holds(self) -> bool:
        kind = _kind(self._content_type)
        return _is_json(kind) or kind == "text/html"

    @property
    def held(self) -> int:
        return self._size

    def is_open(self, data: bytes) -> bool:
        """Whether bytes are held, which is until the end of the body."""
        return True

    def feed(self, data: bytes) -> StreamBatch:
        if self._holds:
            self._held.append(data)
            self._size += len(data)
            if self._size > self._limits.body:
                return StreamBatch(error=too_long(self._limits.body, "body"))
            return StreamBatch()
        self._tail = (self._tail + data)[-TAIL:]
        if self._begun:
            return StreamBatch(data)
        self._begun = True
        return StreamBatch(data, has_content=True, content_type=self._content_type or "application/octet-stream")

    def close(self) -> StreamBatch:
        """The regular end of the provider's body; a cut connection raises earlier."""
        if self._begun:
            counted = _USAGE.findall(self._tail)
            try:
                self.usage = _usage(decode(counted[-1])) if counted else None
            except DecodeErrors:
                self.usage = None
            return StreamBatch(done=True)
        body = b"".join(self._held)
        try:
            if len(body) > EVENT_BYTES:
                refuse_too_much(body, self._limits)
            answer = opaque_answer(body, self._content_type)
        except ProviderError as error:
            return StreamBatch(error=error)
        self.usage = answer.usage
        return StreamBatch(answer.body or b"", has_content=True, done=True, content_type=answer.content_type)


def _kind(content_type: str) -> str:
    return content_type.partition(";")[0].strip().lower()


def _is_json(kind: str) -> bool:
    return kind == "application/json" or kind.endswith("+json")


def _usage(usage: Any) -> Usage | None:
    """Tokens, under either of OpenAI's names; other units (seconds, searches) are ignored."""
    if not isinstance(usage, dict):
        return None

    def number(key: str, other: str) -> int:
        return next((value for value in (usage.get(key), usage.get(other)) if type(value) is int and value > 0), 0)

    return Usage(number("prompt_tokens", "input_tokens"), number("completion_tokens", "output_tokens"))
