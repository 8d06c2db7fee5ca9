#!/usr/bin/env bash
# langchain gives a stream up after two minutes of heartbeats, if it is asked by asyncio.
#
# langchain-openai 1.7.4 (openai 3.57.0) for Python, seen 2026-11-28.
# `stream_chunk_timeout`, 120 s unless told otherwise, counts from chunk to chunk, the first one included,
# and a comment is none. So `astream` and `ainvoke` end with StreamChunkTimeoutError while a server that
# loads a model or reads a long prompt sends a comment each second: SSE's own way to say "wait". A chunk
# with empty `choices` is heard. `stream` without asyncio has no such clock, and waits as long as bytes come.
# To a proxy: its heartbeat keeps openai's SDK and the proxies between, and still loses langchain's
# clients on the first request to a cold model, asynchronous ones only. (The probe has 2 s for 120 s.)
set -euo pipefail

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
{
  python3 -m venv "$work/venv" &&
    "$work/venv/bin/pip" install --quiet --disable-pip-version-check langchain-openai==1.7.4 openai==3.57.0
} >&2 || { echo "could not install" >&2; exit 2; }

cat >"$work/probe.py" <<'PY'
import asyncio
import json
import sys

from langchain_openai import ChatOpenAI


def event(*choices):
    chunk = {"id": "c", "object": "chat.completion.chunk", "created": 1, "model": "m", "choices": choices}
    return f"data: {json.dumps(chunk)}\n\n".encode()


WORD = event({"index": 0, "delta": {"role": "assistant", "content": "word"}, "finish_reason": "stop"})
BEATS = {"a comment": b": wait\n\n", "empty choices": event()}


async def main():
    beat = b""

    async def serve(reader, writer):
        """A beat each half second, and after four seconds the answer."""
        try:
            head = (await reader.readuntil(b"\r\n\r\n")).lower()
            await reader.readexactly(int(head.split(b"content-length:")[1].split()[0]))
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nConnection: close\r\n\r\n")
            for _ in range(8):
                writer.write(beat)
                await writer.drain()
                await asyncio.sleep(0.5)
            writer.write(WORD + b"data: [DONE]\n\n")
            await writer.drain()
        except ConnectionError:
            pass  # it has hung up
        finally:
            writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    own = {"base_url": f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}", "api_key": "none", "max_retries": 0}
    model = ChatOpenAI(model="m", stream_chunk_timeout=2, **own)
    streaming = ChatOpenAI(model="m", stream_chunk_timeout=2, streaming=True, **own)

    async def astream():
        return "".join([chunk.text async for chunk in model.astream("hi")])

    async def ainvoke():
        return (await streaming.ainvoke("hi")).text

    async def stream():
        return await asyncio.to_thread(lambda: "".join(chunk.text for chunk in model.stream("hi")))

    seen = {}
    for name, beat in BEATS.items():
        for ask in (astream, ainvoke, stream):
            try:
                seen[name, ask.__name__] = await ask()
            except asyncio.TimeoutError as error:
                seen[name, ask.__name__] = type(error).__name__
            print(f"{name} each 0.5 s, {ask.__name__}: {seen[name, ask.__name__]}")
    server.close()
    return ChatOpenAI(model="m", **own).stream_chunk_timeout, seen


seconds, seen = asyncio.run(main())
print(f"seconds unless told otherwise: {seconds}")
expected = dict.fromkeys(seen, "word") | {
    ("a comment", ask): "StreamChunkTimeoutError" for ask in ("astream", "ainvoke")
}
if (seconds, seen) != (120, expected):
    sys.exit("CHANGED: the outcomes above are no longer as stated")
PY

timeout 300 "$work/venv/bin/python" "$work/probe.py" 2>"$work/log" ||
  { cat "$work/log" >&2; echo "not as stated, or not done in time" >&2; exit 1; }
