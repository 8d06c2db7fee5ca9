"""What Ollama's clients need of an answer, and a stream of it read as they read it."""

from __future__ import annotations

import json
from typing import Any

COUNTERS = {"total_duration", "load_duration", "prompt_eval_count", "prompt_eval_duration", "eval_count"}


def legal(line: dict[str, Any], *, part: str) -> None:
    """An object of a stream, or a whole answer: what clients fail without."""
    assert isinstance(line["model"], str) and line["model"]
    assert line["created_at"].endswith("Z")
    assert isinstance(line["done"], bool)
    if part == "message":
        assert line["message"]["role"] == "assistant" and isinstance(line["message"]["content"], str)
        for call in line["message"].get("tool_calls", ()):
            assert isinstance(call["function"]["name"], str) and isinstance(call["function"]["arguments"], dict)
    else:
        assert isinstance(line["response"], str)
    if line["done"] and line["done_reason"] not in ("load", "unload"):
        assert line["done_reason"] in ("stop", "length")
        assert all(isinstance(line[name], int) and line[name] >= 0 for name in COUNTERS)
        assert line["eval_duration"] > 0


def lines_of(body: bytes, part: str = "message") -> list[dict[str, Any]]:
    """The objects of a stream that ended well. httpx splits lines as `str.splitlines` does."""
    text = body.decode()
    rows = [json.loads(line) for line in text.splitlines()]
    assert text.endswith("\n") and len(rows) == text.count("\n")
    for row in rows:
        legal(row, part=part)
    assert [row["done"] for row in rows] == [False] * (len(rows) - 1) + [True]
    return rows
