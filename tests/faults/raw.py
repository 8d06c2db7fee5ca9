"""A client as a raw socket: it can leave in every way, and read as slowly as it likes."""

from __future__ import annotations

import asyncio
import json
import socket
import struct
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any, Final

from tests.faults.dialects import Asked
from tests.faults.scene import request


def post(asked: Asked, model: str = "mana/test", *, headers: str = "", body: dict[str, Any] | None = None) -> bytes:
    """The bytes of one request."""
    path, made = request(asked, model)
    data = json.dumps(body or made).encode()
    head = f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Length: {len(data)}\r\n{headers}\r\n"
    return head.encode() + data


@asynccontextmanager
async def client(port: int, small: bool = False) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    """One connection to the proxy; `small`: the smallest receive buffer, read on demand only."""
    made = socket.socket()
    made.setblocking(False)
    if small:
        made.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    await asyncio.get_running_loop().sock_connect(made, ("127.0.0.1", port))
    reader, writer = await asyncio.open_connection(sock=made, limit=2**12 if small else 2**20)
    try:
        yield reader, writer
    finally:
        writer.transport.abort()


def reset(writer: asyncio.StreamWriter) -> None:
    raw = writer.get_extra_info("socket")
    raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()


LEAVES: Final[dict[str, Callable[[asyncio.StreamWriter], Any]]] = {
    "FIN": lambda writer: writer.close(),
    "RST": reset,
    "half-close": lambda writer: writer.write_eof(),
}
