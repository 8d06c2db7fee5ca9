"""Ollama's native API (ollama api/types.go and server/routes.go at v0.33).

Chat, legacy completions and embeddings go to ``api/chat``, ``api/generate`` and ``api/embed``. A stream is
one JSON object a line, read into deltas. What it says of itself is not taken on trust:

* an error in mid stream is a line of its own, under status 200;
* a stream may end without ``done: true`` and without an error: that is a cut answer, not a short one;
* the object with ``done: true`` may still hold content, thinking and tool calls;
* ``done_reason`` stays ``stop`` after tool calls, and their indices cannot be relied on;
* numbers that are zero are left out.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any, Final, TypeVar

import msgspec
from attrs import define, evolve, field
from msgspec import Struct

from manallm_proxy.contract.answers import Answer, Delta, StreamBatch, ToolCall, Usage, new_call_id
from manallm_proxy.contract.provider import Call, Endpoint, ModelInfo, ModelList
from manallm_proxy.contract.provider_errors import BadResponse, Disconnected, ProviderError
from manallm_proxy.contract.targets import Entry
from manallm_proxy.openai.errors import says_error
from manallm_proxy.openai.forced_call import is_forced
from manallm_proxy.openai.json_object import DecodeErrors, decode, decode_leniently, encode, whole_surrogates
from manallm_proxy.openai.vectors import checked_vectors
from manallm_proxy.providers.forced import ForcedTranslator, called
from manallm_proxy.providers.model_list import read_list, words
from manallm_proxy.providers.ollama import errors as ollama_failure
from manallm_proxy.providers.ollama import request as ollama_request
from manallm_proxy.providers.ollama.logprobs import chat_logprobs, legacy_logprobs, tokens_of
from manallm_proxy.providers.wire import Request, Translator

LINE_LIMIT: Final = 16 << 20
"""Bytes of one line of a stream, without its end."""

_EFFORTS: Final = frozenset({"reasoning_effort", "reasoning"})
"""Clients set these for all models alike."""


class _Function(Struct):
    name: str = ""
    arguments: msgspec.Raw = msgspec.Raw(b"{}")


class _Call(Struct):
    function: _Function
    id: Any = ""


class _Message(Struct):
    content: str | None = None
    thinking: str | None = None
    tool_calls: list[_Call] | None = None


class _Reply(Struct):
    """A line of a stream, or a complete answer: api/types.go ChatResponse and GenerateResponse in one.

    What an answer can do without is read leniently: servers that imitate Ollama send counters as null or 4.0.
    """

    message: _Message | None = None
    response: str | None = None
    thinking: str | None = None
    done: bool = False
    done_reason: Any = None
    prompt_eval_count: Any = 0
    eval_count: Any = 0
    logprobs: Any = None
    error: Any = None


class _Embedded(Struct):
    """api/types.go EmbedResponse."""

    embeddings: list[list[float]] | None = None
    prompt_eval_count: Any = 0
    error: Any = None


class _Asked(Struct):
    """How many vectors an embeddings answer must have; `request` has checked it."""

    input: str | list[Any] = ""


class _Details(Struct):
    context_length: int = 0


class _Model(Struct):
    """api/types.go ListModelResponse. ``details.context_length`` and ``capabilities`` since 0.33 or so."""

    name: str = ""
    model: str = ""
    modified_at: Any = None
    size: Any = None
    capabilities: Any = None
    details: Any = None


_T = TypeVar("_T", _Reply, _Embedded)
_REPLY: Final = msgspec.json.Decoder(_Reply)
_EMBEDDED: Final = msgspec.json.Decoder(_Embedded)


@define
class OllamaWire:
    """The dialect. ``client_options``: whether clients may set what concerns everybody, see `settings`."""

    client_options: bool = False
    probe_path: str = "api/tags"

    def request(self, call: Call, entry: Entry) -> Request:
        return ollama_request.build(call, entry, client_options=self.client_options)

    def failure(self, status: int, headers: Mapping[str, str], body: bytes) -> ProviderError:
        return ollama_failure.failure(status, headers, body)

    def reshape(self, call: Call, entry: Entry, status: int, body: bytes) -> Request | None:
        """A model that does not think is asked as if nobody had mentioned it, unless the client names ``think``."""
        if status != 400 or b"think" not in body:
            return None
        fields = decode_leniently(call.body)
        if {**fields, **call.ollama}.get("think") is not None or not (fields.keys() & _EFFORTS):
            return None
        fields = {key: value for key, value in fields.items() if key not in _EFFORTS}
        return self.request(evolve(call, body=encode(fields)), entry)

    def took(self, entry: Entry, request: Request) -> bool:
        """Nothing to learn."""
        return False

    def answer(self, call: Call, entry: Entry, body: bytes, content_type: str = "") -> Answer:
        if call.endpoint is Endpoint.EMBEDDINGS:
            return _embeddings(call, body)
        reply = _read(_REPLY, body)
        said = reply.message if call.endpoint is Endpoint.CHAT else reply.response
        if said is None or not reply.done:
            raise BadResponse("Ollama's answer is incomplete", detail="incomplete answer")
        delta = _delta(call.endpoint, reply, _finish(reply, called=bool(reply.message and reply.message.tool_calls)))
        answer = Answer(usage=_usage(reply), choices=(delta,))
        return called(answer) if is_forced(call) else answer

    def translator(self, call: Call, entry: Entry, content_type: str) -> Translator:
        """Whatever `content_type` says: a page or junk is no line of JSON, a whole answer is one."""
        translator = OllamaTranslator(call.endpoint)
        return ForcedTranslator(translator) if is_forced(call) else translator

    def listed(self, body: bytes) -> ModelList:
        return read_list(body, "models", _Model, _listed)


@define
class OllamaTranslator:
    """One stream: lines in, deltas out. It remembers a line's beginning, and how many tools were called."""

    _endpoint: Endpoint
    usage: Usage | None = None
    _held: bytearray = field(factory=bytearray, repr=False)
    _called: int = 0

    def feed(self, data: bytes) -> StreamBatch:
        *lines, rest = data.split(b"\n")
        if lines and self._held:
            lines[0] = bytes(self._held) + lines[0]
            self._held.clear()
        self._held += rest
        return self._translate(lines, overflow=len(self._held) > LINE_LIMIT)

    def close(self) -> StreamBatch:
        """A last line may lack its end; without ``done`` in it, or in one before, the answer was cut."""
        line = bytes(self._held)
        self._held.clear()
        batch = self._translate([line])
        begun = isinstance(batch.error, BadResponse) and line.startswith(b"{")
        if batch.done or (batch.error and not begun):
            return batch
        cut = Disconnected("Ollama stopped in mid answer", detail="ended without done")
        return StreamBatch(deltas=batch.deltas, has_content=batch.has_content, error=cut)

    def _translate(self, lines: Sequence[bytes], *, overflow: bool = False) -> StreamBatch:
        """`overflow`: what is held after `lines` is too long already."""
        deltas: list[Delta] = []
        has_content = False
        for line in lines:
            if not line or line.isspace():
                continue
            try:
                reply = _line(line)
            except ProviderError as error:
                return StreamBatch(deltas=tuple(deltas), has_content=has_content, error=error)
            has_content |= self._add(reply, deltas)
            if reply.done:
                return StreamBatch(deltas=tuple(deltas), has_content=True, done=True)
        too_long = _too_long() if overflow else None
        return StreamBatch(deltas=tuple(deltas), has_content=has_content, error=too_long)

    def _add(self, reply: _Reply, deltas: list[Delta]) -> bool:
        """Appends what `reply` becomes; whether that has content."""
        delta = _delta(self._endpoint, reply, first_call=self._called)
        self._called += len(delta.tool_calls)
        if delta.has_content or delta.logprobs is not None:
            deltas.append(delta)
        if reply.done:
            self.usage = _usage(reply)
            deltas.append(Delta(finish=_finish(reply, called=bool(self._called))))
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
        reply = _decoded(decoder, body)
    except DecodeErrors:
        raise BadResponse("Ollama's answer is not what its API promises", detail="not Ollama's JSON") from None
    if reply.error is not None and says_error(reply.error):
        raise ollama_failure.in_band(reply.error)
    return reply


