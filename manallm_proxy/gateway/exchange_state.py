"""How far one client's request has come, which decides how its client learns of a failure."""

from __future__ import annotations

from enum import Enum, auto


class State(Enum):
    """How far an exchange has come."""

    WAITING = auto()
    """No target has answered: a failure may still be reported by status, unless an early heartbeat was sent."""
    COMMITTED = auto()
    """A target is answering: a failure breaks the answer."""
    ENDED = auto()
    """Its outcome is known."""
