"""A provider without a model, built in: it answers at once and says that it is only that.

For the quickstart (a chain always ends somewhere), for smoke tests and load tests. It echoes nothing of
the prompt but its length. Each model's name is served; embeddings are a fixed unit vector.
"""

from __future__ import annotations

from attrs import define, field

from manallm_proxy.contract.errors import InvalidRequest
from manallm_proxy.contract.provider import Answer, Call, Endpoint, ModelInfo, ModelList, StreamBatch, TryWrite, Usage
from manallm_proxy.contract.provider_errors import FirstByteTimeout, ProviderError
from manallm_proxy.contract.targets import Entry
from manallm_proxy.openai.compose import Composer, Delta, embeddings_body
from manallm_proxy.openai.schema import decode

TEXT = (
    "This is manallm-proxy's built-in loopback provider: the proxy works, but no model was reached. ",
    "Start Ollama or set a provider's key, and ask again.",
)
DIMENSIONS = 8


def _usage(call: Call) -> Usage:
    """Words, not tokens: nobody is billed for them."""
    return Usage(prompt=len(call.body) // 4, completion=sum(len(part.split()) for part in TEXT))


@define
class LoopbackProvider:
    """See the module."""

    name: str

    async def complete(self, call: Call, entry: Entry) -> Answer:
        usage = _usage(call)
        if call.endpoint is Endpoint.EMBEDDINGS:
            return Answer(_embeddings(call, entry, usage), usage)
        said = Delta(content="".join(TEXT), finish="stop")
        return Answer(Composer(call, entry.target).body([said], usage), usage)

    async def stream(self, call: Call, entry: Entry) -> LoopbackStream:
        return LoopbackStream(Composer(call, entry.target), _usage(call))

    def first_byte_error(self, seconds: float) -> ProviderError:
        return FirstByteTimeout(f"{self.name}: nothing said within {seconds:g} s")

    async def probe(self, seconds: float) -> ModelList:
        return ModelList((ModelInfo("echo"),))

    async def close(self) -> None:
        """There is nothing to give back."""


def _embeddings(call: Call, entry: Entry, usage: Usage) -> bytes:
    asked = decode(call.body)
    inputs = asked["input"]
    if inputs == []:
        raise InvalidRequest("'input' is empty", param="input")
    one = isinstance(inputs, str) or isinstance(inputs[0], int)
    vectors = [[1.0] + [0.0] * (DIMENSIONS - 1)] * (1 if one else len(inputs))
    return embeddings_body(vectors, entry.target, usage, as_base64=asked.get("encoding_format") == "base64")


@define
class LoopbackStream:
    """A few events, at once."""

    _composer: Composer
    usage: Usage
    commentable: bool = True
    _left: list[str] = field(factory=lambda: list(TEXT))

    async def next(self, try_write: TryWrite | None = None) -> StreamBatch:
        if self._left:
            return StreamBatch(events=(self._composer.chunk(Delta(content=self._left.pop(0))),), has_content=True)
        events = [self._composer.chunk(Delta(finish="stop"))]
        if last := self._composer.usage_chunk(self.usage):
            events.append(last)
        return StreamBatch(events=tuple(events), has_content=True, done=True)

    def commit(self, idle: float) -> None:
        """It is never idle."""

    async def aclose(self) -> None:
        """There is nothing to end."""
