"""A conversation goes on with another model, though that refuses what the first one signed or encrypted for itself.

So do Gemini, and providers that speak Messages or Responses: see `test_foreign_history.py` for chats.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.histories import (
    ANY_SIGNATURE,
    AWAY,
    CALL,
    ENCODED,
    GO,
    HISTORY,
    MESSAGE,
    PLAIN,
    REDACTED,
    RESPONSE,
    RESULT,
    THOUGHT,
    TOOL_TURNS,
    called,
    strict,
)
from tests.proxy import Proxy, openai, proxy, settings
from tests.servers import gemini_server
from tests.upstreams import Connection, Seen, answers, each, upstream
from tests.waiting import until


@pytest.mark.parametrize("model", ["gemini-3-other", "gemini-2.5-other", "other-latest"])
@pytest.mark.parametrize("door", ["chat", "messages", "responses"])
async def test_a_signature_that_another_gemini_wrote(door: str, model: str, tmp_path: Path) -> None:
    """ "Corrupted thought signature" ended a conversation that moved to another model or key (9router issue 4136)."""

    def refuses(asked: Any) -> str:
        parts = [part for content in asked["contents"] for part in content["parts"]]
        signed = [part.get("thoughtSignature") for part in parts if "functionCall" in part]
        return "" if set(signed) <= {ANY_SIGNATURE, None} else "Corrupted thought signature."

    async def calls(connection: Connection, seen: Seen) -> None:
        parts = [{"functionCall": {"name": n, "args": {}}, "thoughtSignature": "Zm9yZWlnbg=="} for n in "fg"]
        await connection.reply({"candidates": [{"content": {"parts": parts}, "finishReason": "STOP"}]})

    async def server(connection: Connection, seen: Seen) -> None:
        if "other" in seen.path:
            await strict(refuses, gemini_server)(connection, seen)
        else:
            await (AWAY if len(seen.json["contents"]) > 1 else calls)(connection, seen)

    async with upstream(each(server)) as up:
        providers = {"a": {"kind": "google", "api_key": "k", "base_url": up.url}}
        async with proxy(settings(providers, ["a/gemini-3-pro", f"a/{model}"]), tmp_path) as p:
            assert (await CONVERSATIONS[door](p))[0] == 200
            await until(lambda: "history: signatures replaced" in p.log.getvalue())
    sent = [part for content in up.posts[-1].json["contents"] for part in content["parts"] if "functionCall" in part]
    assert [part.get("thoughtSignature") for part in sent] == [ANY_SIGNATURE, None]
    assert len(up.posts) == 4  # a call; its result to one that is away, and twice to the other one


@pytest.mark.parametrize("history", [HISTORY, PLAIN])
@pytest.mark.parametrize("known", [ENCODED, "none at all"])
async def test_what_stands_in_for_a_signature_has_two_forms(history: list[Any], known: str, tmp_path: Path) -> None:
    """Google's documentation and clients have a plain word, LiteLLM that word in base64. No third one is tried."""

    def refuses(asked: Any) -> str:
        signed = [part.get("thoughtSignature") for content in asked["contents"] for part in content["parts"]]
        return "" if known in signed else "Unable to submit request because Thought signature is not valid."

    async with upstream(each(strict(refuses, gemini_server))) as up:
        providers = {"p": {"kind": "google", "api_key": "k", "base_url": up.url}}
        async with proxy(settings(providers), tmp_path) as p:
            code, _, _ = await p.chat(model="p/gemini-3-pro", messages=history)
    sent = [post.json["contents"][1]["parts"][0]["thoughtSignature"] for post in up.posts]
    assert sent == [*(["Zm9yZWlnbg=="] if history is HISTORY else []), ANY_SIGNATURE, ENCODED]
    assert code == (200 if known == ENCODED else 400)


@pytest.mark.parametrize("history", [HISTORY, PLAIN])
async def test_a_signature_for_geminis_chats(history: list[Any], tmp_path: Path) -> None:
    """Of its own endpoint for these, which wants one of each turn's first call, wherever that came from."""
    stand_in = {"google": {"thought_signature": ANY_SIGNATURE}}
    later = [GO, {"role": "assistant", "content": "Hi", "reasoning_details": [{"type": "reasoning.encrypted"}]}, GO]

    def refuses(asked: Any) -> str:
        for call in asked["messages"][1]["tool_calls"]:
            if "extra_content" not in call:
                return "Function call is missing a thought_signature in functionCall parts."
            return "" if call["extra_content"] == stand_in else "Corrupted thought signature."
        return ""

    async with upstream(each(strict(refuses, answers))) as up, proxy(settings({"p": openai(up.url)}), tmp_path) as p:
        assert (await p.chat(model="p/gemini-3-pro", messages=[*history, *later]))[0] == 200
        said = {**PLAIN[1], "tool_calls": [called(extra_content=stand_in)]}
        assert up.posts[-1].json["messages"] == [GO, said, PLAIN[2], GO, {"role": "assistant", "content": "Hi"}, GO]
        assert (await p.chat(model="p/gemini-3-pro", messages=[GO, said, PLAIN[2]]))[0] == 200
        assert len(up.posts) == 3


