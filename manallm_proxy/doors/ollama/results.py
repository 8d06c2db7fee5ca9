"""Which tool call a tool result answers.

Ollama's own API has no ids: a result has the tool's name, or nothing at all, and the next one in order is meant.
Clients that also speak other APIs send ids, for some results or for all of them.
"""

from __future__ import annotations

from collections import defaultdict, deque
from typing import NamedTuple


class Called(NamedTuple):
    """A tool call: the client's id (may be empty), the tool, the id that the provider gets."""

    given: str
    name: str
    id: str


class Result(NamedTuple):
    """What a tool result names: a call's id, a tool, or neither (empty)."""

    id: str
    name: str


def answered_calls(calls: list[Called], results: dict[int, Result]) -> dict[int, str]:
    """The provider's id of the call that each result of a turn answers; a result that answers none is left out.

    What is certain comes first: ids, then names, then the order. Else a result that names nothing could take the call
    that another one names. A result whose id is none of the turn's answers by order only where the calls have no ids.
    """
    waiting: defaultdict[tuple[str, str], deque[Called]] = defaultdict(deque)
    for call in calls:
        for way in (("id", call.given), ("name", call.name), ("order", "")):
            waiting[way].append(call)
    answered: dict[int, str] = {}
    taken: set[str] = set()

    def take(n: int, way: tuple[str, str]) -> None:
        queue = waiting.get(way, ())
        while queue:
            call = queue.popleft()
            if call.id not in taken:
                taken.add(call.id)
                answered[n] = call.id
                return

    for n, result in results.items():
        if result.id:
            take(n, ("id", result.id))
    for n, result in results.items():
        if result.name and n not in answered:
            take(n, ("name", result.name))
    has_ids = any(call.given and call.id not in taken for call in calls)
    for n, result in results.items():
        if n not in answered and not (result.id and has_ids):
            take(n, ("order", ""))
    return answered
