#!/usr/bin/env bash
# A server on aiohttp 3.13.4 or newer is no Ollama to ollama4j: each of its GETs has Content-Type twice, and is a 400.
#
# io.github.ollama4j 1.1.6 (JDK 17) and aiohttp 3.13.3, 3.13.4 and 3.14.5; seen 2026-11-29.
# ollama4j's ping, version, list and ps send `Content-Type: application/json` two times, with the same value, on requests
# without a body. aiohttp took it up to 3.13.3. Since 3.13.4 its parser refuses it before any handler sees the request,
# though both say the same.
# To a server on aiohttp: a client that worked all along finds no server there, and no handler or middleware can help it.
set -euo pipefail

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cat >"$work/pom.xml" <<'XML'
<project xmlns="http://maven.apache.org/POM/4.0.0">
  <modelVersion>4.0.0</modelVersion>
  <groupId>finding</groupId><artifactId>finding</artifactId><version>1</version>
  <dependencies>
    <dependency>
      <groupId>io.github.ollama4j</groupId><artifactId>ollama4j</artifactId><version>1.1.6</version>
    </dependency>
  </dependencies>
</project>
XML
mvn -q -B -f "$work/pom.xml" dependency:copy-dependencies -DoutputDirectory="$work/lib" >&2 ||
  { echo "could not install" >&2; exit 2; }
for version in 3.13.3 3.13.4 3.14.5; do
  python3 -m venv "$work/$version"
  "$work/$version/bin/pip" --quiet --disable-pip-version-check install "aiohttp==$version" >&2 ||
    { echo "could not install" >&2; exit 2; }
done

cat >"$work/Ask.java" <<'JAVA'
import io.github.ollama4j.Ollama;
import java.util.concurrent.Callable;

public class Ask {
    static String outcome(Callable<?> call) {
        try {
            return String.valueOf(call.call());
        } catch (Exception error) {
            return "raises";
        }
    }

    public static void main(String[] arguments) {
        var ollama = new Ollama(arguments[0]);
        System.out.println(outcome(ollama::ping) + " " + outcome(ollama::getVersion));
        System.exit(0);
    }
}
JAVA
javac -cp "$work/lib/*" -d "$work" "$work/Ask.java"

cat >"$work/serve.py" <<'PY'
import asyncio
import sys

from aiohttp import web

WORK = sys.argv[1]
seen = []


async def version(request):
    seen.append(len(request.headers.getall("Content-Type")))
    return web.json_response({"version": "0.17.4"})


async def main():
    app = web.Application()
    app.router.add_get("/{path:.*}", version)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    port = runner.addresses[0][1]
    command = ["java", "-cp", f"{WORK}/lib/*:{WORK}", "Ask", f"http://127.0.0.1:{port}"]
    client = await asyncio.create_subprocess_exec(
        *command, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.DEVNULL
    )
    said, _ = await asyncio.wait_for(client.communicate(), 40)
    print(f"ping, version: {said.decode().strip()}; Content-Type in a request that was handled: {seen}")
    await runner.cleanup()


asyncio.run(main())
PY

changed=0
while IFS='|' read -r version expected; do
  said=$("$work/$version/bin/python" "$work/serve.py" "$work" 2>/dev/null)
  echo "aiohttp $version: $said"
  [[ $said == "$expected" ]] || changed=1
done <<'SEEN'
3.13.3|ping, version: true 0.17.4; Content-Type in a request that was handled: [2, 2]
3.13.4|ping, version: false raises; Content-Type in a request that was handled: []
3.14.5|ping, version: false raises; Content-Type in a request that was handled: []
SEEN
[[ $changed == 0 ]] || { echo "CHANGED: the outcomes above are no longer as stated" >&2; exit 1; }
