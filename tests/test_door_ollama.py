"""Ollama's own API, over a real proxy: transcripts with providers of every kind, and chains that lose their first."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from manallm_proxy.doors.ollama.models import ModelRow
from tests.ollama_lines import legal, lines_of
from tests.proxy import Proxy, everything, openai, proxy, settings
from tests.upstreams import DONE, Connection, Seen, answers, chunk, each, status, upstream

HI = [{"role": "user", "content": "hi"}]
PNG = base64.b64encode(b"\x89PNG\r\n\x1a\n0000").decode()
WEATHER = {
    "type": "function",
    "function": {"name": "weather", "parameters": {"type": "object", "properties": {"city": {"type": "string"}}}},
}


async def ask(p: Proxy, path: str, **body: Any) -> tuple[int, bytes, dict[str, str]]:
    async with p.client.post(p.url + path, json={"model": "mana/test", **body}) as response:
        return response.status, await everything(response), {k.lower(): v for k, v in response.headers.items()}


async def ollama(connection: Connection, seen: Seen) -> None:
    """A native Ollama: thinks, speaks, counts."""
    if seen.path == "/api/embed":
        rows = [[0.5, -0.25] for _ in seen.json["input"]]
        await connection.reply({"model": "m", "embeddings": rows, "prompt_eval_count": 2})
        return
    chat = seen.path == "/api/chat"
    last = {"done": True, "done_reason": "stop", "prompt_eval_count": 3, "eval_count": 2}
    if not seen.json["stream"]:
        said = {"message": {"content": "Hello", "thinking": "hm"}} if chat else {"response": "Hello", "thinking": "hm"}
        await connection.reply({**said, **last})
        return
    await connection.head(content_type="application/x-ndjson")
    for said in ({"thinking": "hm"}, {"content": "Hel"}, {"content": "lo"}):
        row = {"message": said} if chat else {"response": said.get("content", ""), "thinking": said.get("thinking", "")}
        await connection.chunk(json.dumps({**row, "done": False}).encode() + b"\n")
    await connection.chunk(json.dumps(last).encode() + b"\n")
    await connection.end()


def gemini(*parts: dict[str, Any], **more: Any) -> dict[str, Any]:
    usage = {"promptTokenCount": 3, "candidatesTokenCount": 2, "totalTokenCount": 5}
    return {"candidates": [{"content": {"role": "model", "parts": list(parts)}, **more}], "usageMetadata": usage}


async def google(connection: Connection, seen: Seen) -> None:
    if "embed" in seen.path.lower():
        await connection.reply({"embeddings": [{"values": [0.5, -0.25]} for _ in seen.json["requests"]]})
        return
    if "stream" not in seen.path:
        await connection.reply(gemini({"text": "Hello"}, finishReason="STOP"))
        return
    await connection.head()
    for data in (gemini({"text": "Hel"}), gemini({"text": "lo"}, finishReason="STOP")):
        await connection.chunk(b"data: " + json.dumps(data).encode() + b"\n\n")
    await connection.end()


KINDS: dict[str, tuple[Any, Callable[[str], dict[str, Any]]]] = {
    "openai": (answers, openai),
    "ollama": (ollama, lambda url: {"kind": "ollama", "base_url": url}),
    "google": (google, lambda url: {"kind": "google", "base_url": url, "api_key": "AIzaNotARealKey"}),
}


@pytest.mark.parametrize("kind", KINDS)
async def test_every_kind_answers(kind: str, tmp_path: Path) -> None:
    """Chat and generate, whole and streamed, and vectors: Ollama's shapes, whoever answers."""
    answer, provider = KINDS[kind]
    async with upstream(each(answer)) as server, proxy(settings({"p": provider(server.url)}), tmp_path) as p:
        for path, given in (("/api/chat", {"messages": HI}), ("/api/generate", {"prompt": "hi"})):
            part = "message" if path == "/api/chat" else "response"

            def words(row: dict[str, Any], key: str = "content", part: str = part) -> str:
                return str((row["message"] if part == "message" else {**row, "content": row["response"]}).get(key, ""))

            code, body, headers = await ask(p, path, **given)
            assert (code, headers["content-type"]) == (200, "application/x-ndjson")
            rows = lines_of(body, part)
            assert "".join(map(words, rows)) == "Hello"
            assert headers["x-mana-llm-resolved"] == rows[0]["model"] == "p/m"
            assert (rows[-1]["prompt_eval_count"], rows[-1]["eval_count"]) == (3, 2)

            code, body, headers = await ask(p, path, **given, stream=False)
            assert (code, headers["content-type"]) == (200, "application/json")
            whole = json.loads(body)
            legal(whole, part=part)
            assert (words(whole), whole["done"], whole["done_reason"]) == ("Hello", True, "stop")
            if kind == "ollama":
                assert "".join(words(row, "thinking") for row in rows) == words(whole, "thinking") == "hm"
        if kind != "openai":  # whose script gives one vector for two inputs
            code, body, _ = await ask(p, "/api/embed", input=["a", "b"], dimensions=2)
            whole = json.loads(body)
            assert (code, whole["model"], whole["embeddings"]) == (200, "p/m", [[0.5, -0.25]] * 2)
            assert whole.keys() == {"model", "embeddings", "total_duration", "load_duration", "prompt_eval_count"}
            if kind == "ollama":
                assert (server.posts[-1].json["dimensions"], whole["prompt_eval_count"]) == (2, 2)
        code, body, _ = await ask(p, "/api/embeddings", prompt="a")
        assert (code, json.loads(body)) == (200, {"embedding": [0.5, -0.25]})
        metrics = (await (await p.client.get(f"{p.url}/metrics")).read()).decode()
        for endpoint in ("api/chat", "api/generate", "api/embed"):
            assert f'requests_total{{endpoint="{endpoint}",status="200"}}' in metrics


TOOK = {"load_duration": 7_000_000_000, "prompt_eval_duration": 5_000_000, "eval_duration": 90_000_000}


