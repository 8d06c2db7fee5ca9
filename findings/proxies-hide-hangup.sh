#!/usr/bin/env bash
# A client hangs up while the model is silent: Apache, HAProxy and lighttpd do not tell the model.
#
# Debian 12's apache2 2.4.71-1~deb12u1, haproxy 2.6.12-1+deb12u4, lighttpd 1.4.69-1, nginx
# 1.22.1-9+deb12u11 and caddy 2.6.2-5 as reverse proxies, seen 2026-11-28.
# The client closes its connection before the first byte of the answer, or behind the first event of a
# stream. nginx and Caddy close theirs to the upstream at once. The other three leave it open until the
# upstream says something more, or until their time is up; HAProxy hangs up with
# `option abortonclose`, which is off by default in this version, and then in both cases.
# To a proxy behind them: prompts of minutes are read, and models loaded, for nobody, and a queue fills
# with those who have left and asked again. Each heartbeat that it sends is also what brings the news.
set -euo pipefail

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
export LD_LIBRARY_PATH="$work/tree/usr/lib/x86_64-linux-gnu" XDG_CONFIG_HOME="$work" XDG_DATA_HOME="$work"
{
  cd "$work" && apt-get download --quiet apache2-bin=2.4.71-1~deb12u1 libapr1 libaprutil1 \
    haproxy=2.6.12-1+deb12u4 liblua5.3-0 libopentracing-c-wrapper0 libopentracing1 \
    lighttpd=1.4.69-1 nginx=1.22.1-9+deb12u11 caddy=2.6.2-5 &&
    for each in ./*.deb; do dpkg-deb --extract "$each" tree; done &&
    for each in apache2 haproxy lighttpd nginx; do "tree/usr/sbin/$each" -v; done && tree/usr/bin/caddy version
} >"$work/log" 2>&1 || { cat "$work/log" >&2; echo "could not install" >&2; exit 2; }

cat >"$work/probe.py" <<'PY'
import asyncio
import contextlib
import pathlib
import socket
import sys

WORK = pathlib.Path(sys.argv[1])
ROOT = WORK / "tree"
CONFIGURATIONS = {
    "nginx": """
        daemon off; master_process off; pid {work}/nginx.pid; error_log {work}/nginx.log;
        events {{ }}
        http {{
            access_log off; client_body_temp_path {work}/n1; proxy_temp_path {work}/n2; fastcgi_temp_path {work}/n3;
            uwsgi_temp_path {work}/n4; scgi_temp_path {work}/n5;
            server {{ listen 127.0.0.1:{port}; location / {{
                proxy_pass http://127.0.0.1:{model}; proxy_http_version 1.1; proxy_buffering off; }} }}
        }}
    """,
    "caddy": """
        {{
            admin off
            auto_https off
            storage file_system {work}/caddy-files
        }}
        :{port} {{
            bind 127.0.0.1
            reverse_proxy 127.0.0.1:{model}
        }}
    """,
    "apache": """
        ServerRoot {work}
        ServerName localhost
        DefaultRuntimeDir {work}
        PidFile {work}/apache.pid
        ErrorLog {work}/apache.log
        User www-data
        Group www-data
        Listen 127.0.0.1:{port}
        LoadModule mpm_event_module {root}/usr/lib/apache2/modules/mod_mpm_event.so
        LoadModule authz_core_module {root}/usr/lib/apache2/modules/mod_authz_core.so
        LoadModule proxy_module {root}/usr/lib/apache2/modules/mod_proxy.so
        LoadModule proxy_http_module {root}/usr/lib/apache2/modules/mod_proxy_http.so
        ProxyPass / http://127.0.0.1:{model}/
    """,
    "haproxy": """
        defaults
            mode http
            timeout connect 5s
            timeout client 60s
            timeout server 60s
        listen all
            bind 127.0.0.1:{port}
            server model 127.0.0.1:{model}
    """,
    "lighttpd": """
        server.modules = ("mod_proxy")
        server.bind = "127.0.0.1"
        server.port = {port}
        server.document-root = "{work}"
        server.errorlog = "{work}/lighttpd.log"
        server.upload-dirs = ("{work}")
        server.stream-response-body = 2
        proxy.server = ( "" => (( "host" => "127.0.0.1", "port" => {model} )) )
    """,
}
CONFIGURATIONS["haproxy, abortonclose"] = CONFIGURATIONS["haproxy"] + "            option abortonclose\n"
COMMANDS = {
    "nginx": [ROOT / "usr/sbin/nginx", "-p", WORK, "-c"],
    "caddy": [ROOT / "usr/bin/caddy", "run", "--adapter", "caddyfile", "--config"],
    "apache": [ROOT / "usr/sbin/apache2", "-X", "-f"],
    "haproxy": [ROOT / "usr/sbin/haproxy", "-f"],
    "haproxy, abortonclose": [ROOT / "usr/sbin/haproxy", "-f"],
    "lighttpd": [ROOT / "usr/sbin/lighttpd", "-D", "-m", ROOT / "usr/lib/lighttpd", "-f"],
}
EVENT = b"data: one\n\n"
WHEN = ("before the answer", "in a silent stream")
left = {}


async def model(reader, writer):
    """Is silent, before its answer or behind the first event, and notes whether the connection ends."""
    try:
        head = await reader.readuntil(b"\r\n\r\n")
        await reader.readexactly(2)
        number = int(head.split()[1][1:])
        if number % 2:
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n")
            writer.write(b"%x\r\n%s\r\n" % (len(EVENT), EVENT))
        try:
            await reader.read(1)
        except ConnectionError:
            pass
        left[number].set()
    except asyncio.IncompleteReadError:
        pass  # a look whether the port is open
    finally:
        writer.close()


async def is_told(port, number):
    left[number] = asyncio.Event()
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(b"POST /%d HTTP/1.1\r\nHost: probe\r\nContent-Length: 2\r\n\r\n{}" % number)
    if number % 2:
        await asyncio.wait_for(reader.readuntil(EVENT), 10)
    else:
        await asyncio.sleep(1)
    writer.close()
    try:
        await asyncio.wait_for(left[number].wait(), 4)
    except asyncio.TimeoutError:
        return False
    return True


async def open_port(port):
    for _ in range(100):
        try:
            (await asyncio.open_connection("127.0.0.1", port))[1].close()
            return
        except ConnectionError:
            await asyncio.sleep(0.1)
    sys.exit("a proxy did not start")


async def main():
    server = await asyncio.start_server(model, "127.0.0.1", 0)
    ports, proxies = {}, []
    try:
        for number, (name, text) in enumerate(CONFIGURATIONS.items()):
            with socket.create_server(("127.0.0.1", 0)) as free:
                ports[name] = free.getsockname()[1]
            place = WORK / f"configuration{number}"
            upstream = server.sockets[0].getsockname()[1]
            place.write_text(text.format(work=WORK, root=ROOT, port=ports[name], model=upstream) + "\n")
            with (WORK / "proxies.log").open("ab") as log:
                proxies.append(await asyncio.create_subprocess_exec(*COMMANDS[name], place, stdout=log, stderr=log))
        await asyncio.gather(*map(open_port, ports.values()))
        cases = [(name, when) for name in ports for when in WHEN]
        told = await asyncio.gather(*(is_told(ports[case[0]], n) for n, case in enumerate(cases)))
    finally:
        for proxy in proxies:
            with contextlib.suppress(ProcessLookupError):  # it did not start
                proxy.terminate()
        await asyncio.gather(*(proxy.wait() for proxy in proxies))
    return dict(zip(cases, told))


seen = asyncio.run(main())
for (name, when), told in seen.items():
    print(f"{name}, client leaves {when}: the model is {'told at once' if told else 'not told in 4 s'}")
if seen != {case: case[0] in ("nginx", "caddy", "haproxy, abortonclose") for case in seen}:
    sys.exit("CHANGED: who tells is no longer as stated")
PY

timeout 90 python3 "$work/probe.py" "$work" 2>"$work/log" ||
  { cat "$work"/*.log "$work/log" >&2; echo "not as stated, or not done in time" >&2; exit 1; }
