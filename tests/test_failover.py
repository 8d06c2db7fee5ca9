"""The walk along a chain: fakes as attempts, a number as clock."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import Callable, Sequence

import pytest
from attrs import evolve
from hypothesis import given
from hypothesis import strategies as st

from manallm_proxy.contract.attempts import NoProvider
from manallm_proxy.contract.errors import InvalidRequest
from manallm_proxy.contract.events import AttemptFailed, Event, FellBack, KeyWasRejected
from manallm_proxy.contract.provider_errors import (
    BadResponse,
    ConnectFailed,
    ConnectTimeout,
    ContentBlocked,
    ContextTooLong,
    Disconnected,
    FirstByteTimeout,
    KeyRejected,
    MissingModel,
    PaymentRequired,
    ProviderError,
    QueueTimeout,
    ReadTimeout,
    RequestRejected,
    Unsupported,
)
from manallm_proxy.contract.targets import Chain, Entry, Target
from manallm_proxy.openai.errors import error_body
from manallm_proxy.providers.classify import ErrorDetails, as_retryable, classify
from manallm_proxy.routing.attempt import Attempt
from manallm_proxy.routing.circuit import Skip
from manallm_proxy.routing.failover import Walk, in_background
from manallm_proxy.routing.health import Health, Permit
from manallm_proxy.routing.health_registry import HealthRegistry
from tests.cases import every
from tests.waiting import until

Step = BaseException | str


class Story:
    """A chain of providers p0, p1, ... that answer as scripted, and all that was told."""

    def __init__(self, steps: Sequence[Step], healths: dict[str, Health] | None = None) -> None:
        self.entries = tuple(Entry(Target(f"p{n}", "m")) for n in range(len(steps)))
        self.steps = {f"p{n}": step for n, step in enumerate(steps)}
        self.healths = {f"p{n}": Health() for n in range(len(steps))} | (healths or {})
        self.told: list[Event] = []
        self.asked: list[str] = []
        self.now = 0.0
        self.registry = HealthRegistry(self.healths, lambda: self.now, self.told.append)
        self.walk: Walk | None = None

    async def attempt(self, entry: Entry) -> str:
        self.asked.append(entry.target.provider)
        self.now += 0.01
        step = self.steps[entry.target.provider]
        if isinstance(step, BaseException):
            raise step
        return step

    async def run(self) -> Attempt[str]:
        self.walk = Walk(Chain("mana/test", self.entries), self.registry, "id-1")
        return await self.walk.run(self.attempt, "mana/test")

    def kinds(self, of: type[Event]) -> list[Event]:
        return [event for event in self.told if isinstance(event, of)]


def said(status: int, message: str = "", **more: str) -> Callable[[], ProviderError]:
    return lambda: classify(status, {}, ErrorDetails(message, **more))  # type: ignore[arg-type]  # kind, code, param only


RETRYABLE: dict[str, tuple[Callable[[], ProviderError], str]] = {
    "refused, unreachable, DNS, TLS": (lambda: ConnectFailed("x", detail="refused"), "connect_error"),
    "connect timeout": (lambda: ConnectTimeout("x"), "connect_timeout"),
    "first-byte timeout": (lambda: FirstByteTimeout("x"), "first_byte_timeout"),
    "read timeout": (lambda: ReadTimeout("x"), "read_timeout"),
    "disconnect, reset": (lambda: Disconnected("x"), "disconnected"),
    "malformed, HTML, broken JSON": (lambda: BadResponse("x"), "bad_response"),
    "500": (said(500), "http_5xx"),
    "502": (said(502), "http_5xx"),
    "503": (said(503), "http_5xx"),
    "503 busy": (said(503, "server busy, please try again"), "http_5xx"),
    "504": (said(504), "http_5xx"),
    "529": (said(529, "overloaded"), "http_5xx"),
    "429": (said(429), "rate_limited"),
    "429 quota": (said(429, kind="insufficient_quota"), "rate_limited"),
    "redirect": (said(307), "bad_response"),
    "408": (lambda: as_retryable(classify(408, {}, ErrorDetails("x")), "p0", frozenset({408, 498})), "http_408"),
    "498": (lambda: as_retryable(classify(498, {}, ErrorDetails("x")), "p0", frozenset({408, 498})), "http_498"),
}

BLAMED: dict[str, str] = {
    **dict.fromkeys(RETRYABLE, "target"),
    "refused, unreachable, DNS, TLS": "reach",
    "connect timeout": "reach",
    **dict.fromkeys(["503 busy", "529", "429", "429 quota", "408", "498"], "cooling"),
}


@every(RETRYABLE)
async def test_a_failure_of_the_providers_moves_on(row: str) -> None:
    """Logged with its reason, reported to health, and the next target answers."""
    make, reason = RETRYABLE[row]
    story = Story([make(), "hello"])
    served = await story.run()
    assert (served.value, str(served.entry.target), story.asked) == ("hello", "p1/m", ["p0", "p1"])
    assert story.walk is not None
    assert [line.reason for line in story.walk.log] == [reason]
    assert [e.reason for e in story.kinds(AttemptFailed)] == [reason]  # type: ignore[union-attr]  # by kinds
    assert story.kinds(FellBack) == [FellBack("id-1", "p0/m", "p1/m", reason)]


@every(RETRYABLE)
async def test_whom_a_failure_speaks_against(row: str) -> None:
    """The provider (as a probe sees it or not), one model, nobody; or it is only busy, which is no failure."""
    story = Story([RETRYABLE[row][0](), "hello"])
    served = await story.run()
    health = story.healths["p0"]
    target = health.targets.get("m")
    marks = {
        "reach": health.provider.reach_failures == 1,
        "provider": health.provider.service_failures > 0,
        "target": target is not None and target.failures == 1,
        "cooling": target is not None and target.is_cooling(story.now),
    }
    assert marks == {word: word == BLAMED[row] for word in marks}
    assert (health.in_flight, story.healths["p1"].in_flight) == (0, 1)
    served._permit.released()


PROPAGATED: dict[str, tuple[Callable[[], ProviderError], int, str, str | None]] = {
    "400": (said(400, "no"), 400, "invalid_request_error", None),
    "404": (said(404, "model 'x' not found"), 404, "model_not_found", "missing_model"),
    "409": (said(409), 409, "invalid_request_error", "409"),
    "413": (said(413), 413, "invalid_request_error", "413"),
    "415": (said(415), 415, "invalid_request_error", "415"),
    "422": (said(422), 422, "invalid_request_error", "422"),
    "424": (said(424), 424, "invalid_request_error", None),
    "402": (said(402), 402, "payment_required", "payment"),
    "context": (said(400, code="context_length_exceeded"), 400, "context_length_exceeded", "context_length"),
    "capability": (lambda: Unsupported("x"), 400, "unsupported_capability", "capability"),
    "no tools": (said(400, "m does not support tools"), 400, "unsupported_capability", "capability"),
    "501": (said(501), 400, "unsupported_capability", "capability"),
    "blocked": (lambda: ContentBlocked("x"), 400, "content_filter", None),
    "moderation": (said(403, "flagged", code="content_policy_violation"), 400, "content_filter", None),
    "401": (said(401), 502, "provider_key_rejected", "auth"),
    "403": (said(403), 502, "provider_key_rejected", "auth"),
}


@pytest.mark.parametrize("row", PROPAGATED)
async def test_an_error_of_the_callers_ends_the_walk(row: str) -> None:
    """At once, whatever else is in the chain; health is left alone, however often."""
    make, status, word, _ = PROPAGATED[row]
    story = Story([make(), "hello"])
    for _ in range(3):
        with pytest.raises(ProviderError) as told:
            await story.run()
    assert (told.value.status, word in (told.value.code, told.value.type)) == (status, True)
    assert told.value.target == "p0/m"
    assert story.asked == ["p0"] * 3
    assert story.healths["p0"] == Health()
    assert story.kinds(FellBack) == []


@pytest.mark.parametrize("row", [row for row, (_, _, _, widened) in PROPAGATED.items() if widened])
async def test_fallback_on_lets_it_move_on(row: str) -> None:
    """By class or by status, for one entry; reported as such."""
    make, _, _, widened = PROPAGATED[row]
    story = Story([make(), "hello"])
    story.entries = (evolve(story.entries[0], fallback_on=frozenset({str(widened)})), story.entries[1])
    assert (await story.run()).value == "hello"
    [told] = story.kinds(FellBack)
    assert isinstance(told, FellBack) and told.widened
    story.entries = (evolve(story.entries[0], fallback_on=frozenset({"499"})), story.entries[1])
    if row != "404":  # a missing model that was passed marks its target
        with pytest.raises(ProviderError):
            await story.run()


async def test_a_rejected_key_is_an_alarm() -> None:
    """Told apart from any other failure."""
    story = Story([classify(401, {}, ErrorDetails())])
    with pytest.raises(KeyRejected):
        await story.run()
    assert story.kinds(KeyWasRejected) == [KeyWasRejected("p0", 401)]


async def test_what_is_not_worth_trying_is_skipped_with_its_reason() -> None:
    """Unconfigured, unhealthy, cooling, saturated: no attempt is made."""
    healths = {"p0": Health(configured=False), "p1": Health(), "p2": Health(), "p3": Health(max_concurrent=0)}
    story = Story(["no"] * 4 + ["hello"], healths)
    for error in (ConnectFailed("x"), ConnectFailed("x")):
        healths["p1"].probed(error, 0.0)
    got = healths["p2"].admit("m", 0.0)
    assert isinstance(got, Permit)
    got.failed(classify(429, {}, ErrorDetails()), 0.0)
    served = await story.run()
    assert (served.value, story.asked) == ("hello", ["p4"])
    assert story.walk is not None and story.walk.tried == 1
    assert [line.reason for line in story.walk.log] == ["unconfigured", "unhealthy", "cooling", "saturated"]
    assert [line.detail for line in story.walk.log] == [None, "connect_error", "rate_limited", None]
    # only such events are among them
    assert [e.from_target for e in story.kinds(FellBack)] == ["p0/m", "p1/m", "p2/m", "p3/m"]  # type: ignore[union-attr]


async def test_nobody_left_is_told_entry_by_entry() -> None:
    """With what happened, how long it took, and when the first may be tried again."""
    story = Story(
        [ConnectFailed("x", detail="refused"), classify(503, {}, ErrorDetails()), "no"],
        {"p2": Health(configured=False)},
    )
    with pytest.raises(NoProvider) as told:
        await story.run()
    assert [line.to_json() for line in told.value.attempts] == [
        {"model": "p0/m", "reason": "connect_error", "detail": "refused", "duration_ms": 10},
        {"model": "p1/m", "reason": "http_5xx", "status": 503, "detail": "status 503", "duration_ms": 10},
        {"model": "p2/m", "reason": "unconfigured"},
    ]
    assert told.value.message == (
        "no provider could serve mana/test: p0/m (connect_error: refused), "
        "p1/m (http_5xx: status 503), p2/m (unconfigured)"
    )
    assert (told.value.retry_after, told.value.worth_retrying) == (1.0, True)


@pytest.mark.parametrize(
    ("errors", "after", "worth"),
    [
        ([classify(429, {"retry-after": "4"}, ErrorDetails())], 4.0, True),
        ([classify(429, {"retry-after": "7"}, ErrorDetails())], 7.0, False),
        ([classify(429, {"retry-after": "90"}, ErrorDetails())], 60.0, False),
        (
            [classify(429, {"retry-after": "90"}, ErrorDetails()), classify(429, {"retry-after": "5"}, ErrorDetails())],
            5.0,
            True,
        ),
    ],
)
async def test_the_time_to_come_back_is_computed(errors: list[ProviderError], after: float, worth: bool) -> None:
    """When the first target may be tried again; beyond a minute SDKs are told not to bother."""
    with pytest.raises(NoProvider) as told:
        await Story(errors).run()
    assert told.value.retry_after == pytest.approx(after, abs=0.05)
    assert told.value.worth_retrying is worth


@pytest.mark.parametrize("leaves", [asyncio.CancelledError(), RuntimeError("a bug"), InvalidRequest("no")])
async def test_anything_else_ends_the_walk_and_blames_nobody(leaves: BaseException) -> None:
    """The client left, a bug, a request that the wire cannot express: the permit is given back."""
    story = Story([leaves, "hello"])
    with pytest.raises(type(leaves)):
        await story.run()
    assert story.asked == ["p0"]
    assert story.healths["p0"] == Health()


async def test_a_chain_has_its_time() -> None:
    """It ends the attempt under way, blames nobody, and what is left is not tried, in words."""
    story = Story(["hello"] * 3)

    async def hangs(entry: Entry) -> str:
        story.asked.append(entry.target.provider)
        await asyncio.get_running_loop().create_future()
        return ""

    walk = Walk(Chain("mana/test", story.entries, timeout=0.01), story.registry, "id-1")
    moves = asyncio.get_running_loop().call_later(0.005, setattr, story, "now", 0.02)
    with pytest.raises(NoProvider):
        await walk.run(hangs, "mana/test")
    moves.cancel()
    assert story.asked == ["p0"]
    assert [(line.reason, line.detail) for line in walk.log] == [
        ("chain_timeout", "after 0.01 s"),
        ("chain_timeout", "not tried"),
        ("chain_timeout", "not tried"),
    ]
    assert all(health == Health() for health in story.healths.values())


async def test_an_attempts_own_timeout_is_not_the_chains() -> None:
    """A TimeoutError of the attempt, with time left: a bug of ours, and no word of the chain's."""
    story = Story([TimeoutError("a bug")])
    walk = Walk(Chain("mana/test", story.entries, timeout=60), story.registry, "id-1")
    with pytest.raises(TimeoutError, match="a bug"):
        await walk.run(story.attempt, "mana/test")


