"""What the Responses door remembers: for whom, how long, how much; over one worker and several."""

from __future__ import annotations

import contextlib
import gc
import io
import json
import os
import signal
import threading
import tracemalloc
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from hypothesis import given
from hypothesis import strategies as st

from manallm_proxy.contract.answers import Delta
from manallm_proxy.contract.door import Client
from manallm_proxy.contract.errors import InvalidRequest
from manallm_proxy.contract.provider import Endpoint
from manallm_proxy.doors.responses import store as store_file
from manallm_proxy.doors.responses.items import Conversation
from manallm_proxy.doors.responses.native import NativeForm
from manallm_proxy.doors.responses.not_found import ItemNotFound, NotLookedUp, PreviousResponseNotFound
from manallm_proxy.doors.responses.store import Bounds, MemoryStore, Stored
from manallm_proxy.doors.responses.stored_view import Page, input_view
from manallm_proxy.doors.responses.workers_store import PART, WorkersStore, answer_question
from manallm_proxy.gateway.client_keys import digest_of
from manallm_proxy.http_server.raw_response import RawResponse
from manallm_proxy.openai import deferred_free
from manallm_proxy.process.worker_messages import Answer, AskOne, ForwardedQuestion, PartOne, Ping
from manallm_proxy.process.workers import WorkerManager
from tests.described import conforms
from tests.proxy import Proxy, openai, process, proxy, settings
from tests.responses import Clock, Opened
from tests.stall import raw_post
from tests.supervised import pids
from tests.upstreams import answers, each, upstream

USER = {"role": "user", "content": "hi"}
HELLO = Delta(content="Hello", finish="stop")


def stored(id_: str, *items: bytes, output: tuple[bytes, ...] = ()) -> Stored:
    return Stored(id_, b"{}", items, output, tuple(f"{id_}_{n}" for n in range(len(output))))


async def test_a_response_is_continued_with_its_whole_history() -> None:
    """Turn by turn; instructions are those of the request alone."""
    opened = Opened()
    first = (await opened.ask(input="one", instructions="be brief")).whole(HELLO)
    second = await opened.ask(input="two", previous_response_id=first["id"])
    history = [
        {"role": "user", "content": "one"},
        {"role": "assistant", "content": "Hello"},
        {"role": "user", "content": "two"},
    ]
    assert second.chat["messages"] == history
    again = second.whole(HELLO)
    assert again["previous_response_id"] == first["id"]
    third = await opened.ask(input=[USER], previous_response_id=again["id"], instructions="be kind")
    rest = [{"role": "assistant", "content": "Hello"}, USER]
    assert third.chat["messages"] == [{"role": "system", "content": "be kind"}, *history, *rest]


async def test_items_are_referred_to() -> None:
    """Messages, calls and reasoning of different responses, as the AI SDK does by default."""
    opened = Opened()
    calls = Delta(reasoning="I think.", content="I add.", finish="stop")
    first = (await opened.ask()).stream(calls)[-1]["response"]
    second = (await opened.ask()).whole(HELLO)
    refs = [{"type": "item_reference", "id": item["id"]} for item in (*first["output"], *second["output"])]
    chat = (await opened.ask(input=[USER, *refs[:2], USER, {"id": refs[2]["id"]}, USER])).chat
    said = ["I add.", "Hello"]
    assert [row["content"] for row in chat["messages"] if row["role"] == "assistant"] == said


@pytest.mark.parametrize("body", [{"store": False}, {}])
async def test_what_is_unknown_is_refused(body: dict[str, Any]) -> None:
    """With the id, and what to do: it was not kept, or it is somebody else's; nobody can tell which."""
    opened = Opened()
    response = (await opened.ask("alice", **body)).whole(HELLO)
    asker = "alice" if body else "bob"
    item = response["output"][0]["id"]
    for previous in (response["id"], "resp_nosuch", "x" * 500):
        with pytest.raises(PreviousResponseNotFound) as raised:
            await opened.ask(asker, previous_response_id=previous)
        error = raised.value
        assert (error.status, error.code, error.param) == (400, "previous_response_not_found", "previous_response_id")
        assert previous[:64] in error.message and "store" in error.message and len(error.message) < 400
    for id_ in (item, "msg_nosuch"):
        with pytest.raises(ItemNotFound) as missing:
            await opened.ask(asker, input=[USER, {"type": "item_reference", "id": id_}])
        assert (missing.value.status, missing.value.param) == (404, "input[1]")
        assert id_ in missing.value.message and "store" in missing.value.message
    if not body:
        assert (await opened.ask("alice", previous_response_id=response["id"])).chat["messages"]


