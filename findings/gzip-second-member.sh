#!/usr/bin/env bash
# httpx reads the first member of a gzip body, and takes it for the whole answer.
#
# httpx 0.28.1, httpx2 2.16.2 and, on it, openai 3.57.0; aiohttp 3.14.5, requests 2.34.2, Node 20's fetch.
# Seen 2026-11-28. A gzip file may have several members, one after the other (RFC 1952): that is how a
# server compresses pieces that it did not know together, such as each event of a stream by itself, or
# joins files that were compressed before. httpx and httpx2 stop at the end of the first member: no
# error, though the length of the body is right. A chat streamed to openai-python ends after its first
# word, like any good one. aiohttp, requests (urllib3) and fetch read all members.
# To a proxy: whose own client does so cuts answers that the provider sent whole, and `zlib`'s
# decompressobj, on which one builds such a client, does just that.
set -euo pipefail

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
{
  python3 -m venv "$work/venv" &&
    "$work/venv/bin/pip" install --quiet --disable-pip-version-check \
      httpx==0.28.1 httpx2==2.16.2 openai==3.57.0 aiohttp==3.14.5 requests==2.34.2
} >&2 || { echo "could not install" >&2; exit 2; }

cat >"$work/probe.py" <<'PY'
import asyncio
import gzip
import http.server
import json
import subprocess
import sys
import threading

import aiohttp
import httpx
import httpx2
import openai
import requests


def event(word, reason=None):
    choice = {"index": 0, "delta": {"content": word}, "finish_reason": reason}
    chunk = {"id": "c", "object": "chat.completion.chunk", "created": 1, "model": "m", "choices": [choice]}
    return f"data: {json.dumps(chunk)}\n\n".encode()


EVENTS = [event("one "), event("two "), event("three", "stop"), b"data: [DONE]\n\n"]
BODY = b"".join(map(gzip.compress, EVENTS))
assert gzip.decompress(BODY) == b"".join(EVENTS)


class Server(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Content-Encoding", "gzip")
        self.send_header("Content-Length", str(len(BODY)))
        self.end_headers()
        self.wfile.write(BODY)

    def do_POST(self):
        self.rfile.read(int(self.headers["Content-Length"]))
        self.do_GET()

    def log_message(self, *_):
        pass


async def with_aiohttp(url):
    async with aiohttp.ClientSession() as session, session.get(url) as answer:
        return await answer.read()


def with_node(url):
    script = "process.stdout.write(await (await fetch(process.argv[1])).text())"
    command = ["node", "--input-type=module", "--eval", script, url]
    return subprocess.run(command, stdout=subprocess.PIPE, check=True, timeout=120).stdout


server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Server)
threading.Thread(target=server.serve_forever, daemon=True).start()
url = f"http://127.0.0.1:{server.server_port}/"
READERS = {
    "httpx": lambda: httpx.get(url).content,
    "httpx2": lambda: httpx2.get(url).content,
    "aiohttp": lambda: asyncio.run(with_aiohttp(url)),
    "requests": lambda: requests.get(url, timeout=10).content,
    "fetch": lambda: with_node(url),
}
seen = {}
for name, read in READERS.items():
    seen[name] = read().count(b"data: ")
    print(f"{name}: {seen[name]} events of {len(EVENTS)}, no error")

client = openai.OpenAI(base_url=url, api_key="none", max_retries=0)
chunks = list(client.chat.completions.create(model="m", messages=[], stream=True))
said = "".join(chunk.choices[0].delta.content for chunk in chunks)
print(f"openai: said {said!r}, no error")
if (seen, said) != ({"httpx": 1, "httpx2": 1, "aiohttp": 4, "requests": 4, "fetch": 4}, "one "):
    sys.exit("CHANGED: who reads how much is no longer as stated")
PY

timeout 300 "$work/venv/bin/python" "$work/probe.py" 2>"$work/log" ||
  { cat "$work/log" >&2; echo "not as stated, or not done in time" >&2; exit 1; }