@pytest.mark.parametrize("took", [TOOK, {}, {"load_duration": 7}])
async def test_how_long_it_took(took: dict[str, int], tmp_path: Path) -> None:
    """By Ollama's own clock, of an answer that was not streamed, too; without it as far as the proxy has seen."""

    async def timed(connection: Connection, seen: Seen) -> None:
        if seen.path == "/api/embed":
            await connection.reply({"embeddings": [[0.5]], "load_duration": took.get("load_duration", 0)})
        elif not seen.json["stream"]:
            await connection.reply({"message": {"content": "Hello"}, "done": True, "eval_count": 2, **took})
        else:
            await connection.head(content_type="application/x-ndjson")
            await connection.chunk(json.dumps({"message": {"content": "Hello"}, "done": False}).encode() + b"\n")
            await connection.chunk(json.dumps({"done": True, "eval_count": 2, **took}).encode() + b"\n")
            await connection.end()

    async with upstream(each(timed)) as server:
        async with proxy(settings({"p": {"kind": "ollama", "base_url": server.url}}), tmp_path) as p:
            for stream in (True, False):
                _, body, _ = await ask(p, "/api/chat", messages=HI, stream=stream)
                last = json.loads(body.splitlines()[-1])
                seen = {key: last[key] for key in TOOK}
                assert seen == took if took == TOOK else (seen["load_duration"], seen["eval_duration"] > 0) == (0, True)
                assert last["total_duration"] > 0
            _, body, _ = await ask(p, "/api/embed", input="a")
            assert json.loads(body)["load_duration"] == took.get("load_duration", 0)


async def refuses(connection: Connection, seen: Seen) -> None:
    connection.reset()


async def dies_after_its_head(connection: Connection, seen: Seen) -> None:
    await connection.head()
    await connection.chunk(chunk(role=True))
    connection.reset()


async def dies_in_mid_answer(connection: Connection, seen: Seen) -> None:
    await connection.head()
    await connection.chunk(chunk("One"))
    connection.reset()


@pytest.mark.parametrize(
    "first", [status("502 Bad Gateway"), refuses, dies_after_its_head], ids=["502", "reset", "head"]
)
async def test_a_first_that_dies_before_the_first_word(first: Any, tmp_path: Path) -> None:
    """The second answers, and the client sees nothing of it but the headers."""
    async with upstream(each(first)) as dead, upstream(each(answers)) as well:
        async with proxy(settings({"dead": openai(dead.url), "well": openai(well.url)}), tmp_path) as p:
            code, body, headers = await ask(p, "/api/chat", messages=HI)
            assert code == 200
            assert "".join(row["message"]["content"] for row in lines_of(body)) == "Hello"
            assert headers["x-mana-llm-resolved"] == "well/m"
            assert headers["x-mana-llm-attempts"] == "2"


async def test_a_first_that_dies_after_it(tmp_path: Path) -> None:
    """An error line, and no object with ``done``: a clean end alone would pass for a short answer."""
    async with upstream(each(dies_in_mid_answer)) as dead, upstream(each(answers)) as well:
        async with proxy(settings({"dead": openai(dead.url), "well": openai(well.url)}), tmp_path) as p:
            for path, given in (("/api/chat", {"messages": HI}), ("/api/generate", {"prompt": "hi"})):
                code, body, headers = await ask(p, path, **given)
                rows = [json.loads(line) for line in body.splitlines()]
                assert (code, headers["x-mana-llm-resolved"]) == (200, "dead/m")
                assert [row.get("done") for row in rows] == [False, None]
                assert [*rows[-1]] == ["error"] and isinstance(rows[-1]["error"], str)


async def test_a_first_that_gives_up(tmp_path: Path) -> None:
    """By its finish reason, which no word of Ollama's or Anthropic's stands for: what was said is no whole answer."""

    async def gives_up(connection: Connection, seen: Seen) -> None:
        if seen.json["stream"]:
            await connection.head()
            await connection.chunk(chunk("One"))
            await connection.chunk(chunk(finish="error") + DONE)
            await connection.end()
        else:
            choice = {"index": 0, "message": {"role": "assistant", "content": "One"}, "finish_reason": "error"}
            await connection.reply({"choices": [choice]})

    async with upstream(each(gives_up)) as dead, upstream(each(answers)) as well:
        async with proxy(settings({"dead": openai(dead.url), "well": openai(well.url)}), tmp_path) as p:
            doors: dict[str, dict[str, Any]] = {
                "/api/chat": {},
                "/v1/messages": {"max_tokens": 9},
                "/v1/responses": {"input": "x"},
            }
            for path, more in doors.items():
                _, body, headers = await ask(p, path, messages=HI, stream=True, **more)
                assert headers["x-mana-llm-resolved"] == "dead/m"
                assert b"One" in body and b"finish_reason error" in body.rstrip().splitlines()[-1]
                assert not any(end in body for end in (b'"done":true', b"message_stop", b"response.completed"))
                _, body, headers = await ask(p, path, messages=HI, stream=False, **more)
                assert headers["x-mana-llm-resolved"] == "well/m"
                p.app.generation.registry.providers["dead"].targets.clear()


async def test_nobody_left(tmp_path: Path) -> None:
    """A 503 whose one string names every target with its reason."""
    async with upstream(each(status("502 Bad Gateway"))) as dead:
        providers = {"dead": openai(dead.url), "nokey": openai("http://127.0.0.1:9", api_key="${NOT_SET}")}
        async with proxy(settings(providers), tmp_path) as p:
            for stream in (True, False):
                code, body, headers = await ask(p, "/api/chat", messages=HI, stream=stream)
                error = json.loads(body)["error"]
                assert (code, headers["content-type"]) == (503, "application/json")
                assert "dead/m (http_5xx" in error and "nokey/m (unconfigured" in error


TOOL_STREAM = (
    [{"index": 0, "id": "call_1", "function": {"name": "weather", "arguments": ""}}],
    [{"index": 0, "function": {"arguments": '{"city":\n'}}],
    [{"index": 0, "function": {"arguments": '"Rome"}'}}],
    [{"index": 1, "id": "call_2", "function": {"name": "weather", "arguments": '{"city": "Oslo"}'}}],
)


