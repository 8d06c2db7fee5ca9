#!/usr/bin/env bash
# google-genai: who leaves a stream, and even closes it, has not hung up.
#
# google-genai 3.6.1 on aiohttp 3.14.5, seen 2026-11-28.
# After `break` out of `generate_content_stream()`, and after `await stream.aclose()` on it, the
# connection stays open and the model goes on writing into it: the generator that aclose() reaches
# wraps another one, which holds the answer and is not closed with it. Cancelling the task that waits
# for the next chunk hangs up at once.
# To a proxy: the client has gone, the code is tidy, and the provider still generates and bills.
set -euo pipefail

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
{
  python3 -m venv "$work/venv" &&
    "$work/venv/bin/pip" install --quiet --disable-pip-version-check google-genai==3.6.1 aiohttp==3.14.5
} >&2 || { echo "could not install" >&2; exit 2; }

cat >"$work/probe.py" <<'PY'
import asyncio
import json
import sys

from google import genai
from google.genai import types

PIECE = json.dumps({"candidates": [{"content": {"parts": [{"text": "word"}]}}]})
EVENT = f"data: {PIECE}\r\n\r\n".encode()


class Model:
    """Writes a word each 50 ms until its client hangs up."""

    def __init__(self):
        self.hung_up = asyncio.Event()
        self.words = 0

    async def __call__(self, reader, writer):
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n")
        try:
            for _ in range(400):
                writer.write(b"%x\r\n%s\r\n" % (len(EVENT), EVENT))
                await writer.drain()
                self.words += 1
                await asyncio.sleep(0.05)
        except ConnectionError:
            self.hung_up.set()
        finally:
            writer.close()


async def leave(how):
    model = Model()
    server = await asyncio.start_server(model, "127.0.0.1", 0)
    url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    client = genai.Client(api_key="none", http_options=types.HttpOptions(base_url=url)).aio
    stream = await client.models.generate_content_stream(model="gemini-2.5-flash", contents="hi")
    if how == "cancel":

        async def read():
            async for _ in stream:
                pass

        task = asyncio.create_task(read())
        await asyncio.sleep(0.5)
        task.cancel()
    else:
        async for _ in stream:
            break
        if how == "aclose":
            await stream.aclose()
    left = model.words
    try:
        await asyncio.wait_for(model.hung_up.wait(), 3)
        hung_up = True
    except asyncio.TimeoutError:
        hung_up = False
    print(f"{how}: hung up within 3 s: {hung_up}; words written after leaving: {model.words - left}")
    server.close()
    return hung_up


async def main():
    return {how: await leave(how) for how in ("break", "aclose", "cancel")}


if asyncio.run(main()) != {"break": False, "aclose": False, "cancel": True}:
    sys.exit("CHANGED: the ways to leave above no longer end as stated")
PY

timeout 60 "$work/venv/bin/python" -W ignore "$work/probe.py" 2>"$work/log" ||
  { cat "$work/log" >&2; echo "not as stated, or not done in time" >&2; exit 1; }
