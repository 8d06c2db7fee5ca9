"""A built-in provider without a model: it answers at once, and says that it is no model.

For the quickstart (every chain ends in an answer), smoke tests and load tests. It echoes nothing of the prompt but its
length. It serves every model name; embeddings are a fixed unit vector.
"""

from __future__ import annotations

from manallm_proxy.contract.answers import Answer, Delta, StreamBatch, Usage
from manallm_proxy.contract.errors import InvalidRequest
from manallm_proxy.contract.provider import Call, Endpoint, ModelInfo, ModelList, TryWrite
from manallm_proxy.contract.provider_errors import FirstByteTimeout, ProviderError
from manallm_proxy.contract.records import define
from manallm_proxy.contract.targets import Entry
from manallm_proxy.openai.vectors import number_of_inputs

TEXT = (
    "This is manallm-proxy's built-in loopback provider: the proxy works, but no model was reached. ",
    "Start Ollama or set a provider's key, and ask again.",
)
"""The second sentence is sent if there is no better advice, see `Call.advice`."""
DIMENSIONS = 8


def _text(call: Call) -> tuple[str, ...]:
    return (TEXT[0], call.advice) if call.advice else TEXT


def _usage(call: Call) -> Usage:
    """Estimated tokens; nobody is billed for them."""
    return Usage(prompt=len(call.body) // 4, completion=sum(len(part.split()) for part in _text(call)))


@define
class LoopbackProvider:
    """See the module."""

    name: str

    async def complete(self, call: Call, entry: Entry) -> Answer:
        usage = _usage(call)
        if call.endpoint is Endpoint.EMBEDDINGS:
            return Answer(usage=usage, vectors=_vectors(call), dimensions=DIMENSIONS)
        return Answer(usage=usage, choices=(Delta(content="".join(_text(call)), finish="stop"),))

    async def stream(self, call: Call, entry: Entry, until: float | None = None) -> LoopbackStream:
        return LoopbackStream(_usage(call), list(_text(call)))

    def first_byte_error(self, seconds: float) -> ProviderError:
        return FirstByteTimeout(f"{self.name}: no content within {seconds:g} s")

    async def probe(self, seconds: float) -> ModelList:
        return ModelList((ModelInfo("echo"),))

    async def close(self) -> None:
        """Nothing is open."""


def _vectors(call: Call) -> list[list[float]]:
    number = number_of_inputs(call)
    if not number:
        raise InvalidRequest("'input' is empty", param="input")
    return [[1.0] + [0.0] * (DIMENSIONS - 1)] * number


@define
class LoopbackStream:
    """A few deltas, at once."""

    usage: Usage
    _left: list[str]

    async def next(self, try_write: TryWrite | None = None, until: float | None = None) -> StreamBatch:
        if self._left:
            return StreamBatch(deltas=(Delta(content=self._left.pop(0)),), has_content=True)
        return StreamBatch(deltas=(Delta(finish="stop"),), has_content=True, done=True)

    def commit(self, idle: float) -> None:
        """Nothing to do: it is never idle."""

    async def aclose(self) -> None:
        """Nothing is open."""