def tool_chunk(calls: Any, finish: str | None = None) -> bytes:
    delta = {"tool_calls": calls} if calls else {}
    return (
        b"data: " + json.dumps({"choices": [{"index": 0, "delta": delta, "finish_reason": finish}]}).encode() + b"\n\n"
    )


@pytest.mark.parametrize("stream", [True, False])
async def test_tool_calls(stream: bool, tmp_path: Path) -> None:
    """Whole and with objects, although they came in parts; results without ids find their calls."""

    async def calls(connection: Connection, seen: Seen) -> None:
        if not seen.json["stream"]:
            rows = [
                {"id": f"call_{n}", "type": "function", "function": {"name": "weather", "arguments": text}}
                for n, text in ((1, '{"city":\n"Rome"}'), (2, '{"city": "Oslo"}'))
            ]
            message = {"role": "assistant", "content": None, "tool_calls": rows}
            await connection.reply({"choices": [{"index": 0, "message": message, "finish_reason": "tool_calls"}]})
            return
        await connection.head()
        for part in TOOL_STREAM:
            await connection.chunk(tool_chunk(part))
        await connection.chunk(tool_chunk(None, "tool_calls") + DONE)
        await connection.end()

    async with upstream(each(calls)) as gpu, proxy(settings({"gpu": openai(gpu.url)}), tmp_path) as p:
        code, body, _ = await ask(p, "/api/chat", messages=HI, tools=[WEATHER], stream=stream)
        assert code == 200
        rows = lines_of(body) if stream else [json.loads(body)]
        found = [call for row in rows for call in row["message"].get("tool_calls", ())]
        assert found == [
            {"id": "call_1", "function": {"index": 0, "name": "weather", "arguments": {"city": "Rome"}}},
            {"id": "call_2", "function": {"index": 1, "name": "weather", "arguments": {"city": "Oslo"}}},
        ]
        assert rows[-1]["done_reason"] == "stop"
        history = [
            *HI,
            {"role": "assistant", "tool_calls": [{"function": call["function"]} for call in found]},
            {"role": "tool", "tool_name": "weather", "content": "hot"},
            {"role": "tool", "tool_name": "weather", "content": "cold"},
        ]
        await ask(p, "/api/chat", messages=history, tools=[WEATHER], stream=stream)
        sent = gpu.posts[-1].json
        assert sent["tools"] == [WEATHER]
        ids = [call["id"] for call in sent["messages"][1]["tool_calls"]]
        assert len(set(ids)) == 2
        assert [json.loads(c["function"]["arguments"]) for c in sent["messages"][1]["tool_calls"]] == [
            {"city": "Rome"},
            {"city": "Oslo"},
        ]
        assert [(m["tool_call_id"], m["content"]) for m in sent["messages"][2:]] == list(
            zip(ids, ["hot", "cold"], strict=True)
        )


async def test_calls_that_are_all_numbered_0_stay_apart(tmp_path: Path) -> None:
    """As some servers stream parallel calls; one that repeats the name with each part makes one call."""
    parts = [("c1", '{"city":'), ("c1", '"R\\ud800"}'), ("c2", '{"city":"Oslo"}'), ("c2", ""), ("c3", "")]

    async def calls(connection: Connection, seen: Seen) -> None:
        await connection.head()
        for id_, text in parts:
            row = {"index": 0, "id": id_, "function": {"name": "weather", "arguments": text}}
            await connection.chunk(tool_chunk([row]))
        await connection.chunk(tool_chunk(None, "tool_calls") + DONE)
        await connection.end()

    async with upstream(each(calls)) as gpu, proxy(settings({"gpu": openai(gpu.url)}), tmp_path) as p:
        _, body, _ = await ask(p, "/api/chat", messages=HI, tools=[WEATHER])
        found = [call for row in lines_of(body) for call in row["message"].get("tool_calls", ())]
        assert [(call["id"], call["function"]["index"], call["function"]["arguments"]) for call in found] == [
            ("c1", 0, {"city": "R\ufffd"}),  # legal JSON, though no text
            ("c2", 1, {"city": "Oslo"}),
            ("c3", 2, {}),
        ]


@pytest.mark.parametrize("kind", ["ollama", "google"])
@pytest.mark.parametrize("stream", [True, False])
async def test_tool_calls_of_other_kinds(kind: str, stream: bool, tmp_path: Path) -> None:
    """They come whole there; their results reach the provider in its own words."""

    async def box(connection: Connection, seen: Seen) -> None:
        call = {"function": {"name": "weather", "arguments": {"city": "Rome"}}}
        rows: list[dict[str, Any]] = [{"message": {"content": "", "tool_calls": [call]}, "done": False}]
        rows.append({"message": {"content": ""}, "done": True, "done_reason": "stop"})
        if seen.json["stream"]:
            await connection.reply("\n".join(map(json.dumps, rows)).encode(), content_type="application/x-ndjson")
        else:
            await connection.reply(rows[1] | {"message": rows[0]["message"]})

    async def cloud(connection: Connection, seen: Seen) -> None:
        said = gemini({"functionCall": {"name": "weather", "args": {"city": "Rome"}}}, finishReason="STOP")
        if "stream" in seen.path:
            await connection.head()
            await connection.chunk(b"data: " + json.dumps(said).encode() + b"\n\n")
            await connection.end()
        else:
            await connection.reply(said)

    script, provider = (box if kind == "ollama" else cloud), KINDS[kind][1]
    async with upstream(each(script)) as server, proxy(settings({"p": provider(server.url)}), tmp_path) as p:
        _, body, _ = await ask(p, "/api/chat", messages=HI, tools=[WEATHER], stream=stream)
        rows = lines_of(body) if stream else [json.loads(body)]
        (call,) = [call for row in rows for call in row["message"].get("tool_calls", ())]
        assert call["function"] == {"index": 0, "name": "weather", "arguments": {"city": "Rome"}}
        asked = {"role": "assistant", "content": "", "tool_calls": [{"function": call["function"]}]}
        result = {"role": "tool", "tool_name": "weather", "content": "hot"}
        assert (await ask(p, "/api/chat", messages=[*HI, asked, result], tools=[WEATHER], stream=stream))[0] == 200
        sent = server.posts[-1].json
        if kind == "ollama":
            assert sent["messages"][1]["tool_calls"][0]["function"]["arguments"] == {"city": "Rome"}
            assert sent["messages"][2]["tool_name"] == "weather"
        else:
            assert sent["contents"][2]["parts"][0]["functionResponse"]["name"] == "weather"


