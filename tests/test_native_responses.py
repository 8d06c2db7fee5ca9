"""A provider that speaks Responses itself: its bytes are relayed, its state is ours, and a chain may mix the two."""

from __future__ import annotations

import asyncio
import json
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from manallm_proxy.contract.answers import StreamBatch
from manallm_proxy.contract.door import Client
from manallm_proxy.contract.errors import InvalidRequest
from manallm_proxy.contract.targets import Target
from manallm_proxy.doors.responses.answer import AnswerItems
from manallm_proxy.doors.responses.door import ResponsesDoor
from manallm_proxy.doors.responses.numbering import after, first, shifted
from manallm_proxy.doors.responses.reply import ResponsesReply
from manallm_proxy.doors.responses.shell import Shell
from manallm_proxy.doors.responses.store import MemoryStore, Stored
from manallm_proxy.doors.responses.tool_names import Tool
from tests.native_servers import (
    ENCRYPTED,
    begin,
    event,
    finish,
    response_object,
    responses_stream,
    said,
    speaks_responses,
    thought,
    words,
)
from tests.proxy import Proxy, everything, openai, proxy, settings
from tests.responses import FUNCTION, parsed
from tests.upstreams import Connection, Seen, answers, each, status, upstream
from tests.waiting import until

NATIVE = ["chat", "responses"]
SEARCH = {"type": "web_search"}
USER = {"role": "user", "content": "hi"}


async def stream(p: Proxy, **body: Any) -> tuple[int, bytes]:
    asked = {"input": "hi", "stream": True, **body}
    async with p.client.post(f"{p.url}/v1/responses", json=asked) as response:
        return response.status, await everything(response)


async def test_a_whole_answer_and_its_continuation(http: None, tmp_path: Path) -> None:
    """Its own words, its own fields; its model, its id and its state are the proxy's."""
    async with upstream(each(speaks_responses)) as up:
        async with proxy(settings({"p": openai(up.url, speaks=NATIVE, api_key="sk-own-key")}), tmp_path) as p:
            body = {"model": "mana/test", "input": "hi", "tools": [SEARCH, FUNCTION], "future_field": {"a": 1}}
            code, told, headers = await p.post("/v1/responses", body)
            assert code == 200
            assert headers["x-mana-llm-resolved"] == told["model"] == "p/m"
            assert told["id"].startswith("resp_") and told["id"] != response_object()["id"]
            own = {"id": told["id"], "model": "p/m", "store": True}
            assert told == {**response_object(output=[thought(), said()]), **own}
            sent = up.posts[-1]
            assert sent.path == "/v1/responses"
            assert sent.json == {**body, "model": "m", "store": False}
            assert sent.headers["authorization"] == "Bearer sk-own-key"
            more = {"input": [{"role": "user", "content": "more"}], "previous_response_id": told["id"]}
            _, again, _ = await p.post("/v1/responses", more)
            assert again["previous_response_id"] == told["id"]
            first, *rest = up.posts[-1].json["input"]
            assert first["content"] == [{"type": "input_text", "text": "hi"}]
            assert rest == [thought(), said(), {"role": "user", "content": "more"}]
            assert up.posts[-1].json["previous_response_id"] is None
            code, kept = await p.get(f"/v1/responses/{told['id']}")
            assert (code, kept) == (200, told)
            metrics = await (await p.client.get(f"{p.url}/metrics")).text()
            assert 'mana_llm_tokens_total{model="m",provider="p",type="prompt"} 14' in metrics
            assert '"notes"' not in p.log.getvalue()


async def test_a_stream_keeps_its_bytes(tmp_path: Path) -> None:
    """All but what repeats the response, which names model and id as the proxy does."""
    async with upstream(each(speaks_responses)) as up:
        async with proxy(settings({"p": openai(up.url, speaks=NATIVE)}), tmp_path) as p:
            code, data = await stream(p)
            assert code == 200
            events = parsed(data)
            came = responses_stream()
            assert [frame for frame in came if b'"response":' not in frame] == [
                frame + b"\n\n" for frame in data.split(b"\n\n") if frame and b'"response":' not in frame
            ]
            responses = [row["response"] for row in events if "response" in row]
            assert {(row["id"], row["model"], row["store"]) for row in responses} == {(responses[0]["id"], "p/m", True)}
            assert responses[-1]["output"] == [thought(), said()]
            _, kept = await p.get(f"/v1/responses/{responses[-1]['id']}")
            assert kept == responses[-1]
            rows = [json.loads(row) for row in p.log.getvalue().splitlines()]
            ended = next(row for row in rows if row["event"] == "request")
            assert (ended["prompt_tokens"], ended["completion_tokens"]) == (7, 5)


