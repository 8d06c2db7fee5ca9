#!/usr/bin/env bash
# uvloop: what is due within half a millisecond is no timer, and does not say when it is due.
#
# uvloop 0.23.0 with Python 3.11, seen 2026-11-28.
# `loop.call_at` and `call_later` return an asyncio.TimerHandle, whose `when()` says when it fires
# (Python's documentation, "Event Loop"; its typing too). uvloop rounds the delay to milliseconds, and
# if that is 0 it returns what `call_soon` would: a Handle without `when`, so AttributeError.
# To a proxy: whoever shares one timer among all connections and asks it for its time has a request
# fail now and then, under load only, where another one's deadline has just come.
set -euo pipefail

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
{
  python3 -m venv "$work/venv" &&
    "$work/venv/bin/pip" install --quiet --disable-pip-version-check uvloop==0.23.0
} >&2 || { echo "could not install" >&2; exit 2; }

cat >"$work/probe.py" <<'PY'
import asyncio
import sys

import uvloop

DELAYS = (0.1, 0.0006, 0.0004, 0.0)


async def tells():
    """For each delay, whether its handle says when it is due."""
    loop = asyncio.get_running_loop()
    return tuple(hasattr(loop.call_later(delay, int), "when") for delay in DELAYS)


seen = {"asyncio": asyncio.run(tells()), "uvloop": uvloop.run(tells())}
for name, told in seen.items():
    print(name, *(f"{delay * 1000:g} ms: {'when()' if said else 'none'}" for delay, said in zip(DELAYS, told)), sep="  ")
if seen != {"asyncio": (True, True, True, True), "uvloop": (True, True, False, False)}:
    sys.exit("CHANGED: who says when a timer is due is no longer as stated")
PY

timeout 60 "$work/venv/bin/python" "$work/probe.py" 2>"$work/log" ||
  { cat "$work/log" >&2; echo "not as stated, or not done in time" >&2; exit 1; }
