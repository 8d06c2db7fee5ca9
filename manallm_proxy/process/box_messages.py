"""Messages between a worker and its supervisor about local servers: whose turn it is, and who loads a model."""

from __future__ import annotations

import msgspec

from manallm_proxy.contract.residents import Resident
from manallm_proxy.routing.shared_line import Busy, Entered, LoadEnd


class Message(msgspec.Struct, tag=str.lower):
    """One message, sent as one line of JSON."""


class Enter(Message):
    """From a worker, see `Keeper.entered`."""

    entered: Entered


class Began(Message):
    """From a worker, see `Keeper.began`."""

    number: int


class Left(Message):
    """From a worker, see `Keeper.left`."""

    number: int
    answered: bool
    tokens: int = 0


class Limited(Message):
    """From a worker, see `Keeper.limited`."""

    server: str
    model: str
    slots: int | None


class Recovered(Message):
    """From a worker, see `Keeper.server_recovered`."""

    server: str


class Served(Message):
    """To the worker whose request it is, see `SharedLines.served`."""

    number: int
    is_trial: bool = False
    trial_timeout: float = 0.0
    waits: bool = False


class Line(Message):
    """To all workers, whenever a line has changed, see `SharedLines.update`."""

    server: str
    model: str
    busy: Busy


class Claim(Message):
    """From a worker that wants to load a model; it does so when it gets `Granted`. See `Loads.claim`."""

    server: str
    model: str
    alone: bool = False


class Granted(Message):
    """To one worker: it loads the model, and sends `Loaded` at the end."""

    server: str
    model: str


class Loaded(Message):
    """In both directions: a load has ended. ``end`` None: it was given up, since its worker ends."""

    server: str
    model: str
    end: LoadEnd | None


class Seen(Message):
    """In both directions: what a local server has loaded, see `Loads.report_residents`."""

    server: str
    asked_at: float
    residents: tuple[Resident, ...]
    slots: dict[str, int] | None = None


FromWorker = Enter | Began | Left | Limited | Recovered | Claim | Loaded | Seen
ToWorker = Served | Line | Granted | Loaded | Seen