async def test_an_answer_that_broke_is_not_kept() -> None:
    """Nothing can be continued that is not complete."""
    opened = Opened()
    door = await opened.ask()
    door.reply.error(InvalidRequest("x"))
    assert len(opened.store) == 0


async def test_what_is_not_used_is_forgotten() -> None:
    """An hour after its last use."""
    opened = Opened()
    response = (await opened.ask()).whole(HELLO)
    for _ in range(3):
        opened.clock.now += 3599
        await opened.ask(previous_response_id=response["id"])
    opened.clock.now += 3599
    await opened.ask(input=[{"type": "item_reference", "id": response["output"][0]["id"]}, USER])
    opened.clock.now += 3601
    with pytest.raises(PreviousResponseNotFound):
        await opened.ask(previous_response_id=response["id"])
    assert (len(opened.store), opened.store.size) == (0, 0)


def test_the_least_recently_used_goes_first() -> None:
    """And as much as it takes."""
    store = MemoryStore(Clock(), lambda: Bounds(memory=3 * 2000))
    for name in "abc":
        store.keep(None, stored(name, name.encode() * 400))
    assert store.find(None, "a") is not None
    store.keep(None, stored("d", b"d" * 400))
    assert [name for name in "abcd" if store.find(None, name)] == ["a", "c", "d"]


def test_one_that_is_larger_than_all_that_may_be_kept() -> None:
    """Is not kept, and costs no other its place."""
    store = MemoryStore(Clock(), lambda: Bounds(memory=5000))
    store.keep(None, stored("a", b"a"))
    store.keep(None, stored("b", b"b" * 5000))
    assert store.find(None, "a") is not None and store.find(None, "b") is None


def test_what_is_long_of_a_removed_one_is_freed_in_a_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    """Which alone holds it by then: 60 MB of an answer held the loop for 8 ms when they made room for the next."""
    freed: list[tuple[bool, bool]] = []

    def noted(things: list[Any], large: bool) -> None:
        thing, references = deferred_free._popped(things)
        freed.append((large, references == deferred_free._OURS))
        assert type(thing).__name__ == "_Record"

    monkeypatch.setattr(store_file, "free_aside", noted)
    store = MemoryStore(Clock(), lambda: Bounds(memory=5 * 2**20))
    store.keep(None, stored("a", output=(b"a" * 3 * 2**20,)))
    store.keep(None, stored("b", output=(b"b" * 3 * 2**20,)))
    assert freed == [(True, True)]
    store.keep(None, stored("c", b"c"))
    for name in "bc":
        assert store.forget(None, name)
    assert freed == [(True, True), (True, True), (False, True)]


def test_turns_share_what_they_have_in_common() -> None:
    """A conversation of a hundred turns with its whole history costs little more than its items."""
    store = MemoryStore(Clock())
    items = [b"%d" % n + b"x" * 1000 for n in range(200)]
    for turn in range(1, 101):
        store.keep(None, stored(f"r{turn}", *items[: 2 * turn - 1], output=(items[2 * turn - 1],)))
    assert store.size < 2 * sum(map(len, items)) + 100 * 2000
    for turn in range(1, 101):
        store.forget(None, f"r{turn}")
    assert store.size == 0


def test_the_bound_holds() -> None:
    """Of 25,000 items, always; it is used up, and the latest are there."""
    bound = 2**20
    store = MemoryStore(Clock(), lambda: Bounds(memory=bound))
    highest = 0
    for n in range(2500):
        output = tuple(b'{"m":%d}' % m for m in range(n, n + 9))
        store.keep("alice", stored(f"resp_{n:044}", b'{"n":%d}' % n, output=output))
        highest = max(highest, store.size)
    assert bound - 5000 < highest <= bound
    assert store.find("alice", f"resp_{2499:044}") is not None


