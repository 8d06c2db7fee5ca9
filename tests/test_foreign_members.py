"""What OpenAI's and Gemini's answers have beside their text, sent back to servers that do not know it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from manallm_proxy.providers.mending.history import EXTRAS, refused_members
from tests.histories import AWAY, GO, PLAIN, strict
from tests.proxy import openai, proxy, settings
from tests.upstreams import answers, each, upstream
from tests.waiting import until

EMPTY: dict[str, Any] = {"refusal": None, "annotations": [], "audio": None, "function_call": None}
"""As OpenAI's SDKs send an answer back that was appended to the messages."""
KNOWN = {"role", "content", "tool_calls", "tool_call_id"}
IMAGE = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AA=="}}
OLD: dict[str, Any] = {"name": "f", "arguments": "{}"}


def groq(asked: Any) -> str:
    """One member at a time."""
    odd = [(n, key) for n, message in enumerate(asked["messages"]) for key in message if key not in KNOWN]
    return (
        f"'messages.{odd[0][0]}' : for 'role:assistant' the following must be satisfied"
        f"[('messages.{odd[0][0]}' : property '{odd[0][1]}' is unsupported, did you mean 'role'?)]"
        if odd
        else ""
    )


def google(asked: Any) -> str:
    """It does not say where (mcp-agent issue 121, copilot-sdk issue 2061)."""
    has_null = any(message.get("refusal", "") is None for message in asked["messages"])
    return "Value is not a string: null" if has_null else ""


@pytest.mark.parametrize("refuses", [groq, google])
@pytest.mark.parametrize("stream", [True, False])
async def test_members_of_another_targets_answer(refuses: Callable[[Any], str], stream: bool, tmp_path: Path) -> None:
    """The first target went away, and what it had said was refused by the second from then on."""
    said: dict[str, Any] = {"role": "assistant", "content": "Hi"}
    history = [*PLAIN[:1], {**PLAIN[1], **EMPTY}, PLAIN[2], {**said, **EMPTY, "images": []}, GO]
    async with upstream(each(AWAY)) as first, upstream(each(strict(refuses, answers))) as second:
        async with proxy(settings({"a": openai(first.url), "b": openai(second.url)}), tmp_path) as p:
            for expected in (2, 3, 4):  # from then on it is known
                history[-2]["images"] = [IMAGE] if expected == 4 else []
                asked = {"model": "mana/test", "messages": history, "stream": stream}
                async with p.client.post(p.url + "/v1/chat/completions", json=asked) as response:
                    assert (response.status, b"Hel" in await response.read()) == (200, True)
                assert len(second.posts) == expected
                assert second.posts[-1].json["messages"] == [*PLAIN, said, GO]
            await until(lambda: "history: members of other answers left out" in p.log.getvalue())


async def test_what_was_refused_is_still_said(tmp_path: Path) -> None:
    """Words stay, and so does a call in the old form: that only its server can judge."""
    history: list[Any] = [
        GO,
        {"role": "assistant", "content": None, "refusal": "No."},
        GO,
        {"role": "assistant", "content": "Hm.", "refusal": "No."},
        {"role": "user", "content": "go", "name": "x"},
    ]
    sent = [GO, {"role": "assistant", "content": "No."}, GO, {"role": "assistant", "content": "Hm."}, history[4]]

    def refuses(asked: Any) -> str:
        return groq({"messages": [message for message in asked["messages"] if message["role"] == "assistant"]})

    async with upstream(each(strict(refuses, answers))) as up, proxy(settings({"p": openai(up.url)}), tmp_path) as p:
        assert (await p.chat(model="p/m", messages=history))[0] == 200
        assert up.posts[-1].json["messages"] == sent
        old = {"role": "assistant", "content": None, "function_call": OLD}
        assert (await p.chat(model="p/m", messages=[GO, old, GO]))[0] == 400
        assert up.posts[-1].json["messages"][1] == old


@pytest.mark.parametrize("member", [*EMPTY, "images"])
def test_how_it_is_refused(member: str) -> None:
    for words in (
        f"property '{member}' is unsupported",
        f'[{{"type": "extra_forbidden", "loc": ["body", "messages", 1, "assistant", "{member}"]}}]',
        f"Extra inputs are not permitted, field: 'messages[1].{member}'",
    ):
        assert refused_members(words.encode()) == {EXTRAS}
    for words in (f"{member} are not supported by this model", f"'{member}' is missing"):
        assert not refused_members(words.encode())