OUTCOMES = st.sampled_from(["hello", "skip", *RETRYABLE, *PROPAGATED])


@given(st.lists(OUTCOMES, min_size=1, max_size=6))
def test_any_chain_with_any_outcome(outcomes: list[str]) -> None:
    """Never a second answer, no attempt after an answer, the log complete and in order, every permit given back."""
    steps: list[Step] = []
    healths: dict[str, Health] = {}
    for number, word in enumerate(outcomes):
        healths[f"p{number}"] = Health(configured=word != "skip")
        made = RETRYABLE[word][0]() if word in RETRYABLE else PROPAGATED[word][0]() if word in PROPAGATED else word
        steps.append(made)
    story = Story(steps, healths)
    ends = next((n for n, word in enumerate(outcomes) if word == "hello" or word in PROPAGATED), None)
    passed = outcomes if ends is None else outcomes[:ends]
    tried = [
        f"p{n}" for n, word in enumerate(outcomes[: len(outcomes) if ends is None else ends + 1]) if word != "skip"
    ]
    served: Attempt[str] | None = None
    try:
        served = asyncio.run(story.run())
    except NoProvider:
        assert ends is None
    except ProviderError:
        assert ends is not None and outcomes[ends] in PROPAGATED
    assert story.asked == tried
    assert story.walk is not None
    assert [line.model for line in story.walk.log] == [f"p{n}/m" for n in range(len(passed))]
    if served is not None:
        assert ends is not None and outcomes[ends] == "hello"
        served._permit.served(0.0)
    assert all(health.in_flight == 0 for health in healths.values())


