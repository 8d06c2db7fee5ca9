"""What all routes share: the generation that serves now, and whether the process is draining."""

from __future__ import annotations

from attrs import field

from manallm_proxy.config.model import Config
from manallm_proxy.contract.records import define
from manallm_proxy.gateway.generation import Generation
from manallm_proxy.http_server.stream_writer import StreamTiming


@define(eq=False)
class Serving:
    """A reload replaces ``generation`` as a whole; a request reads it once."""

    generation: Generation
    draining: bool = False
    followed: bool = False
    """Whether the live feed has readers, so that the beginnings of requests are reported too."""
    traced: bool = False
    """Whether traces are enabled."""
    _timing: tuple[Config, StreamTiming] | None = field(default=None, repr=False)
    """The latest one, and the configuration that it is of."""

    def timing_of(self, config: Config) -> StreamTiming:
        """The timing of streams under `config`, which they share."""
        if self._timing is None or self._timing[0] is not config:
            limits = config.limits
            self._timing = config, StreamTiming(config.streaming.heartbeat, limits.write_timeout, limits.write_rate)
        return self._timing[1]
