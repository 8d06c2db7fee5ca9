"""An image for a model that reads none, in the words of several servers."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.proxy import openai, proxy, settings
from tests.upstreams import Connection, Seen, answers, each, upstream

SEEN = {
    "role": "user",
    "content": [{"type": "image_url", "image_url": {"url": "data:image/png;base64,iVBORw0KGgo="}}],
}


@pytest.mark.parametrize(
    ("status", "words"),
    [
        (
            400,
            "Failed to deserialize the JSON: messages[0]: unknown variant `image_url`, expected `text` at line 1",
        ),
        (422, "messages[0].content: unknown variant `image`, expected one of `text`, `tool_use`, `tool_result`"),
        (400, "Invalid content type. image_url is only supported by certain models."),
        (404, "No endpoints found that support image input"),
        (400, "m is not a multimodal model"),
        (400, "At most 0 image(s) may be provided in one prompt."),
        (400, "Image input is not enabled for this model"),
    ],
)
async def test_it_is_a_capability(status: int, words: str, tmp_path: Path) -> None:
    """To the caller as such; an entry with ``fallback_on: [capability]`` moves on to a model that can see."""

    async def blind(connection: Connection, seen: Seen) -> None:
        await connection.reply({"error": {"message": words, "type": "invalid_request_error"}}, f"{status} No")

    async with upstream(each(blind)) as a, upstream(each(answers)) as b:
        providers = {"a": openai(a.url), "b": openai(b.url)}
        for entry, wanted in (({"target": "a/m", "fallback_on": ["capability"]}, 200), ("a/m", 400)):
            async with proxy(settings(providers, [entry, "b/m"]), tmp_path) as p:
                code, body, _ = await p.chat(messages=[SEEN])
                assert code == wanted
                if code == 400:
                    assert (body["error"]["code"], body["error"]["message"]) == ("unsupported_capability", words)
        assert len(b.posts) == 1
