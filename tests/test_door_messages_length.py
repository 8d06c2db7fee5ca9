"""``max_tokens`` of Anthropic's clients, who have to name some number: no more than the target can give."""

from __future__ import annotations

import json
import threading
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from manallm_proxy.contract.door import Client
from manallm_proxy.contract.provider import Call, Endpoint, ModelInfo
from manallm_proxy.contract.targets import Entry, Target
from manallm_proxy.doors.messages.door import MessagesDoor
from manallm_proxy.openai.request import read_summary
from manallm_proxy.providers import http_provider
from manallm_proxy.providers.max_tokens import cut_to
from manallm_proxy.providers.openai.wire import OpenAIWire
from manallm_proxy.routing.catalog import Catalog
from manallm_proxy.routing.relay import for_target
from tests.native_servers import speaks_messages
from tests.proxy import Proxy, openai, proxy, settings
from tests.servers import gemini_server
from tests.upstreams import Connection, Seen, answers, each, upstream
from tests.waiting import until

USER = {"role": "user", "content": "hi"}


def lists(**row: Any) -> Any:
    """A server that says this of its model ``m``; it answers in both formats."""

    async def script(connection: Connection) -> None:
        while (seen := await connection.request()) is not None:
            if seen.method == "GET":
                await connection.reply({"object": "list", "data": [{"id": "m", **row}]})
            else:
                await (speaks_messages if "messages" in seen.path else answers)(connection, seen)

    return script


async def asked(p: Proxy, most: int, **body: Any) -> None:
    fields = {"model": "p/m", "max_tokens": most, "messages": [USER], "temperature": 0.5, **body}
    code, told, _ = await p.post("/v1/messages", fields)
    assert code == 200, told


def wanted_length(catalog: Catalog, call: Call, entry: Entry) -> Any:
    """The ``max_tokens`` that `entry`'s target gets."""
    call = for_target(catalog, call, entry)
    return json.loads(cut_to(call, call.most or 0).body)["max_tokens"]


@pytest.mark.parametrize("speaks", [["chat"], ["messages"]])
@pytest.mark.parametrize(
    ("row", "sent"),
    [
        ({}, 128_000),
        ({"max_completion_tokens": 8192, "context_window": 131_072}, 8192),
        ({"top_provider": {"max_completion_tokens": 8000, "context_length": 1}, "context_length": 200_000}, 8000),
        ({"max_tokens": 64_000, "max_input_tokens": 1_000_000}, 64_000),
        ({"max_model_len": 4096}, range(3900, 4096)),
        ({"max_model_len": 200_000}, 128_000),
        ({"max_completion_tokens": True, "context_length": "x", "top_provider": 3}, 128_000),
    ],
)
async def test_what_is_listed_is_the_most(row: dict[str, Any], sent: Any, speaks: list[str], tmp_path: Path) -> None:
    """Longest answer and window, in each server's words; the rest of the request is as it was."""
    async with upstream(lists(**row)) as up, proxy(settings({"p": openai(up.url, speaks=speaks)}), tmp_path) as p:
        await until(lambda: any(model.id == "m" for model in p.app.generation.catalog.models("p")))
        await asked(p, 128_000)
        got = up.posts[-1].json
        assert got["max_tokens"] in (sent if isinstance(sent, range) else [sent])
        assert (got["model"], got["temperature"]) == ("m", 0.5)
        cut = got["max_tokens"] != 128_000
        assert ("which the target cannot give" in p.log.getvalue()) is cut
        await asked(p, 100, messages=[{"role": "user", "content": "word " * 5000}])
        assert up.posts[-1].json["max_tokens"] == 100


async def test_a_prompt_that_fills_the_window_leaves_the_refusal_to_the_server(tmp_path: Path) -> None:
    """It knows the numbers: nobody gets an answer of one word."""
    async with upstream(lists(max_model_len=4096)) as up, proxy(settings({"p": openai(up.url)}), tmp_path) as p:
        await until(lambda: any(model.id == "m" for model in p.app.generation.catalog.models("p")))
        await asked(p, 4000, messages=[{"role": "user", "content": "word " * 5000}])
        assert up.posts[-1].json["max_tokens"] == 1024


async def test_a_window_that_an_entry_asks_for(tmp_path: Path) -> None:
    """Of an Ollama."""

    async def answer(connection: Connection, seen: Seen) -> None:
        await connection.reply({"message": {"content": "x"}, "done": True, "done_reason": "stop"})

    async with upstream(each(answer)) as up:
        provider = {"kind": "ollama", "base_url": up.url, "options": {"num_ctx": 2048}}
        async with proxy(settings({"p": provider}), tmp_path) as p:
            await asked(p, 128_000)
            assert 1900 < up.posts[-1].json["options"]["num_predict"] < 2048


