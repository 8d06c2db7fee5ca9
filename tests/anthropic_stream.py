"""A strict client of Anthropic's streams: each rule that some SDK relies on, and the message that comes of it."""

from __future__ import annotations

import json
from typing import Any

from manallm_proxy.http_server.stream_writer import AFTER_LAST

ZERO = {"input_tokens": 0, "cache_creation_input_tokens": 0, "cache_read_input_tokens": 0, "output_tokens": 0}
ADDS = {
    "text_delta": ("text", "text", "text"),
    "thinking_delta": ("thinking", "thinking", "thinking"),
    "signature_delta": ("thinking", "signature", "signature"),
    "input_json_delta": ("tool_use", "partial_json", "input"),
}
"""Type of a delta: the block's type, what it adds, and to what."""


def events(body: bytes) -> list[dict[str, Any]]:
    """The events of a stream that ends with a whole one; each names its type twice."""
    body = body[: -len(AFTER_LAST)] if body.endswith(b"\n\n" + AFTER_LAST) else body
    assert body.endswith(b"\n\n")
    rows = []
    for frame in body[:-2].split(b"\n\n"):
        name, data = frame.split(b"\n")
        row = json.loads(data.removeprefix(b"data: "))
        assert name == b"event: " + row["type"].encode()
        rows.append(row)
    return rows


def types(body: bytes) -> list[str]:
    """What came, in order, without pings."""
    return [row["type"] for row in events(body) if row["type"] != "ping"]


def message(body: bytes) -> dict[str, Any]:
    """The message of a complete stream."""
    rows = [row for row in events(body) if row["type"] != "ping"]
    assert [row["type"] for row in rows[-2:]] == ["message_delta", "message_stop"]
    made = content(rows[:-2])
    delta = rows[-2]
    assert set(delta["delta"]) == {"stop_reason", "stop_sequence"}
    return {**made, **delta["delta"], "usage": delta["usage"]}


def content(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """The message of its start and its blocks, which do not interleave."""
    first, *rows = rows
    assert first["type"] == "message_start"
    made: dict[str, Any] = first["message"]
    assert (made["type"], made["role"], made["content"], made["usage"]) == ("message", "assistant", [], ZERO)
    assert (made["stop_reason"], made["stop_sequence"]) == (None, None)
    said: list[dict[str, Any]] = made["content"]
    is_open = False
    for row in rows:
        if row["type"] == "content_block_start":
            assert (is_open, row["index"]) == (False, len(said))
            said.append(dict(row["content_block"]))
            is_open, pieces = True, ""
            assert said[-1].get("text", "") == said[-1].get("thinking", "") == ""
            assert said[-1].get("input", {}) == {}
        elif row["type"] == "content_block_delta":
            assert (is_open, row["index"]) == (True, len(said) - 1)
            kind, adds, to = ADDS[row["delta"]["type"]]
            assert said[-1]["type"] == kind and row["delta"][adds]
            if kind == "tool_use":
                pieces += row["delta"][adds]
            else:
                said[-1][to] += row["delta"][adds]
        else:
            assert (row["type"], is_open, row["index"]) == ("content_block_stop", True, len(said) - 1)
            is_open = False
            if said[-1]["type"] == "tool_use" and pieces:
                said[-1]["input"] = json.loads(pieces)
    assert not is_open
    return made
