#!/usr/bin/env bash
# A reset in the middle of an answer is the end of that answer to half of the field's HTTP clients.
#
# aiohttp 3.14.5, httpx 0.28.1, httpx2 2.16.2, undici 7.30.2, Node 20's fetch and http; seen 2026-11-28.
# An answer without Content-Length or chunks ends with its connection (RFC 9112, 6.3). When the
# connection does not end but is reset, httpx, httpx2 and node:http raise. aiohttp and undici, and so
# `fetch` and all that stands on it, hand over what has come as a whole body.
# To a proxy: model servers behind HTTP/1.0 or `Connection: close` fail unseen, so only the stream's own
# end (a finish reason, [DONE]) says that an answer is whole; and our own answers to such clients need it.
set -euo pipefail

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
{
  python3 -m venv "$work/venv" &&
    "$work/venv/bin/pip" install --quiet --disable-pip-version-check aiohttp==3.14.5 httpx==0.28.1 httpx2==2.16.2 &&
    npm install --prefix "$work" --silent --no-audit --no-fund undici@7.30.2
} >&2 || { echo "could not install" >&2; exit 2; }

cat >"$work/read.mjs" <<'JS'
import http from 'node:http';
import { request } from 'undici';
const url = process.argv[2];
const clients = {
  'Node fetch': async () => (await fetch(url)).text(),
  undici: async () => (await request(url)).body.text(),
  'node:http': () =>
    new Promise((resolve, reject) => {
      const asked = http.get(url, async (answer) => {
        let text = '';
        try {
          for await (const piece of answer) text += piece;
          resolve(text);
        } catch (error) {
          reject(error);
        }
      });
      asked.on('error', reject);
    }),
};
for (const [name, read] of Object.entries(clients)) {
  try {
    console.log(`${name}: ${(await read()).length} bytes as a whole answer`);
  } catch (error) {
    console.log(`${name}: raised`);
  }
}
process.exit(0);
JS

cat >"$work/probe.py" <<'PY'
import asyncio
import socket
import struct
import sys

import aiohttp
import httpx
import httpx2

HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nConnection: close\r\n\r\n"


async def half_an_answer(reader, writer):
    await reader.readuntil(b"\r\n\r\n")
    writer.write(HEAD + b"data: half\n\n")
    await writer.drain()
    await asyncio.sleep(0.3)  # it has arrived, and is read
    writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()


async def with_aiohttp(url):
    async with aiohttp.ClientSession() as session, session.get(url) as answer:
        return await answer.read()


async def with_httpx(url):
    async with httpx.AsyncClient() as client:
        return (await client.get(url)).content


async def with_httpx2(url):
    async with httpx2.AsyncClient() as client:
        return (await client.get(url)).content


async def main():
    server = await asyncio.start_server(half_an_answer, "127.0.0.1", 0)
    url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/"
    seen = []
    for name, read in (("aiohttp", with_aiohttp), ("httpx", with_httpx), ("httpx2", with_httpx2)):
        try:
            seen.append(f"{name}: {len(await read(url))} bytes as a whole answer")
        except (aiohttp.ClientError, httpx.ReadError, httpx2.ReadError):
            seen.append(f"{name}: raised")
    node = await asyncio.create_subprocess_exec("node", sys.argv[1], url, stdout=asyncio.subprocess.PIPE)
    seen += (await node.communicate())[0].decode().splitlines()
    server.close()
    return seen


WHOLE = "12 bytes as a whole answer"
EXPECTED = [
    f"aiohttp: {WHOLE}",
    "httpx: raised",
    "httpx2: raised",
    f"Node fetch: {WHOLE}",
    f"undici: {WHOLE}",
    "node:http: raised",
]
lines = asyncio.run(main())
print("\n".join(lines))
if lines != EXPECTED:
    sys.exit("CHANGED: the outcomes above are no longer as stated")
PY

timeout 60 "$work/venv/bin/python" "$work/probe.py" "$work/read.mjs" ||
  { echo "not as stated, or not done in time" >&2; exit 1; }