def test_a_window_that_the_model_does_not_have() -> None:
    """Whatever the entry asks for, the server cuts it to what the model can read."""
    body = b'{"model":"x","max_tokens":100000,"messages":[]}'
    call = Call(Endpoint.CHAT, read_summary(body, ("messages", list)), body, "r", cuts_length=True)
    entry, catalog = Entry(Target("p", "m"), options={"num_ctx": 16_384}), Catalog()
    for listed, most in ((0, 16_384), (32_768, 16_384), (4096, 4096)):
        catalog.learn("p", [ModelInfo("m", context_length=listed)])
        assert most - 20 < wanted_length(catalog, call, entry) < most


REFUSALS = {
    "max_tokens is too large: 9000. This model supports at most 4096 completion tokens, whereas you gave 9000.": 4096,
    "'max_tokens' or 'max_completion_tokens' is too large: 9000. This model's maximum context length is 10000 tokens "
    "and your request has 1500 input tokens (9000 > 10000 - 1500). None": 8500,
    "Requested token count exceeds the model's maximum context length of 10000 tokens. You requested a total of 16000 "
    "tokens: 7000 tokens from the input messages and 9000 tokens for the completion.": 3000,
    "This model's maximum context length is 8192 tokens. However, you requested 9064 tokens (64 in the messages, 9000 "
    "in the completion). Please reduce the length of the messages or completion.": 8128,
    "max_tokens: 9000 > 8000, which is the maximum allowed number of output tokens for claude-x": 8000,
    "Invalid max_tokens value, the valid range of max_tokens is [1, 8192]": 8192,
    "`max_tokens` must be less than or equal to `8190`, the maximum value for `max_tokens` is less": 8190,
    "The parameter `max_completion_tokens` specified in the request are not valid: integer above maximum value, "
    "expected a value <= 8188, but got 9000 instead.": 8188,
    "max_tokens must be at least 1": None,
    "This model supports at most 99999 completion tokens": None,
    "messages[0] is wrong: at most 3": None,
}


@pytest.mark.parametrize("speaks", [["chat"], ["messages"]])
async def test_what_a_refusal_says_is_the_most(speaks: list[str], tmp_path: Path) -> None:
    """It is asked once more, with that; any other refusal is the client's to read, and so is one of a chat."""
    words = ""

    async def answer(connection: Connection, seen: Seen) -> None:
        if seen.json["max_tokens"] == 9000:
            await connection.reply({"error": {"message": words, "type": "invalid_request_error"}}, "400 Bad Request")
        else:
            await (speaks_messages if "messages" in seen.path else answers)(connection, seen)

    async with upstream(each(answer)) as up, proxy(settings({"p": openai(up.url, speaks=speaks)}), tmp_path) as p:
        for words, most in REFUSALS.items():
            before = len(up.posts)
            body = {"max_tokens": 9000, "messages": [USER]}
            code, told, _ = await p.post("/v1/messages", body)
            assert (code, len(up.posts) - before) == ((400, 1) if most is None else (200, 2)), (words, told)
            assert up.posts[-1].json["max_tokens"] == (most or 9000)
            if "chat" in speaks:
                before = len(up.posts)
                assert (await p.chat(max_tokens=9000))[0] == 400
                assert (len(up.posts) - before, json.loads(up.posts[-1].body)["max_tokens"]) == (1, 9000)


@pytest.mark.parametrize("stream", [True, False])
async def test_what_gemini_says_is_the_most(stream: bool, tmp_path: Path) -> None:
    """It is not asked for its list; what it calls the end of the range is not in it (bolt.diy issue 955)."""

    async def answer(connection: Connection, seen: Seen) -> None:
        asks = seen.json["generationConfig"]["maxOutputTokens"]
        if asks < 8193:
            await gemini_server(connection, seen)
            return
        words = (
            f"Unable to submit request because it has a maxOutputTokens value of {asks} but the supported range is "
            "from 1 (inclusive) to 8193 (exclusive). Update the value and try again."
        )
        error = {"code": 400, "message": words, "status": "INVALID_ARGUMENT"}
        await connection.reply({"error": error}, "400 Bad Request")

    async with upstream(each(answer)) as up:
        providers = {"p": {"kind": "google", "base_url": up.url, "api_key": "k"}}
        async with proxy(settings(providers), tmp_path) as p:
            body = {"max_tokens": 128_000, "messages": [USER], "stream": stream}
            async with p.client.post(p.url + "/v1/messages", json=body) as response:
                assert (response.status, b"Hel" in await response.read()) == (200, True)
            sent = [post.json["generationConfig"]["maxOutputTokens"] for post in up.posts]
            assert sent == [128_000, 8192]
            await until(lambda: "max_tokens: 8192 instead of 128000" in p.log.getvalue())
            assert (await p.chat(max_tokens=9000))[0] == 400, "a chat's is the client's to mend"
            assert len(up.posts) == 3