def test_what_is_counted_is_what_it_takes() -> None:
    """As the machine counts: objects and dictionaries weigh more than small texts."""
    bound = 2**18
    store = MemoryStore(Clock(), lambda: Bounds(memory=bound))
    gc.collect()
    tracemalloc.start()
    try:
        for n in range(500):
            store.keep("alice", stored(f"resp_{n:044}", b'{"n":%d}' % n, output=(b'{"m":%d}' % n,)))
        gc.collect()
        taken = tracemalloc.get_traced_memory()[0]
    finally:
        tracemalloc.stop()
    assert bound / 2 < taken <= bound


OPERATIONS = st.lists(
    st.tuples(
        st.sampled_from(["keep", "find", "items", "forget", "wait"]),
        st.sampled_from(["a", None]),
        st.integers(0, 5),
        st.lists(st.sampled_from([b"x", b"y" * 50, b"z" * 3000]), max_size=3),
    ),
    max_size=30,
)


@given(OPERATIONS)
def test_the_count_is_exact(operations: list[tuple[str, str | None, int, list[bytes]]]) -> None:
    """Whatever happens, the size is that of what can be found, and never above the bound."""
    clock = Clock()
    store = MemoryStore(clock, lambda: Bounds(memory=9000, ttl=10))
    for what, owner, n, items in operations:
        if what == "keep":
            store.keep(owner, stored(str(n), *items, output=tuple(items[:1])))
        elif what == "find":
            store.find(owner, str(n))
        elif what == "items":
            store.find_items(owner, [f"{n}_0"])
        elif what == "forget":
            store.forget(owner, str(n))
        else:
            clock.now += n
        assert 0 <= store.size <= 9000
    left = [(owner, str(n)) for owner in ("a", None) for n in range(6)]
    for owner, name in left:
        store.forget(owner, name)
    assert (store.size, len(store)) == (0, 0)


def test_an_item_is_found_as_long_as_any_response_has_it() -> None:
    """A provider that speaks this API gives the ids, and some give the same again in each answer."""
    clock = Clock()
    store = MemoryStore(clock, lambda: Bounds(ttl=10))
    for n in range(2):
        store.keep(None, Stored(f"r{n}", b"{}", (), (b"%d" % n,), ("msg_0",)))
        clock.now += 6
    assert store.find(None, "r0") is None
    assert store.find_items(None, ["msg_0"]) == {"msg_0": b"1"}
    store.forget(None, "r1")
    assert store.find_items(None, ["msg_0"]) == {}


def test_an_item_without_a_role_is_listed() -> None:
    """A provider that speaks this API may have taken it."""
    shown = input_view(stored("r", b'{"type":"message","content":"hi"}'), Page())
    assert shown["data"][0]["content"] == [{"type": "input_text", "text": "hi"}]


async def test_a_long_history_is_translated_beside_the_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    """However short the new turn is: others are served meanwhile."""
    threads: list[bool] = []
    add = Conversation.add

    def watched(conversation: Conversation, item: Any, path: str) -> None:
        threads.append(threading.current_thread() is threading.main_thread())
        add(conversation, item, path)

    monkeypatch.setattr(Conversation, "add", watched)
    for items, threaded in (([USER], False), ([USER] * 500, True), ([{**USER, "content": "x" * 400_000}], True)):
        opened = Opened()
        opened.store.keep(None, stored("resp_1", *(json.dumps(item).encode() for item in items)))
        exchanged = await opened.ask(previous_response_id="resp_1")
        assert len(exchanged.at("")["messages"]) == len(items) + 1
        assert threads == [not threaded] * (len(items) + 1)
        assert exchanged.call.is_large is threaded
        threads.clear()


