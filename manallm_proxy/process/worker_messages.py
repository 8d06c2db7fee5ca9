"""What a worker and its supervisor say to each other: one JSON object a line, over a pair of sockets."""

from __future__ import annotations

from typing import Final, Literal

import msgspec
from attrs import define, field

from manallm_proxy.routing.health import SharedState

Topic = Literal["metrics", "health"]


class Message(msgspec.Struct, tag=str.lower):
    """One line."""


class Moved(Message):
    """Either way: a provider's circuit, or that of one of its models, is not what it was."""

    provider: str
    model: str | None
    update: SharedState


class Serving(Message):
    """From a worker: it serves; again behind each `Adopt`. The words are for systemd and for a newcomer."""

    summary: str
    banner: str = ""


class Leaving(Message):
    """From a worker: it drains, and takes no more connections."""


class Farewell(Message):
    """From a worker, its last: what it has counted."""

    metrics: str


class Ask(Message):
    """From a worker, whose client wants to know something of all workers."""

    id: int
    topic: Topic


class Answer(Message):
    """To that worker."""

    id: int
    body: str


class Tell(Message):
    """To each worker: its own part of an answer."""

    id: int
    topic: Topic


class Part(Message):
    """From each worker."""

    id: int
    body: str


class AskOne(Message):
    """From a worker, whose client wants something that another worker keeps."""

    id: int
    worker: int
    question: str


class TellOne(Message):
    """To that other worker. ``asker``: the process that wants to know; it may be gone before the answer comes."""

    id: int
    asker: int
    question: str


class PartOne(Message):
    """From that other worker."""

    id: int
    asker: int
    body: str


class Beat(Message):
    """To a worker, and back from its loop: it turns."""


class Adopt(Message):
    """To all workers: the configuration from now on, pickled. Nobody but the supervisor can send one."""

    config: bytes

    def __repr__(self) -> str:
        return "Adopt()"  # it holds the providers' keys


class Drain(Message):
    """To all workers; ``hurry`` where somebody has asked twice."""

    hurry: bool = False


FromWorker = Moved | Serving | Leaving | Farewell | Ask | Part | AskOne | PartOne | Beat
ToWorker = Moved | Answer | Tell | TellOne | Beat | Adopt | Drain

FROM_WORKER: Final = msgspec.json.Decoder(FromWorker)
TO_WORKER: Final = msgspec.json.Decoder(ToWorker)
_encode: Final = msgspec.json.encode


def to_line(message: Message) -> bytes:
    """`message` as it travels. JSON escapes every line break within."""
    return _encode(message) + b"\n"


@define
class Lines:
    """Bytes in, whole lines out."""

    _rest: bytearray = field(factory=bytearray, repr=False)

    def feed(self, data: bytes) -> list[bytes]:
        """The lines that `data` completes, without their ends."""
        searched = len(self._rest)
        self._rest += data
        end = self._rest.rfind(b"\n", searched)
        if end < 0:
            return []
        lines = bytes(self._rest[:end]).split(b"\n")
        del self._rest[: end + 1]
        return lines
