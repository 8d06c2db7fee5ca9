"""What a probe learns, and from what: a provider that brings nonsense for a model list is alive all the same."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from manallm_proxy.contract.events import Crashed, Event, ListUnreadable
from manallm_proxy.contract.provider import ModelInfo, ModelList
from manallm_proxy.contract.provider_errors import ConnectTimeout, ProviderError, ServerBusy, ServerFailed
from manallm_proxy.contract.targets import MODEL_LIMIT, Target
from manallm_proxy.http_client.api import Address
from manallm_proxy.providers import model_list
from manallm_proxy.providers.http_provider import HttpProvider
from manallm_proxy.providers.model_list import CUT_SHORT, ODD_ROWS, TOO_LONG, TOO_MANY
from manallm_proxy.providers.ollama.wire import OllamaWire
from manallm_proxy.providers.openai.wire import OpenAIWire
from manallm_proxy.providers.wire import Wire
from manallm_proxy.routing.catalog import Catalog
from manallm_proxy.routing.health import Health
from manallm_proxy.routing.health_registry import HealthRegistry
from manallm_proxy.routing.probes import Prober
from tests.cases import each_with_each
from tests.ollama_box import box
from tests.proxy import openai, proxy, settings
from tests.recorded import recorded
from tests.upstreams import Connection, Seen, answers, chunk, completion, each, upstream
from tests.waiting import until

WIRES: dict[str, Wire] = {"openai": OpenAIWire(), "ollama": OllamaWire()}
KEYS = {"openai": ("data", "id"), "ollama": ("models", "model")}


def listing(kind: str, *rows: Any) -> bytes:
    """A list in that dialect; a plain name is a row of it."""
    key, name = KEYS[kind]
    return json.dumps({key: [{name: row} if isinstance(row, str) else row for row in rows]}).encode()


@each_with_each(
    WIRES,
    [
        *(b"", b" ", b"<html>login</html>", b"NaN", b'{"data":NaN,"models":NaN}', b"\xff\xfe", b"null", b"true", b"7"),
        *(b'"x"', b"{}", b'{"error":"x"}', b'{"data":{},"models":{}}', b'{"data":5,"models":"x"}', b"[" * 5000),
    ],
)
def test_what_is_no_list_is_an_unknown_one(kind: str, body: bytes) -> None:
    """Never an error: whoever sends a page is alive."""
    listed = WIRES[kind].listed(body)
    assert listed.models == () and listed.fault


@pytest.mark.parametrize("kind", WIRES)
def test_a_name_that_nobody_could_print_is_not_learnt(kind: str) -> None:
    """Control characters, which a terminal would obey, and names of absurd length."""
    ids = ("a", "\x1b]0;x\x07", "b\nc", "\u202egnp", "m" * 257, "m" * 256)
    listed = WIRES[kind].listed(listing(kind, *ids))
    assert ([m.id for m in listed.models], listed.fault) == (["a", "m" * 256], ODD_ROWS)


def test_no_other_name_that_nobody_could_print_is_learnt() -> None:
    """An alias of a model is a name as well."""
    body = b'{"data":[{"id":"a","aliases":["b","c\\nd","\\u001b[2J","' + b"e" * 257 + b'"]}]}'
    assert WIRES["openai"].listed(body).models[0].aliases == ("b",)


@pytest.mark.parametrize("kind", WIRES)
def test_one_odd_row_costs_only_itself(kind: str) -> None:
    """A number, a list, null, a row without a name, or with one that is none."""
    name = KEYS[kind][1]
    listed = WIRES[kind].listed(listing(kind, "a", 3, [], None, {}, {name: 5}, {name: ""}, "b"))
    assert ([m.id for m in listed.models], listed.fault) == (["a", "b"], ODD_ROWS)


@pytest.mark.parametrize("kind", WIRES)
def test_a_mark_at_the_start_is_no_part_of_a_list(kind: str) -> None:
    """Windows' byte order mark."""
    assert WIRES[kind].listed(b"\xef\xbb\xbf" + listing(kind, "a")) == ModelList((ModelInfo("a"),))


@pytest.mark.parametrize("kind", WIRES)
def test_a_list_is_bounded(kind: str) -> None:
    """At 10,000 models; the rest is ignored, and said."""
    listed = WIRES[kind].listed(listing(kind, *(f"m{number}" for number in range(10_005))))
    assert (len(listed.models), listed.fault) == (10_000, TOO_MANY)


MEMBERS = (
    *("data", "models", "id", "name", "model", "aliases", "created", "modified_at", "capabilities"),
    *("architecture", "input_modalities", "supported_parameters", "status", "value"),
)


