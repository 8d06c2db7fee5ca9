"""Request bodies as coding agents send them with every turn. The same ones in every run."""

from __future__ import annotations

import base64
import random
from typing import Any

SENTENCE = "What is the answer to the question? "
Fields = dict[str, Any]


def prompt(size: int) -> str:
    """So many characters of text."""
    return (SENTENCE * (size // len(SENTENCE) + 1))[:size]


def conversation(system: str) -> Fields:
    """Some 20 KB of many small strings: a dozen tools with their schemas, and forty turns with calls and results."""
    messages: list[Fields] = [{"role": "system", "content": system}]
    for n in range(20):
        function = {
            "name": f"tool_{n % 12}",
            "arguments": f'{{"path": "src/file_{n}.py", "line": {n}, "text": "a\\nb"}}',
        }
        called = {"id": f"c{n}", "type": "function", "function": function}
        messages += [
            {"role": "user", "content": f"And file {n}? " + SENTENCE},
            {"role": "assistant", "content": None, "tool_calls": [called]},
            {"role": "tool", "tool_call_id": f"c{n}", "content": f"line {n}: " + SENTENCE * 3},
            {"role": "assistant", "content": "It says \"yes\".\nAnd then \"no\"."},
        ]  # fmt: skip
    return {"messages": [*messages, {"role": "user", "content": SENTENCE}], "tools": [tool(n) for n in range(12)]}


def tool(n: int) -> Fields:
    text = {"type": "string", "description": "Where it is, below the folder of the project."}
    number = {"type": "integer", "minimum": 0, "description": "Counted from 1."}
    kind = {"type": "string", "enum": ["read", "write", "append"]}
    properties = {"path": text, "line": number, "kind": kind, "text": {**text, "description": "What is there."}}
    schema = {"type": "object", "properties": properties, "required": ["path"], "additionalProperties": False}
    words = f"Tool {n}. " + SENTENCE * 3
    return {"type": "function", "function": {"name": f"tool_{n}", "description": words, "parameters": schema}}


def picture(size: int) -> list[Fields]:
    """A user's message: a question and a picture, in all of some `size` bytes."""
    data = base64.b64encode(random.Random(1).randbytes(size * 3 // 4)).decode()
    url = f"data:image/png;base64,{data}"
    return [{"type": "text", "text": "What is this?"}, {"type": "image_url", "image_url": {"url": url}}]