@pytest.mark.parametrize("speaks", [["chat"], ["messages"]])
async def test_what_was_cut_by_a_list_is_cut_again_by_a_refusal(speaks: list[str], tmp_path: Path) -> None:
    """A list knows the window, the refusal the longest answer."""
    refusal = {"message": "max_tokens: 8192 > 4096, which is the maximum allowed", "type": "invalid_request_error"}

    async def script(connection: Connection) -> None:
        while (seen := await connection.request()) is not None:
            if seen.method == "GET":
                await connection.reply({"object": "list", "data": [{"id": "m", "max_completion_tokens": 8192}]})
            elif seen.json["max_tokens"] > 4096:
                await connection.reply({"error": refusal}, "400 Bad Request")
            else:
                await (speaks_messages if "messages" in seen.path else answers)(connection, seen)

    async with upstream(script) as up, proxy(settings({"p": openai(up.url, speaks=speaks)}), tmp_path) as p:
        await asked(p, 128_000)
        assert [seen.json["max_tokens"] for seen in up.posts] == [8192, 4096]


NEWER, OLDER = "max_completion_tokens", "max_tokens"
UNKNOWN: dict[str, tuple[str, Any]] = {
    "OpenAI": (
        NEWER,
        {
            "message": "Unsupported parameter: 'max_tokens' is not supported with this model. "
            "Use 'max_completion_tokens' instead.",
            "type": "invalid_request_error",
            "param": "max_tokens",
            "code": "unsupported_parameter",
        },
    ),
    "Mistral": (OLDER, {"detail": [{"type": "extra_forbidden", "loc": ["body", NEWER], "msg": "Extra inputs"}]}),
}
DOORS: dict[str, dict[str, Any]] = {
    "/v1/messages": {"max_tokens": 9000, "messages": [USER]},
    "/v1/responses": {"max_output_tokens": 9000, "input": "hi"},
    "/api/chat": {"options": {"num_predict": 9000}, "messages": [USER]},
}


@pytest.mark.parametrize("server", UNKNOWN)
async def test_a_length_goes_under_the_name_that_a_server_knows(server: str, tmp_path: Path) -> None:
    """Each of these APIs has one name for it, a chat has two, and a model refuses either: it is asked once more, and
    from then on at once. In a chat the name is the client's own, and the refusal too."""
    wanted, refusal = UNKNOWN[server]

    async def answer(connection: Connection, seen: Seen) -> None:
        if wanted in seen.json:
            await answers(connection, seen)
        else:
            await connection.reply({"error": refusal}, "422 Unprocessable Entity")

    async with upstream(each(answer)) as up, proxy(settings({"p": openai(up.url)}), tmp_path) as p:
        for stream in (False, True):
            for path, body in DOORS.items():
                more = {"reasoning": {"effort": "low"}} if (path, wanted) == ("/v1/responses", OLDER) else {}
                async with p.client.post(p.url + path, json={**body, **more, "model": "p/m", "stream": stream}) as told:
                    assert told.status == 200, await told.text()
                sent = up.posts[-1].json
                assert sent[wanted] == 9000 and not {OLDER, NEWER} - {wanted} & sent.keys()
        other = NEWER if wanted == OLDER else OLDER
        assert sum(other in seen.json for seen in up.posts) == 1
        assert (await p.chat(model="p/m", **{other: 9000}))[0] == 422
        assert up.posts[-1].json[other] == 9000