@given(
    st.binary(max_size=60)
    | st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=4),
        lambda inner: (
            st.lists(inner, max_size=3)
            | st.dictionaries(
                st.sampled_from(MEMBERS),
                inner,
                max_size=5,
            )
        ),
    ).map(lambda value: json.dumps(value).encode())
)
def test_no_list_breaks_its_reader(body: bytes) -> None:
    """Nor the catalog that learns it."""
    for wire in WIRES.values():
        catalog = Catalog()
        catalog.learn("p", wire.listed(body).models)
        assert all(model.id.isprintable() for model in catalog.models("p"))


def test_recorded_lists() -> None:
    """Two of llama-server, which denies images of what is loaded, and one of Ollama with all its words."""
    [model] = OpenAIWire().listed(recorded("models-llama").body).models
    assert (model.id, model.aliases) == ("/models/SmolLM2-135M-Instruct.Q4_1.gguf", (model.id,))
    assert model.capabilities == frozenset({"completion", "embedding", "tools", "thinking"})
    router = {m.id: m for m in OpenAIWire().listed(recorded("models-llama-router").body).models}
    assert router["SmolLM2-135M-Instruct.Q4_1"].capabilities == frozenset(
        {"completion", "embedding", "tools", "thinking"}
    )
    assert router["all-MiniLM-L6-v2.F16"].capabilities is None
    tags = {m.id: m for m in OllamaWire().listed(recorded("models-ollama").body).models}
    assert tags["think:latest"].capabilities == frozenset({"completion", "thinking"})
    catalog = Catalog()
    catalog.learn("gpu", [model])
    catalog.learn("ollama", tags.values())
    for name in (model.id, "SmolLM2-135M-Instruct.Q4_1.gguf", "smollm2-135m-instruct.q4_1"):
        assert catalog.find(Target("gpu", name)) is model
    listed = catalog.find(Target("gpu", "smollm2-135m-instruct.q4_1"))
    assert listed is not None and listed.capabilities is not None and "vision" not in listed.capabilities
    for name in ("think", "THINK:latest", "library/think", "registry.ollama.ai/library/think:latest"):
        assert catalog.find(Target("ollama", name)) is tags["think:latest"]
    assert catalog.find(Target("ollama", "thin")) is None


def test_names_in_a_catalog() -> None:
    """Ids before aliases, ``:latest`` either way; what nobody could ask for is refused."""
    catalog = Catalog()
    first, second = ModelInfo("A", aliases=("B", "nick", "", "x" * 300, "\n")), ModelInfo("B")
    refused = [ModelInfo(id_) for id_ in ("", "a\nb", "\x00", "\u202e", "x" * (MODEL_LIMIT + 1), "\ud800")]
    catalog.learn("p", [first, second, *refused])
    assert [*catalog.models("p")] == [first, second]
    assert [catalog.find(Target("p", name)) for name in ("a", "b", "NICK", "a:latest", "x" * 300)] == [
        *(first, second, first, first, None)
    ]
    assert [catalog.lists(Target("p", name)) for name in ("A", "a", "nick", "A:latest")] == [True, True, False, False]
    catalog.learn("p", ())
    assert (catalog.knows("p"), catalog.find(Target("p", "nick"))) == (False, None)


GET = Callable[[Connection], Awaitable[None]]


def served(get: GET) -> Callable[[Connection], Awaitable[None]]:
    async def script(connection: Connection) -> None:
        while (seen := await connection.request()) is not None:
            await (get(connection) if seen.method == "GET" else answers(connection, seen))

    return script


async def broken_off(connection: Connection) -> None:
    await connection.send(b"HTTP/1.1 200 OK\r\nContent-Length: 99\r\n\r\n{")
    connection.reset()


async def dripping(connection: Connection) -> None:
    await connection.send(b"HTTP/1.1 200 OK\r\nContent-Length: 99\r\n\r\n{")
    await connection.gone()


async def endless(connection: Connection) -> None:
    await connection.head()
    while True:
        await connection.chunk(b" " * 65536)


def replies(body: bytes, status: str = "200 OK") -> GET:
    async def get(connection: Connection) -> None:
        await connection.reply(body, status)

    return get


