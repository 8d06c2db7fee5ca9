"""The commit, and what follows it: a provider's stream and a client's end as fakes."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any

import pytest
from attrs import define, field

from manallm_proxy.contract.answers import Answer, Delta, StreamBatch, Usage
from manallm_proxy.contract.errors import ProxyError
from manallm_proxy.contract.provider import Call, Endpoint, ModelInfo, ModelList, TryWrite
from manallm_proxy.contract.provider_errors import (
    ContentBlocked,
    Disconnected,
    FirstByteTimeout,
    KeyRejected,
    MissingModel,
    ModelFailed,
    ProviderError,
    RateLimited,
    RequestRejected,
    ServerFailed,
    Unsupported,
)
from manallm_proxy.contract.targets import Entry, Target, Timeouts
from manallm_proxy.openai.request import read_summary
from manallm_proxy.routing.attempt import Attempt
from manallm_proxy.routing.catalog import Catalog
from manallm_proxy.routing.health import Health, Permit
from manallm_proxy.routing.health_registry import HealthRegistry
from manallm_proxy.routing.relay import HOLD_LIMIT, Opened, Relay, complete, open_stream

BODY = b'{"model":"m","messages":[],"tools":[{}],"stream":true}'
CALL = Call(Endpoint.CHAT, read_summary(BODY, ("messages", list)), BODY, "id-1")
ENTRY = Entry(Target("gpu", "m"), Timeouts(first_byte=0.02))
ROLE, WORD, MORE = StreamBatch(b"role"), StreamBatch(b"word", has_content=True), StreamBatch(b"more")
DONE = StreamBatch(done=True)


@define
class Script:
    """A stream that plays pieces, raises errors, and waits for ever at None."""

    steps: list[StreamBatch | BaseException | None]
    closed: int = 0
    idle: float | None = None
    usage: Usage | None = None
    fails: ProviderError | None = None
    """In being closed."""

    async def next(self, try_write: TryWrite | None = None, until: float | None = None) -> StreamBatch:
        while True:
            step = self.steps.pop(0)
            if step is None:
                async with asyncio.timeout_at(until):
                    await asyncio.Event().wait()
            if isinstance(step, BaseException):
                raise step
            assert step is not None
            if try_write is None or step.done or step.error or not try_write(step):
                return step

    def commit(self, idle: float) -> None:
        self.idle = idle

    async def aclose(self) -> None:
        self.closed += 1
        if self.fails is not None:
            raise self.fails


@define
class Provider:
    script: Script
    asked: int = 0

    async def stream(self, call: Call, entry: Entry, until: float | None = None) -> Script:
        self.asked += 1
        return self.script

    async def complete(self, call: Call, entry: Entry) -> Answer:
        raise AssertionError("not asked for")

    def first_byte_error(self, seconds: float) -> ProviderError:
        return FirstByteTimeout("slow")

    async def probe(self, seconds: float) -> ModelList | None:
        return None

    async def close(self) -> None:
        """Nothing."""


@define
class Client:
    """What reached the client, in order."""

    got: list[Any] = field(factory=list)
    raises: BaseException | None = None
    at_once: bool = False

    def try_write(self, batch: StreamBatch | bytes) -> bool:
        if self.at_once:
            self.got.append(batch if isinstance(batch, bytes) else batch.frames)
        return self.at_once

    async def send(self, batch: StreamBatch) -> None:
        if self.raises is not None:
            raise self.raises
        self.got.append(batch.frames)

    async def finish(self) -> None:
        self.got.append("[DONE]")

    async def fail(self, error: ProxyError) -> None:
        self.got.append(error)


async def opened(*steps: StreamBatch | BaseException | None) -> tuple[Opened, Script]:
    script = Script(list(steps))
    return await open_stream(Provider(script), Catalog(), CALL, ENTRY), script


async def test_it_opens_with_the_first_event_that_has_content() -> None:
    """What came before is held, in order, and the rest not yet read."""
    stream, script = await opened(StreamBatch(b": wait"), ROLE, WORD, MORE)
    assert [batch.frames for batch in stream.held] == [b": wait", b"role", b"word"]
    assert (script.steps, script.closed) == ([MORE], 0)


@pytest.mark.parametrize("empty", [[DONE], [ROLE, DONE]])
async def test_an_empty_stream_opens(empty: Sequence[StreamBatch]) -> None:
    """200 and [DONE]: no second try."""
    stream, _ = await opened(*empty)
    assert stream.held[-1].done


async def test_what_tells_nothing_is_not_held() -> None:
    """Twenty megabytes of comments came before a word: all were sent in one turn of the loop, empty as they were."""
    stream, _ = await opened(*[StreamBatch() for _ in range(5000)], WORD)
    assert [batch.frames for batch in stream.held] == [b"word"]


async def test_endless_events_without_content_open_too() -> None:
    """What is held is bounded."""
    stream, _ = await opened(*[StreamBatch(b": " + b"x" * 1000)] * 100)
    assert sum(len(batch.frames) for batch in stream.held) < HOLD_LIMIT + 2000


async def test_what_we_compose_ourselves_is_bounded_too() -> None:
    """A translated stream holds deltas instead of frames."""
    stream, _ = await opened(*[StreamBatch(deltas=(Delta(logprobs={}),) * 1000)] * 100)
    assert sum(len(batch.deltas) for batch in stream.held) < HOLD_LIMIT + 2000


@pytest.mark.parametrize("error", [ServerFailed("x"), Disconnected("x"), RequestRejected("x", provider_status=400)])
@pytest.mark.parametrize("raised", [True, False])
async def test_an_error_in_place_of_it_fails_the_attempt(error: ProviderError, raised: bool) -> None:
    """Raised, or in a batch: nothing was sent, the stream is closed."""
    script = Script([ROLE, error if raised else StreamBatch(error=error)])
    with pytest.raises(type(error)):
        await open_stream(Provider(script), Catalog(), CALL, ENTRY)
    assert script.closed == 1


async def test_silence_before_it_is_the_first_byte_timeout() -> None:
    """Comments and a role do not count as an answer."""
    script = Script([StreamBatch(b": wait"), ROLE, None])
    with pytest.raises(FirstByteTimeout):
        await open_stream(Provider(script), Catalog(), CALL, ENTRY)
    assert script.closed == 1


async def test_comments_without_a_pause_before_it_are_the_first_byte_timeout() -> None:
    """It never falls silent, so no wait of ours ends."""
    script = Script([StreamBatch()] * 100_000)
    with pytest.raises(FirstByteTimeout):
        await open_stream(Provider(script), Catalog(), CALL, ENTRY)
    assert script.steps and script.closed == 1


async def test_a_stream_that_nobody_wants_is_closed() -> None:
    """The slower one of two, or that of a client that left as it began: its provider stops, and its place is free."""
    for error in (None, Disconnected("x")):
        stream, script = await opened(ROLE, WORD, MORE)
        script.usage, script.fails, left = Usage(3, 1), error, list[Usage | None]()
        stream.left = left.append
        with nullcontext() if error is None else pytest.raises(Disconnected):
            await stream.aclose()
        assert (script.closed, left) == (1, [Usage(3, 1)])


async def test_a_client_that_leaves_before_it_closes_the_stream() -> None:
    """Cancelled while it waits."""
    script = Script([None])
    task = asyncio.ensure_future(open_stream(Provider(script), Catalog(), CALL, Entry(Target("gpu", "m"))))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert script.closed == 1


async def test_what_the_listing_denies_is_not_asked_for() -> None:
    """Tools of a model without; what is unknown is tried."""
    catalog = Catalog()
    provider = Provider(Script([DONE]))
    catalog.learn("gpu", (ModelInfo("M:latest", capabilities=frozenset({"completion"})),))
    with pytest.raises(Unsupported) as told:
        await open_stream(provider, catalog, CALL, ENTRY)
    assert (provider.asked, told.value.param) == (0, "tools")
    catalog.learn("gpu", (ModelInfo("m"),))
    await open_stream(provider, catalog, CALL, ENTRY)
    assert provider.asked == 1


def carrier(script: Script, *held: StreamBatch) -> tuple[Relay, Health]:
    health = Health()
    registry = HealthRegistry({"gpu": health}, lambda: 0.0, lambda event: None)
    permit = registry.admit(ENTRY.target)
    assert isinstance(permit, Permit)
    return Relay(Attempt(ENTRY, Opened(script, held), permit, registry)), health


async def test_everything_arrives_in_order_and_is_a_success() -> None:
    """Held pieces first, then one by one, [DONE] last; the provider has served."""
    script, client = Script([MORE, DONE]), Client()
    relay, health = carrier(script, ROLE, WORD)
    health.provider.service_failures = 1
    await relay.run(client)
    assert client.got == [b"role", b"word", b"more", b"", "[DONE]"]
    assert (script.closed, script.idle, relay.error) == (1, ENTRY.timeouts.idle, None)
    assert (health.provider.failures, health.in_flight) == (0, 0)


@pytest.mark.parametrize("raised", [True, False])
async def test_a_break_is_reported_and_blamed(raised: bool) -> None:
    """An error event, no [DONE], nothing of another provider."""
    error = Disconnected("closed")
    client = Client()
    relay, health = carrier(Script([error if raised else StreamBatch(b"last", error=error)]), WORD)
    await relay.run(client)
    assert client.got[0] == b"word"
    assert isinstance(client.got[-1], ProviderError)
    assert (client.got[-1].code, client.got[-1].target) == ("stream_interrupted", "gpu/m")
    assert "[DONE]" not in client.got
    assert (relay.error, health.targets["m"].failures, health.in_flight) == (error, 1, 0)


async def test_what_the_provider_said_in_mid_stream_is_handed_on() -> None:
    """A 429 cools; a caller's error blames nobody; both keep the provider's words."""
    for error in (RateLimited("slow down", provider_status=429), RequestRejected("too long", provider_status=400)):
        client = Client()
        relay, health = carrier(Script([StreamBatch(error=error)]), WORD)
        await relay.run(client)
        assert client.got[-1] is error
        assert health.provider.failures == 0
        assert (health.status(0.0) == "cooling") is isinstance(error, RateLimited)


@pytest.mark.parametrize("leaves", [ConnectionResetError(), asyncio.CancelledError()])
async def test_a_client_that_leaves_blames_nobody(leaves: BaseException) -> None:
    """The stream is closed; whoever holds the permit gives it back."""
    script = Script([MORE])
    relay, health = carrier(script, WORD)
    with pytest.raises(type(leaves)):
        await relay.run(Client(raises=leaves))
    await relay.attempt.aclose()
    assert (script.closed, health.provider.failures, health.in_flight) == (1, 0, 0)


async def test_an_error_after_events_without_content_fails_the_attempt() -> None:
    """Nothing has left, however much was held: the next target may still answer."""
    script = Script([StreamBatch(b":" * (HOLD_LIMIT + 1), error=ServerFailed("x"))])
    with pytest.raises(ServerFailed):
        await open_stream(Provider(script), Catalog(), CALL, ENTRY)
    assert script.closed == 1


async def test_an_error_after_the_first_words_is_reported_in_band() -> None:
    """In one read with them: they leave first, then the error, and no other target is asked."""
    stream, script = await opened(
        ROLE, StreamBatch(b"word", has_content=True, error=ServerFailed("x", provider_status=502))
    )
    relay, health = carrier(script, *stream.held)
    client = Client()
    await relay.run(client)
    assert client.got[:2] == [b"role", b"word"]
    assert isinstance(client.got[2], ServerFailed)
    assert (len(client.got), script.closed, health.targets["m"].failures) == (3, 1, 1)


async def test_an_answer_in_one_read_is_relayed() -> None:
    """Words and end together: nothing more is read."""
    stream, script = await opened(StreamBatch(b"word", has_content=True, done=True))
    relay, _ = carrier(script, *stream.held)
    client = Client()
    await relay.run(client)
    assert (client.got, script.closed) == ([b"word", "[DONE]"], 1)


async def test_the_first_byte_limit_holds_for_the_headers_too() -> None:
    """A provider that takes the request and says nothing at all; who is blamed is the wire's to say."""

    @define
    class Silent(Provider):
        async def stream(self, call: Call, entry: Entry, until: float | None = None) -> Script:
            async with asyncio.timeout_at(until):
                await asyncio.Event().wait()
            raise AssertionError("not reached")

        def first_byte_error(self, seconds: float) -> ProviderError:
            return FirstByteTimeout(f"nothing in {seconds} s")

    with pytest.raises(FirstByteTimeout, match=r"0\.02"):
        await open_stream(Silent(Script([])), Catalog(), CALL, ENTRY)


