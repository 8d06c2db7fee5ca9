"""The SDKs of OpenAI and Anthropic on providers that speak their API: relayed, an answer is theirs as before."""

from __future__ import annotations

from pathlib import Path

from tests.native_servers import SIGNED, message_begin, message_words, speaks_messages, speaks_responses, words
from tests.native_servers import begin as response_begin
from tests.proxy import openai, proxy, settings
from tests.sdks import python
from tests.upstreams import Connection, Seen, each, upstream


async def server(connection: Connection, seen: Seen) -> None:
    """Both APIs; the model ``broken`` ends in mid answer."""
    asks_responses = seen.path.endswith("/responses")
    if seen.json["model"] == "broken":
        await connection.head()
        for frame in [*response_begin(), *words("Hel")] if asks_responses else [*message_begin(), *message_words()]:
            await connection.chunk(frame)
        connection.reset()
    else:
        await (speaks_responses if asks_responses else speaks_messages)(connection, seen)


async def test_sdks_on_a_native_provider(tmp_path: Path) -> None:
    """Whole and streamed, continued, counted; and a break is an error for both."""
    saw = {}
    async with upstream(each(server)) as up:
        async with proxy(settings({"p": openai(up.url, speaks=["chat", "responses", "messages"])}), tmp_path) as p:
            for name, folder in (("openai", "openai-newest"), ("anthropic", "anthropic")):
                saw[name] = await python(folder, "native_sdks.py", name, p.url)
    assert saw["openai"] == {
        "create": ["Hello", "p/m", 12],
        "stream": ["Hello", "response.created", "response.completed"],
        "continued": "Hello",
        "retrieved": "Hello",
        "broken": "APIError",
    }
    assert saw["anthropic"] == {
        "create": ["Hello", "p/m", 5],
        "stream": ["Hello", "p/m", "end_turn", 9, SIGNED],
        "tokens": 42,
        "broken": "APIStatusError",
    }
