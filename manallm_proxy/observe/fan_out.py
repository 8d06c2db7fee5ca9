"""Passes each event to all listeners. A failing listener affects neither the reporting code nor other listeners."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

from attrs import field

from manallm_proxy.contract.events import Crashed, Event, Observer
from manallm_proxy.contract.records import define

DEEPEST: Final = 8
"""Max depth of events that are reported while another is being handled."""


@define(eq=False)
class FanOut:
    """An observer made of observers, called in the order of ``listeners``.

    1. An exception of a listener is caught and counted in ``failures``.
    2. The first of each type per listener is reported to ``log``, and only to it, as `Crashed`.
    3. A failure of ``log`` itself is only counted, to avoid endless recursion.
    4. Events that a listener reports while it handles one (a destructor may run then) are delivered to a depth of
       `DEEPEST`; beyond it they are dropped and counted as failures.
    """

    listeners: Sequence[Observer] = field(repr=False)
    log: Observer = field(repr=False)
    failures: int = 0
    _reported: set[tuple[int, type[Exception]]] = field(factory=set)
    """Positions in ``listeners``, with the exception types that a `Crashed` has reported."""
    _depth: int = 0

    def __call__(self, event: Event) -> None:
        if self._depth >= DEEPEST:
            self.failures += 1
            return
        self._depth += 1
        try:
            for position, listener in enumerate(self.listeners):
                try:
                    listener(event)
                except Exception as error:
                    self.failures += 1
                    self._report(position, listener, error)
        finally:
            self._depth -= 1

    def _report(self, position: int, listener: Observer, error: Exception) -> None:
        if listener is self.log or (position, type(error)) in self._reported:
            return
        self._reported.add((position, type(error)))
        try:
            self.log(Crashed(f"listener {_name(listener)}", error))
        except Exception:
            self.failures += 1


def _name(listener: Any) -> str:
    """The name of the function or class; never its ``repr``, whose content is unknown."""
    return str(getattr(listener, "__qualname__", type(listener).__qualname__))