@pytest.mark.parametrize("streamed", [False, True])
async def test_a_conversation_changes_its_provider(streamed: bool, tmp_path: Path) -> None:
    """From one that is asked natively to one that is not, and back, by each way to a next turn."""
    down = asyncio.Event()

    async def falls(connection: Connection, seen: Seen) -> None:
        await (status("502 Bad Gateway") if down.is_set() else speaks_responses)(connection, seen)

    async with upstream(each(falls)) as first, upstream(each(answers)) as second:
        providers = {"a": openai(first.url, speaks=NATIVE), "b": openai(second.url)}
        async with proxy(settings(providers, health={"failure_threshold": 99}), tmp_path) as p:

            async def ask(**body: Any) -> Any:
                if not streamed:
                    return (await p.post("/v1/responses", {"input": "hi", **body}))[1]
                return parsed((await stream(p, **body))[1])[-1]["response"]

            told = await ask(tools=[SEARCH])
            assert told["model"] == "a/m"
            down.set()
            references = [{"type": "item_reference", "id": item["id"]} for item in told["output"]]
            by_items = await ask(
                input=[{"role": "user", "content": "hi"}, *references, {"role": "user", "content": "x"}]
            )
            by_id = await ask(input="x", previous_response_id=told["id"])
            assert by_items["model"] == by_id["model"] == "b/m"
            for post in second.posts[-2:]:
                assert post.json["messages"] == [
                    {"role": "user", "content": "hi"},
                    {"role": "assistant", "content": "Hello"},
                    {"role": "user", "content": "x"},
                ]
                assert ENCRYPTED not in post.body.decode()
            down.clear()
            back = await ask(input="y", previous_response_id=by_id["id"])
            assert back["model"] == "a/m"
            sent = first.posts[-1].json["input"]
            assert [row.get("role", row["type"]) for row in sent] == [
                *("user", "reasoning", "assistant", "user", "assistant", "user"),
            ]
            assert sent[1] == thought()


async def test_reasoning_goes_to_whoever_can_read_it(tmp_path: Path) -> None:
    """What the proxy packed for another provider, and what has lost its content, is left out."""
    async with upstream(each(speaks_responses)) as up:
        async with proxy(settings({"p": openai(up.url, speaks=NATIVE)}), tmp_path) as p:
            ours = {"type": "reasoning", "id": "rs_2", "summary": [], "encrypted_content": "manallm1.e30="}
            bare = {"type": "reasoning", "id": "rs_3", "summary": []}
            text = {
                "type": "reasoning",
                "id": "rs_4",
                "summary": [],
                "content": [{"type": "reasoning_text", "text": "x"}],
            }
            user = {"role": "user", "content": "hi"}
            await p.post("/v1/responses", {"input": [user, thought(), ours, bare, text, user]})
            assert up.posts[-1].json["input"] == [user, thought(), text, user]
            await p.post("/v1/responses", {"input": "hi", "reasoning": {"effort": "low"}})
            assert up.posts[-1].json["include"] == ["reasoning.encrypted_content"]
            await p.post("/v1/responses", {"input": "hi", "reasoning": {"effort": "low"}, "store": False})
            assert "include" not in up.posts[-1].json