async def test_a_long_response_is_shown_beside_the_loop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It and what led to it are decoded to be shown: others are served meanwhile."""
    threads: set[bool] = set()

    def watched(data: bytes) -> Any:
        threads.add(threading.current_thread() is threading.main_thread())
        return json.loads(data)

    monkeypatch.setattr("manallm_proxy.doors.responses.stored_view.decode_leniently", watched)
    async with upstream(each(answers)) as up, proxy(settings({"p": openai(up.url)}), tmp_path) as p:
        for size, here in ((10, True), (400_000, False)):
            _, told, _ = await p.post("/v1/responses", {"model": "p/m", "input": "x" * size})
            for path in ("", "/input_items"):
                code, shown = await p.get(f"/v1/responses/{told['id']}{path}")
                assert code == 200
                assert shown["object"] == ("list" if path else "response")
                assert threads == {here}
                threads.clear()
            assert len(shown["data"][0]["content"][0]["text"]) == size


async def test_a_long_response_is_sent_in_portions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As many megabytes as the socket takes would be copied in one turn; HEAD sends none of them."""
    parts: list[int] = []
    put = RawResponse.put

    def noting(self: RawResponse, data: Any, *, last: bool = True) -> None:
        parts.append(len(data))
        put(self, data, last=last)

    async with upstream(each(answers)) as gpu, proxy(settings({"gpu": openai(gpu.url)}), tmp_path) as p:
        text = "x" * 3 * 2**20
        asked = json.dumps({"input": [{"role": "user", "content": text}]}).encode()
        said = json.loads((await raw_post(p.port, "/v1/responses", asked)).partition(b"\r\n\r\n")[2])
        path = f"/v1/responses/{said['id']}/input_items"
        monkeypatch.setattr(RawResponse, "put", noting)
        _, shown = await p.get(path)
        assert shown["data"][0]["content"][0]["text"] == text
        assert sum(parts) > len(text)
        assert max(parts) <= 2**20
        async with p.client.head(p.url + path) as head:
            assert (head.status, await head.read()) == (200, b"")
            assert int(head.headers["Content-Length"]) > len(text)
        assert (await p.get("/v1/models"))[0] == 200


async def test_workers_find_what_another_keeps() -> None:
    """By the number in its id; one that is gone knows nothing any more."""
    memories = {number: MemoryStore(Clock(), worker=number) for number in (1, 2)}

    class Others:
        count = 2

        async def ask_one(self, worker: int, question: str) -> str | None:
            return answer_question(memories[worker], question) if worker in memories else ""

    one, two = (WorkersStore(memories[number], Others()) for number in (1, 2))
    id_, item, gone = one.new_id("resp"), one.new_id("msg"), MemoryStore(Clock(), worker=3).new_id("resp")
    one.keep("alice", Stored(id_, b'{"id":1}', (b'{"a":1}',), (b'{"b":"\xc3\xa4"}',), (item,)))
    assert await two.response("alice", id_) == await one.response("alice", id_) is not None
    assert await two.items("alice", [item, "msg_nosuch", gone]) == {item: b'{"b":"\xc3\xa4"}'}
    # an id of a provider's own, of which some look like ours, and none tell who keeps it
    foreign = (
        "msg_67ccd3acc8d48190a77525dc6de64b4104becb25c45c1d42",
        "msg_1",
        one.new_id("rs"),
        "rs_" + "0002" + "a" * 44,
    )
    for n, name in enumerate(foreign):
        one.keep("alice", Stored(one.new_id("resp"), b"{}", (), (b'{"n":%d}' % n,), (name,)))
        assert await two.items("alice", [name, item]) == {name: b'{"n":%d}' % n, item: b'{"b":"\xc3\xa4"}'}
        assert await two.items("bob", [name]) == {}
        two.keep("alice", Stored(two.new_id("resp"), b"{}", (), (b'{"n":%d}' % -n,), (f"{name}_2",)))
        assert await one.items("alice", [f"{name}_2"]) == {f"{name}_2": b'{"n":%d}' % -n}
    assert await two.response("bob", id_) is None
    assert await two.response("alice", gone) is None
    assert await two.response("alice", "resp_" + "f" * 600) is None
    assert not await two.drop("bob", id_)
    assert await two.drop("alice", id_)
    assert await one.response("alice", id_) is None


