#!/usr/bin/env bash
# LiteLLM breaks an answer off in which the same piece comes a hundred and one times in a row.
#
# litellm 1.110.2 for Python, seen 2026-11-28.
# If that many chunks of a stream have the same text of more than two characters, it raises "The model is
# repeating the same chunk", an InternalServerError in a MidStreamFallbackError. It looks for a model
# that loops. A table's rule, the zeros of a long number, deep code's indentation, which go out as one
# token after another, look just the same. A hundred chunks do not, nor the same text in larger chunks,
# nor the same answer without a stream.
# To a proxy: whether an answer arrives depends on how it was cut into chunks, and the error that blames
# the server (500) was made by its client's own library.
set -euo pipefail

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
{
  python3 -m venv "$work/venv" &&
    "$work/venv/bin/pip" install --quiet --disable-pip-version-check litellm==1.110.2
} >&2 || { echo "could not install" >&2; exit 2; }
export LITELLM_LOCAL_MODEL_COST_MAP=True # or it asks the network for prices

cat >"$work/probe.py" <<'PY'
import http.server
import json
import sys
import threading

import litellm

litellm.suppress_debug_info = True
STREAMS = {
    "100 chunks of 000": ["000"] * 100,
    "101 chunks of 000": ["000"] * 101,
    "101 chunks of 00": ["00"] * 101,
    "50 chunks of 000000": ["000000"] * 50,
    "101 chunks of four blanks": [" " * 4] * 101,
    "whole": ["000" * 100],
}


def chunk(text, reason=None):
    choice = {"index": 0, "delta": {"role": "assistant", "content": text}, "finish_reason": reason}
    return {"id": "c", "object": "chat.completion.chunk", "created": 1, "model": "m", "choices": [choice]}


class Server(http.server.BaseHTTPRequestHandler):
    pieces = ()

    def do_POST(self):
        request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if request.get("stream"):
            chunks = [chunk("x"), *map(chunk, self.pieces), chunk("", "stop")]
            body = "".join(f"data: {json.dumps(each)}\n\n" for each in chunks) + "data: [DONE]\n\n"
        else:
            message = {"role": "assistant", "content": "x" + "".join(self.pieces)}
            choice = {"index": 0, "message": message, "finish_reason": "stop"}
            body = json.dumps({"id": "c", "object": "chat.completion", "created": 1, "model": "m", "choices": [choice]})
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream" if request.get("stream") else "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body.encode())

    def log_message(self, *_):
        pass


server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Server)
threading.Thread(target=server.serve_forever, daemon=True).start()
own = {"api_base": f"http://127.0.0.1:{server.server_port}", "api_key": "none", "max_retries": 0}
chat = {"model": "openai/m", "messages": [{"role": "user", "content": "hi"}], **own}


def outcome(stream):
    said = ""
    try:
        if not stream:
            said = litellm.completion(**chat).choices[0].message.content
        else:
            for each in litellm.completion(**chat, stream=True):
                said += each.choices[0].delta.content or ""
    except litellm.exceptions.MidStreamFallbackError as error:
        return "repeating the same chunk" if "repeating the same chunk" in str(error) else str(error)
    return "all of it" if said == "x" + "".join(Server.pieces) else said


seen = {}
for name, Server.pieces in STREAMS.items():
    seen[name] = outcome(name != "whole")
    print(f"{name}: {seen[name]}")
expected = dict.fromkeys(seen, "all of it")
expected |= dict.fromkeys(("101 chunks of 000", "101 chunks of four blanks"), "repeating the same chunk")
if seen != expected:
    sys.exit("CHANGED: what is broken off is no longer as stated")
PY

timeout 300 "$work/venv/bin/python" "$work/probe.py" 2>"$work/log" ||
  { tail -n 20 "$work/log" >&2; echo "not as stated, or not done in time" >&2; exit 1; }