async def test_what_a_provider_did_by_itself_stays_with_it(tmp_path: Path) -> None:
    """A kept conversation with a search goes on elsewhere without it, as the log notes, and returns with it."""
    search = {
        "id": "ws_1",
        "type": "web_search_call",
        "status": "completed",
        "action": {"type": "search", "query": "x"},
    }

    async def searches(connection: Connection, seen: Seen) -> None:
        await connection.reply(response_object(output=[search, said()]))

    async with (
        upstream(each(searches)) as up,
        upstream(each(speaks_responses)) as other,
        upstream(each(answers)) as chats,
    ):
        urls = {"a": openai(up.url, speaks=NATIVE), "c": openai(other.url, speaks=NATIVE), "b": openai(chats.url)}
        async with proxy(settings(urls), tmp_path) as p:
            _, first, _ = await p.post("/v1/responses", {"model": "a/m", "input": "hi", "tools": [SEARCH]})
            assert first["output"] == [search, said()]
            more = {"input": "x", "previous_response_id": first["id"]}
            code, told, _ = await p.post("/v1/responses", {"model": "b/m", **more})
            assert (code, told["model"]) == (200, "b/m")
            assert [row["content"] for row in chats.posts[-1].json["messages"]] == ["hi", "Hello", "x"]
            assert "not sent on: item web_search_call" in p.log.getvalue()
            await p.post("/v1/responses", {"model": "c/m", **more})
            assert [row["type"] for row in other.posts[-1].json["input"]] == ["message"] * 3
            await p.post("/v1/responses", {"model": "a/m", "input": "y", "previous_response_id": told["id"]})
            assert up.posts[-1].json["input"][1:3] == [search, said()]
            _, listed = await p.get(f"/v1/responses/{told['id']}/input_items?order=asc")
            assert listed["data"][1] == search


async def test_a_search_that_the_client_sends_back_binds_it_to_nobody(tmp_path: Path) -> None:
    """As codex does, which stores nothing: once it had searched, the fallback was left out (503)."""
    items = [USER, {"type": "web_search_call", "id": "ws_1"}, {"type": "file_search_call", "id": "fs_1"}, said(), USER]
    async with upstream(each(answers)) as chats, upstream(each(status("503 Busy"))) as up:
        providers = {"p": openai(up.url, speaks=NATIVE), "a": openai(chats.url)}
        async with proxy(settings(providers), tmp_path) as p:
            code, told, _ = await p.post("/v1/responses", {"input": items, "store": False, "tools": [SEARCH]})
            assert (code, told["model"]) == (200, "a/m")
            assert up.posts[0].json["input"] == items
            assert [row["content"] for row in chats.posts[0].json["messages"]] == ["hi", "Hello", "hi"]
            await until(lambda: "not sent on: item web_search_call" in p.log.getvalue())


async def test_what_has_no_translation_goes_to_who_needs_none(tmp_path: Path) -> None:
    """Past a target that would need one; where there is no other it is refused by name, and nobody is asked."""
    async with upstream(each(answers)) as chats, upstream(each(speaks_responses)) as up:
        providers = {"a": openai(chats.url), "p": openai(up.url, speaks=NATIVE)}
        async with proxy(settings(providers, chain=["a/m", "p/m"]), tmp_path) as p:
            for body in (
                {"tools": [{"type": "code_interpreter", "container": {"type": "auto"}}]},
                {"input": [{"type": "code_interpreter_call", "id": "ci_1"}, {"role": "user", "content": "hi"}]},
                {"input": [{"role": "user", "content": [{"type": "input_file", "file_url": "https://x/y"}]}]},
                {"input": [{"role": "user", "content": [{"type": "input_file", "file_id": "file_1"}]}]},
                {"input": [{"role": "user", "content": [{"type": "input_image", "file_id": "file_1"}]}]},
            ):
                code, told, _ = await p.post("/v1/responses", {"input": "hi", **body})
                assert (code, told["model"]) == (200, "p/m")
                code, told, _ = await p.post("/v1/responses", {"input": "hi", "model": "a/m", **body})
                assert (code, told["error"]["source"]) == (400, "manallm-proxy")
            assert not chats.posts
            # one that both can serve goes to the first
            _, told, _ = await p.post("/v1/responses", {"input": "hi", "tools": [SEARCH, FUNCTION]})
            assert told["model"] == "a/m"
            assert [tool["function"]["name"] for tool in chats.posts[-1].json["tools"]] == ["add"]