@pytest.mark.parametrize(
    "error",
    [
        ContextTooLong("x", provider_status=400),
        MissingModel("x", provider_status=404),
        PaymentRequired("x", provider_status=402),
        RequestRejected("x", provider_status=418),
    ],
)
async def test_the_caller_gets_the_providers_status(error: RequestRejected) -> None:
    """Same status, whichever of the 4xx it is."""
    with pytest.raises(RequestRejected) as told:
        await Story([error, "hello"]).run()
    assert told.value.status == error.provider_status


async def test_a_status_that_is_not_listed_is_the_callers() -> None:
    """408 and 498 move on only where ``extra_retryable_statuses`` says so."""
    error = as_retryable(classify(408, {}, ErrorDetails("x")), "p0", frozenset())
    with pytest.raises(RequestRejected) as told:
        await Story([error, "hello"]).run()
    assert told.value.status == 408


async def test_fallback_on_by_the_status_of_any_class() -> None:
    """``401`` and ``auth`` let the same error pass; health is left alone, and the alarm is raised all the same."""
    story = Story([classify(401, {}, ErrorDetails()), "hello"])
    story.entries = (evolve(story.entries[0], fallback_on=frozenset({"401"})), story.entries[1])
    assert (await story.run()).value == "hello"
    assert story.healths["p0"] == Health()
    assert story.kinds(KeyWasRejected) == [KeyWasRejected("p0", 401)]


