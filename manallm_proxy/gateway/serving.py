"""What all routes share: the generation that serves now, and whether the process is draining."""

from __future__ import annotations

from manallm_proxy.contract.records import define
from manallm_proxy.gateway.generation import Generation


@define(eq=False)
class Serving:
    """A reload replaces ``generation`` as a whole; a request reads it once."""

    generation: Generation
    draining: bool = False
    followed: bool = False
    """Whether the live feed has readers, so that the beginnings of requests are reported too."""
    traced: bool = False
    """Whether traces are enabled."""
