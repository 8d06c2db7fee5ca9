"""Answers to ``/api/chat`` and ``/api/generate``: one JSON object per line, the last with ``done``.

The rules that clients rely on (seen with ollama-python 0.6, ollama-js 0.6, Go's api, langchain-ollama 1.1, litellm): no
blank line; ``model``, ``message.role`` and ``done`` in every object; complete tool calls; and an error mid-stream as a
line, since most take a closed connection for the end of a short answer.
"""

from __future__ import annotations

import time
from typing import Any, Final

from attrs import field

from manallm_proxy.contract.answers import Answer, Delta, StreamBatch, Thoughts, ToolCall, Usage, Words, steps
from manallm_proxy.contract.errors import ProxyError
from manallm_proxy.contract.provider_errors import BadResponse
from manallm_proxy.contract.records import define
from manallm_proxy.contract.targets import Target
from manallm_proxy.doors.ollama.errors import ollama_error_body
from manallm_proxy.doors.ollama.lines import now, one_line, without_line_ends
from manallm_proxy.openai.assistant_message import image_link
from manallm_proxy.openai.call_arguments import Arguments, begins_another
from manallm_proxy.openai.deferred_free import free_later
from manallm_proxy.openai.joined import joined_bytes
from manallm_proxy.openai.json_object import DecodeErrors, decode_text
from manallm_proxy.openai.large import LARGE_PARTS, is_long
from manallm_proxy.openai.plain_text import MARK, Splice, splice
from manallm_proxy.openai.request_fields import Fields

LOADED: Final = frozenset({"load", "unload"})
"""``done_reason`` of answers to requests without a prompt, which have no counters."""


@define
class _Clock:
    """Times by ``time.monotonic_ns``; ``first``: of the first content, None before it."""

    began: int = field(factory=time.monotonic_ns)
    first: int | None = None

    def durations(self) -> tuple[int, int, int]:
        """Nanoseconds: in total, until the first content, and since then (at least 1, since clients divide by it)."""
        end = time.monotonic_ns()
        first = self.first if self.first is not None else self.began
        return end - self.began, first - self.began, max(end - first, 1)


@define
class _Call:
    """One tool call, as received so far: its first part, its id (empty if no part has one), and its arguments."""

    first: ToolCall
    id: str = ""
    arguments: Arguments = field(factory=Arguments, repr=False)


