#!/usr/bin/env bash
# "102 Processing" says "still at work" until the sixth time, or the ninth, or the tenth.
#
# Debian 12's nginx 1.22.1-9+deb12u11, apache2 2.4.71-1~deb12u1, caddy 2.6.2-5 as reverse proxies, and
# java.net.http of OpenJDK 17.0.15, seen 2026-11-28. HTTP lets a server send any number of interim answers
# (102, 103) before the answer, and that is the one heartbeat that leaves its status open. nginx hands
# each of 40 on, and the answer. Caddy answers 502 to the sixth and Apache to the tenth, which it still
# hands on, while the server behind them is well and writes its answer. Java's client raises a
# ProtocolException at the ninth.
# To a proxy: interim answers are no heartbeat for a model's load, where one comes each second.
set -euo pipefail

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
export LD_LIBRARY_PATH="$work/tree/usr/lib/x86_64-linux-gnu" XDG_CONFIG_HOME="$work" XDG_DATA_HOME="$work"
{
  cd "$work" && apt-get download --quiet apache2-bin=2.4.71-1~deb12u1 libapr1 libaprutil1 \
    nginx=1.22.1-9+deb12u11 caddy=2.6.2-5 &&
    for each in ./*.deb; do dpkg-deb --extract "$each" tree; done &&
    tree/usr/sbin/apache2 -v && tree/usr/sbin/nginx -v && tree/usr/bin/caddy version && java -version
} >"$work/log" 2>&1 || { cat "$work/log" >&2; echo "could not install" >&2; exit 2; }

cat >"$work/Ask.java" <<'JAVA'
import java.net.ProtocolException;
import java.net.URI;
import java.net.http.HttpClient;
import java.net.http.HttpRequest;
import java.net.http.HttpResponse;

public class Ask {
  public static void main(String[] urls) throws Exception {
    for (var url : urls) {
      try {
        var request = HttpRequest.newBuilder(URI.create(url)).version(HttpClient.Version.HTTP_1_1).build();
        var answer = HttpClient.newHttpClient().send(request, HttpResponse.BodyHandlers.ofString());
        System.out.println(answer.statusCode());
      } catch (ProtocolException error) {
        System.out.println("ProtocolException");
      }
    }
  }
}
JAVA

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
                proxy_pass http://127.0.0.1:{model}; proxy_http_version 1.1; }} }}
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
}
COMMANDS = {
    "nginx": [ROOT / "usr/sbin/nginx", "-p", WORK, "-c"],
    "caddy": [ROOT / "usr/bin/caddy", "run", "--adapter", "caddyfile", "--config"],
    "apache": [ROOT / "usr/sbin/apache2", "-X", "-f"],
}
COUNTS = (1, 5, 6, 8, 9, 10, 11, 40)
MOST = {"nginx": 40, "caddy": 5, "apache": 9, "Java": 8}


async def model(reader, writer):
    """As many interim answers as the path says, and then the answer."""
    with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
        head = await reader.readuntil(b"\r\n\r\n")
        for _ in range(int(head.split()[1][1:])):
            writer.write(b"HTTP/1.1 102 Processing\r\n\r\n")
            await writer.drain()
            await asyncio.sleep(0.02)
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\nConnection: close\r\n\r\ntrue")
        await writer.drain()
    writer.close()


async def ask(port, count):
    """How many interim answers came, and the status of the last."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(b"GET /%d HTTP/1.1\r\nHost: probe\r\nConnection: close\r\n\r\n" % count)
    text = await asyncio.wait_for(reader.read(), 20)
    writer.close()
    statuses = [int(line.split()[1]) for line in text.split(b"\r\n") if line.startswith(b"HTTP/1.1 ")]
    return statuses.count(102), str(statuses[-1])


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
    upstream = server.sockets[0].getsockname()[1]
    ports, proxies, seen = {}, [], {}
    try:
        for name, text in CONFIGURATIONS.items():
            with socket.create_server(("127.0.0.1", 0)) as free:
                ports[name] = free.getsockname()[1]
            place = WORK / f"{name}.configuration"
            place.write_text(text.format(work=WORK, root=ROOT, port=ports[name], model=upstream) + "\n")
            with (WORK / "proxies.log").open("ab") as log:
                proxies.append(await asyncio.create_subprocess_exec(*COMMANDS[name], place, stdout=log, stderr=log))
        await asyncio.gather(*map(open_port, ports.values()))
        for name, port in ports.items():
            for count in COUNTS:
                passed, seen[name, count] = await ask(port, count)
                print(f"{name}, {count} times 102 and then 200: {passed} times 102 and then {seen[name, count]}")
    finally:
        for proxy in proxies:
            with contextlib.suppress(ProcessLookupError):  # it did not start
                proxy.terminate()
        await asyncio.gather(*(proxy.wait() for proxy in proxies))
    urls = [f"http://127.0.0.1:{upstream}/{count}" for count in COUNTS]
    java = await asyncio.create_subprocess_exec("java", WORK / "Ask.java", *urls, stdout=asyncio.subprocess.PIPE)
    for count, line in zip(COUNTS, (await java.communicate())[0].decode().splitlines()):
        seen["Java", count] = line
        print(f"Java, {count} times 102 and then 200: {line}")
    return seen


def outcome(name, count):
    return "200" if count <= MOST[name] else "ProtocolException" if name == "Java" else "502"


if asyncio.run(main()) != {(name, count): outcome(name, count) for name in MOST for count in COUNTS}:
    sys.exit("CHANGED: what arrived is no longer as stated")
PY

timeout 90 python3 "$work/probe.py" "$work" 2>"$work/log" ||
  { cat "$work"/*.log "$work/log" >&2; echo "not as stated, or not done in time" >&2; exit 1; }
