"""What serves now: the generation of the configuration, and whether the process is draining."""

from __future__ import annotations

from attrs import define

from manallm_proxy.gateway.generation import Generation


@define(eq=False)
class Serving:
    """A reload replaces ``generation`` as a whole; a request reads it once."""

    generation: Generation
    draining: bool = False
    followed: bool = False
    """Whether somebody follows requests live, so that their beginnings are reported too."""
    traced: bool = False
    """Whether requests become spans, and providers are told of them."""
