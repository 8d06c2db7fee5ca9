"""Enables and disables traces as configured. While disabled, OpenTelemetry is not imported."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Final
from urllib.parse import urlsplit

from attrs import field

from manallm_proxy.config.model import Config
from manallm_proxy.contract.events import Crashed, StateChanged
from manallm_proxy.contract.records import define
from manallm_proxy.gateway.own_thread import in_thread
from manallm_proxy.gateway.serving import Serving
from manallm_proxy.observe.fan_out import FanOut

if TYPE_CHECKING:
    from manallm_proxy.observe.traces import Attributes, Traces

LAST_SPANS: Final = 2.0
"""Max seconds that process exit waits for the last spans to be exported."""
_PORTS: Final = {"http": 80, "https": 443}
_NAMES: Final[Mapping[str, str]] = {"google": "gcp.gemini"}
"""``gen_ai.provider.name`` by kind; other providers have the name that the configuration gives them."""


@define(eq=False)
class Tracing:
    """Adds a listener to ``observe`` while an endpoint is configured."""

    serving: Serving
    observe: FanOut
    _traces: Traces | None = None
    _closing: dict[asyncio.Task[None], Traces] = field(factory=dict)

    def follow(self, config: Config) -> None:
        """Switches traces on or off as `config` says; an earlier exporter still sends what it holds.

        Never raises, since adopting a configuration must not fail: without an exporter the proxy serves untraced.
        """
        wanted = config.traces.endpoint
        if wanted == (self._traces.endpoint if self._traces is not None else None):
            return
        if self._traces is not None:
            self._let_go(self._traces)
            self._traces = None
        if wanted is not None:
            try:
                from manallm_proxy.observe.traces import Traces  # takes 0.1 s and 8 MB

                self._traces = Traces(wanted, self._describe, self._report(wanted))
            except Exception as error:  # the SDK rejects some values of its environment variables
                self.observe(Crashed("traces", error))
            else:
                self.observe.listeners = [*self.observe.listeners, self._traces]
        self.serving.traced = self._traces is not None

    async def close(self) -> None:
        """Exports queued spans, for up to `LAST_SPANS` seconds."""
        if self._traces is not None:
            self._let_go(self._traces)
            self._traces, self.serving.traced = None, False
        if self._closing:
            await asyncio.wait(self._closing, timeout=LAST_SPANS)
        for traces in self._closing.values():
            traces.give_up()

    def _let_go(self, traces: Traces) -> None:
        self.observe.listeners = [each for each in self.observe.listeners if each is not traces]
        task = asyncio.get_running_loop().create_task(_closed(traces))
        self._closing[task] = traces
        task.add_done_callback(self._closing.pop)

    def _report(self, endpoint: str) -> Callable[[bool], None]:
        """Reports in the loop what the exporter's thread finds out, as long as there is a loop."""
        loop, parts = asyncio.get_running_loop(), urlsplit(endpoint)
        server = f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"

        def report(is_well: bool) -> None:
            with contextlib.suppress(RuntimeError):  # the loop is closed: the process ends
                loop.call_soon_threadsafe(self.observe, StateChanged(server, is_well, of="traces"))

        return report

    def _describe(self, provider: str) -> Attributes:
        """A provider's span attributes."""
        config = self.serving.generation.config.providers.get(provider)
        if config is None:  # removed by a reload since the request began
            return {"gen_ai.provider.name": provider}
        found: Attributes = {"gen_ai.provider.name": _NAMES.get(config.kind, provider)}
        parts = urlsplit(config.base_url or "")
        if parts.hostname:
            found |= {"server.address": parts.hostname, "server.port": parts.port or _PORTS[parts.scheme.lower()]}
        return found


async def _closed(traces: Traces) -> None:
    with contextlib.suppress(Exception):  # a failed export must not fail the shutdown
        await in_thread(traces.close)
