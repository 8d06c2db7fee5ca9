#!/usr/bin/env bash
# openai-python's stream helper glues together what a server says twice: "assistantassistant", "addadd".
#
# openai 3.57.0 for Python, seen 2026-11-28.
# `chat.completions.stream()` adds each chunk's texts to what it has, role and names among them. A
# server that puts `role` into every chunk gives a message whose role is "assistantassistantassistant",
# and one that repeats a call's id and name with each part of its arguments gives the call "c1c1" of the
# tool "addadd". A call whose index is 1, since a text came first, is an IndexError, and `usage` in a
# chunk before the last one is gone. The plain loop over `create(stream=True)` shows nothing of this.
# To a proxy: it is the next turn that fails, with 400 for a role or a tool that nobody knows, and the
# proxy that relayed each chunk as it was is the one that is blamed.
set -euo pipefail

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
{
  python3 -m venv "$work/venv" &&
    "$work/venv/bin/pip" install --quiet --disable-pip-version-check openai==3.57.0
} >&2 || { echo "could not install" >&2; exit 2; }

cat >"$work/probe.py" <<'PY'
import http.server
import json
import sys
import threading

import openai


def chunk(delta, reason=None):
    choices = [{"index": 0, "delta": delta, "finish_reason": reason}]
    return {"id": "c", "object": "chat.completion.chunk", "created": 1, "model": "m", "choices": choices}


def part(arguments, index=0, **named):
    return {"index": index, "type": "function", "function": {"arguments": arguments}} | named


def named(arguments, index=0):
    function = {"name": "add", "arguments": arguments}
    return part(arguments, index, id="c1", function=function)


ROLE = {"role": "assistant", "content": ""}
USAGE = {"prompt_tokens": 5, "completion_tokens": 2, "total_tokens": 7}
TEXT = [chunk(ROLE | {"content": "one "}), chunk({"content": "two"}), chunk({}, "stop")]
STREAMS = {
    "role once": TEXT,
    "role in each chunk": [chunk(ROLE | {"content": "one "}), chunk(ROLE | {"content": "two"}), chunk(ROLE, "stop")],
    "call named once": [
        chunk({"tool_calls": [named('{"a"')]}),
        chunk({"tool_calls": [part(": 1}")]}),
        chunk({}, "tool_calls"),
    ],
    "call named in each part": [
        chunk({"tool_calls": [named('{"a"')]}),
        chunk({"tool_calls": [named(": 1}")]}),
        chunk({}, "tool_calls"),
    ],
    "call with index 1": [chunk({"tool_calls": [named('{"a": 1}', 1)]}), chunk({}, "tool_calls")],
    "usage last": [*TEXT, chunk({}) | {"choices": [], "usage": USAGE}],
    "usage before the finish": [*TEXT[:2], chunk({}) | {"choices": [], "usage": USAGE}, TEXT[2]],
}
EXPECTED = {
    "role once": ("assistant", "one two", [], None),
    "role in each chunk": ("assistant" * 3, "one two", [], None),
    "call named once": (None, None, [("c1", "add", '{"a": 1}')], None),
    "call named in each part": (None, None, [("c1c1", "addadd", '{"a": 1}')], None),
    "call with index 1": "IndexError",
    "usage last": ("assistant", "one two", [], 7),
    "usage before the finish": ("assistant", "one two", [], None),
}


class Server(http.server.BaseHTTPRequestHandler):
    chunks = ()

    def do_POST(self):
        self.rfile.read(int(self.headers["Content-Length"]))
        body = "".join(f"data: {json.dumps(each)}\n\n" for each in self.chunks) + "data: [DONE]\n\n"
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body.encode())

    def log_message(self, *_):
        pass


def helped(client):
    try:
        with client.chat.completions.stream(model="m", messages=[]) as stream:
            answer = stream.get_final_completion()
    except IndexError:
        return "IndexError"
    message = answer.choices[0].message
    calls = [(call.id, call.function.name, call.function.arguments) for call in message.tool_calls or []]
    return message.role, message.content, calls, answer.usage and answer.usage.total_tokens


server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Server)
threading.Thread(target=server.serve_forever, daemon=True).start()
client = openai.OpenAI(base_url=f"http://127.0.0.1:{server.server_port}", api_key="none", max_retries=0)
seen = {}
for name, Server.chunks in STREAMS.items():
    plain = len(list(client.chat.completions.create(model="m", messages=[], stream=True)))
    seen[name] = helped(client)
    print(f"{name}: plain loop: {plain} chunks of {len(Server.chunks)}; helper: {seen[name]}")
if seen != EXPECTED:
    sys.exit("CHANGED: the messages above are no longer as stated")
PY

timeout 300 "$work/venv/bin/python" "$work/probe.py" 2>"$work/log" ||
  { cat "$work/log" >&2; echo "not as stated, or not done in time" >&2; exit 1; }
