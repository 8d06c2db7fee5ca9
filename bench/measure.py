"""The run: everybody is started, timed, filled with streams, and driven in alternating rounds."""

from __future__ import annotations

import http.client
import os
import statistics
import sys
import time
from pathlib import Path

from attrs import define, field

from bench import tools
from bench.machine import BenchError, Child, Layout, free_port
from bench.peers import Peer, Site
from bench.scenarios import BODY, Scenario

DIRECT = Peer("direct", "no proxy", lambda: "", lambda site: [])
"""The generator on the upstream itself: what the tools cost, and what is subtracted."""
PROBE = Scenario("probe", "", "request", 1, 0)


@define
class Results:
    """All that a report says."""

    facts: dict[str, str]
    versions: dict[str, str] = field(factory=dict)
    missing: dict[str, str] = field(factory=dict)
    starts: dict[str, list[float]] = field(factory=dict)
    """Seconds from exec to the first answer of a chat."""
    idle_mib: dict[str, float] = field(factory=dict)
    runs: dict[str, dict[str, list[tools.Run]]] = field(factory=dict)
    """By scenario and peer, one for each round."""

    def of(self, scenario: str, peer: str, value: str) -> list[float]:
        return [getattr(run, value) for run in self.runs.get(scenario, {}).get(peer, [])]

    def median(self, scenario: str, peer: str, value: str) -> float | None:
        values = self.of(scenario, peer, value)
        return statistics.median(values) if values else None

    def added(self, scenario: str, peer: str, value: str) -> float | None:
        """Median over the rounds of what a proxy adds to the direct way of the same round."""
        through, straight = self.of(scenario, peer, value), self.of(scenario, "direct", value)
        return (
            statistics.median(a - b for a, b in zip(through, straight, strict=False)) if through and straight else None
        )

    def ratios(self, scenario: str, above: str, below: str, value: str = "cpu") -> list[float]:
        """Round by round, `above` over `below`."""
        pairs = zip(self.of(scenario, above, value), self.of(scenario, below, value), strict=False)
        return [a / b for a, b in pairs if b]

    def across(self, above: str, below: str, peer: str) -> list[float]:
        """Round by round, the CPU time of `peer` in scenario `above` over that in scenario `below`."""
        return [a / b for a, b in zip(self.of(above, peer, "cpu"), self.of(below, peer, "cpu"), strict=False) if b]


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def prepare(peers: list[Peer], results: Results) -> None:
    """Installs what is missing, and says what it cannot."""
    for peer in peers:
        say(f"preparing {peer.title} ...")
        try:
            results.versions[peer.name] = peer.prepare()
        except BenchError as error:
            results.missing[peer.name] = "could not be installed"
            say(f"{peer.title} could not be installed; going on without it: {error}")
    os.sync()  # a process keeps pages of files that are not on the disk yet: 2 MiB of ours, after an installation


