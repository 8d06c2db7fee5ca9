"""Reads tool calls from structured output, which forces calls on servers that ignore ``tool_choice``."""

from __future__ import annotations

from attrs import evolve, field

from manallm_proxy.contract.answers import Answer, Delta, StreamBatch, Usage
from manallm_proxy.contract.provider_errors import ProviderError
from manallm_proxy.contract.records import define
from manallm_proxy.openai.forced_call import CallReader
from manallm_proxy.providers.wire import Translator


def read_forced_calls(answer: Answer) -> Answer:
    """`answer` with each choice's text read as a tool call. Raises BadResponse if a text is no call."""
    return evolve(answer, choices=tuple(CallReader().read(choice) for choice in answer.choices))


@define
class ForcedTranslator:
    """See `wire.Translator`. Turns the text in another translator's deltas into parts of a tool call."""

    _inner: Translator
    _readers: dict[int, CallReader] = field(factory=dict)
    """By the index of the choice."""

    @property
    def usage(self) -> Usage | None:
        return self._inner.usage

    @property
    def held(self) -> int:
        return self._inner.held

    def is_open(self, data: bytes) -> bool:
        return self._inner.is_open(data)

    def feed(self, data: bytes) -> StreamBatch:
        return self._read(self._inner.feed(data))

    def close(self) -> StreamBatch:
        return self._read(self._inner.close())

    def _read(self, batch: StreamBatch) -> StreamBatch:
        deltas: list[Delta] = []
        error: ProviderError | None = batch.error
        for delta in batch.deltas:
            try:
                made = self._readers.setdefault(delta.index, CallReader()).read(delta)
            except ProviderError as failure:
                error = failure
                break
            if made.has_content:
                deltas.append(made)
        has_content = any(delta.has_content for delta in deltas)
        done = batch.done and error is None
        return evolve(batch, deltas=tuple(deltas), has_content=has_content, done=done, error=error)