def _decoded(decoder: msgspec.json.Decoder[_T], body: bytes) -> _T:
    try:
        return decoder.decode(body)
    except msgspec.DecodeError:  # half of a surrogate pair is legal JSON, and becomes U+FFFD
        lenient = whole_surrogates(body)
        if lenient == body:
            raise
        return decoder.decode(lenient)


def _embeddings(call: Call, body: bytes) -> Answer:
    reply = _read(_EMBEDDED, body)
    asked = decode(call.body, type=_Asked)
    wanted = 1 if isinstance(asked.input, str) else len(asked.input)
    vectors = checked_vectors(reply.embeddings or [], wanted, "Ollama")
    return Answer(usage=Usage(prompt=_count(reply.prompt_eval_count)), vectors=vectors, dimensions=len(vectors[0]))


def _delta(endpoint: Endpoint, reply: _Reply, finish: str | None = None, first_call: int = 0) -> Delta:
    """What `reply` adds. Its thinking has no place in a legacy completion, but shows that the model is at work."""
    if endpoint is Endpoint.COMPLETIONS:
        tokens = tokens_of(reply.logprobs)
        logprobs = legacy_logprobs(tokens) if tokens else None
        return Delta(content=reply.response or "", reasoning=reply.thinking or "", finish=finish, logprobs=logprobs)
    said = reply.message or _Message()
    return Delta(
        content=said.content or "",
        reasoning=said.thinking or "",
        tool_calls=tuple([_tool_call(c, n) for n, c in enumerate(said.tool_calls or (), first_call)]),
        finish=finish,
        logprobs=chat_logprobs(tokens) if (tokens := tokens_of(reply.logprobs)) else None,
    )