@pytest.mark.parametrize("first", ["name", "length"])
async def test_a_length_whose_name_and_number_are_refused(first: str, tmp_path: Path) -> None:
    """Claude Code's to one of OpenAI's newer models: it was 400 for good, or three requests each time."""

    async def answer(connection: Connection, seen: Seen) -> None:
        length = max(seen.json.get(OLDER, 0), seen.json.get(NEWER, 0))
        told = {"name": UNKNOWN["OpenAI"][1]} if OLDER in seen.json else {}
        if length > 4096:
            words = f"max_tokens is too large: {length}. This model supports at most 4096 completion tokens"
            told["length"] = {"message": words}
        if told:
            await connection.reply({"error": told.get(first) or next(iter(told.values()))}, "400 Bad Request")
        else:
            await answers(connection, seen)

    async with upstream(each(answer)) as up, proxy(settings({"p": openai(up.url)}), tmp_path) as p:
        for posts in (3, 5):  # what a number may be is not learned
            body = {"model": "p/m", "max_tokens": 32_000, "messages": [USER]}
            assert (await p.post("/v1/messages", body))[0] == 200
            assert (len(up.posts), up.posts[-1].json[NEWER]) == (posts, 4096)


async def test_a_setting_that_chats_do_not_have(tmp_path: Path) -> None:
    """Anthropic's API and Ollama's have ``top_k``, and so have many servers, but not OpenAI's: the log notes it."""

    async def answer(connection: Connection, seen: Seen) -> None:
        if "top_k" in seen.json:
            words = "Unrecognized request argument supplied: top_k"
            await connection.reply({"error": {"message": words}}, "400 Bad Request")
        else:
            await answers(connection, seen)

    async with upstream(each(answer)) as up, proxy(settings({"p": openai(up.url)}), tmp_path) as p:
        for number, (path, body) in enumerate(
            [
                ("/v1/messages", {"max_tokens": 9, "messages": [USER], "top_k": 3}),
                ("/api/chat", {"messages": [USER], "options": {"top_k": 3}, "stream": False}),
            ]
        ):
            assert (await p.post(path, {**body, "model": "p/m"}))[0] == 200
            assert (len(up.posts), "top_k" in up.posts[-1].json) == (2 + number, False)
            assert p.log.getvalue().count("not sent on: top_k") == 1 + number
        assert (await p.chat(model="p/m", top_k=3))[0] == 400


EFFORTS = {
    "max": ("'reasoning_effort': supported values are: 'minimal', 'low', 'medium', and 'high'.", "high"),
    "xhigh": ("`reasoning_effort` must be one of `low`, `medium`, or `high`", "high"),
    "medium": ("'reasoning_effort' has allowed values: none, high", "high"),
    "low": ("'reasoning_effort': allowed values: none, medium", "medium"),
    "high": ("'reasoning_effort' has supported values: many", None),
}
NO_EFFORTS = {
    "Unsupported parameter: 'reasoning_effort' is not supported with this model.": "high",
    "Model x does not support parameter reasoningEffort.": "low",
    "property 'reasoning_effort' is unsupported, did you mean 'reasoning_format'?": "medium",
    "Unsupported value: 'reasoning_effort' does not support 'xhigh' with this model.": "xhigh",
}
"""By words of a refusal: the effort that was asked for."""
BESIDE = "Function tools with reasoning_effort are not supported for m in /v1/chat/completions."
TOOL = {"name": "add", "input_schema": {"type": "object"}}


async def test_the_nearest_effort_that_a_server_knows(tmp_path: Path) -> None:
    """Anthropic's clients know Anthropic's efforts. A refusal that lists none, or the one, is the client's to read."""
    words = ""

    async def answer(connection: Connection, seen: Seen) -> None:
        if seen.json.get("reasoning_effort") == asked_for:
            await connection.reply({"error": {"message": words}}, "400 Bad Request")
        else:
            await answers(connection, seen)

    async with upstream(each(answer)) as up, proxy(settings({"p": openai(up.url)}), tmp_path) as p:
        for asked_for, (refusal, sent) in EFFORTS.items():
            words = refusal
            up.seen.clear()
            body = {"max_tokens": 9, "messages": [USER], "output_config": {"effort": asked_for}, "temperature": 1}
            code, told, _ = await p.post("/v1/messages", body)
            assert (code, len(up.posts)) == ((400, 1) if sent is None else (200, 2)), told
            assert up.posts[-1].json["reasoning_effort"] == (sent or asked_for)
            assert (f"{sent} instead of {asked_for}" in p.log.getvalue()) is (sent is not None)
        for other in ("'reasoning_effort' is low: supported values are: 'high'", "'top_p' must be one of: low, max"):
            words = other
            assert (await p.post("/v1/messages", body))[0] == 400