async def test_a_place_in_the_history_is_the_requests_own(tmp_path: Path) -> None:
    """A refusal names what the client sent, not what the proxy made of it."""

    async def refuses(connection: Connection, seen: Seen) -> None:
        if len(seen.json["input"]) == 1 or isinstance(seen.json["input"], str):
            await speaks_responses(connection, seen)
            return
        error = {"message": "Invalid 'input[3].content'", "type": "invalid_request_error", "param": "input[3].content"}
        await connection.reply({"error": {**error, "code": "bad"}}, "400 Bad Request")

    async with upstream(each(refuses)) as up:
        async with proxy(settings({"p": openai(up.url, speaks=NATIVE)}), tmp_path) as p:
            _, first, _ = await p.post("/v1/responses", {"input": [{"role": "user", "content": "hi"}]})
            body = {"previous_response_id": first["id"], "input": [{"role": "user", "content": "x"}]}
            code, told, _ = await p.post("/v1/responses", body)
            assert (code, told["error"]["param"]) == (400, "input[0].content")
            assert "input[0].content" in told["error"]["message"]


FAILED = event(
    "response.failed",
    sequence_number=8,
    response=response_object("failed", error={"code": "server_error", "message": "it broke"}),
)
ERROR = event("error", sequence_number=8, code="server_error", message="it broke", param=None)
NESTED = event(
    "error", sequence_number=8, error={"type": "server_error", "code": "server_error", "message": "it broke"}
)
BREAKS = {"failed": [FAILED], "error": [ERROR], "nested": [NESTED], "cut": [], "no json": [b"event: x\ndata: {\n\n"]}


@pytest.mark.parametrize("how", BREAKS)
async def test_a_break(how: str, tmp_path: Path) -> None:
    """Before a word was said the next target serves; after it both events tell of it, numbered on, with one id."""

    def server(said_: bool) -> Any:
        async def answer(connection: Connection, seen: Seen) -> None:
            await connection.head()
            for frame in [*begin(), *(words("Hel", "lo") if said_ else []), *BREAKS[how]]:
                await connection.chunk(frame)
            await connection.end()

        return answer

    for said_ in (False, True):
        async with upstream(each(server(said_))) as up, upstream(each(speaks_responses)) as other:
            providers = {"a": openai(up.url, speaks=NATIVE), "b": openai(other.url, speaks=NATIVE)}
            async with proxy(settings(providers), tmp_path) as p:
                code, data = await stream(p)
                events = parsed(data)
                assert code == 200
                if not said_:
                    assert events[-1]["response"]["model"] == "b/m"
                    continue
                failed, error = events[-2:]
                assert (failed["type"], error["type"]) == ("response.failed", "error")
                told = failed["response"]
                assert (told["id"], told["status"], told["model"]) == (events[0]["response"]["id"], "failed", "a/m")
                assert told["output"] == [thought()]
                assert error["message"] == error["error"]["message"] == told["error"]["message"]
                code, _ = await p.get(f"/v1/responses/{told['id']}")
                assert code == 404
                assert not other.posts


async def test_an_answer_that_was_cut_by_length(tmp_path: Path) -> None:
    """Is complete as such, and kept."""

    async def answer(connection: Connection, seen: Seen) -> None:
        await connection.head()
        for frame in [*begin(), *words("Hel", "lo"), *finish(status="incomplete")]:
            await connection.chunk(frame)
        await connection.end()

    async with upstream(each(answer)) as up:
        async with proxy(settings({"p": openai(up.url, speaks=NATIVE)}), tmp_path) as p:
            _, data = await stream(p)
            last = parsed(data)[-1]
            assert (last["type"], last["response"]["status"]) == ("response.incomplete", "incomplete")
            assert (await p.get(f"/v1/responses/{last['response']['id']}"))[0] == 200


WRONG = {
    "an error": {"error": {"message": "Rate limit reached", "type": "rate_limit_error", "code": "rate_limit_exceeded"}},
    "failed": response_object("failed", error={"code": "server_error", "message": "it broke"}),
    "not over": response_object("in_progress"),
    "a chat": {"id": "c", "object": "chat.completion", "choices": [{"message": {"content": "x"}}]},
}


@pytest.mark.parametrize("what", WRONG)
async def test_a_200_that_is_no_answer(what: str, tmp_path: Path) -> None:
    """The next target serves, streamed and not."""

    async def answer(connection: Connection, seen: Seen) -> None:
        await connection.reply(WRONG[what])

    async with upstream(each(answer)) as up, upstream(each(speaks_responses)) as other:
        providers = {"a": openai(up.url, speaks=NATIVE), "b": openai(other.url, speaks=NATIVE)}
        async with proxy(settings(providers, health={"failure_threshold": 99}), tmp_path) as p:
            assert (await p.post("/v1/responses", {"input": "hi"}))[1]["model"] == "b/m"
            assert parsed((await stream(p))[1])[-1]["response"]["model"] == "b/m"


