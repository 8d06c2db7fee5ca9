#!/usr/bin/env bash
# A Responses stream that says it failed ends like a good one in OpenAI's own SDKs.
#
# Python openai 3.57.0 and npm openai 7.59.0, seen 2026-11-28. Four ends behind half a text:
# `response.failed` is one more event to both, and the loop ends without an exception. The `error`
# event of the published types ({type, code, message, param}) raises in Node and is one more event in
# Python. Only an `error` event with a nested "error" object, which those types do not have, raises in
# both. An answer that just stops raises in neither.
# To a proxy: a failure behind the first byte is heard by code that only collects text if both forms
# are on the wire, `response.failed` for those who look and `error` with the nested object for the SDKs.
set -euo pipefail

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
{
  python3 -m venv "$work/venv" &&
    "$work/venv/bin/pip" install --quiet --disable-pip-version-check openai==3.57.0 &&
    npm install --prefix "$work" --silent --no-audit --no-fund openai@7.59.0
} >&2 || { echo "could not install" >&2; exit 2; }

cat >"$work/read.mjs" <<'JS'
import OpenAI from 'openai';
const client = new OpenAI({ baseURL: process.argv[2], apiKey: 'none', maxRetries: 0 });
const types = [];
try {
  const stream = await client.responses.create({ model: 'm', input: 'hi', stream: true });
  for await (const event of stream) types.push(event.type);
  types.push('end');
} catch (error) {
  types.push(`${error.constructor.name} ${error.message}`);
}
console.log(types.join(', '));
JS

cat >"$work/probe.py" <<'PY'
import http.server
import json
import subprocess
import sys
import threading

import openai

RESPONSE = {
    "id": "resp_1",
    "object": "response",
    "created_at": 1,
    "status": "in_progress",
    "model": "m",
    "output": [],
    "error": None,
    "incomplete_details": None,
    "instructions": None,
    "metadata": {},
    "parallel_tool_calls": True,
    "temperature": 1,
    "top_p": 1,
    "tool_choice": "auto",
    "tools": [],
}
FAILED = RESPONSE | {"status": "failed", "error": {"code": "server_error", "message": "boom"}}
ERROR = {"code": "server_error", "message": "boom", "param": None}
ENDS = {
    "response.failed": ("response.failed", {"response": FAILED}),
    "error as published": ("error", ERROR),
    "error, nested": ("error", {"error": {"type": "server_error", **ERROR}}),
    "nothing": None,
}
EXPECTED = {
    "response.failed": ("response.failed, end", "response.failed, end"),
    "error as published": ("error, end", "APIError boom"),
    "error, nested": ("APIError boom", "APIError boom"),
    "nothing": ("end", "end"),
}
COMMON = ["response.created", "response.output_text.delta"]


def frame(kind, fields):
    return f"event: {kind}\ndata: {json.dumps({'type': kind, 'sequence_number': 0, **fields})}\n\n"


class Server(http.server.BaseHTTPRequestHandler):
    end = None

    def do_POST(self):
        self.rfile.read(int(self.headers["content-length"]))
        delta = {"item_id": "msg_1", "output_index": 0, "content_index": 0, "delta": "half", "logprobs": []}
        body = frame("response.created", {"response": RESPONSE}) + frame("response.output_text.delta", delta)
        if self.end:
            body += frame(*self.end)
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body.encode())

    def log_message(self, *_):
        pass


def python(url):
    types = []
    try:
        client = openai.OpenAI(base_url=url, api_key="none", max_retries=0)
        for event in client.responses.create(model="m", input="hi", stream=True):
            types.append(event.type)
        types.append("end")
    except openai.APIError as error:
        types.append(f"{type(error).__name__} {error}")
    return types


def node(url):
    child = subprocess.run(["node", sys.argv[1], url], stdout=subprocess.PIPE, check=True, timeout=30, text=True)
    return child.stdout.strip().split(", ")


server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Server)
threading.Thread(target=server.serve_forever, daemon=True).start()
changed = False
for name, Server.end in ENDS.items():
    seen = []
    for read in (python, node):
        types = read(f"http://127.0.0.1:{server.server_port}/v1")
        changed |= types[:2] != COMMON
        seen.append(", ".join(types[2:]))
    print(f"{name}: Python: {seen[0]}; Node: {seen[1]}")
    changed |= tuple(seen) != EXPECTED[name]
if changed:
    sys.exit("CHANGED: the ends above are no longer as stated")
PY

timeout 60 "$work/venv/bin/python" "$work/probe.py" "$work/read.mjs" ||
  { echo "not as stated, or not done in time" >&2; exit 1; }
