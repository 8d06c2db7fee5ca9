"""Plays a user of ollama-python against a proxy; prints what it saw as one line of JSON.

Run by tests/test_door_ollama_sdks.py: ``python ollama_python.py BASE_URL``.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from typing import Any

import ollama

HI = [{"role": "user", "content": "hi"}]


def add(a: int) -> int:
    """Adds.

    Args:
        a: what to
    """
    return a


def main(base_url: str) -> dict[str, Any]:
    client = ollama.Client(host=base_url)
    saw: dict[str, Any] = {}

    answer = client.chat(model="mana/test", messages=HI)
    saw["chat"] = [answer.message.content, answer.done_reason, answer.prompt_eval_count, answer.eval_count]
    chunks = list(client.chat(model="mana/test:latest", messages=HI, stream=True, options={"num_predict": 9}))
    saw["stream"] = "".join(chunk.message.content or "" for chunk in chunks)
    saw["done"] = [chunk.done for chunk in chunks][-1]
    saw["generate"] = client.generate(model="mana/test", prompt="hi").response
    saw["generate stream"] = "".join(
        chunk.response or "" for chunk in client.generate(model="mana/test", prompt="hi", stream=True)
    )
    saw["load"] = client.generate(model="mana/test").done_reason

    first = client.chat(model="mana/tools", messages=HI, tools=[add], stream=True)
    calls = [call for chunk in first for call in chunk.message.tool_calls or ()]
    saw["tools"] = [[call.function.name, dict(call.function.arguments)] for call in calls]
    turns = [
        *HI,
        ollama.Message(role="assistant", tool_calls=calls),
        {"role": "tool", "tool_name": calls[0].function.name, "content": "2"},
    ]
    saw["tool result"] = client.chat(model="mana/test", messages=turns, tools=[add]).message.content
    structured = client.chat(model="mana/structured", messages=HI, format={"type": "object"}, think=False)
    saw["structured"] = json.loads(structured.message.content or "")

    saw["embed"] = [list(row) for row in client.embed(model="mana/embed", input=["a", "b"]).embeddings]
    saw["embeddings"] = list(client.embeddings(model="mana/embed", prompt="a").embedding)
    listed = client.list().models
    saw["list"] = [row.model for row in listed]
    saw["digest"] = [len(row.digest or "") for row in listed]
    shown = client.show("mana/test")
    saw["show"] = [shown.capabilities, shown.details.family if shown.details else None]
    saw["ps"] = len(client.ps().models)

    def raised(do: Callable[[], object]) -> list[Any]:
        try:
            do()
        except ollama.ResponseError as error:
            return [type(error).__name__, error.status_code, error.error]
        return ["nothing", None, ""]

    for name in ("400", "404", "429", "500"):
        saw[f"error {name}"] = raised(lambda name=name: client.chat(model=f"status/{name}", messages=HI))
    saw["error alias"] = raised(lambda: client.chat(model="mana/nosuch", messages=HI))
    saw["broken"] = raised(lambda: list(client.chat(model="mana/broken", messages=HI, stream=True)))
    saw["pull"] = raised(lambda: client.pull("x"))
    saw["delete"] = raised(lambda: client.delete("x"))
    return saw


if __name__ == "__main__":
    print(json.dumps(main(sys.argv[1])))
