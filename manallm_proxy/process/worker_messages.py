"""Messages between a worker and its supervisor: one JSON object per line, over a pair of sockets."""

from __future__ import annotations

from typing import Final, Literal

import msgspec
from attrs import field

from manallm_proxy.contract.records import define
from manallm_proxy.process import box_messages
from manallm_proxy.process.box_messages import Message
from manallm_proxy.routing.circuit import SharedState
from manallm_proxy.routing.ledger import Row

Topic = Literal["metrics", "health", "requests"]


class HealthUpdate(Message):
    """In both directions: the circuit of a provider, or of one of its models, has changed."""

    provider: str
    model: str | None
    update: SharedState


class Serving(Message):
    """From a worker when it is ready and after each `Adopt`: ``summary`` for systemd, ``banner`` for a terminal."""

    summary: str
    banner: str = ""


class Leaving(Message):
    """From a worker: it is draining and accepts no more connections."""


class FinalMetrics(Message):
    """The last message from a worker: its final metrics."""

    metrics: str


class Ask(Message):
    """From a worker: a client asks about all workers."""

    id: int
    topic: Topic


class Answer(Message):
    """To the worker that asked; the body is merged from all parts."""

    id: int
    body: str


class AskPart(Message):
    """To each worker: a request for its part of an answer."""

    id: int
    topic: Topic


class Part(Message):
    """From each worker, in reply to `AskPart`."""

    id: int
    body: str


class AskOne(Message):
    """From a worker: a question to one other worker, about data stored only there."""

    id: int
    worker: int
    question: str


class ForwardedQuestion(Message):
    """To that other worker. ``asker``: pid of the worker that asked; it may be gone before the answer comes."""

    id: int
    asker: int
    question: str


class PartOne(Message):
    """The answer of that other worker."""

    id: int
    asker: int
    body: str


class Watching(Message):
    """From a worker: whether it has readers of the live feed."""

    on: bool


class Watch(Message):
    """To a worker: whether another one has readers, so that it must send its events."""

    on: bool


class LiveEvent(Message):
    """In both directions, while any worker has readers: one event of the live feed."""

    id: str
    kind: str
    data: str


class Spent(Message):
    """In both directions: what one worker has spent since its last message; to a new worker, the totals of all.

    ``recovered``: to a new worker, the part of it that was spent before any worker began.
    """

    rows: list[Row]
    recovered: list[Row] | None = None


class Ping(Message):
    """To a worker, which returns it to show that its event loop is not stuck."""


class Prepare(Message):
    """To every worker: open this pickled configuration, and go on serving the old one.

    Only the supervisor, which forked the worker, can write to the socket.
    """

    number: int
    config: bytes

    def __repr__(self) -> str:
        return f"Prepare({self.number})"  # the configuration holds the providers' keys


class Prepared(Message):
    """From a worker: configuration ``number`` is open, or, if there are mistakes, refused."""

    number: int
    mistakes: tuple[str, ...] = ()


class Adopt(Message):
    """To every worker: serve the configuration that was prepared under ``number``."""

    number: int


class Abandon(Message):
    """To every worker: close the configuration that was prepared under ``number``."""

    number: int


class Drain(Message):
    """To all workers: drain. ``hurry``: the operator has signalled twice."""

    hurry: bool = False


FromWorker = (
    HealthUpdate
    | Serving
    | Leaving
    | FinalMetrics
    | Ask
    | Part
    | AskOne
    | PartOne
    | Watching
    | LiveEvent
    | Spent
    | Ping
    | Prepared
    | box_messages.FromWorker
)
ToWorker = (
    box_messages.ToWorker
    | HealthUpdate
    | Answer
    | AskPart
    | ForwardedQuestion
    | Watch
    | LiveEvent
    | Spent
    | Ping
    | Prepare
    | Adopt
    | Abandon
    | Drain
)

FROM_WORKER: Final = msgspec.json.Decoder(FromWorker)
TO_WORKER: Final = msgspec.json.Decoder(ToWorker)
_encode: Final = msgspec.json.encode


def to_line(message: Message) -> bytes:
    """`message` as one line; JSON escapes line breaks inside."""
    return _encode(message) + b"\n"


@define
class LineSplitter:
    """Splits a stream of bytes into lines."""

    _rest: bytearray = field(factory=bytearray, repr=False)

    def feed(self, data: bytes) -> list[bytes]:
        """The lines that `data` completes, without line ends."""
        searched = len(self._rest)
        self._rest += data
        end = self._rest.rfind(b"\n", searched)
        if end < 0:
            return []
        lines = bytes(self._rest[:end]).split(b"\n")
        del self._rest[: end + 1]
        return lines
