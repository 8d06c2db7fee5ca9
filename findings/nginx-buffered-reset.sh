#!/usr/bin/env bash
# nginx with buffering on throws away what a model has said when its server resets, by framing.
#
# Debian 12's nginx 1.22.1-9+deb12u11, seen 2026-11-28.
# An upstream sends three events in 0.6 s and resets. With `proxy_buffering on` (the default) the client
# gets a 200 and not one byte of the three if the answer had a Content-Length or ended with its
# connection, and all of them if it was chunked. With buffering off, and where the upstream closes in
# good order though unfinished, all three arrive for every framing.
# To a proxy behind nginx: buffering does not only delay, it loses, and HTTP/1.0 and whole answers are
# where it does. A failure told in the body, with an end in good order, saves what came before it.
set -euo pipefail

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
(cd "$work" && apt-get download --quiet nginx=1.22.1-9+deb12u11 && dpkg-deb --extract ./nginx_*.deb "$work/nginx" &&
  "$work/nginx/usr/sbin/nginx" -v) >"$work/log" 2>&1 || { cat "$work/log" >&2; echo "could not install" >&2; exit 2; }

cat >"$work/probe.py" <<'PY'
import asyncio
import itertools
import pathlib
import socket
import struct
import sys

NGINX, WORK = sys.argv[1], pathlib.Path(sys.argv[2])
EVENTS = [b"data: %d\n\n" % n for n in range(3)]


FRAMINGS = {"chunked": b"Transfer-Encoding: chunked", "length": b"Content-Length: 5000", "closed": b"Connection: close"}


async def model(reader, writer):
    """Three events in 0.6 s, framed and ended as the path says."""
    _, _, framing, end = (await reader.readuntil(b"\r\n\r\n")).split()[1].decode().split("/")
    writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n%s\r\n\r\n" % FRAMINGS[framing])
    for event in EVENTS:
        writer.write(b"%x\r\n%s\r\n" % (len(event), event) if framing == "chunked" else event)
        await writer.drain()
        await asyncio.sleep(0.2)
    if end == "reset":
        writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.close()


async def ask(port, path):
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(f"GET {path} HTTP/1.1\r\nHost: probe\r\nConnection: close\r\n\r\n".encode())
    answer = await asyncio.wait_for(reader.read(), 10)
    writer.close()
    return answer.split()[1].decode(), sum(event in answer for event in EVENTS)


async def main():
    server = await asyncio.start_server(model, "127.0.0.1", 0)
    upstream = server.sockets[0].getsockname()[1]
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    (WORK / "nginx.conf").write_text(f"""
        daemon off; master_process off; pid {WORK}/pid; error_log {WORK}/error.log;
        events {{ }}
        http {{
            access_log off;
            client_body_temp_path {WORK}/a; proxy_temp_path {WORK}/b; fastcgi_temp_path {WORK}/c;
            uwsgi_temp_path {WORK}/d; scgi_temp_path {WORK}/e;
            server {{
                listen 127.0.0.1:{port}; proxy_http_version 1.1;
                location / {{ proxy_pass http://127.0.0.1:{upstream}; }}
                location /off/ {{ proxy_pass http://127.0.0.1:{upstream}; proxy_buffering off; }}
            }}
        }}
    """)
    nginx = await asyncio.create_subprocess_exec(NGINX, "-c", WORK / "nginx.conf", "-p", WORK)
    seen = {}
    try:
        for _ in range(50):
            try:
                (await asyncio.open_connection("127.0.0.1", port))[1].close()
                break
            except ConnectionError:
                await asyncio.sleep(0.1)
        for end, how, framing in itertools.product(("close", "reset"), ("on", "off"), FRAMINGS):
            status, events = seen[end, how, framing] = await ask(port, f"/{how}/{framing}/{end}")
            print(f"{end}, buffering {how}, {framing}: {status}, {events} of 3 events")
    finally:
        nginx.terminate()
        await nginx.wait()
    server.close()
    return seen


expected = {key: ("200", 3) for key in itertools.product(("close", "reset"), ("on", "off"), FRAMINGS)}
expected |= {("reset", "on", framing): ("200", 0) for framing in ("length", "closed")}
if asyncio.run(main()) != expected:
    sys.exit("CHANGED: what arrived is no longer as stated")
PY

timeout 60 python3 "$work/probe.py" "$work/nginx/usr/sbin/nginx" "$work" ||
  { echo "not as stated, or not done in time" >&2; exit 1; }
