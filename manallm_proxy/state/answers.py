"""What one process keeps of answers: those that are complete, and those on their way."""

from __future__ import annotations

from attrs import define, field

from manallm_proxy.state.flights import Flights
from manallm_proxy.state.kept import AnswerStore


@define(eq=False)
class Answers:
    """It outlives reloads."""

    store: AnswerStore
    flights: Flights = field(factory=Flights)
