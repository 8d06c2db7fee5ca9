"""Whatever a client has in its history, a refusal of it is read, and mended or handed on: nothing is raised.

Each value of a request of each API is replaced by odd ones, and each refusal that is known is given for it.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from typing import Any

import pytest
from attrs import evolve

from manallm_proxy.contract.provider import Call, Endpoint, RequestSummary
from manallm_proxy.contract.targets import Entry, Target
from manallm_proxy.openai.json_object import split_object
from manallm_proxy.providers.mending.forms import Forms
from manallm_proxy.providers.native.wire import NativeWire
from manallm_proxy.providers.openai.wire import OpenAIWire

ENTRY = Entry(Target("p", "m"))
SCHEMA = {"anyOf": [{"properties": {"a": {"type": "string"}}, "required": ["a"]}], "required": []}
CALL = {
    "id": "call_of_another_1",
    "type": "function",
    "function": {"name": "f", "arguments": '{"a":'},
    "extra_content": {"google": {"thought_signature": "c2ln"}},
}
BODIES: dict[Endpoint, dict[str, Any]] = {
    Endpoint.CHAT: {
        "messages": [
            {"role": "developer", "content": "Be brief."},
            {"role": "system", "content": [{"type": "text", "text": "Be kind."}]},
            {"role": "user", "content": "hi"},
            {
                "role": "assistant",
                "content": None,
                "reasoning_content": "Hm.",
                "reasoning_details": [{"type": "reasoning.text", "text": "Hm."}],
                "refusal": None,
                "annotations": [],
                "tool_calls": [CALL],
            },
            {"role": "tool", "tool_call_id": "another", "content": "3"},
            {"role": "user", "content": "go"},
        ],
        "tools": [{"type": "function", "function": {"name": "f", "parameters": SCHEMA}}],
        "tool_choice": "required",
        "reasoning_effort": "high",
        "temperature": 0.5,
        "top_p": 0.5,
        "max_tokens": 99_999,
    },
    Endpoint.MESSAGES: {
        "system": [{"type": "text", "text": "Be brief.", "cache_control": {"type": "ephemeral", "ttl": "1h"}}],
        "messages": [
            {"role": "user", "content": [{"type": "text", "text": "hi", "cache_control": {"type": "ephemeral"}}]},
            {
                "role": "assistant",
                "content": [
                    {"type": "thinking", "thinking": "Hm.", "signature": "c2ln"},
                    {"type": "tool_use", "id": "toolu_1", "name": "f", "input": {}},
                ],
            },
            {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "another", "content": []}]},
            {"role": "assistant", "content": "3"},
            {"role": "user", "content": "go"},
        ],
        "tools": [{"name": "f", "input_schema": SCHEMA, "defer_loading": True}],
        "tool_choice": {"type": "any"},
        "thinking": {"type": "enabled", "budget_tokens": 2048},
        "output_config": {"effort": "high"},
        "context_management": {"edits": []},
        "max_tokens": 99_999,
    },
    Endpoint.RESPONSES: {
        "input": [
            {"type": "message", "role": "developer", "content": "Be brief."},
            {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "hi"}]},
            {"type": "reasoning", "id": "rs_1", "summary": [], "encrypted_content": "c2ln"},
            {"type": "function_call", "call_id": "call_1", "name": "f", "arguments": '{"a":'},
            {"type": "function_call_output", "call_id": "another", "output": "3"},
        ],
        "tools": [{"type": "function", "name": "f", "parameters": SCHEMA}],
        "include": ["reasoning.encrypted_content"],
        "reasoning": {"effort": "high", "summary": "auto"},
        "text": {"verbosity": "low"},
        "max_output_tokens": 99_999,
    },
}
ODD: tuple[Any, ...] = (None, 1, [["a"]], {"a": [1]})
REFUSALS = (
    "Failed to deserialize: messages[0].role: unknown variant `developer`, expected one of `system`",
    "Unexpected role 'user' after role 'tool'",
    "Conversation roles must alternate user/assistant/user/assistant/...",
    "System message must be at the beginning.",
    "Tool call id was call_of_another_1 but must be a-z, A-Z, 0-9, with a length of 9.",
    "property 'reasoning_content' is unsupported",
    "Extra inputs are not permitted, field: 'messages[3].tool_calls[0].extra_content'",
    "The reasoning_content in the thinking mode must be passed back to the API.",
    "'refusal' is an unknown field",
    "Invalid `signature` in `thinking` block",
    "Function call is missing a thought_signature in functionCall parts.",
    "Invalid schema for function 'f': object schema missing properties",
    "An assistant message with 'tool_calls' must be followed by tool messages responding to each 'tool_call_id'.",
    "`tool_use` ids were found without `tool_result` blocks immediately after: toolu_1",
    "No tool output found for function call call_1.",
    "Expecting value: line 1 column 6 (char 5)",
    "Thinking mode does not support this tool_choice",
    "Unsupported value: 'reasoning_effort' does not support 'high'. Supported values are: 'low', and 'medium'.",
    "Unrecognized request argument supplied: reasoning_effort",
    "Function tools with reasoning_effort are not supported, set reasoning_effort to 'none'",
    "Unsupported value: 'temperature' does not support 0.5. Only the default (1) value is supported.",
    "`temperature` and `top_p` cannot both be specified",
    "max_tokens is too large: 99999. This model supports at most 4096 completion tokens",
    "Unsupported parameter: 'max_tokens' is not supported. Use 'max_completion_tokens' instead.",
    "context_management: Extra inputs are not permitted",
    "tools.0.custom.defer_loading: Extra inputs are not permitted",
    "system.0.cache_control.ephemeral.ttl: Extra inputs are not permitted",
    '"thinking.type.enabled" is not supported for this model',
    "This model does not support the effort parameter.",
    "Unsupported parameter: 'reasoning.effort' is not supported with this model.",
    "Encrypted content is not supported with this model.",
)


def odd(body: Any) -> Iterator[Any]:
    """`body` with each value in it, and each member left out, in turn."""
    places = [(key, value) for key, value in (body.items() if isinstance(body, dict) else enumerate(body))]
    for key, value in places:
        for each in ODD:
            changed = copy.copy(body)
            changed[key] = each
            yield changed
        if isinstance(body, dict):
            yield {name: other for name, other in body.items() if name != key}
        if isinstance(value, dict | list):
            for inner in odd(value):
                changed = copy.copy(body)
                changed[key] = inner
                yield changed


@pytest.mark.parametrize("endpoint", BODIES, ids=lambda endpoint: endpoint.path)
@pytest.mark.parametrize("relays", [True, False], ids=["relayed", "translated"])
def test_no_history_breaks_what_mends_it(endpoint: Endpoint, relays: bool) -> None:
    wire = NativeWire(OpenAIWire(), {Endpoint.RESPONSES: "responses", Endpoint.MESSAGES: "messages"})
    for body in [BODIES[endpoint], *odd(BODIES[endpoint])]:
        whole = json.dumps({"model": "p/m", **body}).encode()
        summary = RequestSummary("p/m", False, False, frozenset(), split_object(whole)[1])
        call = Call(endpoint, summary, whole, "id", relays=relays, cuts_length=not relays)
        for refusal in REFUSALS:
            forms = Forms(wire, evolve(call, remarks=[]), ENTRY)
            forms.refused(wire.request(call, ENTRY))
            again = forms.next(400, json.dumps({"error": {"message": refusal}}).encode())
            assert again is None or json.loads(bytes(again.content))