@pytest.mark.parametrize("finish", ["length", "tool_calls"])
@pytest.mark.parametrize("stream", [True, False])
async def test_arguments_that_are_no_object(finish: str, stream: bool, tmp_path: Path) -> None:
    """Cut by the token limit there is no call; else the client learns that the model erred, and calls nothing."""

    async def calls(connection: Connection, seen: Seen) -> None:
        call = {"index": 0, "id": "call_1", "type": "function", "function": {"name": "weather", "arguments": '{"ci'}}
        if stream:
            await connection.head()
            await connection.chunk(tool_chunk([call]) + tool_chunk(None, finish) + DONE)
            await connection.end()
        else:
            choice = {"index": 0, "message": {"role": "assistant", "tool_calls": [call]}, "finish_reason": finish}
            await connection.reply({"choices": [choice]})

    async with upstream(each(calls)) as gpu, proxy(settings({"gpu": openai(gpu.url)}), tmp_path) as p:
        code, body, _ = await ask(p, "/api/chat", messages=HI, tools=[WEATHER], stream=stream)
        last = json.loads(body.splitlines()[-1])
        if finish == "length":
            assert (code, last["done_reason"], "tool_calls" in last["message"]) == (200, "length", False)
        else:
            assert code == (200 if stream else 502)
            assert "arguments" in last["error"]


@pytest.mark.parametrize("stream", [True, False])
async def test_pictures_that_the_model_made(stream: bool, tmp_path: Path) -> None:
    """As links in the text: ollama-python cannot read ``images`` in an answer."""
    rows = [{"image_url": {"url": f"data:image/png;base64,{PNG}"}}, {"image_url": {"url": "https://x/a,b.png"}}]

    async def paints(connection: Connection, seen: Seen) -> None:
        if stream:
            event = {"choices": [{"index": 0, "delta": {"content": "See", "images": rows}, "finish_reason": "stop"}]}
            await connection.head()
            await connection.chunk(b"data: " + json.dumps(event).encode() + b"\n\n" + DONE)
            await connection.end()
        else:
            message = {"role": "assistant", "content": "See", "images": rows}
            await connection.reply({"choices": [{"index": 0, "message": message, "finish_reason": "stop"}]})

    async with upstream(each(paints)) as gpu, proxy(settings({"gpu": openai(gpu.url)}), tmp_path) as p:
        _, body, _ = await ask(p, "/api/chat", messages=HI, stream=stream)
        message = json.loads(body.splitlines()[0])["message"]
        links = f"![image](data:image/png;base64,{PNG})![image](https://x/a,b.png)"
        assert message == {"role": "assistant", "content": f"See{links}"}