@pytest.mark.parametrize("stream", [True, False])
async def test_thinking_that_another_model_signed(stream: bool, tmp_path: Path) -> None:
    """ "Invalid `signature` in `thinking` block" (llxprt-code issue 2335): so it is with models of one account, too."""

    def refuses(asked: Any) -> str:
        for n, turn in enumerate(asked["messages"]):
            for m, block in enumerate(turn["content"] if turn["role"] == "assistant" else ()):
                if block["type"] in ("thinking", "redacted_thinking"):
                    return f"messages.{n}.content.{m}: Invalid `signature` in `thinking` block"
        is_call = asked["messages"][-2]["content"] == [CALL]
        return "Expected `thinking`" if is_call and asked["thinking"]["type"] != "disabled" else ""

    async def anthropic(connection: Connection, seen: Seen) -> None:
        if seen.json["stream"]:
            await connection.head()
            for event in ({"type": "message_start", "message": MESSAGE}, {"type": "message_stop"}):
                await connection.chunk(f"event: {event['type']}\ndata: {json.dumps(event)}\n\n".encode())
            await connection.end()
        else:
            await connection.reply(MESSAGE)

    calls = {"role": "assistant", "content": [THOUGHT, REDACTED, CALL]}
    said = {"role": "assistant", "content": [THOUGHT, {"type": "text", "text": "Hi"}]}
    silent = {"role": "assistant", "content": [THOUGHT]}
    thinking = {"type": "enabled", "budget_tokens": 2000}
    async with upstream(each(AWAY)) as first, upstream(each(strict(refuses, anthropic))) as second:
        providers = {name: openai(up.url, speaks=["messages"]) for name, up in (("a", first), ("b", second))}
        async with proxy(settings(providers), tmp_path) as p:
            for turns, left, kind in (
                ([GO, said, GO, calls, RESULT], [GO, {**said, "content": said["content"][1:]}, GO], "disabled"),
                ([GO, calls, RESULT, said, GO], [GO], "enabled"),
                ([GO, silent, GO], [GO, GO], "enabled"),
            ):
                asked = {"model": "mana/test", "max_tokens": 9000, "thinking": thinking, "stream": stream}
                before = len(second.posts)
                async with p.client.post(p.url + "/v1/messages", json={**asked, "messages": turns}) as response:
                    assert response.status == 200, await response.read()
                    await response.read()
                sent = second.posts[-1].json
                assert (len(second.posts), sent["thinking"]["type"]) == (before + 2, kind)
                assert sent["messages"][: len(left)] == left
                assert b"foreign" not in second.posts[-1].body and b"Zm9y" not in second.posts[-1].body


@pytest.mark.parametrize("thinking", [{"type": "enabled", "budget_tokens": 2000}, {"type": "disabled"}, None])
async def test_a_call_that_another_model_made_without_a_thought(thinking: Any, tmp_path: Path) -> None:
    """Anthropic's does not go on thinking after it."""
    words = (
        "messages.1.content.0.type: Expected `thinking` or `redacted_thinking`, but found `tool_use`. When `thinking` "
        "is enabled, a final `assistant` message must start with a thinking block."
    )

    async def anthropic(connection: Connection, seen: Seen) -> None:
        await connection.reply(MESSAGE)

    says = strict(lambda asked: words if asked["thinking"]["type"] == "enabled" else "", anthropic)
    always = strict(lambda asked: words, anthropic)
    async with upstream(each(says if thinking and thinking["type"] == "enabled" else always)) as up:
        async with proxy(settings({"p": openai(up.url, speaks=["messages"])}), tmp_path) as p:
            body = {"model": "p/m", "max_tokens": 9000, "messages": TOOL_TURNS, "stream": False}
            body |= {"thinking": thinking} if thinking else {}
            code, _, _ = await p.post("/v1/messages", body)
            is_mended = thinking is not None and thinking["type"] == "enabled"
            assert (code, len(up.posts)) == ((200, 2) if is_mended else (400, 1))
    assert not is_mended or up.posts[-1].json == {**body, "model": "m", "thinking": {"type": "disabled"}}