async def test_a_model_without_efforts(tmp_path: Path) -> None:
    """Claude Code sends one with each request, whatever the model. That there is none to choose is learned."""
    words = ""

    async def answer(connection: Connection, seen: Seen) -> None:
        if "reasoning_effort" in seen.json:
            await connection.reply({"error": {"message": words}}, "400 Bad Request")
        else:
            await answers(connection, seen)

    async with upstream(each(answer)) as up:
        for refusal, effort in NO_EFFORTS.items():
            words = refusal
            async with proxy(settings({"p": openai(up.url)}), tmp_path) as p:
                body = {"max_tokens": 9, "messages": [USER], "output_config": {"effort": effort}, "temperature": 1}
                for number in (2, 3 if effort != "xhigh" else 4):
                    assert (await p.post("/v1/messages", body))[0] == 200
                    assert len(up.posts) == number
                    assert up.posts[-1].json["temperature"] == 1
                assert p.log.getvalue().count("not sent on: reasoning_effort") == 2
                assert (await p.chat(reasoning_effort=effort))[0] == 400
            up.seen.clear()


@pytest.mark.parametrize("rest", [" Please use /v1/responses instead.", " Or set reasoning_effort to 'none'."])
async def test_a_model_that_takes_no_tools_while_it_thinks(rest: str, tmp_path: Path) -> None:
    """OpenAI's newest in a chat, which think if nobody says otherwise. What a client says itself is its own."""

    async def answer(connection: Connection, seen: Seen) -> None:
        if seen.json.get("tools") and seen.json.get("reasoning_effort") != "none":
            error = {"message": BESIDE + rest, "param": "reasoning_effort", "type": "invalid_request_error"}
            await connection.reply({"error": error}, "400 Bad Request")
        else:
            await answers(connection, seen)

    async with upstream(each(answer)) as up, proxy(settings({"p": openai(up.url)}), tmp_path) as p:
        message = {"max_tokens": 9, "messages": [USER], "tools": [TOOL], "output_config": {"effort": "high"}}
        for number in (2, 3):
            assert (await p.post("/v1/messages", message))[0] == 200
            assert (len(up.posts), up.posts[-1].json["reasoning_effort"]) == (number, "none")
            assert p.log.getvalue().count("reasoning_effort: none") == number - 1
        chat = {"tools": [{"type": "function", "function": {"name": "add", "parameters": {"type": "object"}}}]}
        assert (await p.chat(**chat))[0] == 200
        assert (len(up.posts), up.posts[-1].json["reasoning_effort"]) == (4, "none")
        assert (await p.chat(**chat, reasoning_effort="low"))[0] == 400
        assert (await p.post("/api/chat", {**chat, "messages": [USER], "think": True, "stream": False}))[0] == 400
        assert [seen.json["reasoning_effort"] for seen in up.posts[4:]] == ["low", "medium"]
        await p.post("/v1/messages", {**message, "tools": []})
        assert up.posts[-1].json["reasoning_effort"] == "high"


async def test_a_server_names_one_field_at_a_time(tmp_path: Path) -> None:
    """One of OpenAI's models that thinks, asked not to, whose strict proxy does not know ``stream_options``."""
    first, effort = UNKNOWN["OpenAI"][1], {"message": "Unsupported value: 'reasoning_effort' does not support 'none'"}

    async def answer(connection: Connection, seen: Seen) -> None:
        odd = {OLDER: first, "reasoning_effort": effort, "stream_options": {"message": "unknown field: stream_options"}}
        error = next((error for key, error in odd.items() if key in seen.json), None)
        if error is None:
            await answers(connection, seen)
        else:
            await connection.reply({"error": error}, "400 Bad Request")

    async with upstream(each(answer)) as up, proxy(settings({"p": openai(up.url)}), tmp_path) as p:
        body = {"model": "p/m", "max_tokens": 9, "messages": [USER], "thinking": {"type": "disabled"}, "stream": True}
        for posts in (4, 6):  # what a value may be is not learned
            async with p.client.post(p.url + "/v1/messages", json={**body, "temperature": 0.5}) as told:
                assert (told.status, b"message_stop" in await told.read()) == (200, True)
            assert len(up.posts) == posts
            wanted = {"model": "m", "messages": [USER], "stream": True, NEWER: 9, "temperature": 0.5}
            assert up.posts[-1].json == wanted


