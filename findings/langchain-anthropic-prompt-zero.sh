#!/usr/bin/env bash
# langchain-anthropic: a streamed answer has cost no prompt at all, unless the server says so twice.
#
# langchain-anthropic 1.7.10 and anthropic 2.14.0 for Python, seen 2026-11-28.
# A Messages stream tells `input_tokens` at its start, in `message_start`, and its end, `message_delta`,
# needs no more than `output_tokens`: so Anthropic's guide shows it. langchain takes `usage` from the end
# alone: input 0, nothing of what a cache gave, no warning. If two `message_delta` come, each with the
# total so far, it adds them up. `invoke` without a stream counts right, and so does the SDK beneath it.
# To a proxy: a Messages server writes all counters into `message_delta` again, and only into one, or
# the budgets that are kept with langchain see the smaller part of each bill.
set -euo pipefail

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
{
  python3 -m venv "$work/venv" &&
    "$work/venv/bin/pip" install --quiet --disable-pip-version-check langchain-anthropic==1.7.10 anthropic==2.14.0 \
      langchain-core==1.8.3
} >&2 || { echo "could not install" >&2; exit 2; }

cat >"$work/probe.py" <<'PY'
import http.server
import json
import sys
import threading

from anthropic import Anthropic
from langchain_anthropic import ChatAnthropic

START = {"input_tokens": 1000, "cache_read_input_tokens": 500, "output_tokens": 1}
MESSAGE = {
    "id": "msg_1",
    "type": "message",
    "role": "assistant",
    "model": "m",
    "content": [],
    "stop_reason": None,
    "stop_sequence": None,
    "usage": START,
}
END = {"stop_reason": "end_turn", "stop_sequence": None}
DELTAS = {
    "as the guide has it": [{"output_tokens": 20}],
    "all of it again": [START | {"output_tokens": 20}],
    "two totals": [{"output_tokens": 10}, {"output_tokens": 20}],
}


def event(kind, **fields):
    return f"event: {kind}\ndata: {json.dumps({'type': kind, **fields})}\n\n"


class Server(http.server.BaseHTTPRequestHandler):
    deltas = ()

    def do_POST(self):
        request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if request.get("stream"):
            body = event("message_start", message=MESSAGE)
            body += event("content_block_start", index=0, content_block={"type": "text", "text": ""})
            body += event("content_block_delta", index=0, delta={"type": "text_delta", "text": "Hello."})
            body += event("content_block_stop", index=0)
            body += "".join(event("message_delta", delta=END, usage=usage) for usage in self.deltas)
            body += event("message_stop")
        else:
            whole = {"content": [{"type": "text", "text": "Hello."}], "usage": START | {"output_tokens": 20}}
            body = json.dumps(MESSAGE | END | whole)
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream" if request.get("stream") else "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body.encode())

    def log_message(self, *_):
        pass


server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Server)
threading.Thread(target=server.serve_forever, daemon=True).start()
url = f"http://127.0.0.1:{server.server_port}"
model = ChatAnthropic(model="m", base_url=url, api_key="none", max_retries=0, max_tokens=50)
client = Anthropic(base_url=url, api_key="none", max_retries=0)


def counted_by_langchain(message):
    return message.usage_metadata["input_tokens"], message.usage_metadata["output_tokens"]


def counted_by_sdk():
    with client.messages.stream(model="m", max_tokens=50, messages=[{"role": "user", "content": "hi"}]) as stream:
        usage = stream.get_final_message().usage
    return usage.input_tokens + usage.cache_read_input_tokens, usage.output_tokens


seen = {"whole": (counted_by_langchain(model.invoke("hi")), (1500, 20))}
for name, Server.deltas in DELTAS.items():
    first, *rest = model.stream("hi")
    seen[name] = counted_by_langchain(sum(rest, first)), counted_by_sdk()
for name, (langchain, sdk) in seen.items():
    print(f"{name}: input and output tokens of langchain {langchain}, of the SDK {sdk}")
expected = {name: ((1500, 20), (1500, 20)) for name in seen}
expected |= {"as the guide has it": ((0, 20), (1500, 20)), "two totals": ((0, 30), (1500, 20))}
if seen != expected:
    sys.exit("CHANGED: what was counted is no longer as stated")
PY

timeout 300 "$work/venv/bin/python" "$work/probe.py" 2>"$work/log" ||
  { cat "$work/log" >&2; echo "not as stated, or not done in time" >&2; exit 1; }
