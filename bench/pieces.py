"""The pure pieces of the hot path, each as a function that does its work once; `compare` measures them."""

from __future__ import annotations

import json
from collections.abc import Callable, Coroutine, Iterable, Mapping
from itertools import cycle
from typing import Any, Final, TypeVar

from manallm_proxy.contract.answers import Answer, StreamBatch, Usage
from manallm_proxy.contract.provider import Call, Endpoint, TryWrite
from manallm_proxy.contract.provider_errors import ConnectFailed
from manallm_proxy.contract.residents import Resident
from manallm_proxy.contract.targets import Chain, Entry, Target
from manallm_proxy.openai import sse
from manallm_proxy.openai.request import read_summary
from manallm_proxy.providers.gemini.wire import GeminiWire
from manallm_proxy.providers.ollama.wire import OllamaWire
from manallm_proxy.providers.openai.wire import OpenAIWire
from manallm_proxy.providers.wire import Wire
from manallm_proxy.routing.boxes import Box, Boxes
from manallm_proxy.routing.catalog import Catalog
from manallm_proxy.routing.circuit import Policy
from manallm_proxy.routing.failover import Walk
from manallm_proxy.routing.health import Health, Permit
from manallm_proxy.routing.health_registry import HealthRegistry
from manallm_proxy.routing.line import Line, Turn
from manallm_proxy.routing.local_providers import LocalProviders, RequestGates
from manallm_proxy.routing.queues import Queue
from manallm_proxy.routing.relay import Opened

Piece = Callable[[], object]

ENTRY: Final = Entry(Target("near", "bench"))
WORDS: Final = "What is the answer to the question? "
CHUNK: Final = {"id": "c", "object": "chat.completion.chunk", "created": 1767225600, "model": "bench"}


