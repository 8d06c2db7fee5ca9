"""``POST /v1/embeddings``, which is never streamed."""

from __future__ import annotations

from collections.abc import Sequence

from attrs import evolve

from manallm_proxy.contract.answers import Answer, Usage
from manallm_proxy.contract.door import Client
from manallm_proxy.contract.provider import Call, Endpoint
from manallm_proxy.contract.records import define
from manallm_proxy.contract.targets import Target
from manallm_proxy.doors.openai_reply import OpenAIReply, no_headers
from manallm_proxy.openai.errors import error_body
from manallm_proxy.openai.json_object import encode, encode_whole
from manallm_proxy.openai.large import is_large
from manallm_proxy.openai.request import EMBEDDING, read_summary
from manallm_proxy.openai.vectors import vector_text


class EmbeddingsDoor:
    """See `door.Door`."""

    name = Endpoint.EMBEDDINGS.path
    scans = True
    error_body = staticmethod(error_body)
    headers = staticmethod(no_headers)

    def read(self, body: bytes, client: Client) -> tuple[Call, EmbeddingsReply]:
        """See `door.Door`. ``stream`` is forwarded, but has no effect here."""
        required = ("input", (str, list))
        summary = read_summary(body, required, EMBEDDING, client.short, keys=client.bounds.keys)
        summary = evolve(summary, stream=False)
        span = summary.spans.get("encoding_format")
        as_base64 = span is not None and body[span[0] : span[1]] == b'"base64"'
        large = is_large(body)  # ten thousand short texts have few bytes, and no brackets
        call = Call(Endpoint.EMBEDDINGS, summary, body, client.request_id, is_large=large)
        return call, EmbeddingsReply(summary, as_base64=as_base64)


def _as_it_is(vector: Sequence[float]) -> Sequence[float]:
    return vector


@define
class EmbeddingsReply(OpenAIReply):
    """Sends base64 exactly if it was requested: openai-node 6 would then misread a list of floats as bytes."""

    as_base64: bool = False

    def whole(self, target: Target, answer: Answer) -> bytes:
        if answer.body is not None:
            return answer.body
        written = vector_text if self.as_base64 else _as_it_is if answer.is_large else list
        rows = [{"object": "embedding", "index": n, "embedding": written(v)} for n, v in enumerate(answer.vectors)]
        prompt = (answer.usage or Usage()).prompt
        usage = {"prompt_tokens": prompt, "total_tokens": prompt}
        write = encode_whole if answer.is_large else encode
        return write({"object": "list", "data": rows, "model": str(target), "usage": usage})
