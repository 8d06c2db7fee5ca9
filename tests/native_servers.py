"""Providers that speak Responses or Messages themselves, as OpenAI and Anthropic write them."""

from __future__ import annotations

import json
from typing import Any

from tests.upstreams import Connection, Seen

ENCRYPTED = "gAAAA-of-its-own"
SIGNED = "EqQB-of-its-own"


def event(kind: str, **fields: Any) -> bytes:
    return f"event: {kind}\ndata: {json.dumps({'type': kind, **fields}, separators=(',', ':'))}\n\n".encode()


def response_object(status: str = "completed", output: list[Any] | None = None, **more: Any) -> dict[str, Any]:
    """A response as OpenAI's server tells it, to a request with ``store: false``."""
    usage = {
        "input_tokens": 7,
        "input_tokens_details": {"cached_tokens": 3, "cache_write_tokens": 0},
        "output_tokens": 5,
        "output_tokens_details": {"reasoning_tokens": 2},
        "total_tokens": 12,
    }
    return {
        "id": "resp_67ccd3acc8d48190a77525dc6de64b4104becb25c45c1d42",
        "object": "response",
        "created_at": 1741476542,
        "status": status,
        "background": False,
        "error": None,
        "incomplete_details": {"reason": "max_output_tokens"} if status == "incomplete" else None,
        "instructions": None,
        "max_output_tokens": None,
        "metadata": {},
        "model": "m-2026-01-01",
        "output": output or [],
        "parallel_tool_calls": True,
        "previous_response_id": None,
        "reasoning": {"effort": None, "summary": None},
        "store": False,
        "temperature": 1.0,
        "text": {"format": {"type": "text"}},
        "tool_choice": "auto",
        "tools": [],
        "top_p": 1.0,
        "truncation": "disabled",
        "usage": usage if status in ("completed", "incomplete") else None,
        "user": None,
        **more,
    }


def thought(*, sealed: bool = True) -> dict[str, Any]:
    item: dict[str, Any] = {"id": "rs_1", "type": "reasoning", "summary": []}
    return item | ({"encrypted_content": ENCRYPTED} if sealed else {})


def said(text: str = "Hello") -> dict[str, Any]:
    part = {"type": "output_text", "text": text, "annotations": [], "logprobs": []}
    return {"id": "msg_1", "type": "message", "status": "completed", "role": "assistant", "content": [part]}


def begin() -> list[bytes]:
    """What comes before a word is said."""
    empty = {**said(), "status": "in_progress", "content": []}
    told = response_object("in_progress")
    part = {"type": "output_text", "text": "", "annotations": [], "logprobs": []}
    return [
        event("response.created", sequence_number=0, response=told),
        event("response.in_progress", sequence_number=1, response=told),
        event("response.output_item.added", sequence_number=2, output_index=0, item=thought(sealed=False)),
        event("response.output_item.done", sequence_number=3, output_index=0, item=thought()),
        event("response.output_item.added", sequence_number=4, output_index=1, item=empty),
        event(
            "response.content_part.added",
            sequence_number=5,
            item_id="msg_1",
            output_index=1,
            content_index=0,
            part=part,
        ),
    ]


def words(*texts: str, start: int = 6) -> list[bytes]:
    at = {"item_id": "msg_1", "output_index": 1, "content_index": 0}
    kind = "response.output_text.delta"
    return [event(kind, sequence_number=start + n, **at, delta=t, logprobs=[]) for n, t in enumerate(texts)]


def finish(text: str = "Hello", status: str = "completed", start: int = 8) -> list[bytes]:
    at = {"item_id": "msg_1", "output_index": 1, "content_index": 0}
    whole = response_object(status, [thought(), said(text)])
    return [
        event("response.output_text.done", sequence_number=start, **at, text=text, logprobs=[]),
        event("response.content_part.done", sequence_number=start + 1, **at, part=said(text)["content"][0]),
        event("response.output_item.done", sequence_number=start + 2, output_index=1, item=said(text)),
        event(f"response.{status}", sequence_number=start + 3, response=whole),
    ]


def responses_stream() -> list[bytes]:
    return [*begin(), *words("Hel", "lo"), *finish()]


async def speaks_responses(connection: Connection, seen: Seen) -> None:
    """A server that thinks and says Hello. It knows no chat."""
    if not seen.path.endswith("/responses"):
        await connection.reply({"error": {"message": "no such route"}}, "404 Not Found")
        return
    if not seen.json.get("stream"):
        await connection.reply(response_object(output=[thought(), said()]))
        return
    await connection.head()
    for frame in responses_stream():
        await connection.chunk(frame)
    await connection.end()


def message_object(content: list[Any] | None = None, **more: Any) -> dict[str, Any]:
    usage = {
        "input_tokens": 4,
        "cache_creation_input_tokens": 0,
        "cache_read_input_tokens": 3,
        "output_tokens": 5,
        "service_tier": "standard",
    }
    return {
        "id": "msg_01",
        "type": "message",
        "role": "assistant",
        "model": "m-2026-01-01",
        "content": content if content is not None else [],
        "stop_reason": "end_turn",
        "stop_sequence": None,
        "usage": usage,
        **more,
    }


def blocks() -> list[dict[str, Any]]:
    return [{"type": "thinking", "thinking": "Hm.", "signature": SIGNED}, {"type": "text", "text": "Hello"}]


def message_begin() -> list[bytes]:
    """What comes before a word is said."""
    start = message_object(stop_reason=None)
    empty = {"type": "thinking", "thinking": "", "signature": ""}
    return [
        event("message_start", message=start),
        event("ping"),
        event("content_block_start", index=0, content_block=empty),
    ]


def message_words() -> list[bytes]:
    def delta(index: int, **said_: Any) -> bytes:
        return event("content_block_delta", index=index, delta=said_)

    return [
        delta(0, type="thinking_delta", thinking="Hm."),
        delta(0, type="signature_delta", signature=SIGNED),
        event("content_block_stop", index=0),
        event("content_block_start", index=1, content_block={"type": "text", "text": ""}),
        delta(1, type="text_delta", text="Hel"),
        delta(1, type="text_delta", text="lo"),
    ]


def message_end(reason: str = "end_turn") -> list[bytes]:
    usage = {"input_tokens": 4, "cache_read_input_tokens": 3, "output_tokens": 9}
    return [
        event("content_block_stop", index=1),
        event("message_delta", delta={"stop_reason": reason, "stop_sequence": None}, usage=usage),
        event("message_stop"),
    ]


def messages_stream() -> list[bytes]:
    return [*message_begin(), *message_words(), *message_end()]


async def speaks_messages(connection: Connection, seen: Seen) -> None:
    """A server that thinks and says Hello, and counts. It knows no chat."""
    if seen.path.endswith("/messages/count_tokens"):
        await connection.reply({"input_tokens": 42})
        return
    if not seen.path.endswith("/messages"):
        await connection.reply(
            {"type": "error", "error": {"type": "not_found_error", "message": "no"}}, "404 Not Found"
        )
        return
    if not seen.json.get("stream"):
        await connection.reply(message_object(blocks()))
        return
    await connection.head()
    for frame in messages_stream():
        await connection.chunk(frame)
    await connection.end()
