#!/usr/bin/env bash
# uvicorn throws the body away of each POST that Java's HttpClient sends as it is by default.
#
# uvicorn 0.54.0 with httptools 0.9.0 and with h11 0.16.0, java.net.http of OpenJDK 17, seen 2026-11-28.
# The JDK's client prefers HTTP/2, and on http:// offers it with the request (`Upgrade: h2c`): a server
# that does not want it just answers the request. With httptools, which uvicorn takes where it is
# installed (`uvicorn[standard]`, as under many model servers), the application gets the same POST with
# an empty body, and the log one "Unsupported upgrade request". With h11 the body is there, and with
# `version(HTTP_1_1)` on the client for both.
# To a proxy: "field required: body" from some Java programs only, and not from the same server behind
# a proxy, which does not hand `Upgrade` on. Its own server has to read the body of such a request.
set -euo pipefail

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
{
  java -version &&
    python3 -m venv "$work/venv" &&
    "$work/venv/bin/pip" install --quiet --disable-pip-version-check uvicorn==0.54.0 httptools==0.9.0 h11==0.16.0
} >"$work/log" 2>&1 || { cat "$work/log" >&2; echo "could not install" >&2; exit 2; }

cat >"$work/Ask.java" <<'JAVA'
import java.net.URI;
import java.net.http.HttpClient;
import java.net.http.HttpRequest;
import java.net.http.HttpResponse;
import java.time.Duration;

public class Ask {
  public static void main(String[] urls) throws Exception {
    var clients = new HttpClient[] {
      HttpClient.newHttpClient(), HttpClient.newBuilder().version(HttpClient.Version.HTTP_1_1).build()
    };
    for (var url : urls) {
      for (var client : clients) {
        var request = HttpRequest.newBuilder(URI.create(url)).timeout(Duration.ofSeconds(20))
            .POST(HttpRequest.BodyPublishers.ofString("{\"model\": \"m\"}")).build();
        System.out.println(client.send(request, HttpResponse.BodyHandlers.ofString()).body());
      }
    }
  }
}
JAVA

cat >"$work/probe.py" <<'PY'
import asyncio
import sys

import uvicorn

PARSERS = ("auto", "httptools", "h11")
BODY = '{"model": "m"}'


async def application(scope, receive, send):
    """Answers with the body that it got, and the method."""
    body, more = b"", True
    while more:
        message = await receive()
        body, more = body + message.get("body", b""), message.get("more_body")
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": scope["method"].encode() + b" with a body of " + (body or b"0")})


async def main():
    servers = [
        uvicorn.Server(uvicorn.Config(application, port=0, http=parser, lifespan="off", log_level="error"))
        for parser in PARSERS
    ]
    tasks = [asyncio.create_task(server.serve()) for server in servers]
    while not all(server.started for server in servers):
        await asyncio.sleep(0.05)
    urls = [f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}/" for server in servers]
    java = await asyncio.create_subprocess_exec("java", sys.argv[1], *urls, stdout=asyncio.subprocess.PIPE)
    lines = (await java.communicate())[0].decode().splitlines()
    for server in servers:
        server.should_exit = True
    await asyncio.gather(*tasks)
    cases = [(parser, client) for parser in PARSERS for client in ("default", "HTTP_1_1")]
    return dict(zip(cases, lines, strict=True))


seen = asyncio.run(main())
for (parser, client), line in seen.items():
    print(f"http={parser}, client {client}: {line}")
expected = dict.fromkeys(seen, f"POST with a body of {BODY}")
expected |= {(parser, "default"): "POST with a body of 0" for parser in ("auto", "httptools")}
if seen != expected:
    sys.exit("CHANGED: the bodies above are no longer as stated")
PY

timeout 90 "$work/venv/bin/python" "$work/probe.py" "$work/Ask.java" 2>"$work/log" ||
  { cat "$work/log" >&2; echo "not as stated, or not done in time" >&2; exit 1; }
