"""The common part of the answers of OpenAI's chat and legacy completions.

The rules that clients rely on (seen with openai-python 1 to 3 and openai-node 6 and 7): every chunk has ``id``,
``created`` and ``choices``, each choice ``index`` and ``delta`` (or ``text``); a usage chunk has empty ``choices``
and is sent only if requested; the last event is ``[DONE]``.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable
from typing import Any, ClassVar, Final

from attrs import field

from manallm_proxy.contract.answers import Answer, Delta, StreamBatch, Texts, Thoughts, Usage, Words, steps
from manallm_proxy.contract.errors import ProxyError
from manallm_proxy.contract.provider import RequestSummary
from manallm_proxy.contract.records import define
from manallm_proxy.contract.targets import Target
from manallm_proxy.openai import sse
from manallm_proxy.openai.deferred_free import free_later
from manallm_proxy.openai.errors import error_body
from manallm_proxy.openai.joined import joined_bytes
from manallm_proxy.openai.json_object import encode, encode_whole
from manallm_proxy.openai.plain_text import MARK, Splice, splice
from manallm_proxy.openai.usage import usage_to_openai

HEARTBEAT: Final = b": keep-alive\n"
"""A comment without a blank line: openai-go before 3.43 treats a blank line after it as the end of an empty event, and
ends the stream there."""


def no_headers(request_id: str) -> dict[str, str]:
    """No headers in addition to those of all answers."""
    return {}


@define
class OpenAIReply:
    """Relays what is already in OpenAI's format, and writes the rest. See `door.Reply`."""

    id_prefix: ClassVar[str]
    whole_object: ClassVar[str]
    chunk_object: ClassVar[str]
    ends_long: ClassVar[bool] = False

    summary: RequestSummary
    content_type: str = "text/event-stream"
    _id: str = ""
    _created: int = 0
    _model: str = ""
    _wrote_chunks: bool = False
    """Whether chunks were written from deltas rather than relayed."""
    _splices: dict[type[Delta], Splice] = field(factory=dict, repr=False)
    """By kind of text: the splice of chunks that only add such text, after the first one."""

    def whole(self, target: Target, answer: Answer) -> bytes:
        if answer.body is not None:
            return answer.body
        self.start(target)
        rows = [self.choice(delta) for delta in answer.choices]
        free_later(rows)
        usage = usage_to_openai(answer.usage or Usage())
        write = encode_whole if answer.is_large else encode
        return write({**self._common_fields(self.whole_object), "choices": rows, "usage": usage})

    def start(self, target: Target) -> None:
        self._model = str(target)

    def events(self, batch: StreamBatch) -> bytes:
        deltas = batch.deltas
        if not deltas:
            return batch.frames
        if len(deltas) == 1 and (around := self._splices.get(type(delta := deltas[0]))) and isinstance(delta, Texts):
            return batch.frames + around.write(delta.texts)
        self._wrote_chunks = True
        if batch.is_large:
            return joined_bytes((batch.frames, *(self._written(delta, encode_whole) for delta in deltas)))
        return batch.frames + b"".join(map(self._written, deltas))

    def _written(self, delta: Delta, write: Callable[[Any], bytes] = encode) -> bytes:
        if not isinstance(delta, Words | Thoughts):
            return b"".join([self._event([self.chunk_choice(step)], write) for step in steps((delta,))])
        if (around := self._splices.get(type(delta))) is not None:
            return around.write(delta.texts)
        first, others = delta.step(delta.texts[0]), delta.texts[1:]
        event = self._event([self.chunk_choice(first)])  # the first one may have more members than those after it
        marked = Delta(MARK) if type(delta) is Words else Delta(reasoning=MARK)
        around = splice(self._event([self.chunk_choice(marked)]))
        if around is None:
            return event + b"".join([self._event([self.chunk_choice(delta.step(text))]) for text in others])
        self._splices[type(delta)] = around
        return event + around.write(others) if others else event

    def end(self, usage: Usage | None) -> bytes:
        if self._wrote_chunks and usage is not None and self.summary.wants_usage:
            return self._event([], usage=usage_to_openai(usage)) + sse.DONE
        return sse.DONE

    def error(self, error: ProxyError) -> bytes:
        return sse.event(error_body(error))

    def heartbeat(self) -> bytes:
        return HEARTBEAT

    def choice(self, delta: Delta) -> dict[str, Any]:
        """One choice of a whole answer."""
        raise NotImplementedError  # each format has its own

    def chunk_choice(self, delta: Delta) -> dict[str, Any]:
        """One choice of a chunk."""
        raise NotImplementedError  # each format has its own

    def _event(self, choices: list[dict[str, Any]], write: Callable[[Any], bytes] = encode, **more: Any) -> bytes:
        return sse.event(write({**self._common_fields(self.chunk_object), "choices": choices, **more}))

    def _common_fields(self, kind: str) -> dict[str, Any]:
        if not self._id:  # not in `start`: what is only relayed has an id
            self._id, self._created = secrets.token_hex(12), int(time.time())
        return {"id": f"{self.id_prefix}-{self._id}", "object": kind, "created": self._created, "model": self._model}
