"""The response object: always with all its fields, and with one id throughout."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, Final

import msgspec
from attrs import field

from manallm_proxy.contract.answers import Usage
from manallm_proxy.contract.records import define
from manallm_proxy.openai.json_object import encode
from manallm_proxy.openai.large import LARGE_BYTES
from manallm_proxy.openai.request_fields import Fields

_ABSENT: Final[Fields] = {
    "id": "",
    "object": "response",
    "created_at": 0,
    "status": "",
    "background": False,
    "completed_at": None,
    "error": None,
    "incomplete_details": None,
    "instructions": None,
    "max_output_tokens": None,
    "max_tool_calls": None,
    "metadata": {},
    "model": "",
    "output": [],
    "parallel_tool_calls": True,
    "previous_response_id": None,
    "prompt_cache_key": None,
    "reasoning": {"effort": None, "summary": None},
    "safety_identifier": None,
    "service_tier": None,
    "store": True,
    "temperature": None,
    "text": {"format": {"type": "text"}},
    "tool_choice": "auto",
    "tools": [],
    "top_logprobs": None,
    "top_p": None,
    "truncation": "disabled",
    "usage": None,
    "user": None,
}
"""Every field, in OpenAI's order, with its value if the request does not set it."""
_LONG: Final = frozenset({"instructions", "text", "tool_choice", "tools", "metadata"})
_REPEATED: Final = _LONG | {
    *("max_output_tokens", "max_tool_calls", "parallel_tool_calls", "previous_response_id", "prompt_cache_key"),
    *("reasoning", "safety_identifier", "service_tier", "store", "temperature", "top_logprobs", "top_p"),
    *("truncation", "user"),
}
_NEVER_EMPTY: Final = frozenset({"previous_response_id", "truncation"})


@define
class Shell:
    """The response object without its output: what stays the same in all events of a response."""

    id: str
    asked: Callable[[], Fields] = field(repr=False)
    """The request's fields."""
    model: str = ""
    """The requested model, until a target answers."""
    created_at: float = field(factory=time.time)
    """Seconds since the epoch."""
    is_long: bool = False
    """What it repeats of the request is so long that it does so only once, at the end. Known after `repeat`."""
    _repeated: Fields | None = field(default=None, repr=False)

    def repeat(self, encode_large: Callable[[Any], bytes] | None = None) -> Fields:
        """What it repeats of the request. `encode_large`: writes what is large; done before, in a thread."""
        if self._repeated is None:
            large = encode_large is not None
            self._repeated = repeated = _repeated(self.asked(), encode_large or encode)
            self.asked = dict  # which held the request
            self.is_long = large and sum(len(repeated[key]) for key in repeated.keys() & _LONG) > LARGE_BYTES
        return self._repeated

    def render(
        self,
        status: str,
        output: list[Any],
        *,
        usage: Usage | None = None,
        error: Fields | None = None,
        incomplete: str | None = None,
    ) -> dict[str, Any]:
        """The object in the state `status`. `usage`: once it is complete. `incomplete`: the reason, if it is not."""
        rendered: dict[str, Any] = {**_ABSENT, **self.repeat()}
        if self.is_long and usage is None:
            rendered |= {key: _ABSENT[key] for key in _LONG}
        rendered["id"], rendered["created_at"], rendered["model"] = self.id, int(self.created_at), self.model
        rendered["status"], rendered["output"], rendered["error"] = status, output, error
        if status == "completed":
            rendered["completed_at"] = int(time.time())
        if incomplete is not None:
            rendered["incomplete_details"] = {"reason": incomplete}
        if usage is not None:
            rendered["usage"] = usage_object(usage)
        return rendered


def _repeated(asked: Fields, write: Callable[[Any], bytes]) -> Fields:
    """The fields of the request that a response repeats; long ones encoded, since several events repeat them."""
    rendered: Fields = {}
    for key in asked.keys() & _REPEATED:
        value = asked[key]
        if value is None or (not value and key in _NEVER_EMPTY):
            continue
        if key == "reasoning":
            value = {**_ABSENT[key], **value}
        elif key == "text":
            value = {**_ABSENT[key], **_given(value)}
        rendered[key] = msgspec.Raw(write(value)) if key in _LONG else value
    return rendered


def usage_object(usage: Usage) -> dict[str, Any]:
    """This API's ``usage``, whose types require every detail."""
    return {
        "input_tokens": usage.prompt,
        "input_tokens_details": {"cached_tokens": usage.cached, "cache_write_tokens": usage.written},
        "output_tokens": usage.completion,
        "output_tokens_details": {"reasoning_tokens": usage.reasoning},
        "total_tokens": usage.prompt + usage.completion,
    }


def _given(value: Fields) -> Fields:
    return {key: inner for key, inner in value.items() if inner is not None}
