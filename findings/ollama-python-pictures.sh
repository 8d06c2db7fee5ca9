#!/usr/bin/env bash
# ollama-python: a picture in an answer, in the form in which it sends one itself, cannot be read.
#
# ollama 0.6.3 for Python, seen 2026-11-28.
# In a request the library writes `images` as a list of base64 strings, and that is how a server
# writes them into a message as well (Ollama's api.Message has one type for both ways). Reading such
# an answer raises pydantic's ValidationError: it wants an object with a `value` there, which no server
# sends. Whole or streamed, all of the answer is lost, its text included.
# To a proxy: a picture that a model made goes to this client as a link in the text, or not at all.
set -euo pipefail

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
{
  python3 -m venv "$work/venv" &&
    "$work/venv/bin/pip" install --quiet --disable-pip-version-check ollama==0.6.3
} >&2 || { echo "could not install" >&2; exit 2; }

cat >"$work/probe.py" <<'PY'
import http.server
import json
import sys
import threading

import ollama

PICTURE = "iVBORw0KGgo="
asked = []


class Server(http.server.BaseHTTPRequestHandler):
    """Answers /api/chat with the images that the request's last message had."""

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        asked.append(body["messages"][-1].get("images"))
        message = {"role": "assistant", "content": "Here it is."}
        if asked[-1]:
            message["images"] = asked[-1]
        if body.get("stream"):
            end = {"role": "assistant", "content": ""}
            lines = [{"model": "m", "message": message, "done": False}, {"model": "m", "message": end, "done": True}]
        else:
            lines = [{"model": "m", "message": message, "done": True}]
        text = "".join(json.dumps(line) + "\n" for line in lines).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/x-ndjson")
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    def log_message(self, *args):
        pass


server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Server)
threading.Thread(target=server.serve_forever, daemon=True).start()
client = ollama.Client(f"http://127.0.0.1:{server.server_address[1]}")


def outcome(stream, images):
    messages = [{"role": "user", "content": "draw", **({"images": images} if images else {})}]
    try:
        answer = client.chat("m", messages, stream=stream)
        return "".join(part.message.content for part in answer) if stream else answer.message.content
    except Exception as error:
        return type(error).__name__


seen = {
    (stream, bool(images)): outcome(stream, images) for images in (None, [PICTURE]) for stream in (False, True)
}
print("sent by the library itself:", asked[-1])
for (stream, picture), what in seen.items():
    print(f"{'streamed' if stream else 'whole'}, {'with' if picture else 'without'} a picture: {what}")
read, lost = "Here it is.", "ValidationError"
expected = {(False, False): read, (True, False): read, (False, True): lost, (True, True): lost}
if seen != expected or asked[-1] != [PICTURE]:
    sys.exit("CHANGED: the answers above are no longer read as stated")
PY

timeout 60 "$work/venv/bin/python" "$work/probe.py" 2>"$work/log" ||
  { cat "$work/log" >&2; echo "not as stated, or not done in time" >&2; exit 1; }
