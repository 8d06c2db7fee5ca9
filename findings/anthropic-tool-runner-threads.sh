#!/usr/bin/env bash
# Anthropic's tool runners leave the conversation to the server, whoever the server is.
#
# Python anthropic 2.14.0 and npm @anthropic-ai/sdk 1.14.0, seen 2026-11-28.
# With nothing asked for, and with any base URL, `beta.messages.tool_runner` (`toolRunner`) adds
# `"thread": {"type": "create"}` to its first request. The second names the first answer's id and
# holds the tool's result and nothing else: not the question, not the model's call. A server that
# ignores the unknown field answers a conversation that it has never seen, with 200.
# A 400 whose details say `thread_unsupported_request` makes both repeat with the whole history.
# `messages.create` sends no thread. Both majors also send the api key as `Authorization: Bearer`, and
# no `x-api-key`, which a door that only looks for that header takes for no key.
set -euo pipefail

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
{
  python3 -m venv "$work/venv" &&
    "$work/venv/bin/pip" install --quiet --disable-pip-version-check anthropic==2.14.0 &&
    npm install --prefix "$work" --silent --no-audit --no-fund @anthropic-ai/sdk@1.14.0
} >&2 || { echo "could not install" >&2; exit 2; }

cat >"$work/run.mjs" <<'JS'
import Anthropic from '@anthropic-ai/sdk';
const client = new Anthropic({ baseURL: process.argv[2], apiKey: 'none', maxRetries: 0 });
const add = {
  name: 'add', description: 'Adds.', input_schema: { type: 'object' }, parse: (x) => x, run: async () => '3',
};
await client.beta.messages.toolRunner({
  model: 'm', max_tokens: 50, tools: [add], messages: [{ role: 'user', content: 'What is 1 + 2?' }],
});
JS

cat >"$work/probe.py" <<'PY'
import http.server
import json
import subprocess
import sys
import threading

import anthropic

requests = []
refuse_threads = False
REFUSAL = {
    "type": "error",
    "error": {
        "type": "invalid_request_error",
        "message": "no threads here",
        "details": {"error_code": "thread_unsupported_request", "unsupported": ["thread"]},
    },
}


def answer(body):
    """A call of the tool, and words once the tool has answered."""
    done = "tool_result" in json.dumps(body["messages"])
    call = {"type": "tool_use", "id": "toolu_1", "name": "add", "input": {}}
    return {
        "id": f"msg_{len(requests)}",
        "type": "message",
        "role": "assistant",
        "model": "m",
        "content": [{"type": "text", "text": "3"} if done else call],
        "stop_reason": "end_turn" if done else "tool_use",
        "stop_sequence": None,
        "usage": {"input_tokens": 1, "output_tokens": 1},
    }


class Server(http.server.BaseHTTPRequestHandler):
    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        requests.append(
            {
                "thread": body.get("thread", {}).get("type"),
                "messages": [message["role"] for message in body["messages"]],
                "key": " and ".join(name for name in ("authorization", "x-api-key") if self.headers[name]),
            }
        )
        refused = refuse_threads and "thread" in body
        text = json.dumps(REFUSAL if refused else answer(body)).encode()
        self.send_response(400 if refused else 200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    def log_message(self, *_):
        pass


@anthropic.beta_tool
def add() -> str:
    """Adds."""
    return "3"


def python(url):
    client = anthropic.Anthropic(base_url=url, api_key="none", max_retries=0)
    question = [{"role": "user", "content": "What is 1 + 2?"}]
    client.beta.messages.tool_runner(model="m", max_tokens=50, tools=[add], messages=question).until_done()


def node(url):
    subprocess.run(["node", sys.argv[1], url], check=True, timeout=30)


server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Server)
threading.Thread(target=server.serve_forever, daemon=True).start()
changed = False
for refuse_threads in (False, True):
    for run in (python, node):
        requests.clear()
        run(f"http://127.0.0.1:{server.server_port}")
        print(f"{run.__name__}, threads {'refused' if refuse_threads else 'ignored'}:")
        for request in requests:
            print("   ", request)
        seen = [(request["thread"], len(request["messages"])) for request in requests]
        expected = [("create", 1), (None, 1), (None, 3)] if refuse_threads else [("create", 1), ("continue", 1)]
        changed |= seen != expected or {request["key"] for request in requests} != {"authorization"}
if changed:
    sys.exit("CHANGED: the requests above are no longer as stated")
PY

timeout 90 "$work/venv/bin/python" "$work/probe.py" "$work/run.mjs" ||
  { echo "not as stated, or not done in time" >&2; exit 1; }
