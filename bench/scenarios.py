"""The work: what is asked, how many ask at once, and what an answer must hold."""

from __future__ import annotations

import json

from attrs import evolve, frozen

from bench.peers import Peer

LIMIT = 1 << 16
GOLDEN = 1.618
"""Seconds over which streams begin: no multiple of a pace, so that they do not tick together."""


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
    fresh: bool = False
    rounds: int = LIMIT
    """At most so many rounds."""

    @property
    def stream(self) -> bool:
        return self.chunks > 0

    @property
    def least(self) -> int:
        """Units that a figure needs; a slow proxy gets more time for them."""
        if self.rate or self.name == "held":
            return 0
        return self.connections * 100 if self.stream else max(100, self.connections * 8)

    def request(self, peer: Peer, port: int) -> bytes:
        """The bytes of one request to `peer`."""
        shape = f"[[chunks={self.chunks} every={self.every_us}]]"
        words = ("What is the answer to the question? " * (self.prompt // 36 + 1))[: self.prompt]
        messages = [{"role": "system", "content": f"{shape} Be brief."}, {"role": "user", "content": words}]
        payload: dict[str, object] = {"model": peer.model, "messages": messages, "temperature": 0.5}
        if self.stream:
            payload["stream"] = True
        body = json.dumps(payload).encode()
        fields = {"Host": f"127.0.0.1:{port}", "Content-Type": "application/json", "Accept": "*/*", **peer.headers}
        fields["Content-Length"] = str(len(body))
        head = "".join(f"{name}: {value}\r\n" for name, value in fields.items())
        return f"POST /v1/chat/completions HTTP/1.1\r\n{head}\r\n".encode() + body

    def arguments(self) -> list[str]:
        """For the generator."""
        words = ["-c", self.connections, "-w", self.warm, "-d", self.seconds, "-g", self.spread, "-n", self.chunks or 1]
        words += ["-m", self.least]
        if self.rate:
            words += ["-r", self.rate]
        return [*map(str, words), *(["-s"] if self.stream else []), *(["-x"] if self.fresh else [])]


FULL = [
    Scenario("one", "1 at a time", "request", 1, 4),
    Scenario("many", "64 at once", "request", 64, 4, warm=1),
    Scenario("rate", "50 a second", "request", 64, 5, rate=50),
    Scenario("new", "8 at once, a connection for each", "request", 8, 3, fresh=True),
    Scenario("body", "200 KB prompt, 8 at once", "request", 8, 4, prompt=200_000),
    Scenario("fast", "16 streams of 100 chunks, fast", "chunk", 16, 4, chunks=100),
    Scenario("first", "1 stream at a time, 10 chunks, 1 ms apart", "chunk", 1, 4, chunks=10, every_us=1000),
    Scenario("paced", "100 streams of 50 chunks/s", "chunk", 100, 5, 2.5, spread=GOLDEN, chunks=100, every_us=20_000),
    Scenario("held", "1,000 open streams of 2 chunks/s", "chunk", 1000, 4, 5, 0, GOLDEN, 999, 500_000, rounds=1),
]  # fmt: skip

QUICK = [
    evolve(
        s, seconds=min(s.seconds, 1.2 if s.name != "rate" else 2), warm=s.warm if s.name == "held" else s.spread + 0.3
    )
    for s in FULL
    if s.name != "new"
]