async def test_a_timeout_that_is_not_ours_is_a_bug() -> None:
    """It is never taken for the provider's silence."""
    script = Script([TimeoutError("of something else")])
    with pytest.raises(TimeoutError, match="something else"):
        await open_stream(Provider(script), Catalog(), CALL, ENTRY)
    assert script.closed == 1


async def test_a_whole_answer_is_refused_likewise() -> None:
    """What the listing denies, before any call."""
    catalog = Catalog()
    catalog.learn("gpu", (ModelInfo("m", capabilities=frozenset({"completion"})),))
    with pytest.raises(Unsupported, match="does not support tools"):
        await complete(Provider(Script([])), catalog, CALL, ENTRY)


async def test_the_commit_ends_a_trial() -> None:
    """Others may pass as soon as an answer has begun, long before it ends."""
    script = Script([StreamBatch(done=True)])
    relay, health = carrier(script, WORD)
    await relay.attempt.aclose()
    for _ in range(2):
        health.probed(Disconnected("x"), -60.0)
    registry = HealthRegistry({"gpu": health}, lambda: 0.0, lambda event: None)
    permit = registry.admit(ENTRY.target)
    assert isinstance(permit, Permit) and health.provider.on_trial
    seen: list[bool] = []

    @define
    class Watching(Client):
        async def send(self, batch: StreamBatch) -> None:
            seen.append(health.provider.is_open)

    await Relay(Attempt(ENTRY, Opened(script, (WORD,)), permit, registry)).run(Watching())
    assert seen == [False, False]


