"""Plays a user of the anthropic Python SDK against a proxy; prints what it saw as one line of JSON.

Run by tests/test_door_messages_sdks.py: ``python anthropic_python.py BASE_URL KEY``.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from functools import partial
from typing import Any

import anthropic
import pydantic
from anthropic import beta_tool

HI: Any = [{"role": "user", "content": "hi"}]
TOOL: Any = {"name": "add", "input_schema": {"type": "object", "properties": {}}}


class Verdict(pydantic.BaseModel):
    ok: bool


@beta_tool
def add(a: int, b: int) -> str:
    """Adds two numbers."""
    return str(a + b)


def main(base_url: str, key: str) -> dict[str, Any]:
    client = anthropic.Anthropic(base_url=base_url, api_key=key, max_retries=0)
    create = partial(client.messages.create, max_tokens=100, messages=HI)
    saw: dict[str, Any] = {"version": anthropic.__version__}

    answer = create(model="mana/test")
    saw["message"] = [answer.content[0].text, answer.model, answer.stop_reason, answer.usage.output_tokens]
    saw["request_id"] = bool(answer._request_id)

    events = list(create(model="mana/test", stream=True))
    saw["events"] = [event.type for event in events if event.type != "content_block_delta"]
    with client.messages.stream(model="mana/test", max_tokens=100, messages=HI) as stream:
        saw["helper"] = "".join(stream.text_stream)
        final = stream.get_final_message()
    saw["final"] = [final.content[0].text, final.stop_reason, final.usage.input_tokens, final.usage.output_tokens]

    with client.messages.stream(model="mana/tools", max_tokens=100, messages=HI, tools=[TOOL]) as stream:
        blocks = stream.get_final_message().content
    saw["blocks"] = [block.type for block in blocks]
    saw["tools"] = [[block.name, block.input] for block in blocks if block.type == "tool_use"]

    runner = client.beta.messages.tool_runner(model="mana/tools", max_tokens=100, messages=HI, tools=[add])
    saw["runner"] = runner.until_done().content[-1].text
    streaming = client.beta.messages.tool_runner(
        model="mana/tools", max_tokens=100, messages=HI, tools=[add], stream=True
    )
    for each in streaming:
        for _ in each:
            pass
        last = each.get_final_message()
    saw["streaming runner"] = last.content[-1].text

    parsed = client.messages.parse(model="mana/structured", max_tokens=100, messages=HI, output_format=Verdict)
    saw["structured"] = parsed.parsed_output.model_dump()
    saw["tokens"] = client.messages.count_tokens(model="mana/test", messages=HI).input_tokens
    saw["models"] = next([m.id, m.display_name, m.created_at.year] for m in client.models.list())
    saw["model"] = client.models.retrieve("mana/test").id
    raw = client.messages.with_raw_response.create(model="mana/test", max_tokens=100, messages=HI)
    saw["resolved"] = raw.headers["x-mana-llm-resolved"]

    def raised(do: Callable[[], object]) -> list[Any]:
        try:
            do()
        except anthropic.APIError as error:
            return [type(error).__name__, getattr(error, "status_code", None), getattr(error, "type", None)]
        return ["nothing", None, None]

    for status in ("400", "404", "413", "401", "429"):
        saw[f"error {status}"] = raised(partial(create, model=f"status/{status}"))
    saw["error alias"] = raised(partial(create, model="mana/nosuch"))
    saw["error key"] = raised(
        partial(client.with_options(api_key="wrong").messages.create, model="mana/test", max_tokens=1, messages=HI)
    )
    saw["error thread"] = raised(partial(create, model="mana/test", extra_body={"thread": {"type": "create"}}))
    saw["broken"] = raised(lambda: list(create(model="mana/broken", stream=True)))

    def to_the_end() -> None:
        with client.messages.stream(model="mana/broken", max_tokens=100, messages=HI) as broken:
            broken.get_final_message()

    saw["broken helper"] = raised(to_the_end)
    return saw


if __name__ == "__main__":
    print(json.dumps(main(sys.argv[1], sys.argv[2])))