async def test_what_a_provider_gets(tmp_path: Path) -> None:
    """OpenAI's words alone for one that speaks OpenAI; everything for another Ollama."""
    given: dict[str, Any] = {
        "messages": [
            {"role": "System", "content": "be brief"},
            {"role": "user", "content": "what is it?", "images": [PNG]},
            {"role": "assistant", "content": "a dot", "thinking": "hm", "images": []},
            {"role": "user", "content": "sure?", "images": []},
        ],
        "tools": [],
        "options": {"num_predict": 9, "temperature": 0, "top_k": 4, "stop": ["x"], "num_ctx": 512, "seed": 7, "foo": 1},
        "format": {"type": "object"},
        "think": False,
        "keep_alive": "5m",
        "stream": False,
    }
    async with upstream(each(answers)) as cloud, upstream(each(ollama)) as box:
        own = {"kind": "ollama", "base_url": box.url, "client_options": True}
        async with proxy(settings({"cloud": openai(cloud.url), "box": own}), tmp_path) as p:
            assert (await ask(p, "/api/chat", **{**given, "model": "cloud/m"}))[0] == 200
            assert cloud.posts[-1].json == {
                "model": "m",
                "messages": [
                    {"role": "system", "content": "be brief"},
                    {
                        "role": "user",
                        "content": [
                            {"type": "text", "text": "what is it?"},
                            {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{PNG}"}},
                        ],
                    },
                    {"role": "assistant", "content": "a dot"},
                    {"role": "user", "content": "sure?"},
                ],
                "max_tokens": 9,
                "temperature": 0,
                "top_k": 4,
                "seed": 7,
                "stop": ["x"],
                "response_format": {
                    "type": "json_schema",
                    "json_schema": {"name": "answer", "schema": {"type": "object"}},
                },
                "reasoning_effort": "none",
                "stream": False,
            }
            assert (await ask(p, "/api/chat", **{**given, "model": "box/m"}))[0] == 200
            sent = box.posts[-1].json
            assert sent["options"] == given["options"]
            assert sent["messages"] == [
                {"role": "system", "content": "be brief"},
                {"role": "user", "content": "what is it?", "images": [PNG]},
                {"role": "assistant", "content": "a dot", "thinking": "hm"},
                {"role": "user", "content": "sure?"},
            ]
            assert {key: sent[key] for key in ("format", "think", "keep_alive", "stream")} == {
                key: given[key] for key in ("format", "think", "keep_alive", "stream")
            }


@pytest.mark.parametrize("stream", [True, False])
async def test_a_model_that_does_not_think(stream: bool, tmp_path: Path) -> None:
    """Told not to, it may refuse that; then it is asked once more without. Told to, the refusal is the answer."""

    async def plain(connection: Connection, seen: Seen) -> None:
        if "reasoning_effort" in seen.json:
            message = "`reasoning_effort` is not supported with this model"
            await connection.reply({"error": {"message": message}}, "400 Bad Request")
        else:
            await answers(connection, seen)

    async with upstream(each(plain)) as gpu, proxy(settings({"gpu": openai(gpu.url)}), tmp_path) as p:
        for _ in range(2):
            code, body, _ = await ask(p, "/api/chat", messages=HI, think=False, stream=stream)
            assert code == 200
            assert json.loads(body.splitlines()[-1])["eval_count"] == 2  # usage is still asked for
        assert ["reasoning_effort" in seen.json for seen in gpu.posts] == [True, False] * 2
        code, body, _ = await ask(p, "/api/chat", messages=HI, think=True, stream=stream)
        assert (code, "reasoning_effort" in json.loads(body)["error"]) == (400, True)


async def test_generate(tmp_path: Path) -> None:
    """A prompt is one turn of a chat; raw ones and gaps are completions."""
    async with upstream(each(ollama)) as box, upstream(each(answers)) as cloud:
        providers = {"box": {"kind": "ollama", "base_url": box.url}, "cloud": openai(cloud.url)}
        async with proxy(settings(providers), tmp_path) as p:
            empty = {"system": "", "suffix": "", "template": "", "images": [], "raw": False, "stream": False}
            assert (await ask(p, "/api/generate", prompt="hi", **empty))[0] == 200
            assert box.posts[-1].json == {"model": "m", "messages": HI, "stream": False, "truncate": False}
            assert (await ask(p, "/api/generate", **{**empty, "prompt": "hi", "system": "s", "images": [PNG]}))[
                0
            ] == 200
            assert box.posts[-1].json["messages"] == [
                {"role": "system", "content": "s"},
                {"role": "user", "content": "hi", "images": [PNG]},
            ]
            _, body, _ = await ask(p, "/api/generate", prompt="a =", raw=True)
            assert box.posts[-1].path == "/api/generate"
            asked = {"model": "m", "prompt": "a =", "raw": True, "stream": True, "truncate": False}
            assert box.posts[-1].json == asked
            assert "".join(row["response"] for row in lines_of(body, "response")) == "Hello"
            await ask(p, "/api/generate", model="cloud/m", prompt="a =", suffix="b", options={"num_predict": -1})
            assert cloud.posts[-1].path == "/v1/completions"
            sent = {k: v for k, v in cloud.posts[-1].json.items() if k != "stream_options"}
            assert sent == {"model": "m", "prompt": "a =", "suffix": "b", "stream": True}


async def test_nothing_to_say_loads(tmp_path: Path) -> None:
    """Answered here, in one object; the model must exist all the same."""
    async with upstream(each(refuses)) as gpu, proxy(settings({"gpu": openai(gpu.url)}), tmp_path) as p:
        for path, part, body in (
            ("/api/chat", "message", {"messages": []}),
            ("/api/chat", "message", {}),
            ("/api/generate", "response", {}),
            ("/api/generate", "response", {"prompt": "", "stream": False}),
        ):
            code, answer, headers = await ask(p, path, **body)
            row = json.loads(answer)
            legal(row, part=part)
            assert (code, headers["content-type"]) == (200, "application/json")
            assert (row["model"], row["done"], row["done_reason"]) == ("mana/test", True, "load")
            assert headers["x-mana-llm-attempts"] == "0"
        _, answer, _ = await ask(p, "/api/generate", keep_alive=0)
        assert json.loads(answer)["done_reason"] == "unload"
        inputs: list[dict[str, Any]] = [{"input": []}, {"input": ""}, {}]
        for given in inputs:
            assert json.loads((await ask(p, "/api/embed", **given))[1])["embeddings"] == []
        assert json.loads((await ask(p, "/api/embeddings", prompt=""))[1]) == {"embedding": []}
        code, answer, _ = await ask(p, "/api/generate", model="mana/nosuch")
        assert (code, "not found" in json.loads(answer)["error"]) == (404, True)
        assert gpu.posts == []


async def test_silences(tmp_path: Path) -> None:
    """A heartbeat is an object without words, before the first word and while a tool's arguments come."""

    async def slow(connection: Connection, seen: Seen) -> None:
        await connection.head()
        await connection.chunk(chunk(role=True))
        await connection.upstream.go.wait()
        await connection.chunk(tool_chunk(TOOL_STREAM[3]))
        connection.upstream.go.clear()
        await connection.upstream.go.wait()
        await connection.chunk(tool_chunk(None, "tool_calls") + DONE)
        await connection.end()

    streaming = {"early_heartbeat": 0.05, "heartbeat": 0.05}
    async with (
        upstream(each(slow)) as gpu,
        proxy(settings({"gpu": openai(gpu.url)}, streaming=streaming), tmp_path) as p,
    ):
        async with p.client.post(f"{p.url}/api/chat", json={"model": "mana/test", "messages": HI}) as response:
            rows = [json.loads(await response.content.readline()) for _ in range(2)]
            assert {row["model"] for row in rows} == {"mana/test"}
            gpu.go.set()
            rows += [json.loads(await response.content.readline()) for _ in range(3)]
            gpu.go.set()
            rest = await everything(response)
        for row in rows:
            legal(row, part="message")
            assert (row["message"]["content"], row["done"]) == ("", False)
        assert "tool_calls" in lines_of(rest)[-2]["message"]


async def test_nobody_left_after_an_early_heartbeat(tmp_path: Path) -> None:
    """Its status has left, so a line tells of it."""

    async def slow(connection: Connection, seen: Seen) -> None:
        await connection.upstream.go.wait()
        connection.reset()

    streaming = {"early_heartbeat": 0.05}
    async with upstream(each(slow)) as gpu:
        async with proxy(settings({"gpu": openai(gpu.url)}, streaming=streaming), tmp_path) as p:
            async with p.client.post(f"{p.url}/api/chat", json={"model": "mana/test", "messages": HI}) as response:
                legal(json.loads(await response.content.readline()), part="message")
                gpu.go.set()
                last = (await everything(response)).splitlines()[-1]
                assert "gpu/m (disconnected" in json.loads(last)["error"]


async def test_an_odd_line_end_in_a_text(tmp_path: Path) -> None:
    """U+2028, U+2029 and U+0085 are letters to JSON and line ends to httpx: they leave as escapes."""
    text = "a\u2028b\u2029c\u0085d"

    async def says(connection: Connection, seen: Seen) -> None:
        await connection.head()
        await connection.chunk(chunk(text) + chunk(finish="stop") + DONE)
        await connection.end()

    async with upstream(each(says)) as gpu, proxy(settings({"gpu": openai(gpu.url)}), tmp_path) as p:
        _, body, _ = await ask(p, "/api/chat", messages=HI)
        assert "".join(row["message"]["content"] for row in lines_of(body)) == text


async def test_logprobs(tmp_path: Path) -> None:
    """OpenAI's rows as Ollama's, chat and raw."""
    row = {"token": "H", "logprob": -0.5, "bytes": [72], "top_logprobs": []}

    async def says(connection: Connection, seen: Seen) -> None:
        if "prompt" in seen.json:
            choice = {"text": "H", "logprobs": {"tokens": ["H"], "token_logprobs": [-0.5], "top_logprobs": [{}]}}
        else:
            choice = {"message": {"role": "assistant", "content": "H"}, "logprobs": {"content": [row]}}
        await connection.reply({"choices": [{"index": 0, "finish_reason": "stop", **choice}]})

    async with upstream(each(says)) as gpu, proxy(settings({"gpu": openai(gpu.url)}), tmp_path) as p:
        _, body, _ = await ask(p, "/api/chat", messages=HI, logprobs=True, top_logprobs=2, stream=False)
        assert json.loads(body)["logprobs"] == [row]
        assert (gpu.posts[-1].json["logprobs"], gpu.posts[-1].json["top_logprobs"]) == (True, 2)
        _, body, _ = await ask(p, "/api/generate", prompt="x", raw=True, logprobs=True, top_logprobs=2, stream=False)
        assert json.loads(body)["logprobs"] == [{"token": "H", "logprob": -0.5}]
        assert gpu.posts[-1].json["logprobs"] == 2


TOOL = {"role": "tool", "content": "x"}
CALLING = {"role": "assistant", "tool_calls": [{"id": "c1", "function": {"name": "f", "arguments": {}}}]}
BAD: list[tuple[str, Any, str]] = [
    ("chat", b"", "empty"),
    ("chat", b"[]", "object"),
    ("chat", b"{", "JSON"),
    ("chat", b'{"model": "a", "model": "b"}', "twice"),
    ("chat", {"model": 3}, "'model'"),
    ("chat", {"messages": "hi"}, "'messages'"),
    ("chat", {"messages": ["hi"]}, "'messages[0]'"),
    ("chat", {"messages": [{"content": "x"}]}, "'messages[0].role'"),
    ("chat", {"messages": [{"role": "bot", "content": "x"}]}, "'messages[0].role'"),
    ("chat", {"messages": [{"role": "user", "content": [{"type": "text"}]}]}, "'messages[0].content'"),
    ("chat", {"messages": [{"role": "user", "content": "x", "images": ["!"]}]}, "'messages[0].images[0]'"),
    ("chat", {"messages": [{"role": "user", "content": "x", "images": [7]}]}, "'messages[0].images[0]'"),
    ("chat", {"messages": [*HI, TOOL]}, "'messages[1]'"),
    ("chat", {"messages": [*HI, {**TOOL, "tool_name": "gone"}]}, "'gone'"),
    ("chat", {"messages": [*HI, CALLING, {**TOOL, "tool_call_id": "c9"}]}, "'c9'"),
    ("chat", {"messages": [*HI, CALLING, TOOL, TOOL]}, "'messages[3]'"),
    ("chat", {"messages": [*HI, {"role": "assistant", "tool_calls": [{}]}]}, "'messages[1].tool_calls[0].function'"),
    (
        "chat",
        {"messages": [{"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": "{}"}}]}]},
        "'messages[0].tool_calls[0].function.arguments'",
    ),
    ("chat", {"messages": HI, "tools": [{}]}, "'tools[0].function'"),
    ("chat", {"messages": HI, "tools": {}}, "'tools'"),
    ("chat", {"messages": HI, "stream": "yes"}, "'stream'"),
    ("chat", {"messages": HI, "format": "xml"}, "'format'"),
    ("chat", {"messages": HI, "think": "a lot"}, "'think'"),
    ("chat", {"messages": HI, "keep_alive": True}, "'keep_alive'"),
    ("chat", {"messages": HI, "options": []}, "'options'"),
    ("chat", {"messages": HI, "options": {"temperature": "hot"}}, "'options.temperature'"),
    ("chat", {"messages": HI, "options": {"num_predict": 1.5}}, "'options.num_predict'"),
    ("chat", {"messages": HI, "options": {"stop": [1]}}, "'options.stop[0]'"),
    ("generate", {"prompt": ["x"]}, "'prompt'"),
    ("generate", {"prompt": "x", "context": [1, 2]}, "'context'"),
    ("generate", {"prompt": "a cat", "width": 64, "height": 64}, "'width'"),
    ("generate", {"prompt": "a cat", "steps": 4}, "'steps'"),
    ("generate", {"prompt": "x", "template": "{{ .Prompt }}"}, "template"),
    ("generate", {"prompt": "x", "raw": True, "system": "s"}, "'system'"),
    ("generate", {"prompt": "x", "raw": True, "images": [PNG]}, "'images'"),
    ("embed", {"input": 7}, "'input'"),
    ("embed", {"input": ["a", 7]}, "'input[1]'"),
    ("embed", {"input": "a", "dimensions": -1}, "'dimensions'"),
    ("embeddings", {"prompt": 7}, "'prompt'"),
]


