"""Token counts to and from the ``usage`` objects of chats, of Responses, and of Anthropic's messages."""

from __future__ import annotations

from typing import Annotated, Any, Final

import msgspec

from manallm_proxy.contract.answers import Usage
from manallm_proxy.openai.json_object import DecodeErrors

_PLAIN: Final = frozenset({"prompt_tokens", "completion_tokens", "total_tokens"})
_Number = Annotated[int, msgspec.Meta(ge=0, le=2**63 - 1)]


def usage_to_openai(usage: Usage) -> dict[str, Any]:
    """The ``usage`` object of an answer; details only if they are not zero."""
    counted: dict[str, Any] = {
        "prompt_tokens": usage.prompt,
        "completion_tokens": usage.completion,
        "total_tokens": usage.prompt + usage.completion,
    }
    if usage.cached or usage.written:
        written = {"cache_write_tokens": usage.written} if usage.written else {}
        counted["prompt_tokens_details"] = {"cached_tokens": usage.cached, **written}
    if usage.reasoning:
        counted["completion_tokens_details"] = {"reasoning_tokens": usage.reasoning}
    return counted


def usage_from_openai(usage: object) -> Usage | None:
    """Reads a provider's ``usage``; None if it is not an object. Invalid values count as 0."""
    if not isinstance(usage, dict):
        return None
    prompt, completion = usage.get("prompt_tokens"), usage.get("completion_tokens")
    prompt = prompt if type(prompt) is int and prompt > 0 else count(prompt)
    completion = completion if type(completion) is int and completion > 0 else count(completion)
    if usage.keys() == _PLAIN:
        return Usage(prompt=prompt, completion=completion)
    reasoning = _inside(usage, "completion_tokens_details", "reasoning_tokens")
    # xAI counts reasoning in addition to the completion, which only its total shows
    if reasoning and count(usage.get("total_tokens")) == prompt + completion + reasoning:
        completion += reasoning
    return Usage(
        prompt=prompt,
        completion=completion,
        reasoning=reasoning,
        cached=_inside(usage, "prompt_tokens_details", "cached_tokens") or _cached_at_top(usage),
        written=_inside(usage, "prompt_tokens_details", "cache_write_tokens"),
    )


def usage_from_responses(usage: object) -> Usage | None:
    """The same for a response's ``usage``."""
    if not isinstance(usage, dict):
        return None
    prompt, completion = usage.get("input_tokens"), usage.get("output_tokens")
    return Usage(
        prompt=prompt if type(prompt) is int and prompt > 0 else count(prompt),
        completion=completion if type(completion) is int and completion > 0 else count(completion),
        reasoning=_inside(usage, "output_tokens_details", "reasoning_tokens"),
        cached=_inside(usage, "input_tokens_details", "cached_tokens"),
        written=_inside(usage, "input_tokens_details", "cache_write_tokens"),
    )


class _Details(msgspec.Struct, gc=False):
    cached_tokens: _Number = 0
    cache_write_tokens: _Number = 0
    reasoning_tokens: _Number = 0


class _OfResponse(msgspec.Struct, gc=False):
    """As nearly all servers write it."""

    input_tokens: _Number = 0
    output_tokens: _Number = 0
    input_tokens_details: _Details | None = None
    output_tokens_details: _Details | None = None


_OF_RESPONSE: Final = msgspec.json.Decoder(_OfResponse)


def plain_usage_of_response(raw: msgspec.Raw) -> Usage | None:
    """The same of the JSON, in one call; None where it has to be looked at more closely."""
    try:
        counted = _OF_RESPONSE.decode(raw)
    except (msgspec.ValidationError, *DecodeErrors):
        return None
    read, written = counted.input_tokens_details, counted.output_tokens_details
    cached, kept = (read.cached_tokens, read.cache_write_tokens) if read is not None else (0, 0)
    reasoning = written.reasoning_tokens if written is not None else 0
    return Usage(counted.input_tokens, counted.output_tokens, reasoning, cached, kept)


def usage_from_messages(usage: object) -> Usage | None:
    """The same for a message's ``usage``, whose ``input_tokens`` exclude tokens read from or written to a cache."""
    if not isinstance(usage, dict):
        return None
    prompt, completion = usage.get("input_tokens"), usage.get("output_tokens")
    prompt = prompt if type(prompt) is int and prompt > 0 else count(prompt)
    cached = count(usage["cache_read_input_tokens"]) if "cache_read_input_tokens" in usage else 0
    kept = count(usage["cache_creation_input_tokens"]) if "cache_creation_input_tokens" in usage else 0
    return Usage(
        prompt=prompt + cached + kept,
        completion=completion if type(completion) is int and completion > 0 else count(completion),
        reasoning=_inside(usage, "output_tokens_details", "thinking_tokens"),
        cached=cached,
        written=kept,
    )


def _cached_at_top(usage: dict[str, Any]) -> int:
    """The tokens read from a cache where DeepSeek counts them, and Kimi; included in the prompt's, as OpenAI's are."""
    return count(usage.get("prompt_cache_hit_tokens")) or count(usage.get("cached_tokens"))


def _inside(usage: dict[str, Any], name: str, key: str) -> int:
    details = usage.get(name)
    return count(details.get(key)) if isinstance(details, dict) else 0


def count(value: object) -> int:
    """A counter as servers send it, 4.0 included; 0 for anything that cannot be one."""
    if type(value) is float and value.is_integer():
        value = int(value)
    return value if type(value) is int and value > 0 else 0  # not bool