async def test_fallback_on_by_the_status_that_its_caller_would_get() -> None:
    """400 is 400, also where a local server said 500 or 501, or its list did before; and so is the server's own."""
    too_long = ErrorDetails("the prompt is longer than the context length", code="context_length_exceeded")
    errors: list[tuple[ProviderError, str]] = [
        (classify(500, {}, ErrorDetails("failed to parse grammar")), "500"),
        (classify(500, {}, ErrorDetails("x", status=400)), "400"),
        (classify(500, {}, too_long), "500"),
        (classify(500, {}, ErrorDetails("unsupported param: echo")), "500"),
        (classify(501, {}, ErrorDetails("x")), "501"),
        (Unsupported("x"), "400"),
    ]
    for error, status in [(error, status) for error, own in errors for status in ("400", own)]:
        story = Story([error, "hello"])
        story.entries = (evolve(story.entries[0], fallback_on=frozenset({status})), story.entries[1])
        assert (await story.run()).value == "hello"
        assert story.healths["p0"] == Health()
        [told] = story.kinds(FellBack)
        assert isinstance(told, FellBack) and told.widened


async def test_fallback_on_is_one_entrys_own() -> None:
    """One entry moves on from an error that another returns to the caller."""
    story = Story([classify(409, {}, ErrorDetails("first")), classify(409, {}, ErrorDetails("second")), "hello"])
    story.entries = (evolve(story.entries[0], fallback_on=frozenset({"409"})), *story.entries[1:])
    with pytest.raises(RequestRejected, match="second"):
        await story.run()
    assert story.asked == ["p0", "p1"]


