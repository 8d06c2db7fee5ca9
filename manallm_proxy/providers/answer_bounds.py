"""Limits on the structure of an answer, checked on its bytes before it is decoded."""

from __future__ import annotations

from typing import Any, Final, TypeVar

import msgspec

from manallm_proxy.contract.answers import Answer, AnswerLimits
from manallm_proxy.contract.provider_errors import BadResponse, too_many_items
from manallm_proxy.openai.bounds import count_structure
from manallm_proxy.openai.json_structure import TooMuch

EVENT_BYTES: Final = 64 * 1024
"""The structure of an event or line of a stream is counted only if it has more bytes than this."""
_ROWS: Final = 1000
_T = TypeVar("_T")


def refuse_too_much(body: bytes, limits: AnswerLimits) -> None:
    """Raises BadResponse for an answer, or one event of it, that exceeds one of `limits`."""
    try:
        count_structure(body, limits, "answers")
    except TooMuch as error:
        raise BadResponse(f"its answer {error}", detail=f"too much ({error.key})") from None


def refuse_many_calls(number: int, limits: AnswerLimits) -> None:
    """Raises BadResponse for an answer with more tool calls than `limits` allow."""
    if number > limits.calls:
        words = f"its answer has more than {limits.calls} tool calls (answers.calls)"
        raise BadResponse(words, detail="too much (answers.calls)")


def refuse_many_items(number: int, limits: AnswerLimits) -> None:
    """The same for choices, images, and what else an answer is a list of."""
    if number > limits.items:
        raise too_many_items(limits.items)


def checked_answer(answer: Answer, limits: AnswerLimits) -> Answer:
    """`answer`, a whole one. Raises the same."""
    refuse_many_items(len(answer.choices) + sum(len(choice.images) for choice in answer.choices), limits)
    for choice in answer.choices:
        refuse_many_calls(len(choice.tool_calls), limits)
    return answer


def too_long(most: int, key: str) -> BadResponse:
    """The error for a whole answer of more than `most` bytes. `key`: the key of ``answers`` that raises the limit."""
    return BadResponse(f"its answer is longer than {most} bytes (answers.{key})", detail=f"too long (answers.{key})")


def rows_of(kind: type[_T], rows: list[Any]) -> list[_T]:
    """Decoded `rows` as structs of `kind`, converted in several short calls. Raises msgspec.ValidationError."""
    found: list[_T] = []
    for at in range(0, len(rows), _ROWS):
        found += msgspec.convert(rows[at : at + _ROWS], list[kind])  # type: ignore[valid-type]  # mypy wants a constant
    return found
