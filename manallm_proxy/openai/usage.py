"""Token counts to and from OpenAI's ``usage`` object."""

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

    def number(of: object, key: str) -> int:
        value = of.get(key) if isinstance(of, dict) else None
        if type(value) is float and value.is_integer():
            value = int(value)
        return value if type(value) is int and value > 0 else 0  # not bool

    prompt, completion = number(usage, "prompt_tokens"), number(usage, "completion_tokens")
    reasoning = number(usage.get("completion_tokens_details"), "reasoning_tokens")
    # xAI counts reasoning beside the completion, which only its total shows
    if reasoning and number(usage, "total_tokens") == prompt + completion + reasoning:
        completion += reasoning
    return Usage(
        prompt=prompt,
        completion=completion,
        reasoning=reasoning,
        cached=number(usage.get("prompt_tokens_details"), "cached_tokens"),
    )