async def test_what_is_retryable_anyway_was_not_widened() -> None:
    """No warning for what every chain does."""
    story = Story([classify(429, {}, ErrorDetails()), "hello"])
    story.entries = (evolve(story.entries[0], fallback_on=frozenset({"429"})), story.entries[1])
    await story.run()
    assert [e.widened for e in story.kinds(FellBack) if isinstance(e, FellBack)] == [False]


async def test_where_a_request_has_waited_it_waits_again_if_nobody_else_answers() -> None:
    """Its turn may be near by now; the server was only busy, and is blamed for nothing."""
    story = Story(["hello", ConnectFailed("x", detail="refused")])
    asked: list[str] = []

    async def ask(entry: Entry) -> str:
        asked.append(entry.target.provider)
        if asked == ["p0"]:
            raise QueueTimeout("busy", detail="waited 1 s")
        return await story.attempt(entry)

    walk = Walk(Chain("mana/test", story.entries), story.registry, "id-1", may_serve=lambda entry: True)
    served = await walk.run(ask, "mana/test")
    served.served()
    assert (served.value, asked) == ("hello", ["p0", "p1", "p0"])
    assert (story.healths["p0"].in_flight, story.healths["p0"].targets) == (0, {})


async def test_whom_a_gate_skips_was_not_tried() -> None:
    """Its place is free again, and so is that of a trial: the next request may have it."""
    full, ill = Health(max_concurrent=1), Health()
    for _ in range(2):
        ill.probed(ConnectFailed("x"), -100.0)
    story = Story(["no", "no", "hello"], {"p0": full, "p1": ill})

    def gate(entry: Entry, is_last: object) -> Skip | None:
        return Skip("too_long") if entry.target.provider != "p2" else None

    for _ in range(3):
        walk = Walk(Chain("mana/test", story.entries), story.registry, "id-1", gate)
        served = await walk.run(story.attempt, "mana/test")
        served.served()
        assert [(line.model, line.reason) for line in walk.log] == [("p0/m", "too_long"), ("p1/m", "too_long")]
    assert (story.asked, full.in_flight, ill.in_flight) == (["p2"] * 3, 0, 0)


async def test_the_way_is_told_in_order() -> None:
    """A failure when it happens, a fallback when the next target is tried: from each that was passed since."""
    healths = {"p1": Health(configured=False)}
    story = Story([ConnectFailed("x", detail="refused"), "no", classify(429, {}, ErrorDetails()), "hello"], healths)
    await story.run()
    told = [evolve(e, duration=round(e.duration, 3)) if isinstance(e, AttemptFailed) else e for e in story.told]
    assert [e for e in told if isinstance(e, AttemptFailed | FellBack)] == [
        AttemptFailed("id-1", "p0", "m", "connect_error", "refused", 0.01),
        FellBack("id-1", "p0/m", "p2/m", "connect_error"),
        FellBack("id-1", "p1/m", "p2/m", "unconfigured"),
        AttemptFailed("id-1", "p2", "m", "rate_limited", None, 0.01),
        FellBack("id-1", "p2/m", "p3/m", "rate_limited"),
    ]
    assert story.walk is not None and story.walk.tried == 3