ODD = {
    "an item without a kind": (json.dumps(said()), json.dumps({**said(), "type": {"a": 1}})),
    "a number beyond all": ('"logprobs": []', '"logprobs": [1e999]'),
}


@pytest.mark.parametrize("what", ODD)
@pytest.mark.parametrize("streamed", [False, True])
async def test_an_odd_answer_is_relayed_and_kept_as_far_as_it_is_sound(
    what: str, streamed: bool, tmp_path: Path
) -> None:
    """And is no failure of ours: a number beyond all is JSON, and its client may well read it."""
    odd, compact = ODD[what], tuple(part.replace('": ', '":').replace(", ", ",").encode() for part in ODD[what])
    whole = json.dumps(response_object(output=[thought(), said()])).replace(*odd)
    last = b"".join(finish()).replace(compact[0], compact[1])

    async def answer(connection: Connection, seen: Seen) -> None:
        if not streamed:
            await connection.reply(whole.encode())
            return
        await connection.head()
        for frame in [*begin(), *words("Hel", "lo"), last]:
            await connection.chunk(frame)
        await connection.end()

    async with upstream(each(answer)) as up:
        async with proxy(settings({"p": openai(up.url, speaks=NATIVE)}), tmp_path) as p:
            async with p.client.post(f"{p.url}/v1/responses", json={"input": "hi", "stream": streamed}) as response:
                assert response.status == 200
                told = await everything(response)
            assert b"response.failed" not in told
            assert odd[1].replace(" ", "").encode() in told.replace(b" ", b"")
            assert '"internal error"' not in p.log.getvalue()


@pytest.mark.parametrize("told", ["null", "3", '"x"', "[]", "{}"])
async def test_a_stream_whose_end_tells_no_response_is_not_kept(told: str, tmp_path: Path) -> None:
    """Who asks the same again is answered, streamed or not."""

    async def answer(connection: Connection, seen: Seen) -> None:
        if not seen.json.get("stream"):
            await speaks_responses(connection, seen)
            return
        await connection.head()
        last = b'event: response.completed\ndata: {"type":"response.completed","response":%b}\n\n' % told.encode()
        for frame in [*begin(), *words("Hel", "lo"), *finish()[:-1], last]:
            await connection.chunk(frame)
        await connection.end()

    async with upstream(each(answer)) as up:
        config = settings({"p": openai(up.url, speaks=NATIVE)})
        config["aliases"]["mana/test"]["cache"] = {"ttl": "1h"}
        async with proxy(config, tmp_path) as p:
            assert (await stream(p))[0] == 200
            code, whole, headers = await p.post("/v1/responses", {"input": "hi"})
            assert (code, whole["status"], headers["x-mana-llm-cache"]) == (200, "completed", "miss")
            assert (await stream(p))[0] == 200


@pytest.mark.parametrize("step", [1, 7, 64, 10_000])
async def test_however_it_is_cut(step: int, tmp_path: Path) -> None:
    """Reads have nothing to do with events."""
    whole = b"".join(responses_stream())

    async def answer(connection: Connection, seen: Seen) -> None:
        await connection.head()
        for at in range(0, len(whole), step):
            await connection.chunk(whole[at : at + step])
        await connection.end()

    async with upstream(each(answer)) as up:
        async with proxy(settings({"p": openai(up.url, speaks=NATIVE)}), tmp_path) as p:
            _, data = await stream(p)
            events = parsed(data)
            assert len(events) == len(responses_stream())
            began = [(row["response"]["status"], row["response"]["output"]) for row in events[:2]]
            assert began == [("in_progress", [])] * 2
            assert "".join(row["delta"] for row in events if row["type"] == "response.output_text.delta") == "Hello"