@pytest.mark.parametrize(
    ("error", "target"),
    [
        (ServerFailed("x", provider_status=502), 1),
        (Disconnected("x"), 1),
        (ModelFailed("x", provider_status=500), 1),
        (ContentBlocked("x", provider_status=400), 0),
        (KeyRejected("x", provider_status=401), 0),
        (MissingModel("x", provider_status=404), 0),
        (RequestRejected("x", provider_status=422), 0),
    ],
)
async def test_a_break_blames_whom_the_error_says(error: ProviderError, target: int) -> None:
    """The caller's own errors nobody; the place is given back in any case."""
    relay, health = carrier(Script([StreamBatch(error=error)]), WORD)
    async with relay.attempt:
        await relay.run(Client())
    marked = health.targets.get("m")
    assert (health.provider.failures, marked.failures if marked else 0, health.in_flight) == (0, target, 0)


@pytest.mark.parametrize("at_once", [False, True])
async def test_what_is_accepted_at_once_is_not_sent_again(at_once: bool) -> None:
    """Order and number are the same, whichever way a piece takes; the last one is always sent."""
    client = Client(at_once=at_once)
    relay, _ = carrier(Script([MORE, ROLE, StreamBatch(b"end", done=True)]), WORD)
    await relay.run(client)
    assert client.got == [b"word", b"more", b"role", b"end", "[DONE]"]


async def test_a_client_that_leaves_while_we_wait_for_more() -> None:
    """Cancelled in mid answer: closed, nothing told, nobody blamed."""
    script, client = Script([None]), Client()
    relay, health = carrier(script, WORD)
    task = asyncio.ensure_future(relay.run(client))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert (client.got, script.closed, health.provider.failures) == ([b"word"], 1, 0)


async def test_a_client_that_is_gone_when_it_is_told() -> None:
    """The provider broke and the client left: the break is the provider's all the same."""

    @define
    class Gone(Client):
        async def fail(self, error: ProxyError) -> None:
            raise ConnectionResetError

    script = Script([Disconnected("x")])
    relay, health = carrier(script, WORD)
    with pytest.raises(ConnectionResetError):
        await relay.run(Gone())
    assert (script.closed, health.targets["m"].failures, health.in_flight) == (1, 1, 0)


async def test_a_bug_closes_the_stream() -> None:
    """And appears in the log only."""
    script, client = Script([RuntimeError("a bug")]), Client()
    relay, health = carrier(script, WORD)
    with pytest.raises(RuntimeError):
        await relay.run(client)
    assert (client.got, script.closed, health.provider.failures) == ([b"word"], 1, 0)
