"""Plays a user of the openai Python SDK against a proxy; prints what it saw as one line of JSON.

Run by tests/test_sdks.py under several major versions of the SDK: ``python python_sdk.py BASE_URL``.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from functools import partial
from typing import Any

import openai

HI = [{"role": "user", "content": "hi"}]
TOOL = {"type": "function", "function": {"name": "add", "parameters": {"type": "object", "properties": {}}}}


def main(base_url: str) -> dict[str, Any]:
    client = openai.OpenAI(base_url=base_url, api_key="unused", max_retries=0)
    saw: dict[str, Any] = {"version": openai.__version__}

    answer = client.chat.completions.create(model="mana/test", messages=HI)
    saw["chat"] = [answer.choices[0].message.content, answer.model]

    chunks = list(client.chat.completions.create(model="mana/test", messages=HI, stream=True))
    saw["stream"] = "".join(c.choices[0].delta.content or "" for c in chunks)
    saw["stream_has_choices"] = all(c.choices for c in chunks)
    with_usage = client.chat.completions.create(
        model="mana/test", messages=HI, stream=True, stream_options={"include_usage": True}
    )
    saw["usage"] = [c.usage.total_tokens for c in with_usage if c.usage]

    chats = getattr(client.chat.completions, "stream", None) or client.beta.chat.completions.stream
    with chats(model="mana/test", messages=HI) as stream:
        saw["helper"] = stream.get_final_completion().choices[0].message.content
    with chats(model="mana/tools", messages=HI, tools=[TOOL]) as stream:
        calls = stream.get_final_completion().choices[0].message.tool_calls
        saw["tools"] = [[c.function.name, json.loads(c.function.arguments)] for c in calls or []]

    shape = {"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "object"}}}
    structured = client.chat.completions.create(model="mana/structured", messages=HI, response_format=shape)
    saw["structured"] = json.loads(structured.choices[0].message.content or "")

    saw["embedding"] = client.embeddings.create(model="mana/embed", input=["a", "b"]).data[1].embedding
    saw["models"] = [m.id for m in client.models.list()]
    saw["model"] = client.models.retrieve("mana/test").id
    saw["completion"] = client.completions.create(model="mana/test", prompt="hi").choices[0].text
    with_headers = client.chat.completions.with_raw_response.create(model="mana/test", messages=HI)
    saw["resolved"] = with_headers.headers["x-mana-llm-resolved"]

    def raised(do: Callable[[], object]) -> list[Any]:
        try:
            do()
        except openai.APIError as error:
            return [type(error).__name__, getattr(error, "status_code", None), bool(error.message)]
        except Exception as error:  # older SDKs let httpx's out
            return [type(error).__name__, None, True]
        return ["nothing", None, False]

    for name in ("400", "404", "409", "422", "401", "429"):
        saw[f"error {name}"] = raised(partial(client.chat.completions.create, model=f"status/{name}", messages=HI))
    saw["error alias"] = raised(lambda: client.chat.completions.create(model="mana/nosuch", messages=HI))
    saw["broken"] = raised(lambda: list(client.chat.completions.create(model="mana/broken", messages=HI, stream=True)))
    return saw


if __name__ == "__main__":
    print(json.dumps(main(sys.argv[1])))