async def test_a_server_that_names_many_fields(tmp_path: Path) -> None:
    """Each in a refusal of its own, and none twice: what was left out stays out."""
    odd = {
        "stream_options": "unknown field: stream_options",
        OLDER: UNKNOWN["OpenAI"][1]["message"],
        "top_k": "unknown field: top_k",
        "reasoning_effort": "Unsupported value: 'reasoning_effort' does not support 'none'",
    }

    async def answer(connection: Connection, seen: Seen) -> None:
        words = next((words for key, words in odd.items() if key in seen.json), None)
        if words is None:
            await answers(connection, seen)
        else:
            await connection.reply({"error": {"message": words}}, "400 Bad Request")

    async with upstream(each(answer)) as up, proxy(settings({"p": openai(up.url)}), tmp_path) as p:
        body = {"model": "p/m", "max_tokens": 9, "messages": [USER], "stream": True}
        body |= {"thinking": {"type": "disabled"}, "top_k": 3}
        async with p.client.post(p.url + "/v1/messages", json=body) as told:
            assert (told.status, b"message_stop" in await told.read()) == (200, True)
        assert len(up.posts) == 1 + len(odd)


def test_a_name_that_was_learned_is_not_kept_against_a_refusal() -> None:
    """Nor one that was refused with the other name, too."""
    wire, entry = OpenAIWire(), Entry(Target("p", "m"))
    body = b'{"model":"x","max_tokens":9,"messages":[]}'
    call = Call(Endpoint.CHAT, read_summary(body, ("messages", list)), body, "r", relays=False)
    assert wire.reshape(call, entry, 400, b"unknown field: temperature, max_tokens_total") is None
    for refused, name in ((OLDER, NEWER), (NEWER, OLDER), (OLDER, NEWER)):
        again = wire.reshape(call, entry, 400, f"unknown field '{refused}'".encode())
        assert again is not None and json.loads(again.body) == {"model": "m", name: 9, "messages": []}
        assert not wire.remember_reshaped(entry, again)
        assert json.loads(wire.request(call, entry).body) == {"model": "m", name: 9, "messages": []}
    assert wire.reshape(call, entry, 500, b"unknown field 'max_completion_tokens'") is None


numbers = st.integers(0, 3) | st.integers(0, 40_000)


@given(numbers, numbers, st.none() | numbers, numbers, st.integers(0, 90_000))
def test_the_most_is_the_same_whether_the_prompt_matters_or_not(
    window: int, most: int, num_ctx: int | None, length: int, size: int
) -> None:
    """The room that the prompt leaves, at least a quarter of the window, and the longest answer, each where known."""
    body = json.dumps({"model": "p/m", "max_tokens": length, "messages": ["x" * size]}).encode()
    call = Call(Endpoint.MESSAGES, read_summary(body, ("messages", list)), body, "r", cuts_length=True)
    entry = Entry(Target("p", "m"), options={} if num_ctx is None else {"num_ctx": num_ctx})
    catalog = Catalog()
    catalog.learn("p", [ModelInfo("m", context_length=window, max_output=most)])
    seen = window if num_ctx is None else min(num_ctx, window or num_ctx)
    bounds = [max(seen - len(body) // 3, seen // 4) if seen else 0, most]
    wanted = min([bound for bound in bounds if bound] or [length])
    assert wanted_length(catalog, call, entry) == min(length, wanted)


def test_a_number_of_thousands_of_digits_is_left_to_the_provider() -> None:
    """No integer of ours: Python refuses to make one."""
    body = json.dumps({"model": "p/m", "messages": [USER], "max_tokens": 0}).replace("0}", "9" * 5000 + "}").encode()
    call, _ = MessagesDoor().read(body, Client("1", dialects=frozenset({"messages"})))
    assert call.length is None
    assert cut_to(call, 100) is call


@pytest.mark.parametrize("speaks", [["chat"], ["messages"]])
async def test_a_long_request_is_cut_in_a_thread(
    speaks: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A copy of 30 MiB took the loop 3 to 17 ms, the more the longer the machine takes to give new memory."""
    cut: list[bool] = []

    def noted(call: Call, most: int) -> Call:
        cut.append(threading.get_ident() == here)
        return cut_to(call, most)

    here = threading.get_ident()
    monkeypatch.setattr(http_provider, "cut_to", noted)
    up = upstream(lists(max_completion_tokens=8192))
    async with up as server, proxy(settings({"p": openai(server.url, speaks=speaks)}), tmp_path) as p:
        await until(lambda: any(model.id == "m" for model in p.app.generation.catalog.models("p")))
        for text in ("hi", "x" * 900_000):
            await asked(p, 9000, messages=[{"role": "user", "content": text}])
            assert server.posts[-1].json["max_tokens"] == 8192
    assert cut == [True, False]