@pytest.mark.parametrize(
    ("get", "fault"),
    [
        (replies(b"<html>"), "it is no list of models"),
        (replies(b""), "it is empty"),
        (replies(b"<html>", "404 No"), None),
        (replies(b"<html>", "429 No"), None),
        (broken_off, CUT_SHORT),
        (dripping, CUT_SHORT),
        (endless, TOO_LONG),
    ],
)
async def test_whatever_can_be_connected_is_alive(get: GET, fault: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    """A page, nothing, a refusal, a body that breaks, stands still or does not end."""
    monkeypatch.setattr("manallm_proxy.providers.http_provider.LIST_LIMIT", 1 << 20)
    async with upstream(served(get)) as gpu:
        provider = HttpProvider(Address("gpu", gpu.url), OpenAIWire())
        listed = await provider.probe(0.3)
        assert listed is not None
        assert (listed.models, listed.fault) == ((), fault)
        assert len(gpu.seen) == 1
        await provider.close()


def test_a_list_of_8_mib_is_the_longest() -> None:
    """An answer may be longer; nobody reads a list of 256 MiB."""
    assert model_list.LIST_LIMIT == 8 * 1024 * 1024


async def silent(connection: Connection) -> None:
    await connection.gone()


async def failing_at_length(connection: Connection) -> None:
    await connection.send(b"HTTP/1.1 502 No\r\nContent-Length: 99\r\n\r\n{")
    await connection.gone()


@pytest.mark.parametrize(
    ("get", "kind"),
    [
        (silent, ConnectTimeout),
        (replies(b"", "502 No"), ServerFailed),
        (failing_at_length, ServerFailed),
        (replies(recorded("refusal-llama-loading-503").body, "503 No"), ServerBusy),
    ],
)
async def test_no_answer_is_an_error(get: GET, kind: type[ProviderError]) -> None:
    """Silence and 5xx; a server that loads its model says so in the body."""
    async with upstream(served(get)) as gpu:
        provider = HttpProvider(Address("gpu", gpu.url), OpenAIWire())
        with pytest.raises(kind):
            await provider.probe(0.3)
        await provider.close()


async def test_an_odd_list_is_reported_once() -> None:
    """And once more when it is odd in another way, or was well in between; never as a failure."""
    told: list[Event] = []
    registry = HealthRegistry({"gpu": Health()}, lambda: 0.0, told.append)
    catalog = Catalog()
    bodies = iter([b"", b"", listing("openai", "a", 3), listing("openai", "a"), b"", b""])

    class Listing(HttpProvider):
        async def probe(self, seconds: float) -> ModelList:
            return OpenAIWire().listed(next(bodies))

    upstreams = {"gpu": Listing(Address("gpu", "http://x"), OpenAIWire())}
    for _ in range(3):
        for _ in range(2):  # a reload makes a new prober over the same catalog
            await Prober(upstreams, registry, catalog, 600, 1).once()
    assert told == [ListUnreadable("gpu", detail) for detail in ("it is empty", ODD_ROWS, "it is empty")]
    assert registry.providers["gpu"].provider.failures == 0
    catalog.keep_only(set())
    assert catalog.faults == {}


async def test_a_bug_in_one_probe_is_that_ones() -> None:
    """It is reported, and says nothing of its provider; the others are probed, this time and the next."""
    told: list[Event] = []
    registry = HealthRegistry({"odd": Health(), "gpu": Health()}, lambda: 0.0, told.append)
    catalog = Catalog()

    class Odd(HttpProvider):
        async def probe(self, seconds: float) -> ModelList:
            raise ZeroDivisionError

    class Listing(HttpProvider):
        async def probe(self, seconds: float) -> ModelList:
            return ModelList((ModelInfo("m"),))

    wire = OpenAIWire()
    upstreams = {"odd": Odd(Address("odd", "http://x"), wire), "gpu": Listing(Address("gpu", "http://y"), wire)}
    await Prober(upstreams, registry, catalog, 600, 1).once()
    [crashed] = told
    assert isinstance(crashed, Crashed) and crashed.where == "probe of odd"
    assert (catalog.knows("gpu"), registry.providers["odd"].provider.failures) == (True, 0)


async def test_a_page_for_a_list_leaves_the_provider_in_use(tmp_path: Path) -> None:
    """Probe after probe: it serves, its list is unknown, one line says so."""
    async with upstream(served(replies(b"<html>"))) as gpu:
        config = settings({"gpu": openai(gpu.url)}, health={"probe_interval": 0.05, "probe_timeout": 5})
        async with proxy(config, tmp_path) as p:
            async with asyncio.timeout(5):
                while sum(seen.method == "GET" for seen in gpu.seen) < 4:
                    await asyncio.sleep(0.01)
            assert (await p.chat())[0] == 200
            assert (await p.get("/v1/health"))[1]["providers"]["gpu"]["status"] == "healthy"
            assert [row["id"] for row in (await p.get("/v1/models"))[1]["data"]] == ["mana/test"]
            assert p.log.getvalue().count("model list not read") == 1


async def test_all_are_probed_at_once(tmp_path: Path) -> None:
    """One that is slow delays no other: here each answers only once all have been asked."""
    all_asked = asyncio.Barrier(3)

    async def script(connection: Connection) -> None:
        while await connection.request() is not None:
            await all_asked.wait()
            await connection.upstream.probe(connection)

    async with upstream(script) as a, upstream(script) as b, upstream(script) as c:
        providers = {name: openai(each.url) for name, each in (("a", a), ("b", b), ("c", c))}
        async with proxy(settings(providers), tmp_path) as p:
            _, health = await p.get("/v1/health")
    assert {name: row["status"] for name, row in health["providers"].items()} == dict.fromkeys(providers, "healthy")


async def test_a_server_with_one_thread_stays_well_while_it_answers(tmp_path: Path) -> None:
    """No probe gets an answer while a stream of ours runs: it is at work, not dead."""

    given_up = 0

    async def script(connection: Connection) -> None:
        nonlocal given_up
        while (seen := await connection.request()) is not None:
            if seen.method == "GET":
                if connection.upstream.go.is_set():
                    await connection.gone()
                    given_up += 1
                    return
                await connection.reply({"data": []})
            elif seen.json.get("stream"):
                await stream(connection, seen)
            else:
                await connection.reply(completion())

    async def stream(connection: Connection, seen: Seen) -> None:
        connection.upstream.go.set()
        await connection.head()
        while given_up < 2:
            await connection.chunk(chunk("word"))
            await asyncio.sleep(0.02)
        await connection.chunk(chunk(finish="stop") + b"data: [DONE]\n\n")
        await connection.end()
        connection.upstream.go.clear()

    async with upstream(script) as gpu:
        config = settings({"gpu": openai(gpu.url)}, health={"probe_interval": 0.05, "probe_timeout": 0.3})
        async with proxy(config, tmp_path) as p:
            streaming = asyncio.ensure_future(p.stream())
            while not streaming.done():
                if gpu.go.is_set():
                    assert (await p.get("/v1/health"))[1]["providers"]["gpu"]["consecutive_failures"] == 0
                await asyncio.sleep(0.02)
            assert (await streaming)[0] == 200


async def test_a_list_that_never_comes_costs_no_answer(tmp_path: Path) -> None:
    """Who can be connected to, and only lists no models in time, is asked all the same after the backoff."""

    async def script(connection: Connection) -> None:
        while (seen := await connection.request()) is not None:
            if seen.method == "GET":
                await connection.gone()
                return
            await answers(connection, seen)

    health = {"probe_interval": 0.1, "probe_timeout": 0.05, "backoff": 0.2}
    async with upstream(script) as server, proxy(settings({"a": openai(server.url)}, health=health), tmp_path) as p:
        state = p.app.generation.registry.providers["a"]
        await until(lambda: state.provider.open_until is not None)
        async with asyncio.timeout(10):
            while (await p.chat())[0] != 200:
                await asyncio.sleep(0.02)
        probes = len(server.seen) - len(server.posts)
        await until(lambda: len(server.seen) - len(server.posts) >= probes + 3)
        assert (await p.chat())[0] == 200


@pytest.mark.parametrize("name", ["My Model 7B.gguf", "модель:7b", "日本語/モデル", "m 😀"])
@pytest.mark.parametrize("kind", ["openai", "ollama"])
async def test_whatever_is_listed_can_be_asked_for(name: str, kind: str, tmp_path: Path) -> None:
    """By each id in the list, also one with a blank or of another alphabet; what is not listed must be plain."""
    async with box(name) as gpu, upstream(each(answers), [name]) as server:
        provider = gpu.provider() if kind == "ollama" else openai(server.url)
        async with proxy(settings({"a": provider}, ["a/m"], default_provider="a"), tmp_path) as p:
            ids = [row["id"] for row in (await p.get("/v1/models"))[1]["data"]]
            assert ids == ["mana/test", f"a/{name}"]
            for asked in (f"a/{name}", *([] if "/" in name else [name])):
                status, answer, headers = await p.chat(model=asked)
                assert (status, answer["model"]) == (200, f"a/{name}")
                assert headers["x-mana-llm-resolved"] == f"a/{name}"
                status, data, _ = await p.stream(model=asked)
                assert (status, data.endswith(b"data: [DONE]\n\n")) == (200, True)
                assert (await p.get(f"/v1/models/{quote(asked)}"))[0] == 200
                assert (await p.get(f"/v1/explain?model={quote(asked)}"))[1]["serves"] == f"a/{name}"
            assert (await p.chat(model=f"a/{name} 2"))[0] == 404