async def test_bad_input(tmp_path: Path) -> None:
    """400 with one string that names the place; nobody is asked."""
    async with upstream(each(refuses)) as gpu, proxy(settings({"gpu": openai(gpu.url)}), tmp_path) as p:
        for endpoint, body, words in BAD:
            data = body if isinstance(body, bytes) else json.dumps(body).encode()
            async with p.client.post(f"{p.url}/api/{endpoint}", data=data) as response:
                answer = await response.json()
                assert response.status == 400, (body, answer)
                assert [*answer] == ["error"] and words in answer["error"], (body, answer)
        assert gpu.posts == []


async def test_other_refusals(tmp_path: Path) -> None:
    """Each with its status, and one string: a provider's own words, ours, and what is managed elsewhere."""
    body = {"error": {"message": "too long", "code": "context_length_exceeded"}}
    async with upstream(each(status("400 Bad", body))) as gpu, proxy(settings({"gpu": openai(gpu.url)}), tmp_path) as p:

        async def refusal(path: str, method: str = "POST", **given: Any) -> tuple[int, str]:
            async with p.client.request(method, p.url + path, json=given) as response:
                answer = await response.json()
                assert [*answer] == ["error"]
                return response.status, answer["error"]

        assert await refusal("/api/chat", messages=HI) == (400, "too long")
        for path in ("pull", "push", "create", "copy", "blobs/sha256:0"):
            assert (await refusal(f"/api/{path}", model="x"))[0] == 501
        assert (await refusal("/api/delete", "DELETE", model="x"))[0] == 501
        assert (await refusal("/api/chat", "GET"))[0] == 405
        assert (await refusal("/api/me"))[0] == 404
        assert (await refusal("/api/show", model="mana/nosuch"))[0] == 404
        code, error = await refusal("/api/chat", messages=HI, model="gpu2/m/x")
        assert (code, "not found" in error) == (404, True)
        async with p.client.head(f"{p.url}/api/blobs/sha256:0") as response:
            assert response.status == 501
        async with p.client.head(f"{p.url}/") as response:
            assert response.status == 200


