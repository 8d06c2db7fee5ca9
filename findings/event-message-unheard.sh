#!/usr/bin/env bash
# Four Python SDKs hear no word of a stream that names each event by the name that it has anyway.
#
# groq 1.7.0, together 3.1.1, cerebras_cloud_sdk 1.91.0, writer-sdk 3.0.0 against openai 3.57.0 and
# mistralai 3.7.0, seen 2026-11-28. In server-sent events `message` is the name of an event without one,
# so `event: message` says nothing, and some servers' libraries write it. The first four, which come out
# of one generator, as openai does, look only at events without any name: together and writer end
# their loop without a chunk and without an error; groq and cerebras give chunks whose `choices` is
# None. openai and mistralai read all.
# To a proxy: an `event: message` that it relays from a provider is an empty answer to these clients,
# whereas one that it takes off is missed by nobody.
set -euo pipefail

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
{
  python3 -m venv "$work/venv" &&
    "$work/venv/bin/pip" install --quiet --disable-pip-version-check groq==1.7.0 together==3.1.1 \
      cerebras_cloud_sdk==1.91.0 writer-sdk==3.0.0 openai==3.57.0 mistralai==3.7.0
} >&2 || { echo "could not install" >&2; exit 2; }

cat >"$work/probe.py" <<'PY'
import http.server
import json
import sys
import threading

from cerebras.cloud.sdk import Cerebras
from groq import Groq
from mistralai.client import Mistral
from openai import OpenAI
from together import Together
from writerai import Writer


def event(word, reason=None):
    choice = {"index": 0, "delta": {"role": "assistant", "content": word}, "finish_reason": reason}
    chunk = {"id": "c", "object": "chat.completion.chunk", "created": 1, "model": "m", "choices": [choice]}
    return f"data: {json.dumps(chunk)}\n\n"


EVENTS = [event("one"), event("two"), event("", "stop"), "data: [DONE]\n\n"]


class Server(http.server.BaseHTTPRequestHandler):
    name = ""

    def do_POST(self):
        self.rfile.read(int(self.headers["Content-Length"]))
        body = "".join(self.name + event for event in EVENTS).encode()
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Server)
threading.Thread(target=server.serve_forever, daemon=True).start()
url = f"http://127.0.0.1:{server.server_port}"
own = {"base_url": url, "api_key": "none", "max_retries": 0}
CREATE = {
    "groq": Groq(**own).chat.completions.create,
    "together": Together(**own).chat.completions.create,
    "cerebras": Cerebras(**own, warm_tcp_connection=False).chat.completions.create,
    "writer": Writer(**own).chat.chat,
    "openai": OpenAI(**own).chat.completions.create,
    "mistralai": lambda stream, **chat: Mistral(server_url=url, api_key="none").chat.stream(**chat),
}
seen = {}
for client, create in CREATE.items():
    for Server.name in ("", "event: message\n"):
        chunks = list(create(model="m", messages=[{"role": "user", "content": "hi"}], stream=True))
        choices = [(chunk.data if client == "mistralai" else chunk).choices for chunk in chunks]
        seen[client, Server.name] = len(chunks), sum(bool(each) for each in choices)
        name = "event: message" if Server.name else "no name"
        print(f"{client}, {name}: {len(chunks)} chunks, {seen[client, Server.name][1]} of them with choices, no error")
expected = dict.fromkeys(seen, (3, 3))
expected |= {(client, "event: message\n"): (0, 0) for client in ("together", "writer")}
expected |= {(client, "event: message\n"): (3, 0) for client in ("groq", "cerebras")}
if seen != expected:
    sys.exit("CHANGED: who hears what is no longer as stated")
PY

timeout 300 "$work/venv/bin/python" "$work/probe.py" 2>"$work/log" ||
  { cat "$work/log" >&2; echo "not as stated, or not done in time" >&2; exit 1; }
