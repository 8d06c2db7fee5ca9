"""What real servers answered, byte for byte: ``recordings/*.txt``, each with a few lines of where it is from."""

from __future__ import annotations

import re
from pathlib import Path

from attrs import frozen

FOLDER = Path(__file__).parent / "recordings"


@frozen
class Recording:
    """One answer, its chunks put together."""

    status: int
    headers: dict[str, str]
    body: bytes


def recorded(name: str) -> Recording:
    """The recording of that name."""
    _, _, raw = (FOLDER / f"{name}.txt").read_bytes().partition(b"\n\n")
    head, _, body = raw.partition(b"\r\n\r\n")
    first, *lines = head.decode("latin-1").split("\r\n")
    headers = {key.lower(): value.strip() for key, _, value in (line.partition(":") for line in lines)}
    if headers.get("transfer-encoding") == "chunked":
        body = _joined(body)
    assert len(body) == int(headers.get("content-length", len(body)))
    return Recording(int(first.split()[1]), headers, body)


def _joined(body: bytes) -> bytes:
    out = b""
    while (match := re.match(rb"([0-9a-f]+)\r\n", body)) and (size := int(match[1], 16)):
        out += body[match.end() : match.end() + size]
        body = body[match.end() + size + 2 :]
    return out
