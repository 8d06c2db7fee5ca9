"""``POST /api/embed``, and ``POST /api/embeddings``, its older form with one vector."""

from __future__ import annotations

import time
from typing import ClassVar

from attrs import field

from manallm_proxy.contract.answers import Answer, StreamBatch, Usage
from manallm_proxy.contract.door import Client
from manallm_proxy.contract.errors import InternalError, ProxyError
from manallm_proxy.contract.provider import Call, Endpoint
from manallm_proxy.contract.records import define
from manallm_proxy.contract.targets import Target
from manallm_proxy.doors.ollama.errors import ollama_error_body
from manallm_proxy.doors.ollama.lines import one_line
from manallm_proxy.doors.ollama.request import door_call, read_object
from manallm_proxy.doors.ollama.settings import read_settings
from manallm_proxy.doors.openai_reply import no_headers
from manallm_proxy.openai.large import is_large
from manallm_proxy.openai.request_fields import Fields, optional, texts_of, wrong


class OllamaEmbedDoor:
    """See `door.Door`."""

    name = "api/embed"
    scans = False
    error_body = staticmethod(ollama_error_body)
    headers = staticmethod(no_headers)

    def read(self, body: bytes, client: Client) -> tuple[Call, EmbedReply]:
        asked = read_object(body)
        dimensions = optional(asked, "dimensions", int) or None
        if dimensions is not None and dimensions < 0:
            raise wrong("dimensions", "at least 1")
        fields = {"input": _inputs(asked)} | ({"dimensions": dimensions} if dimensions else {})
        return _call(asked, fields, client, is_large(body)), EmbedReply(optional(asked, "model", str) or "")


class OllamaEmbeddingsDoor:
    """See `door.Door`. Metrics and log count it as ``api/embed``."""

    name = "api/embed"
    scans = False
    error_body = staticmethod(ollama_error_body)
    headers = staticmethod(no_headers)

    def read(self, body: bytes, client: Client) -> tuple[Call, EmbeddingsReply]:
        asked = read_object(body)
        prompt = optional(asked, "prompt", str)
        fields = {"input": [prompt] if prompt else []}
        return _call(asked, fields, client, is_large(body)), EmbeddingsReply(optional(asked, "model", str) or "")


def _inputs(asked: Fields) -> list[str]:
    given = asked.get("input")
    if given is None or given == "":
        return []
    if isinstance(given, str):
        return [given]
    if not isinstance(given, list):
        raise wrong("input", "a string or an array of strings")
    return texts_of(given, "input")


def _call(asked: Fields, fields: Fields, client: Client, large: bool) -> Call:
    """Without an input the answer has no vector, as Ollama then only loads the model."""
    call = door_call(Endpoint.EMBEDDINGS, asked, fields, read_settings(asked).ollama, client, large=large)
    if not fields["input"]:
        call.answer = Answer()
    return call


@define
class EmbedReply:
    """See `door.Reply`. Embeddings are never streamed."""

    ends_long: ClassVar[bool] = False

    model: str
    content_type: str = "application/json"
    _began: int = field(factory=time.monotonic_ns)

    def whole(self, target: Target, answer: Answer) -> bytes:
        self.start(target)
        usage = answer.usage or Usage()
        load = usage.durations[0] if usage.durations is not None else 0
        total = time.monotonic_ns() - self._began
        counted = {"total_duration": total, "load_duration": load, "prompt_eval_count": usage.prompt}
        return one_line({"model": self.model, "embeddings": answer.vectors, **counted}, answer.is_large)

    def start(self, target: Target) -> None:
        self.model = str(target)

    def events(self, batch: StreamBatch) -> bytes:
        raise InternalError("embeddings are not streamed")

    def end(self, usage: Usage | None) -> bytes:
        raise InternalError("embeddings are not streamed")

    def error(self, error: ProxyError) -> bytes:
        return ollama_error_body(error)

    def heartbeat(self) -> bytes:
        return b""


@define
class EmbeddingsReply(EmbedReply):
    """The older form: one vector and nothing else."""

    def whole(self, target: Target, answer: Answer) -> bytes:
        return one_line({"embedding": answer.vectors[0] if answer.vectors else []}, answer.is_large)
