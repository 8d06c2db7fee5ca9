"""Reads Gemini's answers into deltas, finish reasons and usage (ai.google.dev/api/generate-content).

Any member may be missing in its replies: candidates, their content, its parts, the usage. Optional members are read
leniently.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Final, TypeVar

import msgspec
from attrs import evolve, field
from msgspec import Struct

from manallm_proxy.contract.answers import Answer, Delta, ToolCall, Usage, new_call_id
from manallm_proxy.contract.provider_errors import BadResponse, ContentBlocked
from manallm_proxy.contract.records import define
from manallm_proxy.openai import sliced
from manallm_proxy.openai.errors import is_error_value
from manallm_proxy.openai.joined import joined_text
from manallm_proxy.openai.json_object import BOM, DecodeErrors, decode_leniently, json_text, replace_lone_surrogates
from manallm_proxy.openai.usage import count
from manallm_proxy.providers.answer_bounds import rows_of
from manallm_proxy.providers.gemini import errors
from manallm_proxy.providers.gemini.logprobs import logprobs
from manallm_proxy.providers.gemini.messages import SIGNATURE_PATH
from manallm_proxy.providers.named_calls import require_names

_FILTERED: Final = frozenset(
    (
        "SAFETY",
        "RECITATION",
        "BLOCKLIST",
        "PROHIBITED_CONTENT",
        "SPII",
        "IMAGE_SAFETY",
        "IMAGE_PROHIBITED_CONTENT",
        "IMAGE_RECITATION",
        "LANGUAGE",
        "MODEL_ARMOR",
        "ESCALATION",
        "PUP_LIMITED_DISABLED",
    )
)
_CUT: Final = frozenset(("MAX_TOKENS", "CONTINUATION"))
_GIVEN_UP: Final = frozenset(
    (
        "OTHER",
        "MALFORMED_FUNCTION_CALL",
        "UNEXPECTED_TOOL_CALL",
        "TOO_MANY_TOOL_CALLS",
        "MISSING_THOUGHT_SIGNATURE",
        "MALFORMED_RESPONSE",
    )
)
"""The model gave up on something (a tool call): what it said before is not a complete answer. An agent that gets
``stop`` takes "Let me look." for the end of its task."""
_WITHOUT: Final = frozenset(("FINISH_REASON_UNSPECIFIED", "NO_IMAGE", "IMAGE_OTHER"))
"""There is no answer, unless there was text before. Unknown reasons count as a normal end."""


_WORD: Final = re.compile(r"[A-Za-z0-9_]{1,64}", re.ASCII)
"""A finish reason, matched as a whole: a cut one might expose a part of a key."""


class _Blob(Struct, rename="camel"):
    mime_type: str = ""
    data: str = ""


class _FunctionCall(Struct):
    name: str | None = None
    id: str | None = None
    args: dict[str, Any] | None = None


class _Part(Struct, rename="camel"):
    text: str | None = None
    thought: Any = None
    function_call: _FunctionCall | None = None
    inline_data: _Blob | None = None
    thought_signature: Any = None


class _Content(Struct):
    parts: list[_Part] | None = None


class _Candidate(Struct, rename="camel"):
    content: _Content | None = None
    finish_reason: Any = None
    index: Any = None
    logprobs_result: Any = None


class Reply(Struct, rename="camel"):
    """A chunk of a stream, or a complete answer."""

    candidates: list[_Candidate] | None = None
    prompt_feedback: Any = None
    usage_metadata: Any = None
    error: Any = None


class Vector(Struct):
    values: list[float] | None = None


class Embedded(Struct, rename="camel"):
    embeddings: list[Vector] | None = None
    usage_metadata: Any = None
    error: Any = None


_T = TypeVar("_T", Reply, Embedded)
_REPLY: Final[msgspec.json.Decoder[Reply | list[Reply]]] = msgspec.json.Decoder(Reply | list[Reply])


def read(body: bytes) -> Reply:
    """A complete answer or one chunk. Raises BadResponse if malformed, and the error that it may hold instead."""
    return read_json(_REPLY, body)


def read_json(decoder: msgspec.json.Decoder[_T | list[_T]], body: bytes) -> _T:
    """See `read`."""
    try:
        reply = _decoded(decoder, body)
    except DecodeErrors:
        raise BadResponse("Gemini's answer is not what its API promises", detail="not Gemini's JSON") from None
    if isinstance(reply, list):  # errors may come as a list of one
        if len(reply) != 1:
            raise BadResponse("Gemini's answer is not what its API promises", detail="a list")
        reply = reply[0]
    if is_error_value(reply.error):
        raise errors.in_band(reply.error)
    return reply


def _decoded(decoder: msgspec.json.Decoder[_T | list[_T]], body: bytes) -> _T | list[_T]:
    if len(body) > sliced.LARGE_ELEMENTS and sliced.is_large(body):
        return _decoded_large(decoder, body)
    try:
        return decoder.decode(body)
    except msgspec.DecodeError:  # a lone surrogate is legal JSON, and becomes U+FFFD
        lenient = replace_lone_surrogates(body.removeprefix(BOM))
        if lenient == body:
            raise
        return decoder.decode(lenient)


def _decoded_large(decoder: msgspec.json.Decoder[_T | list[_T]], body: bytes) -> _T | list[_T]:
    """The same in many short calls: only candidates are many, and their parts."""
    fields = decode_leniently(body)
    candidates = _candidates(fields)
    parts = [_parts(candidate) for candidate in candidates]
    if candidates:
        fields["candidates"] = []
    found: _T | list[_T] = msgspec.convert(fields, decoder.type)
    if isinstance(found, Reply) and candidates:
        found.candidates = rows_of(_Candidate, candidates)
        for candidate, rows in zip(found.candidates, parts, strict=True):
            if rows and candidate.content is not None:
                candidate.content.parts = rows_of(_Part, rows)
    return found


def parts_of(reply: Reply) -> int:
    """Choices, and what they consist of."""
    rows = reply.candidates or ()
    return len(rows) + sum(len(row.content.parts) for row in rows if row.content is not None and row.content.parts)


def _candidates(fields: Any) -> list[Any]:
    rows = fields.get("candidates") if isinstance(fields, dict) else None
    return rows if isinstance(rows, list) else []


def _parts(candidate: Any) -> list[Any]:
    """Removes the parts from `candidate`, and returns them."""
    content = candidate.get("content") if isinstance(candidate, dict) else None
    rows = content.pop("parts", None) if isinstance(content, dict) else None
    return rows if isinstance(rows, list) else []


@define
class Reader:
    """Reads one answer, whole or chunk by chunk. ``names``: of tools, see `Call`."""

    _names: Mapping[str, str] = field(factory=dict, repr=False)
    _counted: Any = None
    """The latest chunk's counters, which are totals so far."""
    _finished: set[int] = field(factory=set)
    _begun: set[int] = field(factory=set)
    _said: set[int] = field(factory=set)
    _called: dict[int, int] = field(factory=dict)
    """Tool calls of each choice so far."""
    failure: BadResponse | None = None
    """Set if the model gave up: the deltas so far are no complete answer."""

    @property
    def usage(self) -> Usage | None:
        """Tokens so far; None if the answer does not count them."""
        return usage_of(self._counted)

    def counted(self, counters: dict[str, Any]) -> None:
        """Sets the usage to the `counters` of the latest chunk, if nothing else of it was parsed."""
        self._counted = counters

    @property
    def calls(self) -> int:
        """Tool calls so far."""
        return sum(self._called.values())

    @property
    def choices(self) -> int:
        """That have begun."""
        return len(self._begun)

    @property
    def is_complete(self) -> bool:
        """Whether there are choices, and each has its finish reason."""
        return bool(self._finished) and self._begun == self._finished

    def deltas(self, reply: Reply) -> list[Delta]:
        """One delta per choice of `reply`. Raises ContentBlocked or BadResponse if it is no answer.

        If the model gave up after some text, the text is in the deltas, and `failure` is set.
        """
        if isinstance(reply.usage_metadata, dict):
            self._counted = reply.usage_metadata
        blocked = reply.prompt_feedback.get("blockReason") if isinstance(reply.prompt_feedback, dict) else None
        if blocked and not reply.candidates:
            reason = blocked if isinstance(blocked, str) and _WORD.fullmatch(blocked) else "no reason given"
            raise ContentBlocked(f"Gemini blocked the prompt ({reason})", detail=reason)
        return [self._delta(candidate) for candidate in reply.candidates or ()]

    def whole(self, reply: Reply) -> Answer:
        """A complete answer, each choice with a ``finish``: a complete body cannot have been cut.

        Raises as `deltas`, and BadResponse if there is no content.
        """
        choices = self.deltas(reply)
        if self.failure is not None:
            raise self.failure
        if not choices or not all(choice.has_content for choice in choices):
            raise BadResponse("Gemini's answer holds nothing", detail="no content" if choices else "no candidates")
        if all(choice == Delta(finish="stop", index=choice.index) for choice in choices):
            raise BadResponse("Gemini's answer holds nothing", detail="no content")
        ended = tuple(evolve(choice, finish=choice.finish or "stop") for choice in choices)
        return Answer(usage=self.usage, choices=ended)

    def _delta(self, candidate: _Candidate) -> Delta:
        index = count(candidate.index)
        parts = (candidate.content and candidate.content.parts) or []
        calls = _tool_calls(parts, self._called.get(index, 0), self._names)
        content = joined_text([part.text for part in parts if part.text and not part.thought])
        images = tuple([_data_uri(part.inline_data) for part in parts if _is_image(part)])
        self._begun.add(index)
        if calls:
            self._called[index] = self._called.get(index, 0) + len(calls)
        if content or calls or images:
            self._said.add(index)
        delta = Delta(
            content=content,
            reasoning=joined_text([part.text for part in parts if part.text and part.thought]),
            tool_calls=calls,
            finish=self._finish(candidate.finish_reason, index),
            index=index,
            logprobs=logprobs(candidate.logprobs_result),
            images=images,
        )
        return require_names(delta, delta.finish) if calls else delta

    def _finish(self, reason: object, index: int) -> str | None:
        if not reason or not isinstance(reason, str):
            return None
        if reason in _GIVEN_UP:
            self.failure = BadResponse(f"Gemini gave up its answer ({reason})", detail=reason.lower())
            return None
        if reason in _WITHOUT and index not in self._said:
            raise BadResponse(f"Gemini ended without an answer ({reason})", detail=reason.lower())
        self._finished.add(index)
        if reason in _FILTERED:
            return "content_filter"
        if reason in _CUT:
            return "length"
        return "tool_calls" if index in self._called else "stop"


