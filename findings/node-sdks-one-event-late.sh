#!/usr/bin/env bash
# Older SDKs of OpenAI and Anthropic for Node hand an event on when the first byte of the next one comes.
#
# npm openai 4.85.0 beside 4.86.0, @anthropic-ai/sdk 0.36.3 beside 0.37.0; seen 2026-11-29. So do openai from 4.40
# and @anthropic-ai/sdk from 0.20 on (read); qwen-code 0.24.4, the newest that day, brings one of these along.
# They look for the blank line in all that has come but its very end. So each word stands still for as long as the
# next one takes; and where an error is the last event, and the connection is cut behind it so that nobody takes the
# answer for complete, they say "Premature close" and not what the error was. Any byte behind the event is enough.
# To a proxy: behind the last event of a broken stream it sends one more blank line.
set -euo pipefail

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
for pair in "late openai@4.85.0 @anthropic-ai/sdk@0.36.3" "prompt openai@4.86.0 @anthropic-ai/sdk@0.37.0"; do
  read -r folder openai anthropic <<<"$pair"
  mkdir "$work/$folder"
  npm install --prefix "$work/$folder" --silent --no-audit --no-fund "$openai" "$anthropic" >&2 ||
    { echo "could not install" >&2; exit 2; }
done

cat >"$work/read.mjs" <<'JS'
import { createRequire } from 'node:module';
const [folder, name, url] = process.argv.slice(2);
const { default: SDK } = createRequire(`${folder}/`)(name === 'openai' ? 'openai' : '@anthropic-ai/sdk');
const sdk = new SDK({ baseURL: url, apiKey: 'x', maxRetries: 0 });
const asked = { model: 'm', stream: true, max_tokens: 9, messages: [{ role: 'user', content: 'hi' }] };
try {
  const stream = await (name === 'openai' ? sdk.chat.completions : sdk.messages).create(asked);
  for await (const event of stream) console.log('event');
  console.log('end');
} catch (error) {
  console.log(error.message.includes('why it broke') ? 'why' : error.message);
}
process.exit(0);
JS

cat >"$work/probe.py" <<'PY'
import json
import socket
import subprocess
import sys
import threading

FOLDER = sys.argv[1]
HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
CHUNK = {"id": "c", "object": "chat.completion.chunk", "created": 1, "model": "m"}
CHUNK["choices"] = [{"index": 0, "delta": {"content": "one"}, "finish_reason": None}]
DELTA = {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": "one"}}
WHY = {"message": "why it broke", "type": "api_error"}
WORD = {
    "openai": b"data: " + json.dumps(CHUNK).encode() + b"\n\n",
    "anthropic": b"event: content_block_delta\ndata: " + json.dumps(DELTA).encode() + b"\n\n",
}
ERROR = {
    "openai": b"data: " + json.dumps({"error": WHY}).encode() + b"\n\n",
    "anthropic": b"event: error\ndata: " + json.dumps({"type": "error", "error": WHY}).encode() + b"\n\n",
}
SILENCE = 1.0
server = socket.create_server(("127.0.0.1", 0))
URL = f"http://127.0.0.1:{server.getsockname()[1]}"


def send(connection, data):
    connection.sendall(b"%x\r\n%b\r\n" % (len(data), data))


def run(folder, name, behind):
    """Whether the word was heard before the next event, and what was said in the end."""
    child = subprocess.Popen(
        ["node", f"{FOLDER}/read.mjs", f"{FOLDER}/{folder}", name, URL], stdout=subprocess.PIPE, text=True
    )
    lines = []
    server.settimeout(20)
    connection, _ = server.accept()
    with connection:
        asked = b""
        while b"}" not in asked:  # its body is one object, which ends with its only message
            asked += connection.recv(65536)
        reader = threading.Thread(target=lambda: [lines.append(line.strip()) for line in child.stdout])
        reader.start()
        connection.sendall(HEAD)
        send(connection, WORD[name])
        reader.join(SILENCE)
        at_once = "event" in lines
        send(connection, ERROR[name])
        if behind:
            send(connection, behind)
        reader.join(SILENCE)
        connection.shutdown(socket.SHUT_WR)  # cut: the last chunk of the body is missing
        reader.join(20)
    child.wait(20)
    return at_once, lines[-1]


changed = False
for folder in ("late", "prompt"):
    for name in ("openai", "anthropic"):
        for behind in (b"", b"\n"):
            at_once, said = run(folder, name, behind)
            last = "a blank line more" if behind else "nothing"
            when = "at once" if at_once else "with the next event"
            print(f"{folder} {name}: the word was heard {when}; {last} behind the error: {said}")
            changed |= at_once != (folder == "prompt")
            changed |= said != ("why" if folder == "prompt" or behind else "Premature close")
if changed:
    sys.exit("CHANGED: the outcomes above are no longer as stated")
PY

timeout 120 python3 "$work/probe.py" "$work" || { echo "not as stated, or not done in time" >&2; exit 1; }
