#!/usr/bin/env bash
# An SSE stream that numbers its events and sends a ping cannot be read by openai-python.
#
# openai 3.57.0 on httpx2 2.16.2, seen 2026-11-28.
# WHATWG's event-stream rules keep the last event id for ever, and an event whose data is empty is
# not dispatched. The SDK's decoder keeps the id, but takes a kept id for a reason to dispatch: after
# the first `id:` line each comment with a blank line becomes an event with empty data, and its JSON
# decoder raises JSONDecodeError, which is no OpenAIError. Without `id:` the same ping is ignored, and
# a `retry:` line on its own, before any id, raises as well. openai 7.59.0 for Node reads all of them.
# To a proxy: a heartbeat must stop, or stay a lone comment line, once an `id:` was relayed.
set -euo pipefail

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
{
  python3 -m venv "$work/venv" &&
    "$work/venv/bin/pip" install --quiet --disable-pip-version-check openai==3.57.0 httpx2==2.16.2 &&
    npm install --prefix "$work" --silent --no-audit --no-fund openai@7.59.0
} >&2 || { echo "could not install" >&2; exit 2; }

cat >"$work/read.mjs" <<'JS'
import OpenAI from 'openai';
const client = new OpenAI({ baseURL: process.argv[2], apiKey: 'none', maxRetries: 0 });
const words = [];
try {
  const stream = await client.chat.completions.create({ model: 'm', messages: [], stream: true });
  for await (const chunk of stream) words.push(chunk.choices[0].delta.content);
  words.push('end');
} catch (error) {
  words.push(error.constructor.name);
}
console.log(words.join(' '));
JS

cat >"$work/probe.py" <<'PY'
import asyncio
import json
import sys

from openai import AsyncOpenAI, OpenAIError


def chunk(word):
    choice = {"index": 0, "delta": {"content": word}, "finish_reason": None}
    return json.dumps({"id": "c", "object": "chat.completion.chunk", "created": 1, "model": "m", "choices": [choice]})


ONE, TWO, END = f"data: {chunk('one')}\n\n", f"data: {chunk('two')}\n\n", "data: [DONE]\n\n"
STREAMS = {
    "ping": ONE + ": ping\n\n" + TWO + END,
    "id": "id: 1\n" + ONE + "id: 2\n" + TWO + END,
    "id, lone comment": "id: 1\n" + ONE + ": ping\nid: 2\n" + TWO + END,
    "id, ping": "id: 1\n" + ONE + ": ping\n\n" + "id: 2\n" + TWO + END,
    "retry": "retry: 3000\n\n" + ONE + TWO + END,
}
READ = "one two end"
EXPECTED = {
    "ping": (READ, READ),
    "id": (READ, READ),
    "id, lone comment": (READ, READ),
    "id, ping": ("one JSONDecodeError", READ),
    "retry": ("JSONDecodeError", READ),
}


async def python(url):
    words = []
    client = AsyncOpenAI(base_url=url, api_key="none", max_retries=0)
    try:
        async for piece in await client.chat.completions.create(model="m", messages=[], stream=True):
            words.append(piece.choices[0].delta.content)
        words.append("end")
    except json.JSONDecodeError as error:
        words.append(type(error).__name__ + (" (an OpenAIError)" if isinstance(error, OpenAIError) else ""))
    await client.close()
    return " ".join(words)


async def node(url):
    child = await asyncio.create_subprocess_exec("node", sys.argv[1], url, stdout=asyncio.subprocess.PIPE)
    return (await child.communicate())[0].decode().strip()


async def main():
    body = ""

    async def answer(reader, writer):
        try:
            head = await reader.readuntil(b"\r\n\r\n")
        except asyncio.IncompleteReadError:  # Node opens a connection that it does not use
            return writer.close()
        sizes = [int(line[15:]) for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:")]
        await reader.readexactly(sum(sizes))
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nConnection: close\r\n\r\n" + body.encode())
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1"
    changed = False
    for name, body in STREAMS.items():
        seen = (await python(url), await node(url))
        print(f"{name}: Python: {seen[0]}; Node: {seen[1]}")
        changed |= seen != EXPECTED[name]
    server.close()
    return changed


if asyncio.run(main()):
    sys.exit("CHANGED: the streams above are no longer read as stated")
PY

timeout 60 "$work/venv/bin/python" "$work/probe.py" "$work/read.mjs" ||
  { echo "not as stated, or not done in time" >&2; exit 1; }
