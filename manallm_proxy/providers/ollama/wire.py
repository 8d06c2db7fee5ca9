"""Ollama's native API (ollama api/types.go and server/routes.go at v0.33).

Chat, legacy completions and embeddings go to ``api/chat``, ``api/generate`` and ``api/embed``. A stream has
one JSON object per line, read into deltas. Its pitfalls:

* an error in mid stream is a line of its own, under status 200;
* a stream may end without ``done: true`` and without an error: that is a cut answer, not a short one;
* the object with ``done: true`` may still hold content, thinking and tool calls;
* ``done_reason`` stays ``stop`` after tool calls, and their indices cannot be relied on;
* numbers that are zero are left out.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any, ClassVar, Final

from attrs import evolve, field
from msgspec import Struct

from manallm_proxy.contract.answers import (
    DEFAULT_LIMITS,
    Answer,
    AnswerLimits,
    Delta,
    StreamBatch,
    ToolCall,
    Usage,
    new_call_id,
)
from manallm_proxy.contract.provider import Call, Endpoint, ModelInfo, ModelList
from manallm_proxy.contract.provider_errors import BadResponse, Disconnected, ProviderError
from manallm_proxy.contract.records import define
from manallm_proxy.contract.targets import Entry
from manallm_proxy.openai.deferred_free import free_failure_later
from manallm_proxy.openai.forced_call import is_forced
from manallm_proxy.openai.joined import decoded_text, joined_bytes
from manallm_proxy.openai.json_object import decode_leniently
from manallm_proxy.openai.usage import count
from manallm_proxy.providers.answer_bounds import EVENT_BYTES, refuse_many_calls
from manallm_proxy.providers.forced import ForcedTranslator, read_forced_calls
from manallm_proxy.providers.mending.evidence import is_for_all
from manallm_proxy.providers.mending.history import without_members
from manallm_proxy.providers.mending.learned import Learned
from manallm_proxy.providers.mending.turns import refused_order
from manallm_proxy.providers.model_list import read_list, words
from manallm_proxy.providers.named_calls import require_names
from manallm_proxy.providers.ollama import errors as ollama_failure
from manallm_proxy.providers.ollama import reply as ollama_reply
from manallm_proxy.providers.ollama import request as ollama_request
from manallm_proxy.providers.ollama.logprobs import chat_logprobs, legacy_logprobs, tokens_of
from manallm_proxy.providers.ollama.plain_lines import PlainLines
from manallm_proxy.providers.ollama.reply import (
    Message,
    Reply,
    ToolCalled,
    embeddings,
    read_large_line,
    read_line,
    read_whole,
    too_long,
)
from manallm_proxy.providers.own_fields import with_own_fields
from manallm_proxy.providers.patterned import PATTERN_TRIES, feed_in_steps
from manallm_proxy.providers.wire import Request, Translator

_NULL: Final = b"null"
_EFFORTS: Final = frozenset({"reasoning_effort", "reasoning", "chat_template_kwargs"})
"""Effort fields that clients set for all models, whether these think or not."""


class _Model(Struct):
    """api/types.go ListModelResponse. ``details.context_length`` and ``capabilities`` since 0.33 or so."""

    name: str = ""
    model: str = ""
    modified_at: Any = None
    size: Any = None
    capabilities: Any = None
    details: Any = None


@define
class OllamaWire:
    """The dialect. ``client_options``: whether clients may set options that affect all clients, see `settings`."""

    client_options: bool = False
    probe_path: str = "api/tags"
    _learned: Learned = field(factory=Learned)
    """The orders of messages that templates of models have refused, see `turns`."""

    def splices(self, call: Call) -> bool:
        return False

    def request(self, call: Call, entry: Entry) -> Request:
        if (known := self._learned.by_model) and (refused := known.get(entry.target.model)):
            call = _ordered(call, refused)
        return ollama_request.build(call, entry, client_options=self.client_options)

    def failure(self, status: int, headers: Mapping[str, str], body: bytes) -> ProviderError:
        return ollama_failure.failure(status, headers, body)

    def reshape(self, call: Call, entry: Entry, status: int, body: bytes) -> Request | None:
        """For a model that does not think: leaves out the reasoning effort, unless the client sets ``think`` itself.
        Messages are put into the order that a template wants.

        Raises BadResponse if it refuses thinking that it was not asked for: no caller could mend such a request.
        """
        if (order := refused_order(body)) and (other := _ordered(call, {order})) is not call:
            learned = (order,) if is_for_all(with_own_fields(call), order) else ()
            return evolve(self.request(other, entry), refused=learned, call=other)
        if status != 400 or b"think" not in body:
            return None
        spans = call.summary.spans
        think = call.body[slice(*spans["think"])] if "think" in spans else _NULL
        if call.ollama.get("think") is not None or think != _NULL or not (spans.keys() & _EFFORTS):
            return None
        silent = self.request(evolve(call, denied=call.denied | {"thinking"}), entry)
        if b"does not support thinking" in body and silent.content == self.request(call, entry).content:
            raise BadResponse("Ollama refuses to think, which it was not asked for", detail="refused what was not sent")
        return silent

    def remember_reshaped(self, entry: Entry, request: Request) -> bool:
        self._learned.learn(entry.target.model, request.refused)
        return False

    def answer(self, call: Call, entry: Entry, body: bytes, content_type: str = "") -> Answer:
        if call.endpoint is Endpoint.EMBEDDINGS:
            return embeddings(call, body)
        reply = read_whole(body)
        said = reply.message if call.endpoint is Endpoint.CHAT else reply.response
        if said is None or not reply.done:
            raise BadResponse("Ollama's answer is incomplete", detail="incomplete answer")
        delta = _delta(call.endpoint, reply, _finish(reply, called=bool(reply.message and reply.message.tool_calls)))
        answer = Answer(usage=_usage(reply), choices=(require_names(delta, delta.finish),))
        return read_forced_calls(answer) if is_forced(call) else answer

    def translator(
        self, call: Call, entry: Entry, content_type: str, limits: AnswerLimits = DEFAULT_LIMITS
    ) -> Translator:
        """`content_type` is ignored: a web page fails as a line of JSON, and a complete answer is one line."""
        translator = OllamaTranslator(call.endpoint, limits)
        return ForcedTranslator(translator) if is_forced(call) else translator

    def listed(self, body: bytes) -> ModelList:
        return read_list(body, "models", _Model, _listed)


@define
class OllamaTranslator:
    """Translates one stream: lines in, deltas out."""

    blank: ClassVar[bytes] = b"\n"

    _endpoint: Endpoint
    _limits: AnswerLimits = AnswerLimits()
    usage: Usage | None = None
    _held: bytearray = field(factory=bytearray, repr=False)
    _called: int = 0
    plain: PlainLines = field(init=False)
    tries_left: int = PATTERN_TRIES

    @plain.default
    def _no_pattern(self) -> PlainLines:
        return PlainLines(b"content" if self._endpoint is Endpoint.CHAT else b"response")

    @property
    def held(self) -> int:
        return len(self._held)

    def is_open(self, data: bytes) -> bool:
        return b"\n" not in data

    def take_held(self) -> bytes:
        held = bytes(self._held)
        self._held.clear()
        return held

    def read_plain(self, data: bytes) -> tuple[Sequence[bytes], int]:
        return self.plain.read(data)

    def feed(self, data: bytes) -> StreamBatch:
        return feed_in_steps(self, data)

    def is_learnable(self, delta: Delta) -> bool:
        return True

    def read(self, data: bytes) -> StreamBatch:
        *lines, rest = data.split(b"\n")
        if lines and self._held:
            lines[0] = joined_bytes((self._held, lines[0]))
            self._held.clear()
        self._held += rest
        return self._translate(lines, overflow=len(self._held) > ollama_reply.LINE_LIMIT)

    def close(self) -> StreamBatch:
        """The last line may lack its end. Without ``done`` in any line, the answer was cut."""
        line = bytes(self._held)
        self._held.clear()
        batch = self._translate([line])
        begun = isinstance(batch.error, BadResponse) and line.startswith(b"{")
        if batch.done or (batch.error and not begun):
            return batch
        cut = Disconnected("Ollama stopped in mid answer", detail="ended without done")
        return StreamBatch(deltas=batch.deltas, has_content=batch.has_content, error=cut)

    def _translate(self, lines: Sequence[bytes], *, overflow: bool = False) -> StreamBatch:
        """The batch for `lines`. `overflow`: the line held after them is too long already."""
        deltas: list[Delta] = []
        has_content = False
        for line in lines:
            if not line or line.isspace():
                continue
            try:
                reply = read_line(line) if len(line) <= EVENT_BYTES else read_large_line(line, self._limits)
                has_content |= self._add(reply, deltas)
            except ProviderError as error:
                free_failure_later(error)
                return StreamBatch(deltas=tuple(deltas), has_content=has_content, error=error)
            if reply.done:
                return StreamBatch(deltas=tuple(deltas), has_content=True, done=True)
        error_at_end = too_long() if overflow else None
        return StreamBatch(deltas=tuple(deltas), has_content=has_content, error=error_at_end)

    def _add(self, reply: Reply, deltas: list[Delta]) -> bool:
        """Appends what `reply` becomes; whether that has content. Raises BadResponse, see `require_names`."""
        if reply.message is not None and reply.message.tool_calls:
            refuse_many_calls(self._called + len(reply.message.tool_calls), self._limits)
        delta = _delta(self._endpoint, reply, first_call=self._called)
        if delta.tool_calls:
            delta = require_names(delta, _finish(reply, called=True) if reply.done else None)
            self._called += len(delta.tool_calls)
        if delta.has_content or delta.logprobs is not None:
            deltas.append(delta)
        if reply.done:
            self.usage = _usage(reply)
            deltas.append(Delta(finish=_finish(reply, called=bool(self._called))))
        return delta.has_content


def _ordered(call: Call, refused: frozenset[str] | set[str]) -> Call:
    """`call` without the orders of messages that are `refused`; itself if it has none of them."""
    messages = call.ollama.get("messages")  # in place of the body's, with what its model thought
    if messages is None:
        return without_members(call, refused)
    own = with_own_fields(evolve(call, ollama={"messages": messages}))
    own = evolve(own, ollama={key: value for key, value in call.ollama.items() if key != "messages"})
    changed = without_members(own, refused)
    return call if changed is own else changed


# --- from Ollama's terms to OpenAI's --------------------------------------------------------------


def _delta(endpoint: Endpoint, reply: Reply, finish: str | None = None, first_call: int = 0) -> Delta:
    """The delta of `reply`. Thinking has no field in a legacy completion, but shows that the model is at work."""
    if endpoint is Endpoint.COMPLETIONS:
        tokens = tokens_of(reply.logprobs)
        logprobs = legacy_logprobs(tokens) if tokens else None
        return Delta(content=reply.response or "", reasoning=reply.thinking or "", finish=finish, logprobs=logprobs)
    said = reply.message or Message()
    return Delta(
        content=said.content or "",
        reasoning=said.thinking or "",
        tool_calls=tuple([_tool_call(c, n) for n, c in enumerate(said.tool_calls or (), first_call)]),
        finish=finish,
        logprobs=chat_logprobs(tokens) if (tokens := tokens_of(reply.logprobs)) else None,
    )


def _tool_call(call: ToolCalled, index: int) -> ToolCall:
    """One tool call; calls arrive whole. Older servers give no id."""
    id_ = call.id if isinstance(call.id, str) and call.id else new_call_id()
    arguments = joined_bytes((memoryview(call.function.arguments),))
    return ToolCall(call.function.name, _arguments(arguments), id_, index)


def _arguments(raw: bytes) -> str:
    """The arguments as JSON text: an object's own bytes. Servers that imitate Ollama send OpenAI's text, or nothing."""
    if raw == b"null":
        return "{}"
    if not raw.startswith(b'"'):
        return decoded_text(raw) if len(raw) > EVENT_BYTES else raw.decode(errors="replace")
    text: str = decode_leniently(raw)
    return text if text.strip() else "{}"


def _finish(reply: Reply, *, called: bool) -> str:
    """OpenAI's finish reason. ``load``, ``unload`` or none come from requests without a prompt: complete, but short."""
    if reply.done_reason == "length":
        return "length"
    return "tool_calls" if called else "stop"


def _usage(reply: Reply) -> Usage:
    usage = Usage(prompt=count(reply.prompt_eval_count), completion=count(reply.eval_count))
    if words := count(reply.eval_duration):
        usage.durations = count(reply.load_duration), count(reply.prompt_eval_duration), words
    return usage


def _listed(row: _Model) -> ModelInfo | None:
    id_ = row.model or row.name
    if not id_:
        return None
    capabilities = words(row.capabilities)
    length, size = _context_length(row.details), count(row.size)
    return ModelInfo(id_, _unix(row.modified_at), capabilities, context_length=length, size=size)


def _context_length(details: object) -> int:
    length = details.get("context_length") if isinstance(details, dict) else None
    return length if type(length) is int and length > 0 else 0  # a bool is no number


def _unix(modified_at: object) -> int:
    """RFC 3339 with Go's nanoseconds -> seconds since the epoch; 0 if malformed, and for Go's zero time."""
    try:
        return max(0, int(datetime.fromisoformat(modified_at).timestamp())) if isinstance(modified_at, str) else 0
    except (ValueError, OverflowError, OSError):
        return 0
