"""Plays a user of ``client.responses`` of the openai Python SDK against a proxy; prints what it saw as JSON.

Run by tests/test_door_responses_sdks.py under several major versions: ``python responses_sdk.py BASE_URL``.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from typing import Any

import openai
from openai.types.responses import Response
from pydantic import BaseModel

TOOL = {
    "type": "function",
    "name": "add",
    "strict": True,
    "parameters": {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]},
}
NEWEST = int(openai.__version__.partition(".")[0]) >= 3


class Sum(BaseModel):
    """What ``text_format`` asks for."""

    total: int


def main(base_url: str) -> dict[str, Any]:
    client = openai.OpenAI(base_url=base_url, api_key="unused", max_retries=0)
    responses = client.responses
    saw: dict[str, Any] = {"version": openai.__version__}

    def legal(response: Any) -> Any:
        if NEWEST:  # older types do not know of all fields, and want others
            Response.model_validate(response.model_dump(), strict=False)
        return response

    answer = legal(responses.create(model="mana/test", input="hi"))
    saw["create"] = [answer.output_text, answer.model, answer.status, answer.usage.total_tokens]
    events = list(responses.create(model="mana/test", input="hi", stream=True))
    saw["events"] = [events[0].type, events[-1].type, [event.sequence_number for event in events]]
    with responses.stream(model="mana/test", input="hi") as stream:
        kinds = [event.type for event in stream]
        saw["stream"] = [legal(stream.get_final_response()).output_text, kinds[0], kinds[-1]]

    # the snapshots of the helper, from the first event to the last
    with responses.stream(model="mana/tools", input="hi", tools=[TOOL]) as stream:
        for _ in stream:
            pass
        final = legal(stream.get_final_response())
    saw["tools"] = [[item.type, item.name, json.loads(item.arguments)] for item in final.output]
    call = final.output[0]
    result = {"type": "function_call_output", "call_id": call.call_id, "output": "3"}
    saw["continued"] = responses.create(model="mana/test", input=[result], previous_response_id=final.id).output_text
    history = [{"role": "user", "content": "hi"}, *(item.model_dump() for item in final.output), result]
    saw["whole history"] = responses.create(model="mana/test", input=history, store=False).output_text

    saw["parse"] = responses.parse(model="mana/structured", input="hi", text_format=Sum).output_parsed.total
    with responses.stream(model="mana/structured", input="hi", text_format=Sum) as stream:
        saw["stream parse"] = stream.get_final_response().output_parsed.total

    saw["retrieve"] = responses.retrieve(answer.id).output_text
    items = list(responses.input_items.list(answer.id))
    saw["input items"] = [[item.role, item.content[0].text] for item in items]
    responses.delete(answer.id)

    def raised(do: Callable[[], object]) -> list[Any]:
        try:
            do()
        except openai.APIError as error:
            return [type(error).__name__, getattr(error, "status_code", None), error.code]
        return ["nothing", None, None]

    saw["gone"] = raised(lambda: responses.retrieve(answer.id))
    saw["unknown"] = raised(lambda: responses.create(model="mana/test", input="hi", previous_response_id=answer.id))
    saw["refused"] = raised(lambda: responses.create(model="mana/test", input=[{"type": "computer_call"}]))
    saw["broken"] = raised(lambda: list(responses.create(model="mana/broken", input="hi", stream=True)))
    return saw


if __name__ == "__main__":
    print(json.dumps(main(sys.argv[1])))
