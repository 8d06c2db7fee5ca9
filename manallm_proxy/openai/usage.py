"""Token counts to and from the ``usage`` objects of chats, of Responses, and of Anthropic's messages."""

from __future__ import annotations

from typing import Any

from manallm_proxy.contract.answers import Usage


def usage_to_openai(usage: Usage) -> dict[str, Any]:
    """The ``usage`` object of an answer; details only if they are not zero."""
    counted: dict[str, Any] = {
        "prompt_tokens": usage.prompt,
        "completion_tokens": usage.completion,
        "total_tokens": usage.prompt + usage.completion,
    }
    if usage.cached:
        counted["prompt_tokens_details"] = {"cached_tokens": usage.cached}
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
    reasoning = _inside(usage, "completion_tokens_details", "reasoning_tokens")
    # xAI counts reasoning beside the completion, which only its total shows
    if reasoning and count(usage.get("total_tokens")) == prompt + completion + reasoning:
        completion += reasoning
    return Usage(
        prompt=prompt,
        completion=completion,
        reasoning=reasoning,
        cached=_inside(usage, "prompt_tokens_details", "cached_tokens"),
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
    )


def usage_from_messages(usage: object) -> Usage | None:
    """The same for a message's ``usage``, whose ``input_tokens`` leave out what was read from a cache or put there."""
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
    )


def _inside(usage: dict[str, Any], name: str, key: str) -> int:
    details = usage.get(name)
    return count(details.get(key)) if isinstance(details, dict) else 0


def count(value: object) -> int:
    """A counter as a server gives it, 4.0 too; 0 for what cannot be one."""
    if type(value) is float and value.is_integer():
        value = int(value)
    return value if type(value) is int and value > 0 else 0  # not bool
