"""A worker's side of the state of local servers that all workers share, see `all_boxes`.

When the supervisor has died, this worker goes on alone: it drains, and can share with nobody.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from typing import assert_never

from attrs import field

from manallm_proxy.contract.records import define
from manallm_proxy.contract.residents import Resident
from manallm_proxy.contract.targets import ollama_name
from manallm_proxy.process import box_messages as box
from manallm_proxy.routing.shared_line import Entered, LoadEnd, OnSeen, SharedLines


@define(eq=False)
class BoxLink:
    """See `shared_line.Keeper` and `shared_line.Loads`. ``send`` sends to the supervisor."""

    send: Callable[[box.FromWorker], None]
    clock: Callable[[], float]
    lag: float = 0.0
    lines: SharedLines = field(init=False)
    _claims: dict[tuple[str, str], list[asyncio.Future[LoadEnd | None]]] = field(factory=dict)
    _listeners: dict[str, list[OnSeen]] = field(factory=dict)
    """Callbacks by server: of its box, and during a reload also of the previous generation's."""
    _is_lost: bool = False

    def __attrs_post_init__(self) -> None:
        self.lines = SharedLines(self)

    def handle(self, message: box.ToWorker) -> None:
        match message:
            case box.Served():
                now = self.clock()
                trial, trial_timeout, waits = message.is_trial, message.trial_timeout, message.waits
                self.lines.served(message.number, now, is_trial=trial, trial_timeout=trial_timeout, waits=waits)
            case box.Line():
                self.lines.update(message.server, message.model, message.busy)
            case box.Granted():
                if not self._end_load(message.server, message.model, None):
                    self.loaded(message.server, message.model, None)
            case box.Loaded():
                self._end_load(message.server, message.model, message.end)
            case box.Seen():
                for on_seen in self._listeners.get(message.server, ()):
                    on_seen(message.asked_at, message.residents, message.slots)
            case _:
                assert_never(message)

    def lost(self) -> None:
        """The supervisor has died."""
        self._is_lost = True
        self.lines.lost(self.clock())
        for server, model in list(self._claims):
            self._end_load(server, model, None)

    # as `Keeper`

    def entered(self, entered: Entered) -> None:
        self.send(box.Enter(entered))

    def began(self, number: int) -> None:
        self.send(box.Began(number))

    def left(self, number: int, answered: bool, tokens: int) -> None:
        self.send(box.Left(number, answered, tokens))

    def server_recovered(self, server: str) -> None:
        self.send(box.Recovered(server))

    def limited(self, server: str, model: str, slots: int | None) -> None:
        self.send(box.Limited(server, model, slots))

    # as `Loads`

    async def claim(self, server: str, model: str, *, alone: bool = False) -> LoadEnd | None:
        if self._is_lost:
            return None
        key = server, ollama_name(model)
        answer: asyncio.Future[LoadEnd | None] = asyncio.get_running_loop().create_future()
        waiting = self._claims.setdefault(key, [])
        waiting.append(answer)
        self.send(box.Claim(server, model, alone))
        try:
            return await answer
        except asyncio.CancelledError:
            if answer.done() and not answer.cancelled() and answer.result() is None:
                self.loaded(server, model, None)  # granted in this same loop iteration
            raise
        finally:
            if answer in waiting:
                waiting.remove(answer)
            if not waiting:
                self._claims.pop(key, None)

    def loaded(self, server: str, model: str, end: LoadEnd | None) -> None:
        self.send(box.Loaded(server, model, end))

    def report_residents(
        self, server: str, asked_at: float, residents: tuple[Resident, ...], slots: Mapping[str, int] | None
    ) -> None:
        self.send(box.Seen(server, asked_at, residents, None if slots is None else dict(slots)))

    def listen(self, server: str, on_seen: OnSeen) -> None:
        self._listeners.setdefault(server, []).append(on_seen)

    def forget(self, server: str, on_seen: OnSeen) -> None:
        listeners = self._listeners.get(server, [])
        if on_seen in listeners:
            listeners.remove(on_seen)
        if not listeners:
            self._listeners.pop(server, None)

    def _end_load(self, server: str, model: str, end: LoadEnd | None) -> bool:
        """Passes the outcome to all that wait for this load; None: one of them is to load. Whether any waited."""
        waiting = [each for each in self._claims.get((server, ollama_name(model)), ()) if not each.done()]
        for each in waiting if end is not None or self._is_lost else waiting[:1]:
            each.set_result(end)
        return bool(waiting)
