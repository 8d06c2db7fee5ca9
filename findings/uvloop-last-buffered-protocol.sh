#!/usr/bin/env bash
# uvloop: a transport never lets go of the last buffered protocol that it had.
#
# uvloop 0.23.0 with Python 3.11, seen 2026-11-28.
# A protocol may be replaced while its connection stays open (`transport.set_protocol`): a server
# reads a long body through an asyncio.BufferedProtocol, into memory that is there already, and then
# gives the connection back to the protocol that reads requests. asyncio forgets the old one at once.
# uvloop keeps it, and all that it refers to, until another buffered protocol takes its place or the
# connection closes.
# To a proxy: the largest bodies of all stay in memory, one for each idle kept-alive connection.
set -euo pipefail

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
{
  python3 -m venv "$work/venv" &&
    "$work/venv/bin/pip" install --quiet --disable-pip-version-check uvloop==0.23.0
} >&2 || { echo "could not install" >&2; exit 2; }

cat >"$work/probe.py" <<'PY'
import asyncio
import gc
import sys
import weakref

import uvloop

SIZE = 100_000


class Lines(asyncio.Protocol):
    """What reads requests: here nothing comes for it."""


class Body(asyncio.BufferedProtocol):
    """Reads SIZE bytes, and gives the connection to `after`."""

    def __init__(self, after):
        self.memory = bytearray(SIZE)
        self.size = 0
        self.after = after
        self.done = asyncio.get_running_loop().create_future()

    def connection_made(self, transport):
        self.transport = transport

    def get_buffer(self, hint):
        return memoryview(self.memory)[self.size :]

    def buffer_updated(self, size):
        self.size += size
        if self.size == SIZE:
            self.transport.set_protocol(self.after)
            self.done.set_result(None)


async def is_kept():
    """Whether the protocol, and with it its memory, is there after it was replaced."""
    accepted = asyncio.get_running_loop().create_future()

    def accept():
        body = Body(Lines())
        accepted.set_result(body)
        return body

    server = await asyncio.get_running_loop().create_server(accept, "127.0.0.1", 0)
    _, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
    writer.write(bytes(SIZE))
    body = await accepted
    await body.done
    transport, known = body.transport, weakref.ref(body)
    assert transport.get_protocol() is body.after
    del body, accepted, accept
    server.close()
    await asyncio.sleep(0.2)
    gc.collect()
    kept = known() is not None
    open_still = not transport.is_closing()
    writer.close()
    return kept, open_still


seen = {"asyncio": asyncio.run(is_kept()), "uvloop": uvloop.run(is_kept())}
for name, (kept, open_still) in seen.items():
    print(f"{name}: connection open: {open_still}; the replaced protocol and its memory are kept: {kept}")
if seen != {"asyncio": (False, True), "uvloop": (True, True)}:
    sys.exit("CHANGED: who lets go of a replaced protocol is no longer as stated")
PY

timeout 60 "$work/venv/bin/python" "$work/probe.py" 2>"$work/log" ||
  { cat "$work/log" >&2; echo "not as stated, or not done in time" >&2; exit 1; }