@given(
    st.lists(st.sampled_from([2, 9, PART // 2, PART - 7, PART, PART + 1, 3 * PART + 2]), min_size=1, max_size=6),
    st.integers(0, 6),
    st.integers(0, 12),
)
async def test_what_is_long_comes_in_parts(sizes: list[int], inputs: int, left: int) -> None:
    """Never as one long message, and never half of it: one that is deleted meanwhile is not there."""
    keeper, asked = MemoryStore(Clock(), worker=1), 0
    id_ = keeper.new_id("resp")

    class Others:
        count = 2

        async def ask_one(self, worker: int, question: str) -> str | None:
            nonlocal asked
            asked += 1
            if asked == left:
                keeper.forget("alice", id_)
            answer = answer_question(keeper, question)
            assert len(answer) < 2 * PART
            return answer

    rows = [b"%d" % n * size for n, size in enumerate(sizes)]
    input_, output = tuple(rows[:inputs]), tuple(rows[inputs:])
    keeper.keep("alice", one := Stored(id_, rows[0], input_, output, tuple(f"msg_{n}" for n in range(len(output)))))
    asker = WorkersStore(MemoryStore(Clock(), worker=2), Others())
    assert await asker.response("alice", id_) == (one if not 0 < left <= asked else None)
    if left > asked:
        left = 0
    items = dict(zip(one.output_ids, one.output, strict=True))
    found = await asker.items("alice", one.output_ids)
    assert found == items if not 0 < left <= asked else found.items() <= items.items()


async def test_a_worker_that_does_not_answer_may_have_what_is_asked_for() -> None:
    """So it is not said to be unknown, and nothing is deleted; what a request can do without, it does without."""

    class Silent:
        count = 2

        async def ask_one(self, worker: int, question: str) -> str | None:
            return None

    theirs = MemoryStore(Clock(), worker=1)
    store = WorkersStore(MemoryStore(Clock(), worker=2), Silent())
    for asking in (store.response(None, theirs.new_id("resp")), store.drop(None, theirs.new_id("resp"))):
        with pytest.raises(NotLookedUp, match="another worker process does not answer now") as raised:
            await asking
        assert raised.value.retry_after == 1.0
    ids = [theirs.new_id("rs"), "rs_1"]
    assert await store.items(None, ids) == {}
    for id_ in ids:
        with pytest.raises(NotLookedUp):
            await store.items(None, ids, [id_])
    opened = Opened()
    opened.door.store = store
    reply = (await opened.ask()).reply
    assert not await reply.is_known(b'{"id":"%b"}' % theirs.new_id("resp").encode())


async def test_a_worker_that_hangs_between_parts_may_have_the_rest() -> None:
    """It is asked no more, and nothing of it is said to be unknown."""
    keeper = MemoryStore(Clock(), worker=1)
    ids = tuple(keeper.new_id("msg") for _ in range(4))
    output = tuple(b"%d" % n * PART for n in range(4))
    keeper.keep(None, Stored(keeper.new_id("resp"), b"{}", (), output, ids))
    answered = 2  # what there is, and the first of it
    asked = 0

    class Others:
        count = 2

        async def ask_one(self, worker: int, question: str) -> str | None:
            nonlocal asked
            asked += 1
            return answer_question(keeper, question) if asked <= answered else None

    store = WorkersStore(MemoryStore(Clock(), worker=2), Others())
    with pytest.raises(NotLookedUp):
        await store.items(None, ids, ids[3:])
    assert asked == answered + 2, "once more as anybody's"


async def test_a_long_response_of_another_worker_keeps_nobody(tmp_path: Path) -> None:
    """Megabytes, over two processes; and one that hangs is not taken for one that has nothing."""
    async with upstream(each(answers)) as server, contextlib.AsyncExitStack() as stack:
        running = await stack.enter_async_context(
            process(settings({"p": openai(server.url)}), tmp_path, None, "--workers", "2")
        )
        path, at = f"{running.url}/v1/responses", dict[str, tuple[aiohttp.ClientSession, str]]()
        while len(at) < 2:
            client = await stack.enter_async_context(aiohttp.ClientSession())  # a connection of its own
            body = io.BytesIO(json.dumps({"input": "x" * 3_000_000}).encode())
            async with client.post(path, data=body) as response:
                id_ = (await response.json())["id"]
                at[id_[5:9]] = client, id_
        for client, _ in at.values():
            for _, id_ in at.values():
                async with client.get(f"{path}/{id_}/input_items") as response:
                    assert response.status == 200
                    assert len(await response.read()) > 3_000_000
        hung = (await pids(running.url))["1"]
        os.kill(hung, signal.SIGSTOP)
        try:
            async with at["0002"][0].get(f"{path}/{at['0001'][1]}") as response:
                told = (await response.json())["error"]["message"]
                assert (response.status, response.headers["Retry-After"]) == (503, "1"), told
        finally:
            os.kill(hung, signal.SIGCONT)


def test_the_supervisor_passes_questions_on() -> None:
    """To the worker that is meant, and its answer to the process that asked, if that still lives."""
    workers = WorkerManager(2, 20.0, str)
    for number in (1, 2):
        workers.started(number, 100 + number, 0.0)
    workers.received(2, Ping(), 0.0)
    workers.received(1, AskOne(7, 2, "who?"), 0.0)
    workers.received(2, PartOne(7, 101, "me"), 0.0)
    workers.received(1, AskOne(8, 3, "who?"), 0.0)
    assert workers.outbox == [(2, ForwardedQuestion(7, 101, "who?")), (1, Answer(7, "me")), (1, Answer(8, ""))]
    workers.ended(1, 1.0)
    workers.started(1, 103, 2.0)
    workers.outbox.clear()
    workers.received(2, PartOne(7, 101, "me"), 2.0)
    assert workers.outbox == []


async def send(p: Proxy, method: str, path: str, key: str = "", **options: Any) -> tuple[int, Any]:
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    async with p.client.request(method, p.url + path, headers=headers, **options) as response:
        body = await response.read()
        if response.status == 200 and method != "POST":
            described = "/v1/responses/{id}" + ("/input_items" if "input_items" in path else "")
            told = {name.lower(): value for name, value in response.headers.items()}
            conforms(described, method.lower(), 200, told, body)
        return response.status, json.loads(body)


async def test_stored_responses_over_http(tmp_path: Path) -> None:
    """Read, listed, continued and deleted, each only by the key that made it."""
    keys = [{"name": name, "sha256": digest_of(f"sk-{name}")} for name in ("alice", "bob")]
    async with upstream(each(answers)) as server:
        async with proxy(settings({"p": openai(server.url)}, auth={"keys": keys}), tmp_path) as p:
            _, made = await send(p, "POST", "/v1/responses", "sk-alice", json={"input": "hi"})
            path = f"/v1/responses/{made['id']}"
            assert await send(p, "GET", path, "sk-alice") == (200, made)
            assert await send(p, "GET", path.removeprefix("/v1"), "sk-alice") == (200, made)
            _, listed = await send(p, "GET", f"{path}/input_items", "sk-alice")
            assert [(row["type"], row["role"], row["content"]) for row in listed["data"]] == [
                ("message", "user", [{"type": "input_text", "text": "hi"}])
            ]
            assert listed["has_more"] is False
            for other, code in (("sk-bob", 404), ("", 401), ("sk-nobody", 401)):
                for method, at in (("GET", path), ("GET", f"{path}/input_items"), ("DELETE", path)):
                    status, error = await send(p, method, at, other)
                    assert status == code
                    assert code == 401 or (made["id"] in error["error"]["message"])
            more = {"input": "more", "previous_response_id": made["id"]}
            assert (await send(p, "POST", "/v1/responses", "sk-bob", json=more))[0] == 400
            status, made_next = await send(p, "POST", "/v1/responses", "sk-alice", json=more)
            assert status == 200
            _, page = await send(p, "GET", f"/v1/responses/{made_next['id']}/input_items?limit=2", "sk-alice")
            assert [row["role"] for row in page["data"]] == ["user", "assistant"] and page["has_more"]
            assert page["data"][0]["content"][0]["text"] == "more", "the newest first"
            rest = f"/v1/responses/{made_next['id']}/input_items?order=desc&after={page['last_id']}"
            _, page = await send(p, "GET", rest, "sk-alice")
            assert [row["role"] for row in page["data"]] == ["user"] and not page["has_more"]
            for query, param in (
                ("limit=0", "limit"),
                ("limit=x", "limit"),
                ("order=up", "order"),
                ("after=x", "after"),
            ):
                status, error = await send(p, "GET", f"{path}/input_items?{query}", "sk-alice")
                assert (status, error["error"]["param"]) == (400, param)
            assert (await send(p, "GET", f"{path}?stream=true", "sk-alice"))[0] == 400
            gone = {"id": made["id"], "object": "response", "deleted": True}
            assert await send(p, "DELETE", path, "sk-alice") == (200, gone)
            assert (await send(p, "DELETE", path, "sk-alice"))[0] == 404
            assert (await send(p, "GET", path, "sk-alice"))[0] == 404


async def test_every_listed_item_has_an_id_of_its_own() -> None:
    """Also one that was sent twice: pages end."""
    opened = Opened()
    same = {"type": "message", "id": "msg_1", "role": "user", "content": "hi"}
    response = (await opened.ask(input=[same, USER, same, USER])).whole(HELLO)
    kept = await opened.store.response(None, response["id"])
    assert kept is not None
    page, seen = Page(limit=1), []
    while True:
        told = input_view(kept, page)
        seen += [row["id"] for row in told["data"]]
        if not told["has_more"]:
            break
        page = Page(limit=1, after=told["last_id"])
    assert len(set(seen)) == len(seen) == 4 and "msg_1" in seen


async def test_a_reload_changes_the_bounds(tmp_path: Path) -> None:
    """At once, for what is kept already."""
    async with upstream(each(answers)) as server:
        config = settings({"p": openai(server.url)})
        async with proxy(config, tmp_path) as p:
            _, made, _ = await p.post("/v1/responses", {"input": "hi"})
            p.write({**config, "responses": {"memory": "1KiB", "ttl": "5m"}})
            await p.app.reload()
            assert (await p.get(f"/v1/responses/{made['id']}"))[0] == 404


async def test_all_workers_know_what_one_has_answered(tmp_path: Path) -> None:
    """Over many connections, at once: a response is found by whichever worker is asked next."""
    async with upstream(each(answers)) as server:
        config = settings({"p": openai(server.url)})
        async with process(config, tmp_path, None, "--workers", "3") as running:
            ids: set[str] = set()
            previous = None
            for _ in range(24):
                async with aiohttp.ClientSession() as client:  # a connection of its own
                    body = {"input": "hi", "previous_response_id": previous}
                    async with client.post(f"{running.url}/v1/responses", json=body) as response:
                        made = await response.json()
                        assert response.status == 200, made
                    previous = made["id"]
                    ids.add(previous.removeprefix("resp_")[:4])
            assert len(ids) > 1, "more than one worker has answered"
            assert len(server.posts[-1].json["messages"]) == 47
            refs = [{"type": "item_reference", "id": made["output"][0]["id"]}, USER]
            for _ in range(8):
                async with aiohttp.ClientSession() as client:
                    async with client.post(f"{running.url}/v1/responses", json={"input": refs}) as response:
                        assert response.status == 200
            codes = []
            for _ in range(3):
                async with aiohttp.ClientSession() as client:
                    async with client.delete(f"{running.url}/v1/responses/{previous}") as response:
                        codes.append(response.status)
            assert codes == [200, 404, 404]


async def test_reasoning_is_stored_once() -> None:
    """As the item's own text: what its provider gets back beside it names that text, and does not repeat it."""
    opened = Opened()
    first = await opened.ask()
    id_ = first.whole(Delta(reasoning="I think of it.\n" * 999, reasoning_key="reasoning", content="Yes."))["id"]
    stored = await opened.store.response(None, id_)
    assert stored is not None
    assert len(stored.output[0]) < 17 * 999 + 400
    again = await opened.ask(previous_response_id=id_, input="Why?")
    assert again.at("p")["messages"][1] == {
        "role": "assistant",
        "content": "Yes.",
        "reasoning": "I think of it.\n" * 999,
    }
    assert "reasoning" not in again.at("q")["messages"][1]


async def test_a_long_request_is_not_held_decoded() -> None:
    """Neither for a provider of this API, nor once it is translated for the others: its bytes are enough for both."""
    asked = {"model": "m", "input": [{"role": "user", "content": "x" * 300_000}]}
    client = Client("r", None, dialects=frozenset({Endpoint.RESPONSES.path}))
    reading = Opened().door.read(json.dumps(asked).encode(), client)
    call, _ = reading if isinstance(reading, tuple) else await reading
    assert isinstance(call.native, NativeForm)
    assert call.native.asked._decoded is None
    for _ in range(2):
        assert json.loads(call.translated().body)["messages"] == asked["input"]
        assert call.native.asked._decoded is None
    chat = call.translated(for_all=True)
    assert json.loads(chat.body)["messages"] == asked["input"]
    assert chat.native is None
    assert not call.native.asked.body
