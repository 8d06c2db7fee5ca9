"""Plays a user of an SDK whose API the provider behind the proxy speaks itself; prints what it saw as JSON.

Run by tests/test_native_sdks.py: ``python native_sdks.py openai|anthropic BASE_URL``.
"""

from __future__ import annotations

import importlib
import json
import sys
from typing import Any


def responses(base_url: str) -> dict[str, Any]:
    openai: Any = importlib.import_module("openai")
    client = openai.OpenAI(base_url=f"{base_url}/v1", api_key="unused", max_retries=0)
    asked = {"model": "mana/test", "input": "hi"}
    answer = client.responses.create(**asked)
    saw: dict[str, Any] = {"create": [answer.output_text, answer.model, answer.usage.total_tokens]}
    with client.responses.stream(**asked) as stream:
        kinds = [event.type for event in stream]
        final = stream.get_final_response()
    saw["stream"] = [final.output_text, kinds[0], kinds[-1]]
    saw["continued"] = client.responses.create(**asked, previous_response_id=final.id).output_text
    saw["retrieved"] = client.responses.retrieve(final.id).output_text
    try:
        list(client.responses.create(model="p/broken", input="hi", stream=True))
    except openai.APIError as error:
        saw["broken"] = type(error).__name__
    return saw


def messages(base_url: str) -> dict[str, Any]:
    anthropic: Any = importlib.import_module("anthropic")
    client = anthropic.Anthropic(base_url=base_url, api_key="unused", max_retries=0)
    asked: dict[str, Any] = {"model": "mana/test", "max_tokens": 9, "messages": [{"role": "user", "content": "hi"}]}
    answer = client.messages.create(**asked)
    saw: dict[str, Any] = {"create": [answer.content[1].text, answer.model, answer.usage.output_tokens]}
    with client.messages.stream(**asked) as stream:
        text = "".join(stream.text_stream)
        final = stream.get_final_message()
    saw["stream"] = [text, final.model, final.stop_reason, final.usage.output_tokens, final.content[0].signature]
    asked.pop("max_tokens")
    saw["tokens"] = client.messages.count_tokens(**asked).input_tokens
    try:
        list(client.messages.create(**{**asked, "model": "p/broken"}, max_tokens=9, stream=True))
    except anthropic.APIError as error:
        saw["broken"] = type(error).__name__
    return saw


if __name__ == "__main__":
    print(json.dumps({"openai": responses, "anthropic": messages}[sys.argv[1]](sys.argv[2])))