async def test_a_silence_is_filled_with_its_own_state(tmp_path: Path) -> None:
    """A heartbeat before the commit begins the answer, which a provider then goes on with. No two events have the same
    number: those of the provider are counted on from the heartbeats."""
    go = asyncio.Event()

    async def answer(connection: Connection, seen: Seen) -> None:
        await connection.upstream.go.wait()
        await connection.head()
        for frame in [*begin(), *words("Hel", "lo")]:
            await connection.chunk(frame)
        await go.wait()
        for frame in finish():
            await connection.chunk(frame)
        await connection.end()

    async with upstream(each(answer)) as up:
        streaming = {"heartbeat": 0.05, "early_heartbeat": 0.05}
        async with proxy(settings({"p": openai(up.url, speaks=NATIVE)}, streaming=streaming), tmp_path) as p:
            data = b""
            async with p.client.post(f"{p.url}/v1/responses", json={"input": "hi", "stream": True}) as response:
                async for part in response.content.iter_any():
                    data += part
                    if data.count(b"event: response.in_progress") > 2:
                        up.go.set()
                    if b'"lo"' in data and data.rfind(b"event: response.in_progress") > data.find(b'"lo"'):
                        go.set()
            rows = [json.loads(line[6:]) for line in data.split(b"\n") if line.startswith(b"data: ")]
            assert [row["type"] for row in rows].count("response.created") == 1
            assert len({row["response"]["id"] for row in rows if "response" in row}) == 1
            after = next(n for n, row in enumerate(rows) if row.get("delta") == "lo")
            assert [row["sequence_number"] for row in rows] == list(range(len(rows)))
            assert rows[after + 1]["type"] == "response.in_progress"
            assert rows[after + 1]["response"]["model"] == "p/m"
            assert rows[-1]["type"] == "response.completed"


def test_a_number_where_lines_end_in_cr() -> None:
    """The last event of each read was lost, once a heartbeat had taken a number."""
    for end in ("\n", "\r\n", "\r"):
        events = "".join(f'data: {{"sequence_number":{n}}}{end}{end}' for n in (4, 5)).encode()
        assert (first(events), after(events, 0)) == (4, 6)


def test_only_an_events_own_number_is_changed() -> None:
    """Neither a member of that name further inside, nor one in a text; all else keeps its bytes."""
    inside = b'"item":{"sequence_number":1.50,"text":"\\"sequence_number\\":1"}'
    for before, now in (
        (b'event: a\ndata: {%b, "sequence_number" : 9}\n\n' % inside, b'event: a\ndata: {%b,"sequence_number":12}\n\n'),
        (b'data: {"sequence_number":0,%b}\r\n\r\n' % inside, b'data: {"sequence_number":3,%b}\r\n\r\n'),
        (b'data: {"sequence_number":0,%b}\r\r' % inside, b'data: {"sequence_number":3,%b}\r\r'),
        (b"data: {%b}\n\n" % inside, b"data: {%b}\n\n"),
        (b'data: {"sequence_number":"9",%b}\n\n' % inside, b'data: {"sequence_number":"9",%b}\n\n'),
        (b'data: {"sequence_number":9,%b\n\n' % inside, b'data: {"sequence_number":9,%b\n\n'),
        (b'data: {"sequence_number":\ndata: 9,%b}\n\n' % inside, b'data: {"sequence_number":\ndata: 9,%b}\n\n'),
        (b": comment\n\n", b": comment\n\n"),
    ):
        wanted = now % inside if b"%b" in now else now
        assert shifted(before, 3) == wanted
        assert shifted(before * 2, 3) == wanted * 2


LAST: dict[str, list[bytes]] = {
    "the number": [event("response.output_text.delta", sequence_number=2, delta="x")],
    "a schema after it": [event("x", sequence_number=2, tool={"properties": {"sequence_number": {"type": "integer"}}})],
    "another number after it": [event("x", sequence_number=2, item={"sequence_number": 99})],
    "an event without one": [event("x", sequence_number=2), event("codex.rate_limits")],
    "several": [event("x", sequence_number=2) + event("x", sequence_number=3) + event("codex.rate_limits")],
}