def _tool_calls(parts: list[_Part], first: int, names: Mapping[str, str]) -> tuple[ToolCall, ...]:
    """They come whole, a part each; `first` is the place of the first among those of its choice."""
    called = [(part.function_call, part.thought_signature) for part in parts if part.function_call is not None]
    return tuple(
        [
            ToolCall(
                names.get(call.name or "", call.name or ""),
                json_text(call.args or {}),
                call.id or new_call_id(),
                n,
                _extra(signature),
            )
            for n, (call, signature) in enumerate(called, first)
        ]
    )


def _extra(signature: object) -> dict[str, Any]:
    """The signature where `messages` looks for it."""
    if not signature or not isinstance(signature, str):
        return {}
    extra: Any = signature
    for key in reversed(SIGNATURE_PATH):
        extra = {key: extra}
    return dict(extra)


def _is_image(part: _Part) -> bool:
    """Sketches on the way to a picture are marked as thoughts."""
    blob = part.inline_data
    return blob is not None and bool(blob.data) and blob.mime_type.startswith("image/") and not part.thought


def _data_uri(blob: _Blob | None) -> str:
    return f"data:{blob.mime_type};base64,{blob.data}" if blob is not None else ""


def usage_of(counted: object) -> Usage | None:
    """Tokens; None if they are not counted."""
    if not isinstance(counted, dict):
        return None
    thoughts = count(counted.get("thoughtsTokenCount"))
    return Usage(
        prompt=count(counted.get("promptTokenCount")) + count(counted.get("toolUsePromptTokenCount")),
        completion=count(counted.get("candidatesTokenCount")) + thoughts,
        reasoning=thoughts,
        cached=count(counted.get("cachedContentTokenCount")),
    )
