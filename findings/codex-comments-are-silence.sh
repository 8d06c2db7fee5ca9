#!/usr/bin/env bash
# codex hangs up on a stream that is kept alive by comments.
#
# npm @openai/codex 0.171.0 (424 MB installed), seen 2026-11-28.
# Its `stream_idle_timeout_ms` counts from the last event, and a comment is none: with 2 s, a comment
# each half second and the answer after 4 s, it ends with "idle timeout waiting for SSE" and status 1.
# A repeated `response.in_progress` in place of the comment is taken for a sign of life, and the
# answer behind it arrives. (Comments are the heartbeat that SSE itself suggests, and that other
# clients of this field accept; some break on anything else.)
# To a proxy: on /v1/responses a heartbeat has to be an event, while on /v1/chat/completions it must
# not be one.
set -euo pipefail

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
npm install --prefix "$work" --silent --no-audit --no-fund @openai/codex@0.171.0 >&2 ||
  { echo "could not install" >&2; exit 2; }
mkdir "$work/home" "$work/empty"

cat >"$work/probe.py" <<'PY'
import asyncio
import json
import os
import pathlib
import sys

WORK = pathlib.Path(sys.argv[1])
RESPONSE = {"id": "resp_1", "object": "response", "created_at": 1, "status": "in_progress", "model": "m", "output": []}
ITEM = {
    "type": "message",
    "id": "msg_1",
    "status": "completed",
    "role": "assistant",
    "content": [{"type": "output_text", "text": "All done.", "annotations": []}],
}
CONFIG = """
model = "m"
model_provider = "probe"
[model_providers.probe]
name = "probe"
base_url = "http://127.0.0.1:{port}/v1"
wire_api = "responses"
stream_idle_timeout_ms = 2000
request_max_retries = 0
stream_max_retries = 0
"""


def frame(kind, **fields):
    return f"event: {kind}\ndata: {json.dumps({'type': kind, 'sequence_number': 0, **fields})}\n\n".encode()


BEATS = {"comment": b": ping\n\n", "event": frame("response.in_progress", response=RESPONSE)}


async def codex():
    own = {"CODEX_HOME": str(WORK / "home"), "HOME": str(WORK / "home")}
    command = [WORK / "node_modules/.bin/codex", "exec", "--skip-git-repo-check", "--sandbox", "read-only", "hi"]
    null, pipe = asyncio.subprocess.DEVNULL, asyncio.subprocess.PIPE
    child = await asyncio.create_subprocess_exec(
        *command, cwd=WORK / "empty", env=os.environ | own, stdin=null, stdout=pipe, stderr=pipe
    )
    try:
        out, log = await asyncio.wait_for(child.communicate(), 60)
    finally:
        if child.returncode is None:
            child.kill()
    return child.returncode, out.decode().strip(), "idle timeout" in log.decode()


async def main():
    beat = b""

    async def answer(reader, writer):
        try:
            head = (await reader.readuntil(b"\r\n\r\n")).lower()
            if not head.startswith(b"post"):
                writer.write(b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
                return
            sizes = [int(line[15:]) for line in head.split(b"\r\n") if line.startswith(b"content-length:")]
            await reader.readexactly(sum(sizes))
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nConnection: close\r\n\r\n")
            writer.write(frame("response.created", response=RESPONSE))
            for _ in range(8):
                await asyncio.sleep(0.5)
                writer.write(beat)
                await writer.drain()
            writer.write(frame("response.output_item.done", output_index=0, item=ITEM))
            writer.write(frame("response.completed", response=RESPONSE | {"status": "completed", "output": [ITEM]}))
            await writer.drain()
        except (ConnectionError, asyncio.IncompleteReadError):
            pass  # it has hung up
        finally:
            writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    (WORK / "home/config.toml").write_text(CONFIG.format(port=server.sockets[0].getsockname()[1]))
    seen = {}
    for name, beat in BEATS.items():
        seen[name] = status, said, idle = await codex()
        print(f"{name} each 0.5 s: exit status {status}, said {said!r}, idle timeout: {idle}")
    server.close()
    return seen


if asyncio.run(main()) != {"comment": (1, "", True), "event": (0, "All done.", False)}:
    sys.exit("CHANGED: the outcomes above are no longer as stated")
PY

timeout 150 python3 "$work/probe.py" "$work" || { echo "not as stated, or not done in time" >&2; exit 1; }