def asks(port: int, peer: Peer) -> str:
    """One chat: empty where it was answered, else why not."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    head, _, body = PROBE.request(peer, port).partition(b"\r\n\r\n")
    fields = dict(line.split(": ", 1) for line in head.decode().split("\r\n")[1:])
    try:
        connection.request("POST", "/v1/chat/completions", body, fields)
        response = connection.getresponse()
        said = response.read()
        return "" if response.status == 200 and b"@@" in said else f"{response.status} {said[:300]!r}"
    except OSError as error:
        return str(error)
    except http.client.HTTPException as error:
        return repr(error)
    finally:
        connection.close()


@define
class Bench:
    folder: Path
    layout: Layout
    results: Results
    upstream: Child
    upstream_port: int
    running: dict[str, tuple[Peer, int, Child | None]] = field(factory=dict)

    def start(self, peer: Peer) -> tuple[Child, int, float]:
        """A fresh process, its port, and the seconds from exec to its first answer."""
        port = free_port()
        folder = self.folder / peer.name
        folder.mkdir(exist_ok=True)
        command = peer.command(Site(folder, port, self.upstream_port))
        began = time.perf_counter()
        child = Child.start(command, self.layout.proxy, folder / "log", peer.environ, folder)
        try:
            fault = "it says nothing"
            while (now := time.perf_counter()) - began < peer.start_timeout and child.process.poll() is None:
                if not (fault := asks(port, peer)):
                    return child, port, time.perf_counter() - began
                time.sleep(0.002 if now - began < 1 else 0.05)
            raise BenchError(f"{peer.title} does not start: {fault}\n{child.tail()}")
        except BaseException:
            child.end()
            raise

    def begin(self, peers: list[Peer], starts: int) -> None:
        """Times the start of each, leaves the last one running, and weighs it."""
        self.running["direct"] = (DIRECT, self.upstream_port, None)
        for peer in peers:
            try:
                times = []
                for last in [False] * (starts - 1) + [True]:
                    child, port, seconds = self.start(peer)
                    times.append(round(seconds, 3))
                    if last or seconds > 3:
                        break
                    child.end()
            except BenchError as error:
                if peer.name == "ours":
                    raise
                self.results.missing[peer.name] = "did not start"
                say(f"going on without it: {error}")
                continue
            self.running[peer.name] = (peer, port, child)
            time.sleep(1)
            self.results.starts[peer.name] = times
            self.results.idle_mib[peer.name] = round(child.resident_mib(), 1)
            say(f"{peer.title}: {statistics.median(times):.2f} s to its first answer, {child.resident_mib():.1f} MiB")

    def site(self, scenario: Scenario, name: str) -> tools.Site:
        peer, port, child = self.running[name]
        request = self.folder / f"{name}.request"
        request.write_bytes(scenario.request(peer, port))
        return tools.Site(port, request, self.layout, self.upstream, child)

    def drive(self, scenario: Scenario, name: str) -> None:
        peer, port, child = self.running[name]
        try:
            if child is not None and child.process.poll() is not None:
                raise BenchError(f"it is gone: {child.tail(2)}")
            pushed = BODY.request(peer, port) if scenario.family == "stop" else b""
            self.note(scenario, name, tools.drive(scenario, self.site(scenario, name), pushed))
        except BenchError as error:
            self.miss(scenario, name, error)

    def together(self, scenario: Scenario, names: list[str]) -> None:
        """All at the same time, one behind the other: each of them does nothing most of the time."""
        began = []
        for name in names:
            began.append((name, tools.start(scenario, self.site(scenario, name))))
            time.sleep(1 / scenario.rate / (len(names) + 1))
        for name, generator in began:
            try:
                self.note(scenario, name, tools.finish(generator, scenario))
            except BenchError as error:
                self.miss(scenario, name, error)

    def weigh(self, scenario: Scenario, name: str) -> None:
        """In a process of its own, whose memory holds nothing of other work."""
        peer, port, _ = kept = self.running[name]
        try:
            child, port, _ = self.start(peer)
        except BenchError as error:
            self.miss(scenario, name, error)
            return
        self.running[name] = (peer, port, child)
        try:
            self.drive(scenario, name)
        finally:
            self.running[name] = kept
            child.end()

    def note(self, scenario: Scenario, name: str, run: tools.Run) -> None:
        self.results.runs.setdefault(scenario.name, {}).setdefault(name, []).append(run)
        spoiled = f"  {run.errors} ERRORS: {run.why}" if run.errors else ""
        more = f"   stop {run.stop_p50:7.0f} us" if run.stop_p50 else ""
        more += f"   {run.idle_mib:.0f} to {run.peak_mib:.0f} MiB" if scenario.family == "flight" else ""
        say(
            f"  {scenario.name:19} {name:14} {run.cpu:10.1f} us CPU/{scenario.unit:8} {run.per_second:10.0f}/s"
            f"   p50 {run.p50:9.0f} us   p99 {run.p99:9.0f} us   tools {run.tools:4.0%}{more}{spoiled}"
        )

    def miss(self, scenario: Scenario, name: str, error: BenchError) -> None:
        say(f"  {scenario.name:19} {name:14} failed: {error}")
        self.results.missing[f"{name}, {scenario.title}"] = "failed"

    def rounds(self, scenarios: list[Scenario], count: int) -> None:
        """Round after round, scenario after scenario, everybody in turn; each round begins with another."""
        for number in range(count):
            names = list(self.running)
            names = names[number % len(names) :] + names[: number % len(names)]
            for scenario in scenarios:
                if number >= scenario.rounds:
                    continue
                say(f"round {number + 1}: {scenario.title}")
                doing = [name for name in names if not scenario.who or name in scenario.who]
                if scenario.family == "pause":
                    self.together(scenario, doing)
                elif scenario.family == "flight":
                    for name in doing:
                        if name != "direct":
                            self.weigh(scenario, name)
                else:
                    for name in doing:
                        self.drive(scenario, name)

    def end(self) -> None:
        for _, _, child in self.running.values():
            if child is not None:
                child.end()
        self.upstream.end()
