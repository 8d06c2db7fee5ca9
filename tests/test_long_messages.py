"""Answers for all workers that are megabytes: a worker decodes them in a thread, and the loop goes on."""

from __future__ import annotations

import asyncio
import socket
import threading
from typing import Any

import pytest

from manallm_proxy.process import worker_link
from manallm_proxy.process.worker_link import WorkerLink
from manallm_proxy.process.worker_messages import FROM_WORKER, TO_WORKER, Answer, Ask, LineSplitter, Watch, to_line


class Decoding:
    """In which threads what was decoded."""

    def __init__(self) -> None:
        self.seen: list[tuple[str, bool]] = []

    def decode(self, line: bytes) -> Any:
        message = TO_WORKER.decode(line)
        self.seen.append((type(message).__name__, threading.current_thread() is threading.main_thread()))
        return message


class Duties:
    """Of a worker that only notes whether others watch."""

    def __init__(self) -> None:
        self.watched: list[bool] = []

    def watch(self, on: bool) -> None:
        self.watched.append(on)

    def drain(self, hurry: bool) -> None: ...


@pytest.mark.parametrize("size", [10, 2**20])
async def test_a_long_answer_is_decoded_in_a_thread(size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """A short one is not, nor are other messages, whose order matters."""
    decoding, duties = Decoding(), Duties()
    monkeypatch.setattr(worker_link, "TO_WORKER", decoding)
    ours, theirs = socket.socketpair()
    link = WorkerLink(1, 2, [], theirs)
    await link.join(duties)  # type: ignore[arg-type]  # what it needs here
    reader, writer = await asyncio.open_unix_connection(sock=ours)
    asking = asyncio.ensure_future(link.ask("metrics"))
    lines, asked = LineSplitter(), None
    while asked is None:
        messages = map(FROM_WORKER.decode, lines.feed(await reader.read(1000)))
        asked = next((message for message in messages if isinstance(message, Ask)), None)
    body = 'a "line"\n' * size
    writer.write(to_line(Answer(asked.id, body)) + to_line(Watch(True)))
    assert await asking == body
    assert sorted(decoding.seen) == [("Answer", size == 10), ("Watch", True)]
    assert duties.watched == [True]
    await link.leave("")
    writer.close()
