"""Conversations that another target has begun, and servers that refuse what it left in them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tests.upstreams import Answer, Connection, Seen, status

AWAY = status("503 Service Unavailable", {"error": {"message": "away"}})
ANY_SIGNATURE = "skip_thought_signature_validator"
ENCODED = "c2tpcF90aG91Z2h0X3NpZ25hdHVyZV92YWxpZGF0b3I="
GO: dict[str, Any] = {"role": "user", "content": "go"}
SIGNED = {"google": {"thought_signature": "Zm9yZWlnbg=="}}


def strict(refuses: Callable[[Any], str], answer: Answer) -> Answer:
    """Answers 400 to what `refuses` has words for."""

    async def answered(connection: Connection, seen: Seen) -> None:
        if words := refuses(seen.json):
            await connection.reply({"error": {"message": words, "code": 400}}, "400 Bad Request")
        else:
            await answer(connection, seen)

    return answered


def called(**more: Any) -> dict[str, Any]:
    """A call, as our own answers have it."""
    return {"id": "c1", "type": "function", "function": {"name": "f", "arguments": '{"a":1.0}'}, **more}


HISTORY: list[dict[str, Any]] = [
    GO,
    {"role": "assistant", "content": None, "reasoning_content": "Hm.", "tool_calls": [called(extra_content=SIGNED)]},
    {"role": "tool", "tool_call_id": "c1", "content": "3"},
]
PLAIN = [GO, {"role": "assistant", "content": None, "tool_calls": [called()]}, HISTORY[2]]
THOUGHT = {"type": "thinking", "thinking": "Hm.", "signature": "Zm9yZWlnbg=="}
CALL = {"type": "tool_use", "id": "c1", "name": "f", "input": {"a": 1}}
RESULT = {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "c1", "content": "3"}]}
REDACTED = {"type": "redacted_thinking", "data": "Zm9yZWlnbg=="}
MESSAGE = {
    "id": "msg_1",
    "type": "message",
    "role": "assistant",
    "model": "m",
    "content": [{"type": "text", "text": "Hi"}],
}
RESPONSE = {"id": "resp_1", "object": "response", "status": "completed", "model": "m", "output": []}
LONG, ODD = "call_" + "x" * 60, "functions.Bash:0"
TOOL_TURNS = [
    GO,
    {"role": "assistant", "content": [{**CALL, "id": ODD}, {**CALL, "id": "toolu_1"}]},
    {
        "role": "user",
        "content": [{"type": "tool_result", "tool_use_id": id_, "content": "3"} for id_ in (ODD, "toolu_1")],
    },
]
