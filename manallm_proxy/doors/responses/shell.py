"""The response object: always with all its fields, and with one id throughout."""

from __future__ import annotations

import time
from typing import Any

import msgspec
from attrs import define, field

from manallm_proxy.contract.answers import Usage
from manallm_proxy.openai.json_object import encode
from manallm_proxy.openai.request_fields import Fields


@define
class Shell:
    """The response object without its output: what stays the same in all events of a response."""

    id: str
    asked: Fields = field(repr=False)
    model: str = ""
    """The requested model, until a target answers."""
    created_at: float = field(factory=time.time)
    """Seconds since the epoch."""
    _encoded: Fields = field(factory=dict, repr=False)

    @property
    def _long(self) -> Fields:
        """Fields that may be long: encoded once, although several events repeat them."""
        if not self._encoded:
            self._encode()
        return self._encoded

    def _encode(self) -> None:
        asked = self.asked
        long = {
            "instructions": asked.get("instructions"),
            "text": {"format": {"type": "text"}, **_given(asked.get("text"))},
            "tool_choice": "auto" if asked.get("tool_choice") is None else asked["tool_choice"],
            "tools": asked.get("tools") or [],
            "metadata": asked.get("metadata") or {},
        }
        self._encoded = {key: msgspec.Raw(encode(value)) for key, value in long.items()}

    def render(
        self,
        status: str,
        output: list[Any],
        *,
        usage: Usage | None = None,
        error: Fields | None = None,
        incomplete: str | None = None,
    ) -> dict[str, Any]:
        """The object in the state `status`. `incomplete`: the reason why it is."""
        asked, long = self.asked, self._long
        parallel, store = asked.get("parallel_tool_calls"), asked.get("store")
        return {
            "id": self.id,
            "object": "response",
            "created_at": int(self.created_at),
            "status": status,
            "background": False,
            "completed_at": int(time.time()) if status == "completed" else None,
            "error": error,
            "incomplete_details": None if incomplete is None else {"reason": incomplete},
            "instructions": long["instructions"],
            "max_output_tokens": asked.get("max_output_tokens"),
            "max_tool_calls": asked.get("max_tool_calls"),
            "metadata": long["metadata"],
            "model": self.model,
            "output": output,
            "parallel_tool_calls": True if parallel is None else parallel,
            "previous_response_id": asked.get("previous_response_id") or None,
            "prompt_cache_key": asked.get("prompt_cache_key"),
            "reasoning": {"effort": None, "summary": None} | (asked.get("reasoning") or {}),
            "safety_identifier": asked.get("safety_identifier"),
            "service_tier": asked.get("service_tier"),
            "store": True if store is None else store,
            "temperature": asked.get("temperature"),
            "text": long["text"],
            "tool_choice": long["tool_choice"],
            "tools": long["tools"],
            "top_logprobs": asked.get("top_logprobs"),
            "top_p": asked.get("top_p"),
            "truncation": asked.get("truncation") or "disabled",
            "usage": None if usage is None else usage_object(usage),
            "user": asked.get("user"),
        }


def usage_object(usage: Usage) -> dict[str, Any]:
    """This API's ``usage``, whose types require every detail."""
    return {
        "input_tokens": usage.prompt,
        "input_tokens_details": {"cached_tokens": usage.cached, "cache_write_tokens": 0},
        "output_tokens": usage.completion,
        "output_tokens_details": {"reasoning_tokens": usage.reasoning},
        "total_tokens": usage.prompt + usage.completion,
    }


def _given(value: Fields | None) -> Fields:
    return {key: inner for key, inner in (value or {}).items() if inner is not None}
