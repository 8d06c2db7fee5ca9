"""Reads the body of an answer part by part; a long one is held only once, in a growing buffer."""

from __future__ import annotations

from manallm_proxy.http_client.api import Response
from manallm_proxy.openai.joined import Growing
from manallm_proxy.openai.large import LARGE_BYTES

Parts = list[bytes | Growing]
"""The parts received: several `bytes`, or one growing buffer."""


async def gather(
    response: Response, parts: Parts, most: int, until: float | None = None, idle: float | None = None
) -> bool:
    """Reads the body into `parts`: the first chunk by loop time `until`, then at most `idle` seconds between chunks.

    Returns False if it is longer than `most` bytes. Raises TimeoutError.
    """
    size, silence = 0, None
    try:
        while part := await response.read(None, until, silence):
            parts.append(part)
            size += len(part)
            if size > LARGE_BYTES:
                _grow(parts)
            if size > most:
                response.close()
                return False
            if idle is not None:
                until, silence = None, idle
    except BaseException:
        response.close()
        raise
    response.release()
    return True


def _grow(parts: Parts) -> None:
    """Merges the parts into one growing buffer, so that a long body is held only once."""
    growing = parts[0] if isinstance(parts[0], Growing) else Growing()
    for part in parts:
        if not isinstance(part, Growing):
            growing.add(part)
    parts[:] = [growing]


def joined(parts: Parts) -> bytes:
    """The whole body. May be called once."""
    first = parts[0] if len(parts) == 1 else b""
    if isinstance(first, Growing):
        return first.take()
    return first or b"".join([part for part in parts if isinstance(part, bytes)])
