"""How far one client's request has come: how its client learns of a failure, and when others go on first."""

from __future__ import annotations

from enum import Enum, auto
from typing import Final

MANY: Final = 8
"""Requests in flight above which each lets the others come as far before it goes on, at two places of its way: what
runs for one after the other stays in the processor's cache. It takes a tenth of the CPU of 64 at once, and costs two
turns of the event loop."""


class State(Enum):
    """How far an exchange has come."""

    WAITING = auto()
    """No target has answered: a failure may still be reported by status, unless an early heartbeat was sent."""
    COMMITTED = auto()
    """A target is answering: a failure breaks the answer."""
    ENDED = auto()
    """Its outcome is known."""
