#!/usr/bin/env bash
# One Retry-After, six clients, three ways to take it; none of them says that it waits.
#
# Python openai 3.57.0, anthropic 2.14.0; npm openai 6.49.0 and 7.59.0, @anthropic-ai/sdk 1.14.0,
# ai 7.0.173 with @ai-sdk/openai-compatible 3.0.92. Seen 2026-11-28, Python 3.11 and Node 20.
# 429 with `Retry-After: 90`: both anthropic SDKs, openai for Python and openai 6 sleep 90 s before
# each of two retries; openai 7 for Node and the AI SDK find it too long and come back at once.
# With 150, openai for Python does not retry at all, while both anthropic SDKs and openai 6 sleep.
# A proxy that hands Retry-After on holds some callers for that long, and cannot count on the others
# to wait at all.
# (The probe replaces the clock's sleep, and so takes seconds.)
set -euo pipefail

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
{
  python3 -m venv "$work/venv" &&
    "$work/venv/bin/pip" install --quiet --disable-pip-version-check openai==3.57.0 anthropic==2.14.0 &&
    npm install --prefix "$work" --silent --no-audit --no-fund openai6@npm:openai@6.49.0 openai7@npm:openai@7.59.0 \
      @anthropic-ai/sdk@1.14.0 ai@7.0.173 @ai-sdk/openai-compatible@3.0.92
} >&2 || { echo "could not install" >&2; exit 2; }

cat >"$work/ask.mjs" <<'JS'
import Anthropic from '@anthropic-ai/sdk';
import { createOpenAICompatible } from '@ai-sdk/openai-compatible';
import { generateText } from 'ai';
import OpenAI6 from 'openai6';
import OpenAI7 from 'openai7';

const root = process.argv[2];
const slept = [];
const clock = globalThis.setTimeout;
// What a client waits between two requests: longer than half a back-off, and not its own time limit.
globalThis.setTimeout = (call, ms, ...rest) => {
  const wait = ms > 250 && ms < 590_000 && ![499, 3000, 5000].includes(ms); // these are HTTP's own timers
  if (wait) slept.push(ms);
  return clock(call, wait ? 1 : ms, ...rest);
};
const chat = { model: 'm', messages: [] };
const clients = {
  'node openai 6': (baseURL) => new OpenAI6({ baseURL, apiKey: 'none' }).chat.completions.create(chat),
  'node openai 7': (baseURL) => new OpenAI7({ baseURL, apiKey: 'none' }).chat.completions.create(chat),
  'node anthropic': (baseURL) => new Anthropic({ baseURL, apiKey: 'none' }).messages.create({ ...chat, max_tokens: 1 }),
  'node AI SDK': (baseURL) =>
    generateText({ model: createOpenAICompatible({ name: 'x', baseURL })('m'), prompt: 'hi', maxRetries: 2 }),
};
const seen = {};
for (const seconds of [90, 150]) {
  for (const [name, ask] of Object.entries(clients)) {
    slept.length = 0;
    try {
      await ask(`${root}/${seconds}`);
    } catch {}
    seen[`${name}, ${seconds}`] = slept.map((ms) => (ms === seconds * 1000 ? 'as told' : ms < 10_000 ? 'soon' : ms));
  }
}
console.log(JSON.stringify(seen));
process.exit(0);
JS

cat >"$work/probe.py" <<'PY'
import http.server
import json
import subprocess
import sys
import threading
import time

import anthropic
import openai


class Busy(http.server.BaseHTTPRequestHandler):
    def do_POST(self):
        self.rfile.read(int(self.headers["content-length"]))
        body = b'{"error": {"message": "busy"}}'
        self.send_response(429)
        self.send_header("Retry-After", self.path.split("/")[1])
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Busy)
threading.Thread(target=server.serve_forever, daemon=True).start()
root = f"http://127.0.0.1:{server.server_port}"
slept = []
time.sleep = slept.append

CHAT = {"model": "m", "messages": []}
CLIENTS = {
    "python openai": lambda url: openai.OpenAI(base_url=url, api_key="none").chat.completions.create(**CHAT),
    "python anthropic": lambda url: anthropic.Anthropic(base_url=url, api_key="none").messages.create(
        **CHAT, max_tokens=1
    ),
}
seen = {}
for seconds in (90, 150):
    for name, ask in CLIENTS.items():
        slept.clear()
        try:
            ask(f"{root}/{seconds}")
        except (openai.RateLimitError, anthropic.RateLimitError):
            pass
        seen[f"{name}, {seconds}"] = ["as told" if wait == seconds else "soon" if wait < 10 else wait for wait in slept]
node = subprocess.run(["node", sys.argv[1], root], stdout=subprocess.PIPE, check=True, timeout=60)
seen |= json.loads(node.stdout)

TOLD, SOON, NEVER = ["as told"] * 2, ["soon"] * 2, []
expected = {
    "python openai, 90": TOLD,
    "python anthropic, 90": TOLD,
    "python openai, 150": NEVER,
    "python anthropic, 150": TOLD,
    "node openai 6, 90": TOLD,
    "node openai 7, 90": SOON,
    "node anthropic, 90": TOLD,
    "node AI SDK, 90": SOON,
    "node openai 6, 150": TOLD,
    "node openai 7, 150": SOON,
    "node anthropic, 150": TOLD,
    "node AI SDK, 150": SOON,
}
for name, waits in seen.items():
    print(f"{name} s: waits before a retry: {', '.join(map(str, waits)) or 'no retry'}")
if seen != expected:
    sys.exit("CHANGED: the waits above are no longer as stated")
PY

timeout 90 "$work/venv/bin/python" "$work/probe.py" "$work/ask.mjs" ||
  { echo "not as stated, or not done in time" >&2; exit 1; }