SHA = "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08"  # "test"


async def test_lists(tmp_path: Path) -> None:
    """Aliases as models with a tag, what the key may use, and what the first usable target can do."""

    async def box(connection: Connection) -> None:
        rows = [
            {
                "name": "q:7b",
                "model": "q:7b",
                "details": {"context_length": 8192},
                "capabilities": ["completion", "tools"],
            },
            {"name": "e:latest", "model": "e:latest", "capabilities": ["embedding"]},
        ]
        while await connection.request() is not None:
            await connection.reply({"models": rows})

    async with upstream(box) as server, upstream(each(answers), ["m", "k:free", "Org/M"]) as cloud:
        providers = {
            "nokey": openai("http://127.0.0.1:9", api_key="${NOT_SET}"),
            "box": {"kind": "ollama", "base_url": server.url},
            "cloud": openai(cloud.url),
        }
        config = settings(providers, ["nokey/x", "box/q:7b", "cloud/m"])
        config["aliases"]["mana/own"] = {"chain": [{"target": "box/e", "options": {"num_ctx": 256}}]}
        async with proxy(config, tmp_path) as p:
            code, tags = await p.get("/api/tags")
            assert code == 200, tags
            assert [row["name"] for row in tags["models"]] == [
                "mana/test:latest",
                "mana/own:latest",
                "box/q:7b",
                "box/e:latest",
                "cloud/m:latest",
                "cloud/k:free",
                "cloud/Org/M:latest",
            ]
            for row in tags["models"]:
                assert row["model"] == row["name"]
                assert len(row["digest"]) == 64 and row["modified_at"].endswith("Z") and row["size"] == 0
                code, shown, _ = await p.post("/api/show", {"model": row["name"]})
                assert (code, shown["capabilities"]) == (200, row["capabilities"])
                assert shown["details"].items() >= {**row["details"], "families": ["manallm"]}.items()
                assert shown.keys() >= {"model_info", "template", "modelfile", "parameters", "modified_at"}
            for name in ("cloud/m:latest", "cloud/m", "cloud/Org/M:latest"):
                assert (await p.chat(model=name))[0] == 200
                assert cloud.posts[-1].json["model"] == name.removeprefix("cloud/").removesuffix(":latest")
            for name in ("mana/test", "mana/test:latest"):
                _, shown, _ = await p.post("/api/show", {"model": name})
                arch = shown["model_info"]["general.architecture"]
                assert shown["capabilities"] == ["completion", "tools"]
                assert shown["model_info"][f"{arch}.context_length"] == 8192
                assert shown["model_info"]["general.basename"] == "mana/test"
            _, shown, _ = await p.post("/api/show", {"model": "cloud/m"})  # it lists none, and clients hide what lacks
            assert shown["capabilities"] == ["completion", "thinking", "tools", "vision"]
            _, shown, _ = await p.post("/api/show", {"name": "mana/own"})
            assert shown["capabilities"] == ["embedding"]
            assert shown["model_info"][f"{arch}.context_length"] == 256
            assert (await p.post("/api/show", {"model": "box/nosuch"}))[0] == 404
            assert await p.get("/api/ps") == (200, {"models": []})
            _, version = await p.get("/api/version")
            assert tuple(map(int, version["version"].split("."))) >= (0, 6, 4)
            _, rows = await p.get("/v1/models/mana/test:latest")
            assert rows["id"] == "mana/test"


def test_what_a_digest_stands_for() -> None:
    """llm keeps the capabilities of a digest on disk, and never asks again: another target has other ones."""
    rows = [
        ModelRow("mana/a:latest", 0.0),
        ModelRow("mana/b:latest", 0.0),
        ModelRow("mana/a:latest", 0.0, {"completion", "tools"}),
        ModelRow("mana/a:latest", 0.0, {"completion", "tools"}, 4096),
    ]
    assert len({row.listed()["digest"] for row in rows}) == len(rows)
    again = ModelRow("mana/a:latest", 1.0, ["tools", "completion"], 4096)
    assert again.listed()["digest"] == rows[3].listed()["digest"]


