"""Notes when one processor did not run at all, until a line comes on standard input; prints when that began and ended.

A virtual machine's processors are taken away for milliseconds at a time, which no program within can help. JSON: pairs
of seconds of the monotonic clock.
"""

import json
import os
import sys
import threading
import time

NAP = 0.0003
TICK = 0.004
"""Seconds for which the kernel may let another process run; what is longer is no turn of another one."""
os.sched_setaffinity(0, {int(sys.argv[1])})
stop = threading.Event()


def wait() -> None:
    sys.stdin.readline()
    stop.set()


threading.Thread(target=wait, daemon=True).start()
pauses: list[tuple[float, float]] = []
last = time.monotonic()
while not stop.is_set():
    time.sleep(NAP)
    now = time.monotonic()
    if now - last > TICK:
        pauses.append((last + NAP, now))
    last = now
print(json.dumps(pauses))