@pytest.mark.parametrize("last", LAST)
def test_a_heartbeat_is_counted_on_from_the_last_number(last: str) -> None:
    """From no member of that name inside, and from none before it."""
    reply = ResponsesReply(Shell("resp_1", dict, "m"), partial(AnswerItems, lambda prefix: f"{prefix}_1", Tool))
    reply.start(Target("p", "m"))
    written = [reply.events(StreamBatch(frames=frames)) for frames in LAST[last]] + [reply.heartbeat()]
    rows = [json.loads(line[6:]) for line in b"".join(written).split(b"\n") if line.startswith(b"data: ")]
    numbers = [row["sequence_number"] for row in rows if "sequence_number" in row]
    assert rows[-1]["type"] == "response.in_progress"
    assert numbers == list(range(len(numbers)))


@pytest.mark.parametrize("first", [0, 1, 2])
def test_a_provider_that_begins_with_fewer_events_is_counted_on_too(first: int) -> None:
    """The first two are ours whatever it sends: its next one had the number of the second."""
    reply = ResponsesReply(Shell("resp_1", dict, "m"), partial(AnswerItems, lambda prefix: f"{prefix}_1", Tool))
    reply.start(Target("p", "m"))
    written = reply.heartbeat() + reply.heartbeat()
    for number in (first, first + 2):
        for each_ in (number, number + 1):
            written += reply.events(StreamBatch(frames=event("x", sequence_number=each_)))
        written += reply.heartbeat()
    assert [row["type"] for row in parsed(written)].count("response.in_progress") == 4


async def test_ollamas_own_is_asked_under_its_v1(tmp_path: Path) -> None:
    """While its chats go to its native API."""
    async with upstream(each(speaks_responses)) as up:
        config = settings({"p": {"kind": "ollama", "base_url": up.url, "speaks": NATIVE}})
        async with proxy(config, tmp_path) as p:
            assert (await p.post("/v1/responses", {"input": "hi"}))[0] == 200
            assert (await p.chat())[0] == 404
            assert [post.path for post in up.posts] == ["/v1/responses", "/api/chat"]
        config["providers"]["p"]["api"] = "openai"
        async with proxy(config, tmp_path) as p:
            assert (await p.post("/v1/responses", {"input": "hi"}))[0] == 200
            assert (await p.chat())[0] == 404
            assert [post.path for post in up.posts[2:]] == ["/v1/responses", "/v1/chat/completions"]


async def test_one_that_takes_no_chats_gets_none(tmp_path: Path) -> None:
    """The rest of a chain serves; alone it is an error that says so."""
    async with upstream(each(speaks_responses)) as up, upstream(each(answers)) as chats:
        providers = {"a": openai(up.url, speaks=["responses"]), "b": openai(chats.url)}
        async with proxy(settings(providers), tmp_path) as p:
            assert (await p.chat())[1]["model"] == "b/m"
            assert (await p.post("/v1/responses", {"input": "hi"}))[1]["model"] == "a/m"
            code, told, _ = await p.chat(model="a/m")
            assert (code, told["error"]["code"]) == (400, "unsupported_capability")
            assert "one that speaks chat" in told["error"]["message"]


async def test_a_picture_of_an_earlier_turn_needs_a_model_that_sees() -> None:
    """It is sent along with the new turn, whose own body has none."""
    store = MemoryStore(lambda: 0.0)
    for n, part in enumerate(("input_image", "input_text")):
        item = json.dumps({"role": "user", "content": [{"type": part}]}, separators=(",", ":")).encode()
        store.keep(None, Stored(f"resp_{n}", b"{}", (item,), ()))
        body = json.dumps({"model": "p/m", "input": "and now?", "previous_response_id": f"resp_{n}"}).encode()
        reading = ResponsesDoor(store).read(body, Client("1", dialects=frozenset({"responses"})))
        assert not isinstance(reading, tuple)
        call, _ = await reading
        assert call.summary.needs == ({"vision"} if part == "input_image" else set())


def test_what_the_response_repeats_has_its_type() -> None:
    """Whoever serves it: the proxy writes the first events itself where the provider takes its time."""
    door, client = ResponsesDoor(MemoryStore(lambda: 0.0)), Client("1", dialects=frozenset({"responses"}))
    for key, value in (("reasoning", "high"), ("text", "verbose"), ("metadata", []), ("truncation", 1)):
        with pytest.raises(InvalidRequest) as refused:
            door.read(json.dumps({"model": "p/m", "input": "hi", key: value}).encode(), client)
        assert refused.value.param == key
