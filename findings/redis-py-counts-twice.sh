#!/usr/bin/env bash
# redis-py counts twice what it was told to count once, if Redis stood still for a moment.
#
# redis 8.1.0 for Python (asyncio and not) with Debian 12's redis 5:7.0.15-1~deb12u10, seen 2026-11-28.
# A client without settings waits 5 s for an answer and then sends the command again, up to ten times,
# whatever the command: INCRBY, a Lua script, a transaction. The first one lies in Redis' socket though,
# and is executed as well, once Redis goes on (after a fork, a slow script, a swapped page). The caller
# gets a number, and no error. With `retry=Retry(NoBackoff(), 0)` it is counted once, and the caller
# gets a TimeoutError.
# To a proxy: its rate limits and budgets count too much whenever Redis pauses, for all clients at once,
# and money that was settled twice is not seen in any log.
# (The probe waits 0.5 s instead of 5 s, and stops its own Redis by SIGSTOP.)
set -euo pipefail

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
{
  (cd "$work" && apt-get download --quiet redis-server=5:7.0.15-1~deb12u10 redis-tools=5:7.0.15-1~deb12u10 \
    liblzf1 libjemalloc2 libatomic1 &&
    for each in ./*.deb; do dpkg-deb --extract "$each" "$work/redis"; done) &&
    python3 -m venv "$work/venv" &&
    "$work/venv/bin/pip" install --quiet --disable-pip-version-check redis==8.1.0
} >"$work/log" 2>&1 || { cat "$work/log" >&2; echo "could not install" >&2; exit 2; }

cat >"$work/probe.py" <<'PY'
import asyncio
import os
import pathlib
import signal
import subprocess
import sys
import time

import redis
import redis.asyncio
from redis.asyncio.retry import Retry as AsyncRetry
from redis.backoff import NoBackoff
from redis.retry import Retry

ROOT = pathlib.Path(sys.argv[1])
PLACE = f"{ROOT}/socket"
SCRIPT = "return redis.call('INCRBY', KEYS[1], ARGV[1])"


def transaction(client):
    return client.pipeline(transaction=True).incrby("spent", 1).execute()


COMMANDS = {
    "INCRBY": lambda client: client.incrby("spent", 1),
    "a script": lambda client: client.eval(SCRIPT, 1, "spent", 1),
    "a transaction": transaction,
}


async def with_asyncio(command, **settings):
    async with redis.asyncio.Redis(unix_socket_path=PLACE, socket_timeout=0.5, **settings) as client:
        await client.ping()
        return await command(client)


def without(command, **settings):
    with redis.Redis(unix_socket_path=PLACE, socket_timeout=0.5, **settings) as client:
        client.ping()
        return command(client)


WAYS = {
    "asyncio": lambda command: asyncio.run(with_asyncio(command)),
    "not asyncio": without,
    "asyncio, no retries": lambda command: asyncio.run(with_asyncio(command, retry=AsyncRetry(NoBackoff(), 0))),
    "not asyncio, no retries": lambda command: without(command, retry=Retry(NoBackoff(), 0)),
}


def main():
    places = os.environ | {"LD_LIBRARY_PATH": f"{ROOT}/redis/usr/lib/x86_64-linux-gnu"}
    command = [f"{ROOT}/redis/usr/bin/redis-server", "--port", "0", "--unixsocket", PLACE, "--save", ""]
    server = subprocess.Popen([*command, "--dir", ROOT], env=places, stdout=subprocess.DEVNULL)
    seen = {}
    try:
        own = redis.Redis(unix_socket_path=PLACE)
        for _ in range(100):
            try:
                own.ping()
                break
            except redis.ConnectionError:
                time.sleep(0.1)
        for way, ask in WAYS.items():
            for name, what in COMMANDS.items():
                own.set("spent", 0)

                def paused(client, what=what):
                    """Sends the command to a server that goes on after a second."""
                    server.send_signal(signal.SIGSTOP)
                    subprocess.Popen(["sh", "-c", f"sleep 1; kill -CONT {server.pid}"])
                    return what(client)

                try:
                    ask(paused)
                    outcome = "no error"
                except redis.TimeoutError:
                    outcome = "TimeoutError"
                time.sleep(1.2)  # what lies in the socket has been executed
                seen[way, name] = int(own.get("spent")), outcome
                print(f"{way}, {name}: asked to add 1, added {seen[way, name][0]}, {outcome}")
    finally:
        server.send_signal(signal.SIGCONT)
        server.terminate()
        server.wait()
    return seen


expected = {
    (way, name): (1, "TimeoutError") if "no retries" in way else (2, "no error") for way in WAYS for name in COMMANDS
}
if main() != expected:
    sys.exit("CHANGED: what was counted is no longer as stated")
PY

timeout 90 "$work/venv/bin/python" "$work/probe.py" "$work" 2>"$work/log" ||
  { cat "$work/log" >&2; echo "not as stated, or not done in time" >&2; exit 1; }
