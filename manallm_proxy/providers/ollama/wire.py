"""Ollama's native API (ollama api/types.go and server/routes.go at v0.33; wire.md B).

Chat, legacy completions and embeddings go to ``api/chat``, ``api/generate`` and ``api/embed``. A stream is
one JSON object a line, written out as OpenAI's chunks. What it says of itself is not taken on trust:

* an error in mid stream is a line of its own, under status 200;
* a stream may end without ``done: true`` and without an error: that is a cut answer, not a short one;
* the object with ``done: true`` may still hold content, thinking and tool calls;
* ``done_reason`` stays ``stop`` behind tool calls, and their numbers are not to be relied on;
* numbers that are zero are left out.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any, Final, TypeVar

import msgspec
from attrs import define, field
from msgspec import Struct

from manallm_proxy.contract.provider import Answer, Call, Endpoint, ModelInfo, ModelList, StreamBatch, Usage
from manallm_proxy.contract.provider_errors import BadResponse, Disconnected, ProviderError
from manallm_proxy.contract.targets import Entry
from manallm_proxy.openai.compose import Composer, Delta, ToolCall, call_id, embeddings_body
from manallm_proxy.openai.schema import DecodeErrors, decode
from manallm_proxy.providers.model_list import read_list, words
from manallm_proxy.providers.ollama import errors as ollama_failure
from manallm_proxy.providers.ollama import request as ollama_request
from manallm_proxy.providers.wire import Request, Translator

LINE_LIMIT: Final = 16 << 20
"""Bytes of one line of a stream, without its end."""


class _Function(Struct):
    name: str = ""
    arguments: msgspec.Raw = msgspec.Raw(b"{}")


class _Call(Struct):
    function: _Function
    id: str = ""


class _Message(Struct):
    content: str | None = None
    thinking: str | None = None
    tool_calls: list[_Call] | None = None


class _Token(Struct):
    token: str = ""
    logprob: float = 0.0
    bytes: list[int] | None = None
    top_logprobs: list[_Token] | None = None


class _Reply(Struct):
    """A line of a stream, or a complete answer: api/types.go ChatResponse and GenerateResponse in one."""

    message: _Message | None = None
    response: str | None = None
    thinking: str | None = None
    done: bool = False
    done_reason: str | None = None
    prompt_eval_count: int = 0
    eval_count: int = 0
    logprobs: list[_Token] | None = None
    error: Any = None


class _Embedded(Struct):
    """api/types.go EmbedResponse."""

    embeddings: list[list[float]] | None = None
    prompt_eval_count: int = 0
    error: Any = None


class _Asked(Struct):
    """What an embeddings answer depends on; `request` has checked it."""

    input: str | list[Any] = ""
    encoding_format: str | None = None


class _Model(Struct):
    """api/types.go ListModelResponse."""

    name: str = ""
    model: str = ""
    modified_at: Any = None
    capabilities: Any = None


_T = TypeVar("_T", _Reply, _Embedded)
_REPLY: Final = msgspec.json.Decoder(_Reply)
_EMBEDDED: Final = msgspec.json.Decoder(_Embedded)


class OllamaWire:
    """The dialect. It holds no state: one serves every provider of its kind."""

    probe_path: str = "api/tags"

    def request(self, call: Call, entry: Entry) -> Request:
        return ollama_request.build(call, entry)

    def failure(self, status: int, headers: Mapping[str, str], body: bytes) -> ProviderError:
        return ollama_failure.failure(status, headers, body)

    def reshape(self, call: Call, entry: Entry, status: int, body: bytes) -> Request | None:
        """There is one form only: what Ollama refuses, it refuses."""
        return None

    def took(self, entry: Entry) -> bool:
        """Nothing to learn."""
        return False

    def answer(self, call: Call, entry: Entry, body: bytes) -> Answer:
        if call.endpoint is Endpoint.EMBEDDINGS:
            return _embeddings(call, entry, body)
        reply = _read(_REPLY, body)
        said = reply.message if call.endpoint is Endpoint.CHAT else reply.response
        if said is None or not reply.done:
            raise BadResponse("Ollama's answer is incomplete", detail="incomplete answer")
        delta = _delta(call.endpoint, reply, _finish(reply, called=bool(reply.message and reply.message.tool_calls)))
        usage = _usage(reply)
        return Answer(Composer(call, entry.target).body([delta], usage), usage)

    def translator(self, call: Call, entry: Entry, content_type: str) -> Translator:
        """Whatever `content_type` says: a page or junk is no line of JSON, a whole answer is one."""
        return OllamaTranslator(Composer(call, entry.target))

    def listed(self, body: bytes) -> ModelList:
        return read_list(body, "models", _Model, _listed)


@define
class OllamaTranslator:
    """One stream: lines in, OpenAI's chunks out. It remembers a line's beginning, and whether a tool was called."""

    _composer: Composer
    usage: Usage | None = None
    commentable: bool = True
    _held: bytearray = field(factory=bytearray, repr=False)
    _called: bool = False

    def feed(self, data: bytes) -> StreamBatch:
        *lines, rest = data.split(b"\n")
        if lines and self._held:
            lines[0] = bytes(self._held) + lines[0]
            self._held.clear()
        self._held += rest
        return self._translate(lines, overflow=len(self._held) > LINE_LIMIT)

    def close(self) -> StreamBatch:
        """A last line may lack its end; behind it, within it or without it, an answer that is not done was cut."""
        line = bytes(self._held)
        self._held.clear()
        batch = self._translate([line])
        begun = isinstance(batch.error, BadResponse) and line.startswith(b"{")
        if batch.done or (batch.error and not begun):
            return batch
        cut = Disconnected("Ollama stopped in mid answer", detail="ended without done")
        return StreamBatch(events=batch.events, has_content=batch.has_content, error=cut)

    def _translate(self, lines: Sequence[bytes], *, overflow: bool = False) -> StreamBatch:
        """`overflow`: what is held behind `lines` is too long already."""
        events: list[bytes] = []
        has_content = False
        for line in lines:
            if not line or line.isspace():
                continue
            try:
                reply = _line(line)
            except ProviderError as error:
                return StreamBatch(events=tuple(events), has_content=has_content, error=error)
            has_content |= self._write(reply, events)
            if reply.done:
                return StreamBatch(events=tuple(events), has_content=True, done=True)
        return StreamBatch(events=tuple(events), has_content=has_content, error=_too_long() if overflow else None)

    def _write(self, reply: _Reply, events: list[bytes]) -> bool:
        """Appends what `reply` comes to; whether that says something."""
        composer = self._composer
        delta = _delta(composer.call.endpoint, reply)
        self._called = self._called or bool(delta.tool_calls)
        if delta.has_content or delta.logprobs is not None:
            events.append(composer.chunk(delta))
        if reply.done:
            self.usage = _usage(reply)
            events.append(composer.chunk(Delta(finish=_finish(reply, called=self._called))))
            if (extra := composer.usage_chunk(self.usage)) is not None:
                events.append(extra)
        return delta.has_content


# --- from Ollama's words to OpenAI's --------------------------------------------------------------


def _line(line: bytes) -> _Reply:
    if len(line) > LINE_LIMIT:
        raise _too_long()
    return _read(_REPLY, line)


def _too_long() -> BadResponse:
    return BadResponse(f"Ollama sent a line of more than {LINE_LIMIT >> 20} MiB", detail="line too long")


def _read(decoder: msgspec.json.Decoder[_T], body: bytes) -> _T:
    """A decoded 200 body or line. BadResponse where it is none, and the error that it may hold instead."""
    try:
        reply = decoder.decode(body)
    except DecodeErrors:
        raise BadResponse("Ollama's answer is not what its API promises", detail="not Ollama's JSON") from None
    if reply.error is not None:
        raise ollama_failure.in_band(reply.error)
    return reply


def _embeddings(call: Call, entry: Entry, body: bytes) -> Answer:
    reply = _read(_EMBEDDED, body)
    asked = decode(call.body, type=_Asked)
    vectors = reply.embeddings or []
    wanted = 1 if isinstance(asked.input, str) else len(asked.input)
    if len(vectors) != wanted or not all(vectors):
        raise BadResponse(f"Ollama gave {len(vectors)} vectors for {wanted} inputs", detail="wrong number of vectors")
    usage = Usage(prompt=max(0, reply.prompt_eval_count))
    try:
        written = embeddings_body(vectors, entry.target, usage, as_base64=asked.encoding_format == "base64")
    except OverflowError:
        raise BadResponse("Ollama gave numbers that are no float32", detail="not float32") from None
    return Answer(written, usage)


def _delta(endpoint: Endpoint, reply: _Reply, finish: str | None = None) -> Delta:
    """What `reply` adds. Its thinking has no place in a legacy completion, but shows that the model is at work."""
    if endpoint is Endpoint.COMPLETIONS:
        logprobs = _legacy_logprobs(reply.logprobs) if reply.logprobs else None
        return Delta(content=reply.response or "", reasoning=reply.thinking or "", finish=finish, logprobs=logprobs)
    said = reply.message or _Message()
    return Delta(
        content=said.content or "",
        reasoning=said.thinking or "",
        tool_calls=tuple(_tool_call(c) for c in said.tool_calls or ()),
        finish=finish,
        logprobs=_logprobs(reply.logprobs) if reply.logprobs else None,
    )


def _tool_call(call: _Call) -> ToolCall:
    """Calls come whole. Older servers give no id; the arguments keep their bytes."""
    arguments = bytes(call.function.arguments).decode(errors="replace")
    return ToolCall(call.function.name, arguments, call.id or call_id())


def _finish(reply: _Reply, *, called: bool) -> str:
    """``load``, ``unload`` and nothing at all come from requests without a prompt: a short, whole answer."""
    if reply.done_reason == "length":
        return "length"
    return "tool_calls" if called else "stop"


def _usage(reply: _Reply) -> Usage:
    return Usage(prompt=max(0, reply.prompt_eval_count), completion=max(0, reply.eval_count))


def _logprobs(tokens: list[_Token]) -> dict[str, Any]:
    """OpenAI's form has every member, always; Ollama leaves out what is empty."""

    def one(token: _Token) -> dict[str, Any]:
        return {"token": token.token, "logprob": token.logprob, "bytes": token.bytes}

    rows = [{**one(token), "top_logprobs": [one(t) for t in token.top_logprobs or ()]} for token in tokens]
    return {"content": rows, "refusal": None}


def _legacy_logprobs(tokens: list[_Token]) -> dict[str, Any]:
    """The form of ``/v1/completions``, but for ``text_offset``, which nobody can tell from here."""
    tops = [{t.token: t.logprob for t in token.top_logprobs or ()} for token in tokens]
    return {"tokens": [t.token for t in tokens], "token_logprobs": [t.logprob for t in tokens], "top_logprobs": tops}


def _listed(row: _Model) -> ModelInfo | None:
    id_ = row.model or row.name
    return ModelInfo(id_, _unix(row.modified_at), words(row.capabilities)) if id_ else None


def _unix(modified_at: object) -> int:
    """RFC 3339, with Go's nanoseconds, -> seconds since the epoch; 0 for what is none, and for Go's zero time."""
    try:
        return max(0, int(datetime.fromisoformat(modified_at).timestamp())) if isinstance(modified_at, str) else 0
    except (ValueError, OverflowError, OSError):
        return 0
