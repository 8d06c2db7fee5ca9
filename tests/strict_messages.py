"""A server of Anthropic's Messages that refuses what a rule says."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

from tests.upstreams import Connection, Seen

MESSAGE = {
    "id": "msg_1",
    "type": "message",
    "role": "assistant",
    "model": "m",
    "content": [{"type": "text", "text": "Hello"}],
    "stop_reason": "end_turn",
    "stop_sequence": None,
    "usage": {"input_tokens": 1, "output_tokens": 1},
}


def refuses(rule: Callable[[Any], str]) -> Callable[[Connection, Seen], Awaitable[None]]:
    """Answers 400 with the words of `rule` of a request, if it has any."""

    async def answer(connection: Connection, seen: Seen) -> None:
        if words := rule(seen.json):
            error = {"type": "error", "error": {"type": "invalid_request_error", "message": words}}
            await connection.reply(error, "400 Bad Request")
        else:
            await connection.reply(MESSAGE)

    return answer