@pytest.mark.parametrize("stored", [True, False])
async def test_reasoning_that_another_account_encrypted(stored: bool, tmp_path: Path) -> None:
    """codex sends it with each turn, and stores nothing (codex issue 8100)."""
    mine = {"type": "reasoning", "id": "rs_1", "summary": [], "encrypted_content": "gAAA"}
    said = {"type": "function_call", "id": "fc_1", "call_id": "c1", "name": "f", "arguments": "\ufffd"}
    result = {"type": "function_call_output", "call_id": "c1", "output": "3"}

    def refuses(asked: Any) -> str:
        if any(item.get("encrypted_content") for item in asked["input"]):
            return "The encrypted content gAAA could not be verified."
        return ""

    async def answer(connection: Connection, seen: Seen) -> None:
        await connection.reply(RESPONSE)

    async with upstream(each(AWAY)) as first, upstream(each(strict(refuses, answer))) as second:
        providers = {name: openai(up.url, speaks=["responses"]) for name, up in (("a", first), ("b", second))}
        async with proxy(settings(providers), tmp_path) as p:
            asked = {"model": "mana/test", "store": stored, "include": ["reasoning.encrypted_content"]}
            turns = [GO, mine, {**said, "arguments": "\ud800"}, result]
            assert (await p.post("/v1/responses", {**asked, "input": turns}))[0] == 200
            await until(lambda: "history: reasoning left out" in p.log.getvalue())
    assert len(second.posts) == 2
    assert second.posts[-1].json == {**second.posts[0].json, "input": [GO, said, result]}


async def test_ids_that_anthropic_does_not_accept(tmp_path: Path) -> None:
    """Of Kimi's calls, for one (bifrost issue 5097)."""

    def refuses(asked: Any) -> str:
        ids = [block.get("id", block.get("tool_use_id")) for turn in asked["messages"][1:] for block in turn["content"]]
        odd = "." in "".join(ids)
        return "messages.1.content.0.tool_use.id: String should match pattern '^[a-zA-Z0-9_-]+$'" if odd else ""

    async def anthropic(connection: Connection, seen: Seen) -> None:
        await connection.reply(MESSAGE)

    async with upstream(each(strict(refuses, anthropic))) as up:
        async with proxy(settings({"p": openai(up.url, speaks=["messages"])}), tmp_path) as p:
            body = {"model": "p/m", "max_tokens": 9, "messages": TOOL_TURNS}
            assert (await p.post("/v1/messages", body))[0] == 200
    turns = up.posts[-1].json["messages"]
    calls = [block["id"] for block in turns[1]["content"]]
    assert calls == [block["tool_use_id"] for block in turns[2]["content"]] and len({*calls}) == 2
    assert len(up.posts) == 2


async def chat(p: Proxy) -> tuple[int, Any, dict[str, str]]:
    _, made, _ = await p.chat(messages=[GO])
    said = made["choices"][0]["message"]
    results = [{"role": "tool", "tool_call_id": call["id"], "content": "3"} for call in said["tool_calls"]]
    return await p.chat(messages=[GO, said, *results])


async def messages(p: Proxy) -> tuple[int, Any, dict[str, str]]:
    asked = {"model": "mana/test", "max_tokens": 9, "messages": [GO]}
    _, made, _ = await p.post("/v1/messages", asked)
    calls = [block for block in made["content"] if block["type"] == "tool_use"]
    results = [{"type": "tool_result", "tool_use_id": call["id"], "content": "3"} for call in calls]
    turns = [GO, {"role": "assistant", "content": made["content"]}, {"role": "user", "content": results}]
    return await p.post("/v1/messages", {**asked, "messages": turns})


async def responses(p: Proxy) -> tuple[int, Any, dict[str, str]]:
    asked = {"model": "mana/test", "store": False, "include": ["reasoning.encrypted_content"]}
    _, made, _ = await p.post("/v1/responses", {**asked, "input": [GO]})
    calls = [item for item in made["output"] if item["type"] == "function_call"]
    results = [{"type": "function_call_output", "call_id": call["call_id"], "output": "3"} for call in calls]
    return await p.post("/v1/responses", {**asked, "input": [GO, *made["output"], *results]})


CONVERSATIONS = {"chat": chat, "messages": messages, "responses": responses}
