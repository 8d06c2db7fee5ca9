"""What Ollama's own clients send that only an Ollama gets: other options, and messages with what its model thought."""

from __future__ import annotations

from attrs import evolve

from manallm_proxy.contract.provider import Call
from manallm_proxy.openai.json_object import encode_whole
from manallm_proxy.openai.request import spliced


def with_own_fields(call: Call) -> Call:
    """`call` with those fields in its body; itself if there are none."""
    if not call.ollama:
        return call
    values = {key: each if isinstance(each, bytes) else encode_whole(each) for key, each in call.ollama.items()}
    body, spans = spliced(call.body, call.summary.spans, values)
    return evolve(call, body=body, summary=evolve(call.summary, spans=spans), ollama={})
