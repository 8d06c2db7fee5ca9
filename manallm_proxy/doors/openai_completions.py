"""``POST /v1/completions``, the legacy endpoint that code completion still uses."""

from __future__ import annotations

from typing import Any, ClassVar

from manallm_proxy.contract.answers import Delta
from manallm_proxy.contract.door import Client
from manallm_proxy.contract.provider import Call, Endpoint
from manallm_proxy.contract.records import define
from manallm_proxy.doors.openai_reply import OpenAIReply, no_headers
from manallm_proxy.openai.errors import error_body
from manallm_proxy.openai.large import LARGE_BYTES
from manallm_proxy.openai.request import read_summary


class CompletionsDoor:
    """See `door.Door`."""

    name = Endpoint.COMPLETIONS.path
    scans = True
    error_body = staticmethod(error_body)
    headers = staticmethod(no_headers)

    def read(self, body: bytes, client: Client) -> tuple[Call, CompletionsReply]:
        """See `door.Door`. ``prompt`` may be null: the model begins a text from nothing."""
        summary = read_summary(body, ("prompt", (str, list, type(None))), short=client.short, keys=client.bounds.keys)
        call = Call(Endpoint.COMPLETIONS, summary, body, client.request_id, is_large=len(body) > LARGE_BYTES)
        return call, CompletionsReply(summary)


@define
class CompletionsReply(OpenAIReply):
    """Chunks and whole answers have the same ``object``."""

    id_prefix: ClassVar[str] = "cmpl"
    whole_object: ClassVar[str] = "text_completion"
    chunk_object: ClassVar[str] = "text_completion"

    def choice(self, delta: Delta) -> dict[str, Any]:
        row = {"index": delta.index, "logprobs": delta.logprobs, "finish_reason": delta.finish}
        return {**row, "text": delta.content}

    def chunk_choice(self, delta: Delta) -> dict[str, Any]:
        choice: dict[str, Any] = {"index": delta.index, "text": delta.content}
        if delta.logprobs is not None:
            choice["logprobs"] = delta.logprobs
        choice["finish_reason"] = delta.finish
        return choice
