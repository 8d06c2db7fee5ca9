"""A real llama.cpp server behind the proxy: found, used without an edit, and what it does when it must not work."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from tests.command import ROOT
from tests.llama_server import FOLDER, MODEL, WHY, WINDOW, LlamaServer, llama_server
from tests.needs import require
from tests.ports import free_port
from tests.proxy import HI, Proxy, everything, openai, proxy, settings
from tests.upstreams import answers, each, upstream
from tests.waiting import until

pytestmark = [
    pytest.mark.llama,
    pytest.mark.built_in,
    pytest.mark.timeout(120),
    pytest.mark.asyncio(loop_scope="module"),
]

USUAL = (9931, 8080, 8000, 1234)
"""Where discovery looks for a server that is no Ollama."""
LOOP: dict[str, Any] = {"loop": {"kind": "loopback"}}
TARGET = f"llama/{MODEL}"
WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "The weather of a city",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    },
}
LONG = {"role": "user", "content": "word " * 3 * WINDOW}
SLOW: dict[str, Any] = {"messages": [{"role": "user", "content": "Count: " + "one two " * 100}], "max_tokens": 1500}
"""A prompt of 200 tokens, which the server finishes whatever happens, and an answer that takes it half a minute."""


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def llama() -> AsyncIterator[LlamaServer]:
    """One for all tests that leave it alive."""
    require(FOLDER / "xllamacpp", WHY)
    async with llama_server(USUAL) as server:
        yield server


@asynccontextmanager
async def behind(
    server: LlamaServer, folder: Path, chain: list[Any] | None = None, **more: Any
) -> AsyncIterator[Proxy]:
    """The proxy in front of it, with loopback as the last entry, and time enough for a slow machine."""
    times = {"connect": 2, "first_byte": 60, "idle": 30, **more}
    config = settings({"llama": openai(server.url), **LOOP}, chain or ["llama/*", "loop/echo"], timeouts=times)
    async with proxy(config, folder) as p:
        yield p


def events(stream: bytes) -> list[Any]:
    """What the ``data`` lines of a stream hold, but for ``[DONE]``."""
    lines = [line.removeprefix(b"data: ") for line in stream.splitlines() if line.startswith(b"data: ")]
    return [json.loads(line) for line in lines if line != b"[DONE]"]


def text_of(chunks: list[Any]) -> str:
    return "".join(chunk["choices"][0]["delta"].get("content") or "" for chunk in chunks if chunk.get("choices"))


async def healthy(p: Proxy) -> bool:
    """Whether nothing is held against the server."""
    row = (await p.get("/v1/health"))[1]["providers"]["llama"]
    return row["status"] == "healthy" and not row["consecutive_failures"] and "targets" not in row


async def test_the_quickstart_finds_it_and_uses_it(llama: LlamaServer, tmp_path: Path) -> None:
    """`serve` without any configuration: the printed command is answered by the model, in one go."""
    began = asyncio.get_running_loop().time()
    mine = ("JOURNAL_STREAM", "MANALLM_CONFIG", "OLLAMA_URL", "OLLAMA_HOST")
    environ = {**{k: v for k, v in os.environ.items() if k not in mine}, "PYTHONPATH": str(ROOT)}
    child = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "manallm_proxy", "serve", "--port", str(free_port())),
        cwd=tmp_path,
        env=environ,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    assert child.stdout is not None
    said: list[str] = []
    async with asyncio.timeout(20):
        while not (said and said[-1].lstrip().startswith("curl")):
            said.append((await child.stdout.readline()).decode())
            assert said[-1], said
    shell = await asyncio.create_subprocess_shell(f"{said[-1].strip()} -s", stdout=asyncio.subprocess.PIPE)
    answer = json.loads((await shell.communicate())[0])
    took = asyncio.get_running_loop().time() - began
    child.send_signal(signal.SIGTERM)
    await child.communicate()
    text = "".join(said)
    assert f"found llama.cpp at {llama.url}/v1: {MODEL}" in text
    assert f"mana/fast-text   -> llamacpp/{MODEL} (found)" in text
    assert answer["model"] == f"llamacpp/{MODEL}"
    assert answer["usage"]["completion_tokens"] > 0
    assert took < 25


async def test_chat_and_stream(llama: LlamaServer, tmp_path: Path) -> None:
    """Whole, streamed, with and without usage: the same model, the same name, the same text at temperature 0."""
    async with behind(llama, tmp_path) as p:
        request = {**HI, "max_tokens": 6, "temperature": 0}
        code, body, headers = await p.chat(**request)
        assert (code, body["model"], headers["x-mana-llm-resolved"]) == (200, TARGET, TARGET)
        assert body["usage"]["completion_tokens"] == 6
        _, stream, headers = await p.stream(**request)
        chunks = events(stream)
        assert stream.endswith(b"data: [DONE]\n\n")
        assert headers["x-mana-llm-resolved"] == TARGET
        assert {chunk["model"] for chunk in chunks} == {TARGET}
        assert text_of(chunks) == body["choices"][0]["message"]["content"]
        assert not any(chunk.get("usage") for chunk in chunks)
        chunks = events((await p.stream(**request, stream_options={"include_usage": True}))[1])
        assert chunks[-1]["usage"]["completion_tokens"] == 6
        lines = [json.loads(line) for line in p.log.getvalue().splitlines()]
        counted = [line["completion_tokens"] for line in lines if line["event"] == "request" and line["status"] == 200]
        assert counted == [6, 6, 6]


async def test_tools_and_schemas(llama: LlamaServer, tmp_path: Path) -> None:
    """Tools, calls and their results reach the model; an answer has the form that was asked for."""
    async with behind(llama, tmp_path) as p:
        request = {**HI, "max_tokens": 1}
        before = (await p.chat(**request))[1]["usage"]["prompt_tokens"]
        code, body, _ = await p.chat(**request, tools=[WEATHER])
        assert (code, body["usage"]["prompt_tokens"] > before + 20) == (200, True)
        call = {"id": "c1", "type": "function", "function": {"name": "get_weather", "arguments": '{"city":"Paris"}'}}
        history = [
            *HI["messages"],
            {"role": "assistant", "content": None, "tool_calls": [call]},
            {"role": "tool", "tool_call_id": "c1", "content": "sunny"},
        ]
        code, body, _ = await p.chat(messages=history, max_tokens=1, tools=[WEATHER], tool_choice="none")
        assert (code, body["model"]) == (200, TARGET)
        shape = {"type": "object", "properties": {"n": {"type": "boolean"}}, "required": ["n"]}
        schema = {"name": "answer", "schema": {**shape, "additionalProperties": False}}
        form = {"type": "json_schema", "json_schema": schema}
        code, body, _ = await p.chat(**{**HI, "max_tokens": 60, "temperature": 0}, response_format=form)
        assert json.loads(body["choices"][0]["message"]["content"])["n"] in (True, False)
        schema["schema"] = {"type": "nonsense"}
        for _ in range(3):
            code, body, _ = await p.chat(**HI, response_format=form)
            assert (code, body["error"]["type"]) == (400, "invalid_request_error")
        assert await healthy(p)


def weather_turn(city: str) -> list[Any]:
    """A question, the call that the model made, and what the tool said. It does so again for the next question."""
    call = {"name": "get_weather", "arguments": json.dumps({"city": city})}
    return [
        {"role": "user", "content": f"What is the weather in {city}?"},
        {"role": "assistant", "content": None, "tool_calls": [{"id": city, "type": "function", "function": call}]},
        {"role": "tool", "tool_call_id": city, "content": "sunny"},
    ]


def call_of(chunks: list[Any]) -> tuple[str, Any, str]:
    """Name, arguments and finish reason of the one call in a stream."""
    choices = [chunk["choices"][0] for chunk in chunks if chunk.get("choices")]
    calls = [call["function"] for choice in choices for call in choice["delta"].get("tool_calls") or ()]
    arguments = json.loads("".join(call.get("arguments") or "" for call in calls))
    finish = [choice["finish_reason"] for choice in choices if choice.get("finish_reason")]
    return "".join(call.get("name") or "" for call in calls), arguments, finish[0]


async def test_the_model_calls_a_tool(llama: LlamaServer, tmp_path: Path) -> None:
    """By its own words, which the server reads as a call: whole, in a stream, and through the other doors."""
    asked = {"role": "user", "content": "What is the weather in Paris?"}
    request = {"messages": [*weather_turn("Rome"), *weather_turn("Oslo"), asked], "max_tokens": 60, "temperature": 0}
    paris = ("get_weather", {"city": "Paris"}, "tool_calls")
    function = {"type": "function", **WEATHER["function"]}  # type: ignore[dict-item]  # a mapping
    async with behind(llama, tmp_path) as p:
        code, body, _ = await p.chat(**request, tools=[WEATHER])
        assert (code, body["model"], body["choices"][0]["finish_reason"]) == (200, TARGET, "tool_calls")
        [call] = body["choices"][0]["message"]["tool_calls"]
        assert (call["function"]["name"], json.loads(call["function"]["arguments"])) == paris[:2]
        assert call_of(events((await p.stream(**request, tools=[WEATHER]))[1])) == paris
        items: list[Any] = []
        for city in ("Rome", "Oslo"):
            user, said, result = weather_turn(city)
            used = said["tool_calls"][0]["function"]
            items += [user, {"type": "function_call", "call_id": city, **used}]
            items += [{"type": "function_call_output", "call_id": city, "output": result["content"]}]
        wanted = {"input": [*items, asked], "tools": [function], "max_output_tokens": 60, "temperature": 0}
        code, body, _ = await p.post("/v1/responses", wanted)
        [call] = [item for item in body["output"] if item["type"] == "function_call"]
        assert (code, call["name"], json.loads(call["arguments"])) == (200, *paris[:2])
        turns: list[Any] = []
        for city in ("Rome", "Oslo"):
            used = {"type": "tool_use", "id": city, "name": "get_weather", "input": {"city": city}}
            told = {"type": "tool_result", "tool_use_id": city, "content": "sunny"}
            turns += [weather_turn(city)[0], {"role": "assistant", "content": [used]}]
            turns += [{"role": "user", "content": [told]}]
        # a mapping of any values
        tool = {"name": "get_weather", "input_schema": WEATHER["function"]["parameters"]}  # type: ignore[index]
        wanted = {"model": "mana/test", "messages": [*turns, asked], "tools": [tool], "max_tokens": 60}
        code, body, _ = await p.post("/v1/messages", {**wanted, "temperature": 0})
        [call] = [block for block in body["content"] if block["type"] == "tool_use"]
        assert (code, body["stop_reason"], call["name"], call["input"]) == (200, "tool_use", *paris[:2])
        assert await healthy(p)


async def test_the_model_must_call_a_tool(llama: LlamaServer, tmp_path: Path) -> None:
    """Whatever it would rather say: with ``force_tools: schema`` its grammar leaves it nothing else."""
    box = openai(llama.url, options={"force_tools": "schema"})
    parameters = {"type": "object", "properties": {"city": {"enum": ["Graz"]}}, "required": ["city"]}
    only = {"type": "function", "function": {"name": "get_weather", "parameters": parameters}}
    request = {**HI, "tools": [only], "tool_choice": "required", "max_tokens": 400}
    async with proxy(settings({"llama": box}, ["llama/*"], timeouts={"first_byte": 60, "idle": 30}), tmp_path) as p:
        code, body, _ = await p.chat(**request)
        [call] = body["choices"][0]["message"]["tool_calls"]
        assert (code, call["function"]["name"]) == (200, "get_weather")
        assert json.loads(call["function"]["arguments"]) == {"city": "Graz"}
        stream = events((await p.stream(**request))[1])
        assert call_of(stream) == ("get_weather", {"city": "Graz"}, "tool_calls")
        named = {"type": "function", "function": {"name": "get_weather"}}
        assert call_of(events((await p.stream(**{**request, "tool_choice": named}))[1]))[0] == "get_weather"


async def test_a_tool_that_nobody_declared(llama: LlamaServer, tmp_path: Path) -> None:
    """A call of one is the model's fault, says the server: 500, or an error within the stream. Another target answers,
    and neither the server nor the caller is blamed. Its grammar forbids such a call; one that the answer begins with,
    as a conversation may have it, is read like the rest."""
    undeclared = '<tool_call>\n{"name": "send_mail", "arguments": {"to": "Ann"}}\n</tool_call>'
    asked = {"role": "user", "content": "What is the weather in Paris?"}
    request = {"messages": [asked, {"role": "assistant", "content": undeclared}], "tools": [WEATHER], "max_tokens": 4}
    async with behind(llama, tmp_path) as p:
        code, body, _ = await p.chat(**request)
        assert (code, body["model"]) == (200, "loop/echo")
        code, stream, _ = await p.stream(**request)
        assert (code, {chunk["model"] for chunk in events(stream)}) == (200, {"loop/echo"})
        said = [json.loads(line) for line in p.log.getvalue().splitlines() if '"attempt failed"' in line]
        assert [(line["reason"], "format" in line["provider_message"]) for line in said] == [("http_5xx", True)] * 2
        row = (await p.get("/v1/health"))[1]["providers"]["llama"]
        assert (row["consecutive_failures"], row["targets"][MODEL]["consecutive_failures"]) == (0, 2)


async def test_its_slots_are_known(llama: LlamaServer, tmp_path: Path) -> None:
    """It says that it has one, so the others wait in the proxy, and go on from there."""
    chain = [{"target": TARGET, "max_wait": 0.1}, "cloud/m"]
    async with upstream(each(answers)) as cloud:
        providers = {"llama": openai(llama.url, local=True), "cloud": openai(cloud.url)}
        async with proxy(settings(providers, chain, timeouts={"first_byte": 60, "idle": 30}), tmp_path) as p:

            async def row() -> Any:
                return (await p.get("/v1/health"))[1]["providers"]["llama"]["targets"][MODEL]

            assert (await row())["slots"] == 1
            first = asyncio.ensure_future(p.stream(**SLOW))
            await until(lambda: p.app.generation.local.queues["llama"].line.of(MODEL).serving)
            assert [(await p.chat())[1]["model"] for _ in range(2)] == ["cloud/m"] * 2
            waiting = asyncio.ensure_future(p.chat(model=TARGET, **{**HI, "max_tokens": 1}))
            await until(lambda: p.app.generation.local.queues["llama"].line.of(MODEL).waiting)
            assert (await row())["queue"] == 1
            first.cancel()
            assert (await waiting)[1]["model"] == TARGET


async def test_embeddings(llama: LlamaServer, tmp_path: Path) -> None:
    """A server for them gives vectors; one that chats refuses, which is the caller's mistake and nobody's fault."""
    async with llama_server(kind="embedding") as vectors:
        config = settings({"llama": openai(llama.url), "vec": openai(vectors.url)}, [f"vec/{MODEL}"])
        async with proxy(config, tmp_path) as p:
            code, body, _ = await p.post("/v1/embeddings", {"input": ["one", "two"]})
            assert (code, [len(row["embedding"]) for row in body["data"]]) == (200, [576, 576])
            for _ in range(3):
                code, body, _ = await p.post("/v1/embeddings", {"model": TARGET, "input": "one"})
                assert (code, body["error"]["code"]) == (400, "unsupported_capability")
            assert await healthy(p)


async def test_what_is_the_callers_mistake(llama: LlamaServer, tmp_path: Path) -> None:
    """A prompt that does not fit, an image for a model that cannot see: 4xx, by name, and nothing held against it."""
    image = {"type": "image_url", "image_url": {"url": "data:image/png;base64,iVBORw0KGgo="}}
    seen = {"messages": [{"role": "user", "content": [{"type": "text", "text": "What is it?"}, image]}]}
    chain = [{"target": TARGET, "fallback_on": ["context_length"]}, "loop/echo"]
    async with behind(llama, tmp_path, chain) as p:
        for _ in range(3):
            code, body, _ = await p.chat(model=TARGET, messages=[LONG])
            assert (code, body["error"]["code"]) == (400, "context_length_exceeded")
            assert f"{WINDOW} tokens" in body["error"]["message"]
            code, body, _ = await p.chat(model=TARGET, **seen)
            assert (code, body["error"]["code"]) == (400, "unsupported_capability")
        code, stream, _ = await p.stream(model=TARGET, messages=[LONG])
        assert (code, json.loads(stream)["error"]["code"]) == (400, "context_length_exceeded")
        assert await healthy(p)
        assert (await p.chat(messages=[LONG]))[1]["model"] == "loop/echo"
        assert (await p.chat(**{**HI, "max_tokens": 1}))[1]["model"] == TARGET


async def test_a_client_that_leaves_frees_the_server(llama: LlamaServer, tmp_path: Path) -> None:
    """In the middle of its prompt: no answer is made for nobody, and the one slot is free again."""

    async def slot(p: Proxy) -> Any:
        async with p.client.get(f"{llama.url}/slots") as response:
            return (await response.json())[0]

    async with behind(llama, tmp_path) as p:
        asking = asyncio.ensure_future(p.stream(**SLOW))
        async with asyncio.timeout(20):
            while not (await slot(p))["is_processing"]:
                await asyncio.sleep(0.02)
        asking.cancel()
        await asyncio.gather(asking, return_exceptions=True)
        async with asyncio.timeout(15):
            while (left := await slot(p))["is_processing"]:
                await asyncio.sleep(0.02)
        assert left["next_token"][0]["n_decoded"] < 20
        await until(lambda: '"client_gone"' in p.log.getvalue())
        assert await healthy(p)
        assert (await p.chat(**{**HI, "max_tokens": 1}))[1]["model"] == TARGET


async def test_a_server_that_hangs(llama: LlamaServer, tmp_path: Path) -> None:
    """Stopped before its first byte, the next target serves; stopped in the middle of a stream, that ends as broken."""
    async with behind(llama, tmp_path, first_byte=1, idle=1) as p:
        llama.stop()
        try:
            code, body, headers = await p.chat()
            assert (code, body["model"], headers["x-mana-llm-attempts"]) == (200, "loop/echo", "2")
            assert "first_byte_timeout" in p.log.getvalue()
        finally:
            llama.go_on()
    async with behind(llama, tmp_path, idle=1) as p:
        async with p.client.post(f"{p.url}/v1/chat/completions", json={**HI, "stream": True}) as response:
            stream = await response.content.readuntil(b'"content":"')
            llama.stop()
            try:
                stream += await everything(response)
            finally:
                llama.go_on()
        assert events(stream)[-1]["error"]["code"] == "stream_interrupted"
        assert (await p.chat(**{**HI, "max_tokens": 1}))[1]["model"] == TARGET


async def test_a_server_that_is_killed(tmp_path: Path) -> None:
    """In the middle of a stream: reported in it; then the next target serves, and says what is wrong."""
    require(FOLDER / "xllamacpp", WHY)
    async with llama_server() as server, behind(server, tmp_path) as p:
        async with p.client.post(f"{p.url}/v1/chat/completions", json={**HI, "stream": True}) as response:
            stream = await response.content.readuntil(b'"content":"')
            server.kill()
            stream += await everything(response)
        await server.gone()
        assert events(stream)[-1]["error"]["code"] == "stream_interrupted"
        answers = [await p.chat() for _ in range(3)]
        assert [(code, body["model"]) for code, body, _ in answers] == [(200, "loop/echo")] * 3
        assert f"nothing answers at {server.url}/v1 (refused)" in answers[-1][1]["choices"][0]["message"]["content"]
        row = (await p.get("/v1/health"))[1]["providers"]["llama"]
        assert (row["status"], row["last_error"]) == ("unhealthy", "connect_error")


async def test_the_other_doors(llama: LlamaServer, tmp_path: Path) -> None:
    """Responses and Messages go over its chat: whole objects, events in their order, and tokens counted."""
    async with behind(llama, tmp_path) as p:
        asked = {"input": "Say hi", "max_output_tokens": 4, "tools": [{"type": "function", **WEATHER["function"]}]}  # type: ignore[dict-item]  # a mapping
        code, body, _ = await p.post("/v1/responses", asked)
        assert (code, body["status"], body["incomplete_details"]) == (
            200,
            "incomplete",
            {"reason": "max_output_tokens"},
        )
        assert body["output"][0]["content"][0]["type"] == "output_text"
        assert (body["usage"]["output_tokens"], "cached_tokens" in body["usage"]["input_tokens_details"]) == (4, True)
        async with p.client.post(f"{p.url}/v1/responses", json={**asked, "stream": True}) as response:
            told = events(await response.read())
        assert [event["sequence_number"] for event in told] == list(range(len(told)))
        assert (told[0]["type"], told[-1]["type"]) == ("response.created", "response.incomplete")
        follow = {"input": "And again", "previous_response_id": body["id"], "max_output_tokens": 1}
        assert (await p.post("/v1/responses", follow))[0] == 200
        asked = {"model": "mana/test", "max_tokens": 4, **HI}
        code, body, _ = await p.post("/v1/messages", asked)
        assert (code, body["stop_reason"], body["content"][0]["type"]) == (200, "max_tokens", "text")
        assert body["usage"]["output_tokens"] == 4
        async with p.client.post(f"{p.url}/v1/messages", json={**asked, "stream": True}) as response:
            kinds = [event["type"] for event in events(await response.read())]
        assert [kind for kind in kinds if kind != "content_block_delta"] == [
            *("message_start", "content_block_start", "content_block_stop", "message_delta", "message_stop")
        ]
        code, body, _ = await p.post("/v1/messages", {**asked, "messages": [LONG]})
        assert (code, body["error"]["type"]) == (400, "invalid_request_error")
        assert await healthy(p)
