"""The work: what is asked, how many ask at once, and what an answer must hold."""

from __future__ import annotations

import json
from typing import Any

from attrs import evolve, frozen

from bench.bodies import conversation, picture, prompt
from bench.doors import CHAT, PAIRS, Door
from bench.peers import Peer

LIMIT = 1 << 16
GOLDEN = 1.618
"""Seconds over which streams begin: no multiple of a pace, so that they do not tick together."""
PAUSE = 10.0
"""Idle seconds between two requests, behind which nothing of a process is in the processor's caches."""
MEGABYTES = 2
SLOT = 0.2
"""Seconds from one large body to the next, and in each of which the longest stop counts."""


@frozen
class Scenario:
    name: str
    title: str
    unit: str
    """What CPU time is counted per: ``request`` or ``chunk``."""
    connections: int
    seconds: float
    warm: float = 0.5
    rate: float = 0
    spread: float = 0
    chunks: int = 0
    every_us: int = 0
    prompt: int = 1000
    body: str = "prompt"
    """``prompt``, ``tools`` (20 KB of small strings) or ``picture`` (2 MB)."""
    fresh: bool = False
    rounds: int = LIMIT
    """At most so many rounds."""
    door: Door = CHAT
    model: str = ""
    """For ourselves, instead of the alias."""
    who: frozenset[str] = frozenset()
    """Names of those that do it; empty: all."""
    family: str = ""
    """``doors``: told in one table; ``held``, ``stop``, ``pause``, ``flight``: done in a way of their own."""
    hold_us: int = 0
    """How long the upstream reads no more of a request than its beginning."""

    @property
    def stream(self) -> bool:
        return self.chunks > 0

    @property
    def least(self) -> int:
        """Units that a figure needs; a slow proxy gets more time for them."""
        if self.rate or self.family in ("held", "stop"):
            return 0
        if self.family == "flight":
            return self.connections
        return self.connections * 100 if self.stream else max(100, self.connections * 8)

    def payload(self) -> dict[str, Any]:
        """All of a request's body but the model."""
        hold = f" hold={self.hold_us}" if self.hold_us else ""
        system = f"[[chunks={self.chunks} every={self.every_us}{hold}]] Be brief."
        if self.body == "tools":
            payload = conversation(system)
        else:
            words = picture(MEGABYTES << 20) if self.body == "picture" else prompt(self.prompt)
            payload = self.door.body(system, words)
        # Ollama's API streams unless it is told not to
        return {**payload, "temperature": 0.5, **({"stream": self.stream} if self.stream or self.door != CHAT else {})}

    def request(self, peer: Peer, port: int) -> bytes:
        """The bytes of one request to `peer`."""
        ours = peer.name in ("ours", "before")
        body = json.dumps({"model": (self.model if ours else "") or peer.model, **self.payload()}).encode()
        fields = {"Host": f"127.0.0.1:{port}", "Content-Type": "application/json", "Accept": "*/*", **peer.headers}
        fields["Content-Length"] = str(len(body))
        head = "".join(f"{name}: {value}\r\n" for name, value in fields.items())
        return f"POST {self.door.path} HTTP/1.1\r\n{head}\r\n".encode() + body

    def arguments(self) -> list[str]:
        """For the generator."""
        words = ["-c", self.connections, "-w", self.warm, "-d", self.seconds, "-g", self.spread, "-n", self.chunks or 1]
        words += ["-m", self.least]
        if self.rate:
            words += ["-r", self.rate]
        if self.stream:
            words += ["-e", self.door.end, *(["-k", self.door.kind] if self.door.kind else [])]
        if self.family == "stop":
            words += ["-i", int(SLOT * 1e6)]
        flags = [*(["-x"] if self.fresh else []), *(["-a"] if self.family == "pause" else [])]
        return [*map(str, words), *flags]


PACED = Scenario(
    "paced", "100 streams of 50 chunks/s", "chunk", 100, 5, 2.5, spread=GOLDEN, chunks=100, every_us=20_000
)
BODY = Scenario("push", "", "request", 2, LIMIT, 0, rate=1 / SLOT, body="picture")
"""What the loop is stopped by: a large body in each slot."""
STOP = Scenario(
    *("stop", "1 stream of 4,000 chunks/s, beside five bodies of 2 MB a second", "chunk", 1, 3),
    chunks=999_999, every_us=250, rounds=3, family="stop",
)  # fmt: skip
FLIGHT = Scenario(
    *("flight", "64 bodies of 2 MB in flight", "request", 64, 1, 0),
    body="picture", hold_us=1_500_000, rounds=2, family="flight",
)  # fmt: skip
IDLE = Scenario(
    *("pause", "1 at a time, 10 idle seconds before each", "request", 1, 5.5 * PAUSE, PAUSE / 2),
    rate=1 / PAUSE, rounds=1, family="pause",
)  # fmt: skip


def _pairs() -> list[Scenario]:
    """Each pair in each of the three ways in which a chat is measured, by ourselves and nginx."""
    who = frozenset(("direct", "ours", "before", "nginx"))
    ways = [
        Scenario("many", "64 at once", "request", 64, 1.5, who=who, family="doors"),
        Scenario("fast", "fast", "chunk", 16, 2, chunks=100, who=who, family="doors"),
        evolve(PACED, title="paced", seconds=3, who=who, family="doors"),
    ]
    return [
        evolve(
            way, name=f"{way.name} {pair.name}", title=f"{pair.title}: {way.title}", door=pair.door, model=pair.model
        )
        for pair in PAIRS
        for way in ways
    ]


FULL = [
    Scenario("one", "1 at a time", "request", 1, 4),
    Scenario("many", "64 at once", "request", 64, 4, warm=1),
    Scenario("rate", "50 a second", "request", 64, 5, rate=50),
    IDLE,
    Scenario("new", "8 at once, a connection for each", "request", 8, 3, fresh=True),
    Scenario("tools", "20 KB of tools and turns, 8 at once", "request", 8, 3, body="tools"),
    Scenario("body", "200 KB prompt, 8 at once", "request", 8, 4, prompt=200_000),
    Scenario("picture", "2 MB with a picture, 4 at once", "request", 4, 3, body="picture"),
    STOP,
    Scenario("fast", "16 streams of 100 chunks, fast", "chunk", 16, 4, chunks=100),
    Scenario("first", "1 stream at a time, 10 chunks, 1 ms apart", "chunk", 1, 4, chunks=10, every_us=1000),
    PACED,
    *_pairs(),
    Scenario(
        *("held", "1,000 open streams of 2 chunks/s", "chunk", 1000, 4, 5, 0, GOLDEN, 999, 500_000),
        rounds=1, family="held",
    ),
    FLIGHT,
]  # fmt: skip

_ONCE = ("new", "first", "tools", "picture", "stop", "flight")
_LEFT_OUT = ("rate", "many ", "paced ollama", "paced responses", "paced messages", "fast ollama-", "fast responses-")


def _quick(work: Scenario) -> Scenario:
    """Short, and most of them once."""
    if work.family == "pause":
        return evolve(work, seconds=1.5 * PAUSE)
    if work.family == "held":
        return evolve(work, seconds=1.2, who=frozenset(("ours",)))
    once = work.family == "doors" or work.name in _ONCE
    seconds = 1.0 if work.family == "doors" else min(work.seconds, 1.2)
    who = work.who - {"direct"}
    return evolve(work, seconds=seconds, warm=work.spread + 0.3, rounds=1 if once else work.rounds, who=who)


QUICK = [_quick(work) for work in FULL if not work.name.startswith(_LEFT_OUT)]