@define
class LinesReply:
    """Base of the chat and generate replies. ``model``: the requested name, until a target answers."""

    model: str
    content_type: str = "application/x-ndjson"
    _clock: _Clock = field(factory=_Clock)
    _calls: list[_Call] = field(factory=list, repr=False)
    _latest: dict[int, _Call] = field(factory=dict, repr=False)
    """The latest call of each index."""
    _finish: str | None = None
    _wrote: bool = False
    _spliced_kind: type[Words | Thoughts] | None = None
    """The kind of text that the next two fields are for."""
    _dated: bytes = field(default=b"", repr=False)
    """The line up to its date, once one was written; ``_around`` has the bytes around its text."""
    _around: Splice | None = field(default=None, repr=False)

    def whole(self, target: Target, answer: Answer) -> bytes:
        """See `door.Reply`. Raises BadResponse if a tool call's arguments are no object."""
        delta = next((choice for choice in answer.choices if choice.index == 0), Delta())
        if delta.finish in LOADED:
            return one_line({**self._common_fields(), **self.content_part(), "done": True, "done_reason": delta.finish})
        self.start(target)
        self._note(delta)
        try:
            calls = self._whole_calls()
            free_later(calls)
            said = self._said(delta, calls)
        except BadResponse as error:
            error.target = str(target)
            raise
        return one_line({**self._common_fields(), **said, **self._ending(answer.usage)}, answer.is_large)

    def start(self, target: Target) -> None:
        self.model = str(target)

    def events(self, batch: StreamBatch) -> bytes:
        if self._wrote and len(batch.deltas) == 1 and isinstance(texts := batch.deltas[0], Words | Thoughts):
            return self._spliced(texts)
        lines: list[bytes] = []
        if self._clock.first is None and batch.has_content:
            self._clock.first = time.monotonic_ns()
        for delta in batch.deltas:
            if delta.index:
                continue  # only one choice was requested
            if isinstance(delta, Words | Thoughts):
                lines.append(self._spliced(delta))
                continue
            self._note(delta)
            if delta.content or delta.reasoning or delta.refusal or delta.images or delta.logprobs:
                lines.append(self._line(self._said(delta), batch.is_large))
        if not lines and not self._wrote and batch.has_content:
            lines.append(self._line(self.content_part()))  # so that the commit sends the head, and heartbeats begin
        self._wrote = self._wrote or bool(lines)
        return joined_bytes(lines) if batch.is_large else b"".join(lines)

    def _spliced(self, said: Words | Thoughts) -> bytes:
        """A line for each of its texts, all with the same time."""
        if type(said) is not self._spliced_kind:
            self._learn(type(said))
        around, texts = self._around, said.texts
        if around is None:
            return b"".join([self._line(self.content_part(step.content, step.reasoning)) for step in steps((said,))])
        front = self._dated + now().encode() + around.front
        if len(texts) == 1:
            return front + without_line_ends(texts[0]) + around.tail
        return b"".join([front + without_line_ends(text) + around.tail for text in texts])

    def _learn(self, kind: type[Words | Thoughts]) -> None:
        """Learns the bytes around the text in lines that have no other content."""
        said = self.content_part(MARK) if kind is Words else self.content_part(thinking=MARK)
        line = one_line({**self._common_fields(), "created_at": "", **said, "done": False}) + b"\n"
        before, date, rest = line.partition(b'"created_at":"')
        self._spliced_kind, self._dated, self._around = kind, before + date, splice(rest)

    @property
    def ends_long(self) -> bool:
        return len(self._calls) > LARGE_PARTS or any(is_long(call.arguments.pieces) for call in self._calls)

    def end(self, usage: Usage | None) -> bytes:
        large = self.ends_long
        try:
            calls = self._whole_calls()
        except BadResponse as error:
            return self.error(error)
        before = self._line(self.content_part(calls=calls), large) if calls else b""
        free_later(calls)
        last = one_line({**self._common_fields(), **self.content_part(), **self._ending(usage)})
        return joined_bytes((before, last, b"\n")) if large else before + last + b"\n"

    def error(self, error: ProxyError) -> bytes:
        return ollama_error_body(error) + b"\n"

    def heartbeat(self) -> bytes:
        """A chunk without content: ollama-python fails on a blank line."""
        return self._line(self.content_part())

    def content_part(self, content: str = "", thinking: str = "", calls: list[Fields] | None = None) -> Fields:
        """The members of an object that hold the model's output."""
        raise NotImplementedError  # the two subclasses differ here

    def logprobs(self, logprobs: Any) -> list[Any]:
        """Translates OpenAI's ``logprobs`` into Ollama's."""
        rows = logprobs.get("content") if isinstance(logprobs, dict) else None
        return rows if isinstance(rows, list) else []

    def _note(self, delta: Delta) -> None:
        for part in delta.tool_calls:
            call = self._latest.get(part.index)
            if call is None or begins_another(part, call.first.id, call.arguments):
                call = self._latest[part.index] = _Call(part)
                self._calls.append(call)
            call.arguments.pieces.append(part.arguments)
            call.id = call.id or part.id
        self._finish = delta.finish or self._finish

    def _said(self, delta: Delta, calls: list[Fields] | None = None) -> Fields:
        # ollama-python cannot read ``images`` in an answer: it expects objects where others have base64
        links = "".join(map(image_link, delta.images))
        said = self.content_part(delta.content + delta.refusal + links, delta.reasoning, calls)
        rows = self.logprobs(delta.logprobs) if delta.logprobs else []
        return said | ({"logprobs": rows} if rows else {})

    def _whole_calls(self) -> list[Fields]:
        """All tool calls, complete; one that the token limit cut is left out.

        Raises BadResponse if another has arguments that are not a JSON object.
        """
        calls = []
        for n, call in enumerate(sorted(self._calls, key=lambda call: call.first.index)):
            arguments = _object(call.arguments.text)
            if arguments is None:
                if self._finish == "length":
                    continue
                raise BadResponse("the model called a tool with arguments that are no JSON object", detail="tool call")
            function = {"index": n, "name": call.first.name, "arguments": arguments}
            calls.append({"id": call.id, "function": function} if call.id else {"function": function})
        return calls

    def _common_fields(self) -> Fields:
        return {"model": self.model, "created_at": now()}

    def _line(self, said: Fields, large: bool = False) -> bytes:
        line = one_line({**self._common_fields(), **said, "done": False}, large)
        return joined_bytes((line, b"\n")) if large else line + b"\n"

    def _ending(self, usage: Usage | None) -> Fields:
        """Counters and times, as far as known. The time to load the model counts as prompt evaluation, unless told."""
        usage = usage or Usage()
        total, *seen = self._clock.durations()
        load, prompt, words = usage.durations or (0, *seen)
        return {
            "done": True,
            "done_reason": "length" if self._finish == "length" else "stop",
            "total_duration": total,
            "load_duration": load,
            "prompt_eval_count": usage.prompt,
            "prompt_eval_duration": prompt,
            "eval_count": usage.completion,
            "eval_duration": words,
        }


@define
class ChatReply(LinesReply):
    """Chat: the content is in ``message``."""

    def content_part(self, content: str = "", thinking: str = "", calls: list[Fields] | None = None) -> Fields:
        message: Fields = {"role": "assistant", "content": content}
        if thinking:
            message["thinking"] = thinking
        if calls:
            message["tool_calls"] = calls
        return {"message": message}


@define
class GenerateReply(LinesReply):
    """Generate: the text is in ``response``. Requests offer no tools, so none are called."""

    def content_part(self, content: str = "", thinking: str = "", calls: list[Fields] | None = None) -> Fields:
        said: Fields = {"response": content}
        if thinking:
            said["thinking"] = thinking
        return said | ({"tool_calls": calls} if calls else {})

    def logprobs(self, logprobs: Any) -> list[Any]:
        """For a raw prompt they have the form of legacy completions."""
        if not isinstance(logprobs, dict) or not isinstance(logprobs.get("tokens"), list):
            return super().logprobs(logprobs)
        rows = [{"token": token} for token in logprobs["tokens"]]
        numbers = logprobs.get("token_logprobs")
        for row, number in zip(rows, numbers if isinstance(numbers, list) else (), strict=False):
            row["logprob"] = number
        return rows


def _object(text: str) -> Fields | None:
    """A call's arguments, decoded; an empty text is an empty object. None if they are not an object."""
    if not text or text.isspace():
        return {}
    try:
        value = decode_text(text)
    except (*DecodeErrors, UnicodeEncodeError):
        return None
    return value if isinstance(value, dict) else None
