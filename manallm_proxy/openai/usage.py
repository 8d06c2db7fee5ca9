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

    prompt, completion = usage.get("prompt_tokens"), usage.get("completion_tokens")
    of_output, of_prompt = usage.get("completion_tokens_details"), usage.get("prompt_tokens_details")
    return Usage(
        prompt=prompt if type(prompt) is int and prompt > 0 else _number(prompt),
        completion=completion if type(completion) is int and completion > 0 else _number(completion),
        reasoning=_number(of_output.get("reasoning_tokens")) if type(of_output) is dict else 0,
        cached=_number(of_prompt.get("cached_tokens")) if type(of_prompt) is dict else 0,
    )


def _number(value: object) -> int:
    if type(value) is float and value.is_integer():
        value = int(value)
    return value if type(value) is int and value > 0 else 0  # not bool