async def test_a_time_that_is_none(tmp_path: Path) -> None:
    """Some list milliseconds. Of one odd row a list does not fail."""

    async def lists(connection: Connection) -> None:
        rows = [{"id": f"m{n}", "created": created} for n, created in enumerate((10**12, 10**18, -(10**15), 86400))]
        while await connection.request() is not None:
            await connection.reply({"object": "list", "data": rows})

    async with upstream(lists) as gpu, proxy(settings({"gpu": openai(gpu.url)}), tmp_path) as p:
        code, tags = await p.get("/api/tags")
        assert code == 200
        assert [row["modified_at"] for row in tags["models"][1:]] == [
            *("1970-01-01T00:00:00Z",) * 3,
            "1970-01-02T00:00:00Z",
        ]
        assert (await p.post("/api/show", {"model": "gpu/m0"}))[0] == 200


async def test_keys(tmp_path: Path) -> None:
    """A key sees and uses its own models, by either name; without one the API is closed."""
    async with upstream(each(answers), ["m"]) as gpu:
        config = settings({"gpu": openai(gpu.url)}, auth={"keys": [{"name": "t", "sha256": SHA, "models": ["mana/*"]}]})
        async with proxy(config, tmp_path) as p:
            headers = {"Authorization": "Bearer test"}
            for path in ("/api/tags", "/api/ps", "/api/version"):
                assert (await p.get(path))[0] == 401
            for path in ("/api/show", "/api/chat", "/api/pull"):
                code, answer, _ = await p.post(path, {"model": "mana/test"})
                assert (code, isinstance(answer["error"], str)) == (401, True)
            async with p.client.get(f"{p.url}/api/tags", headers=headers) as response:
                assert [row["name"] for row in (await response.json())["models"]] == ["mana/test:latest"]
            chat = {"messages": HI, "stream": False}
            for path, model, wanted in (
                ("/api/chat", "mana/test:latest", 200),
                ("/api/chat", "gpu/m", 403),
                ("/api/show", "mana/test", 200),
                ("/api/show", "gpu/m:latest", 403),
            ):
                assert (await p.post(path, {"model": model, **chat}, headers=headers))[0] == wanted


async def test_a_key_for_a_model_with_two_names(tmp_path: Path) -> None:
    """An Ollama's model without a tag is its ``:latest``: a key for the one name sees and uses both, and no more."""
    models = ["a:latest", "b:latest", "c:7b", "c:latest"]
    async with upstream(each(ollama), models) as box, upstream(each(answers), ["m", "m:latest"]) as gpu:
        providers = {"box": {"kind": "ollama", "base_url": box.url}, "gpu": openai(gpu.url)}
        keys = [{"name": "t", "sha256": SHA, "models": ["box/a", "box/b:latest", "box/c:7b", "gpu/m"]}]
        async with proxy(settings(providers, auth={"keys": keys}, default_provider="box"), tmp_path) as p:
            headers = {"Authorization": "Bearer test"}
            async with p.client.get(f"{p.url}/api/tags", headers=headers) as response:
                rows = [row["name"] for row in (await response.json())["models"]]
            assert rows == ["box/a:latest", "box/b:latest", "box/c:7b", "gpu/m"]
            for names, wanted in (
                (("box/a", "box/a:latest", "a", "a:latest", "box/b", "b:latest", "box/c:7b", "gpu/m"), (200, 200, 200)),
                (("box/c", "c:latest", "gpu/m:latest", "gpu/a"), (403, 403, 404)),
            ):
                for model in names:
                    chat = {"model": model, "messages": HI, "stream": False}
                    codes = [(await p.post(path, chat, headers=headers))[0] for path in ("/api/chat", "/api/show")]
                    async with p.client.get(f"{p.url}/v1/models/{model}", headers=headers) as response:
                        assert (*codes, response.status) == wanted, model


@pytest.mark.parametrize("kind", ["openai", "ollama"])
@pytest.mark.parametrize("allowed", ["p/m", "p/m:latest", "p/*", None])
async def test_a_name_means_the_same_wherever_it_stands(kind: str, allowed: str | None, tmp_path: Path) -> None:
    """A provider lists both ``m`` and ``m:latest``: two models, but for an Ollama, where they are one.

    What a list tells can be looked up, shown and asked, and is served by the model of that name; what it does not tell
    is refused by all of them.
    """

    async def box(connection: Connection) -> None:
        rows = {"data": [{"id": id_} for id_ in ("m", "m:latest")]}
        rows |= {"models": [{"name": id_, "model": id_} for id_ in ("m", "m:latest")]}
        while (seen := await connection.request()) is not None:
            if seen.method == "GET":
                await connection.reply(rows)
            else:
                await (answers if kind == "openai" else ollama)(connection, seen)

    keys = [] if allowed is None else [{"name": "t", "sha256": SHA, "models": [allowed]}]
    headers = {} if allowed is None else {"Authorization": "Bearer test"}
    async with upstream(box) as server:
        provider = openai(server.url) if kind == "openai" else {"kind": "ollama", "base_url": server.url}
        async with proxy(settings({"p": provider}, auth={"keys": keys}), tmp_path) as p:
            async with p.client.get(f"{p.url}/v1/models", headers=headers) as response:
                ids = {row["id"] for row in (await response.json())["data"]} - {"mana/test"}
            async with p.client.get(f"{p.url}/api/tags", headers=headers) as response:
                names = [row["name"] for row in (await response.json())["models"]]
            names = [name for name in names if not name.startswith("mana/")]
            assert len(names) == len(set(names))
            assert set(names) == (ids if kind == "openai" else {"p/m:latest"})
            both = kind == "ollama" or allowed in ("p/*", None)
            assert ids == ({"p/m", "p/m:latest"} if both else {allowed})
            for name in ("p/m", "p/m:latest"):
                codes = [
                    (await p.post(path, {"model": name, "messages": HI, "stream": False}, headers=headers))[0]
                    for path in ("/v1/chat/completions", "/api/chat", "/api/show")
                ]
                if codes[0] == 200:
                    assert {f"p/{seen.json['model']}" for seen in server.posts[-2:]} == {name}
                async with p.client.get(f"{p.url}/v1/models/{name}", headers=headers) as response:
                    codes.append(response.status)
                assert codes == ([200] * 4 if name in ids else [403, 403, 403, 404]), (name, codes)
