#!/usr/bin/env bash
# Shepherd Model Gateway asks the model ten times over, if an answer is lost; SGLang's router five times.
#
# smg 1.13.0 and sglang-router 0.3.2 from PyPI, each with one worker and no settings, seen 2026-11-28.
# The worker reads a chat completion and closes the connection without an answer, as one does that ran
# out of memory in the middle of it: the same POST comes back ten times in three seconds (smg), or five
# (sglang-router), whole or as a stream, before the client gets its 500. 429 and 503 with
# `Retry-After: 7` are asked for five times within two seconds, and then handed on with that header.
# To a proxy in front of it: each of its own attempts, and each of its client's, may be ten of the
# model's, all of them for one request that the server has read. `--disable-retries` leaves two and one.
set -euo pipefail

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
{
  for each in smg==1.13.0 sglang-router==0.3.2; do
    python3 -m venv "$work/${each%==*}" &&
      "$work/${each%==*}/bin/pip" install --quiet --disable-pip-version-check "$each" || exit 1
  done
} >&2 || { echo "could not install" >&2; exit 2; }

cat >"$work/probe.py" <<'PY'
import asyncio
import collections
import json
import pathlib
import socket
import sys
import time

WORK = pathlib.Path(sys.argv[1])
COMMANDS = {
    "smg": [WORK / "smg/bin/smg", "launch"],
    "sglang-router": [WORK / "sglang-router/bin/python", "-m", "sglang_router.launch_router"],
}
LIST = {"object": "list", "data": [{"id": "m", "object": "model"}]}
ABOUT = LIST | {"status": "ok", "model_path": "m", "served_model_name": "m"}
asked = collections.Counter()


def whole(status, body, more=""):
    text = json.dumps(body)
    head = f"HTTP/1.1 {status} X\r\nContent-Type: application/json\r\nContent-Length: {len(text)}\r\n{more}\r\n"
    return (head + text).encode()


async def worker(reader, writer):
    """Answers what a router wants to know, and chats as their text says."""
    try:
        while True:
            head = (await reader.readuntil(b"\r\n\r\n")).lower()
            if not head.startswith((b"get /", b"post /v1/chat/completions ")):
                break  # a look whether it speaks HTTP/2
            body = b""
            if b"content-length:" in head:
                body = await reader.readexactly(int(head.split(b"content-length:")[1].split()[0]))
            case = json.loads(body)["messages"][0]["content"] if body else "about"
            asked[case] += 1
            if case == "lost":
                await asyncio.sleep(0.1)
                break
            if case in ("429", "503"):
                writer.write(whole(case, {"error": {"message": "busy"}}, "Retry-After: 7\r\n"))
            else:
                writer.write(whole(200, ABOUT if case == "about" else {"object": "chat.completion", "choices": []}))
            await writer.drain()
    except (asyncio.IncompleteReadError, ConnectionError):
        pass
    finally:
        writer.close()


async def ask(port, case, stream=False):
    """The status, and the headers in lower case."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    body = json.dumps({"model": "m", "messages": [{"role": "user", "content": case}], "stream": stream}).encode()
    head = b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nConnection: close\r\n"
    writer.write(head + b"Content-Length: %d\r\n\r\n%s" % (len(body), body))
    answer = (await asyncio.wait_for(reader.read(), 30)).lower()
    writer.close()
    return answer.split()[1].decode(), answer.partition(b"\r\n\r\n")[0]


async def routed(name, case, upstream, *more):
    """What came of one request, by a router that has just started: one that saw failures may leave the worker out."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    with socket.create_server(("127.0.0.1", 0)) as free:
        metrics = free.getsockname()[1]
    place = ["--host", "127.0.0.1", "--port", str(port), "--prometheus-port", str(metrics)]
    command = [*COMMANDS[name], *place, "--worker-urls", f"http://127.0.0.1:{upstream}", *more]
    null = asyncio.subprocess.DEVNULL
    router = await asyncio.create_subprocess_exec(*command, stdout=null, stderr=null)
    try:
        for _ in range(150):
            try:
                if (await ask(port, "good"))[0] == "200":
                    break
            except (ConnectionError, IndexError):
                pass
            await asyncio.sleep(0.2)
        else:
            sys.exit("a router did not start")
        asked.clear()
        begun = time.monotonic()
        status, headers = await ask(port, case, stream=True)
        return asked[case], status, b"retry-after: 7" in headers, time.monotonic() - begun
    finally:
        router.terminate()
        await router.wait()


async def main():
    server = await asyncio.start_server(worker, "127.0.0.1", 0)
    upstream = server.sockets[0].getsockname()[1]
    seen = {}
    for name in COMMANDS:
        for case, *more in (("good",), ("lost",), ("429",), ("503",), ("lost", "--disable-retries")):
            times, status, told, seconds = await routed(name, case, upstream, *more)
            seen[name, case, *more] = times, status, told
            outcome = f"the client got {status}{' with Retry-After: 7' if told else ''} after {seconds:.1f} s"
            print(f"{name}, {' '.join([case, *more])}: the worker was asked {times} times, {outcome}")
    return seen


def expected(name, case, *more):
    if case == "lost":
        return (10 if name == "smg" else 5) // (5 if more else 1), "500", False
    return (1, "200", False) if case == "good" else (5, case, True)


seen = asyncio.run(main())
if seen != {key: expected(*key) for key in seen}:
    sys.exit("CHANGED: how often the worker is asked is no longer as stated")
PY

timeout 200 python3 "$work/probe.py" "$work" 2>"$work/log" ||
  { cat "$work/log" >&2; echo "not as stated, or not done in time" >&2; exit 1; }