def _tool_call(call: _Call, index: int) -> ToolCall:
    """Calls come whole. Older servers give no id."""
    id_ = call.id if isinstance(call.id, str) and call.id else new_call_id()
    return ToolCall(call.function.name, _arguments(bytes(call.function.arguments)), id_, index)


def _arguments(raw: bytes) -> str:
    """The bytes of an object as they are. Servers that imitate Ollama send OpenAI's text, or nothing."""
    if raw == b"null":
        return "{}"
    if not raw.startswith(b'"'):
        return raw.decode(errors="replace")
    text: str = decode_leniently(raw)
    return text if text.strip() else "{}"


def _finish(reply: _Reply, *, called: bool) -> str:
    """``load``, ``unload`` and nothing at all come from requests without a prompt: a short, whole answer."""
    if reply.done_reason == "length":
        return "length"
    return "tool_calls" if called else "stop"


def _usage(reply: _Reply) -> Usage:
    return Usage(prompt=_count(reply.prompt_eval_count), completion=_count(reply.eval_count))


def _count(value: object) -> int:
    """A counter; 0 for what cannot be one."""
    if type(value) is float and value.is_integer():
        value = int(value)
    return max(0, value) if type(value) is int else 0


def _listed(row: _Model) -> ModelInfo | None:
    id_ = row.model or row.name
    if not id_:
        return None
    capabilities = words(row.capabilities)
    length, size = _context_length(row.details), _count(row.size)
    return ModelInfo(id_, _unix(row.modified_at), capabilities, context_length=length, size=size)


def _context_length(details: object) -> int:
    length = details.get("context_length") if isinstance(details, dict) else None
    return length if type(length) is int and length > 0 else 0  # a bool is no number


def _unix(modified_at: object) -> int:
    """RFC 3339, with Go's nanoseconds, -> seconds since the epoch; 0 for what is none, and for Go's zero time."""
    try:
        return max(0, int(datetime.fromisoformat(modified_at).timestamp())) if isinstance(modified_at, str) else 0
    except (ValueError, OverflowError, OSError):
        return 0