def body(size: int, *, stream: bool = False) -> bytes:
    """A chat whose prompt has `size` characters."""
    user = {"role": "user", "content": (WORDS * (size // len(WORDS) + 1))[:size]}
    messages = [{"role": "system", "content": "Be brief."}, user]
    return json.dumps({"model": "mana/bench", "messages": messages, "temperature": 0.5, "stream": stream}).encode()


def call(data: bytes) -> Call:
    return Call(Endpoint.CHAT, read_summary(data, ("messages", list)), data, "id-1")


def completion() -> bytes:
    """An OpenAI answer of about 1 KB."""
    message = {"role": "assistant", "content": WORDS * 18, "refusal": None}
    usage = {"prompt_tokens": 12, "completion_tokens": 100, "total_tokens": 112}
    choices = [{"index": 0, "message": message, "finish_reason": "stop"}]
    return json.dumps({**CHUNK, "object": "chat.completion", "choices": choices, "usage": usage}).encode()


def openai_events(count: int) -> list[bytes]:
    """A stream of `count` chunks, as each read brings it."""

    def event(delta: dict[str, str], finish: str | None = None) -> bytes:
        choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish}
        return sse.event(json.dumps({**CHUNK, "choices": [choice]}).encode())

    words = [event({"content": f"word {number} of the answer"}) for number in range(count)]
    return [event({"role": "assistant", "content": ""}), *words, event({}, "stop"), sse.DONE]


def ollama_lines(count: int) -> list[bytes]:
    def line(text: str, **more: object) -> bytes:
        said = {"role": "assistant", "content": text}
        row = {"model": "bench", "created_at": "2026-01-01T00:00:00Z", "message": said, "done": False, **more}
        return json.dumps(row).encode() + b"\n"

    words = [line(f"word {number} of the answer") for number in range(count)]
    return [*words, line("", done=True, done_reason="stop", prompt_eval_count=12, eval_count=count)]


def gemini_events(count: int) -> list[bytes]:
    def event(text: str, **more: object) -> bytes:
        candidate = {"content": {"role": "model", "parts": [{"text": text}]}, "index": 0, **more}
        counted = {"promptTokenCount": 12, "candidatesTokenCount": count, "totalTokenCount": 12 + count}
        data = json.dumps({"candidates": [candidate], "usageMetadata": counted, "modelVersion": "m"})
        return b"data: %b\r\n\r\n" % data.encode()  # its lines end so

    words = [event(f"word {number} of the answer") for number in range(count)]
    return [*words, event("", finishReason="STOP")]


T = TypeVar("T")


def finish(coroutine: Coroutine[Any, Any, T]) -> T:
    """Runs what never waits, without a loop."""
    try:
        coroutine.send(None)
    except StopIteration as stop:
        done: T = stop.value
        return done
    raise AssertionError("it waits")


# -- the pieces --------------------------------------------------------------------------------------------------------


def walk(failures: int) -> Piece:
    """A chain whose first `failures` targets cannot be reached, and whose next one serves."""
    chain = Chain("mana/bench", tuple(Entry(Target(f"p{number}", "bench")) for number in range(failures + 1)))
    policy = Policy(failure_threshold=1_000_000_000)  # each run finds the chain as the first one did

    async def attempt(entry: Entry) -> bool:
        if entry.target.provider != f"p{failures}":
            raise ConnectFailed("refused")
        return True

    registry = HealthRegistry(
        {entry.target.provider: Health(policy) for entry in chain}, lambda: 1.0, lambda event: None
    )

    def once() -> None:
        served = finish(Walk(chain, registry, "id-1").run(attempt, "mana/bench"))
        served.served()

    return once


def health() -> Piece:
    known = Health()

    def once() -> None:
        permit = known.admit("bench", 1.0)
        assert isinstance(permit, Permit)
        permit.began(0.0)
        permit.served(2.0)

    return once


def refusal() -> Piece:
    known = Health()
    for _ in range(2):
        known.probed(ConnectFailed("refused"), 1.0)
    return lambda: known.admit("bench", 2.0)


def gates(
    local: bool,
    *,
    busy: bool = False,
    sent: bool = False,
    size: int = 1000,
    learns: bool = False,
    streams: bool = False,
    beside: int = 0,
) -> Piece:
    """What a request pays for the gates at its target: in a house that has a local provider, and at that (`local`) or
    at a cloud. `busy`: one whose slot is taken, so that it waits or goes on; `sent`: until its answer has ended;
    `learns`: nobody says how many slots it has; `streams`: the answer is a stream, whose first content teaches most;
    `beside`: so many others are being served."""
    now, known = 1.0, Health()

    def clock() -> float:
        return now

    near, far = Entry(Target("box", "bench"), max_wait=60.0), Entry(Target("cloud", "bench"))
    box = Box("box", _Host(), clock, lambda event: None)
    box.residency.observed([Resident("bench", 8, 8, 262_144, 1e9)], now)
    line = Line(None if learns else 1 + beside, learns=learns)
    line.of("bench").slots.number += beside
    for _ in range(50):
        line.of("bench").pace.learn(4000, 1000, 100, 0.5, 5.0)
    local_providers = LocalProviders(Catalog(), Boxes({"box": box}), {"box": Queue(clock, known, line)})
    asked = call(body(size, stream=True))
    entry = near if local else far
    if busy:
        for _ in range(3):
            line.enter(Turn(line.of("bench"), 5.0), now)
    for _ in range(beside):
        line.enter(Turn(line.of("bench"), 5.0), now)
    used = [Usage(230 + 13 * n % 40, 100 + 37 * n % 50) for n in range(23)]  # no two like each other, as it is
    answers, usages, opened = cycle([Answer(None, each) for each in used]), cycle(used), Opened(_Stream(), ())

    def no(entry: Entry) -> bool:
        return False

    async def ask(entry: Entry) -> Answer:
        return next(answers)

    async def opening(entry: Entry) -> Opened:
        return opened

    def passed() -> RequestGates:
        visit = local_providers.gates(asked)
        assert visit.gate(entry, no) is None
        return visit

    async def answered() -> None:
        await passed().in_turn(ask, no)(entry)

    async def streamed() -> None:
        value = await passed().in_turn(opening, no)(entry)
        if value.left is not None:
            value.left(next(usages))

    whole = streamed if streams else answered
    return (lambda: finish(whole())) if sent else passed


class _Stream:
    """One that has ended."""

    usage: Usage | None = None

    async def next(self, try_write: TryWrite | None = None, until: float | None = None) -> StreamBatch:
        return StreamBatch(done=True)

    def commit(self, idle: float) -> None: ...

    async def aclose(self) -> None: ...


class _Host:
    """A box that is not asked."""

    async def residents(self, seconds: float) -> tuple[Resident, ...] | None:
        return None

    async def slots(self, loaded: Iterable[str], seconds: float) -> Mapping[str, int]:
        return {}

    async def load(self, entry: Entry, *, pinned: bool) -> None: ...

    async def close(self) -> None: ...


def frames(events: list[bytes]) -> Piece:
    def once() -> None:
        decoder = sse.Decoder()
        for event in events:
            decoder.feed(event)

    return once


def head(size: int) -> Piece:
    data = body(size)
    return lambda: read_summary(data, ("messages", list))


def request(wire: Wire, size: int) -> Piece:
    asked = call(body(size, stream=True))
    return lambda: wire.request(asked, ENTRY)


def answer() -> Piece:
    wire, asked, data = OpenAIWire(), call(body(1000)), completion()
    return lambda: wire.answer(asked, ENTRY, data)


def translation(wire: Wire, reads: list[bytes], content_type: str) -> Piece:
    asked = call(body(1000, stream=True))

    def once() -> None:
        translator = wire.translator(asked, ENTRY, content_type)
        for read in reads:
            translator.feed(read)

    return once


def every() -> dict[str, Piece]:
    """By what a person calls them."""
    events, stream = openai_events(100), "text/event-stream"
    return {
        "nothing": lambda: None,
        "walk: the first target serves": walk(0),
        "walk: the third target serves": walk(2),
        "health: admitted, began, served": health(),
        "health: an open circuit refuses": refusal(),
        "gates: a cloud": gates(local=False),
        "gates: a cloud, sent": gates(local=False, sent=True),
        "gates: a local target": gates(local=True),
        "gates: a local target that is busy": gates(local=True, busy=True),
        "gates: a local target, 200 KB": gates(local=True, size=200_000),
        "gates: a local target, sent": gates(local=True, sent=True),
        "gates: a local target, streamed": gates(local=True, sent=True, streams=True),
        "gates: one of four slots, streamed": gates(local=True, sent=True, streams=True, beside=3),
        "gates: it learns slots, sent": gates(local=True, sent=True, learns=True),
        "gates: it learns slots, streamed": gates(local=True, sent=True, learns=True, streams=True),
        "gates: it learns slots beside two, streamed": gates(
            local=True, sent=True, learns=True, streams=True, beside=2
        ),
        "sse: 100 frames, a read each": frames(events),
        "sse: 100 frames in one read": frames([b"".join(events)]),
        "head: 1 KB": head(1000),
        "head: 200 KB": head(200_000),
        "openai: a request": request(OpenAIWire(), 1000),
        "openai: an answer": answer(),
        "openai: a stream of 100 chunks": translation(OpenAIWire(), events, stream),
        "ollama: a request": request(OllamaWire(), 1000),
        "ollama: a stream of 100 lines": translation(OllamaWire(), ollama_lines(100), "application/x-ndjson"),
        "gemini: a request": request(GeminiWire(), 1000),
        "gemini: a stream of 100 chunks": translation(GeminiWire(), gemini_events(100), stream),
    }