async def test_the_body_of_a_chain_that_is_used_up() -> None:
    """Message, code, attempts and Retry-After of the 503, word by word."""
    story = Story([ConnectFailed("no secrets here", detail="refused"), "no"], {"p1": Health(configured=False)})
    with pytest.raises(NoProvider) as told:
        await story.run()
    error = told.value
    assert error.status == 503
    assert json.loads(error_body(error))["error"] == {
        "message": "no provider could serve mana/test: p0/m (connect_error: refused), p1/m (unconfigured)",
        "type": "no_healthy_provider",
        "code": "no_healthy_provider",
        "param": "model",
        "source": "manallm-proxy",
        "attempts": [
            {"model": "p0/m", "reason": "connect_error", "detail": "refused", "duration_ms": 10},
            {"model": "p1/m", "reason": "unconfigured"},
        ],
    }


async def test_a_chain_that_can_never_serve_is_not_worth_a_retry() -> None:
    """Only a key that somebody sets would help."""
    with pytest.raises(NoProvider) as told:
        await Story(["no"], {"p0": Health(configured=False)}).run()
    assert (told.value.retry_after, told.value.worth_retrying) == (60.0, False)


async def test_a_full_house_is_worth_a_retry() -> None:
    """Soon, but not at once."""
    with pytest.raises(NoProvider) as told:
        await Story(["no"], {"p0": Health(max_concurrent=0)}).run()
    assert (told.value.retry_after, told.value.worth_retrying) == (1.0, True)


@pytest.mark.parametrize(
    ("rests", "after", "worth"), [([300.0], 60.0, False), ([300.0, 4.0], 4.0, True), ([None], 1.0, True)]
)
async def test_what_a_gate_knows_of_the_time_counts_too(rests: list[float | None], after: float, worth: bool) -> None:
    """A model whose last load failed rests: a client that comes back at once would hear the same."""
    story = Story(["no"] * len(rests))
    waits = {f"p{n}": each for n, each in enumerate(rests)}
    walk = Walk(
        Chain("mana/test", story.entries),
        story.registry,
        "id-1",
        gate=lambda entry, last: Skip("loading", waits[entry.target.provider]),
    )
    with pytest.raises(NoProvider) as told:
        await walk.run(story.attempt, "mana/test")
    assert (told.value.retry_after, told.value.worth_retrying) == (after, worth)


async def test_a_client_that_leaves_gives_the_trials_place_back() -> None:
    """Cancelled while a half-open provider is being tried: the next one may try, and no other target was asked."""
    story = Story(["no", "hello"])
    story.healths["p0"].probed(ConnectFailed("x"), -60.0)
    story.healths["p0"].probed(ConnectFailed("x"), -60.0)
    begun = asyncio.Event()

    async def wait(entry: Entry) -> str:
        story.asked.append(entry.target.provider)
        begun.set()
        await asyncio.Event().wait()
        raise AssertionError("not reached")

    walk = Walk(Chain("mana/test", story.entries), story.registry, "id-1")
    task = asyncio.ensure_future(walk.run(wait, "mana/test"))
    await begun.wait()
    assert story.healths["p0"].provider.on_trial
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert (story.asked, walk.log, story.told) == (["p0"], [], [])
    assert (story.healths["p0"].in_flight, story.healths["p0"].provider.on_trial) == (0, False)


async def test_the_duration_is_the_attempts_own() -> None:
    """Whatever came before it in the chain."""
    story = Story([ConnectFailed("x"), ConnectTimeout("x")])
    with pytest.raises(NoProvider) as told:
        await story.run()
    assert [line.to_json()["duration_ms"] for line in told.value.attempts] == [10, 10]


async def test_a_walk_that_serves_nobody_any_more_is_closed() -> None:
    """The client leaves in the turn in which it succeeds, and is cancelled once more while that is cleaned up."""
    story = Story(["hello"])
    closed = asyncio.Event()

    async def aclose() -> None:
        await asyncio.sleep(0)  # a turn in which a second cancel could hit it
        closed.set()

    async def walking() -> Attempt[str]:
        served = await story.run()
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.get_running_loop().create_future()
        return evolve(served, aclose=aclose)

    async def signal() -> None:
        raise AssertionError("not reached")

    task = asyncio.ensure_future(in_background(walking(), 60, signal))
    await until(lambda: story.asked)
    task.cancel()
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await asyncio.wait_for(closed.wait(), 5)
    await until(lambda: story.healths["p0"].in_flight == 0)
