#!/usr/bin/env bash
# "data: [DONE]" ends nothing for the AI SDK: what follows is added, and the answer ends with the connection.
#
# npm ai 7.0.173 with @ai-sdk/openai-compatible 3.0.92 and @ai-sdk/openai 4.0.118, groq-sdk 1.6.0, openai
# 7.59.0 on Node 20; Python groq 1.7.0 and openai 3.57.0, seen 2026-11-28.
# A server sends an answer, `[DONE]`, three seconds later one more chunk, and then the end of the body.
# Both of OpenAI's SDKs end with [DONE]. Groq's two throw the late chunk away, but wait for it, and for
# the end. Both providers of the AI SDK wait as well, and put its word behind the answer.
# To a proxy: a body that stays open behind [DONE], for the provider's own end, a tally or one more
# heartbeat, delays each answer that is made of it, and only for some clients. [DONE] and the end are
# one thing, sent together.
set -euo pipefail

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
{
  python3 -m venv "$work/venv" &&
    "$work/venv/bin/pip" install --quiet --disable-pip-version-check groq==1.7.0 openai==3.57.0 &&
    npm install --prefix "$work" --silent --no-audit --no-fund ai@7.0.173 @ai-sdk/openai-compatible@3.0.92 \
      @ai-sdk/openai@4.0.118 groq-sdk@1.6.0 openai@7.59.0
} >&2 || { echo "could not install" >&2; exit 2; }

cat >"$work/ask.mjs" <<'JS'
import { createOpenAI } from '@ai-sdk/openai';
import { createOpenAICompatible } from '@ai-sdk/openai-compatible';
import { streamText } from 'ai';
import Groq from 'groq-sdk';
import OpenAI from 'openai';

const own = { baseURL: process.argv[2], apiKey: 'none', maxRetries: 0 };
const messages = [{ role: 'user', content: 'hi' }];
async function looped(client) {
  let said = '';
  for await (const chunk of await client.chat.completions.create({ model: 'm', messages, stream: true })) {
    said += chunk.choices[0].delta.content ?? '';
  }
  return said;
}
const streamed = (model) => streamText({ model, messages }).text;
const CLIENTS = {
  'Node openai': () => looped(new OpenAI(own)),
  'Node groq-sdk': () => looped(new Groq(own)),
  'AI SDK, openai-compatible': () => streamed(createOpenAICompatible({ name: 'x', ...own })('m')),
  'AI SDK, openai': () => streamed(createOpenAI(own).chat('m')),
};
const seen = {};
for (const [name, ask] of Object.entries(CLIENTS)) {
  const begun = performance.now();
  seen[name] = [await ask(), (performance.now() - begun) / 1000];
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

from groq import Groq
from openai import OpenAI

LATER = 3


def event(word, reason=None):
    choice = {"index": 0, "delta": {"role": "assistant", "content": word}, "finish_reason": reason}
    chunk = {"id": "c", "object": "chat.completion.chunk", "created": 1, "model": "m", "choices": [choice]}
    return f"data: {json.dumps(chunk)}\n\n".encode()


class Server(http.server.BaseHTTPRequestHandler):
    def do_POST(self):
        self.rfile.read(int(self.headers["Content-Length"]))
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Connection", "close")
        self.end_headers()
        try:
            self.wfile.write(event("one ") + event("two", "stop") + b"data: [DONE]\n\n")
            time.sleep(LATER)
            self.wfile.write(event(" three"))
        except ConnectionError:
            pass  # it had enough

    def log_message(self, *_):
        pass


def looped(client):
    begun = time.monotonic()
    chunks = client.chat.completions.create(model="m", messages=[{"role": "user", "content": "hi"}], stream=True)
    said = "".join(chunk.choices[0].delta.content for chunk in chunks)
    return said, time.monotonic() - begun


server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Server)
threading.Thread(target=server.serve_forever, daemon=True).start()
url = f"http://127.0.0.1:{server.server_port}"
own = {"base_url": url, "api_key": "none", "max_retries": 0}
seen = {"Python openai": looped(OpenAI(**own)), "Python groq": looped(Groq(**own))}
node = subprocess.run(["node", sys.argv[1], f"{url}/v1"], stdout=subprocess.PIPE, check=True, timeout=200)
seen |= json.loads(node.stdout)
outcome = {}
for name, (said, seconds) in seen.items():
    outcome[name] = said, seconds >= LATER
    print(f"{name}: {said!r} after {seconds:.1f} s")
expected = {
    "Python openai": ("one two", False),
    "Python groq": ("one two", True),
    "Node openai": ("one two", False),
    "Node groq-sdk": ("one two", True),
    "AI SDK, openai-compatible": ("one two three", True),
    "AI SDK, openai": ("one two three", True),
}
if outcome != expected:
    sys.exit("CHANGED: what follows [DONE] is no longer taken as stated")
PY

timeout 300 "$work/venv/bin/python" "$work/probe.py" "$work/ask.mjs" 2>"$work/log" ||
  { cat "$work/log" >&2; echo "not as stated, or not done in time" >&2; exit 1; }
