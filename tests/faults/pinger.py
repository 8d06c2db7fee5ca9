"""Asks ``GET /health`` over and over until a line comes on standard input; prints when slow answers began and ended.

JSON: pairs of seconds of the monotonic clock, of at least the longest one.
"""

import json
import socket
import sys
import threading
import time

SLOW = 0.002
connection = socket.create_connection(("127.0.0.1", int(sys.argv[1])))
connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
stop = threading.Event()


def wait() -> None:
    sys.stdin.readline()
    stop.set()


threading.Thread(target=wait, daemon=True).start()
longest = 0.0
slow: list[tuple[float, float]] = []
while not stop.is_set():
    begun = time.monotonic()
    connection.sendall(b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n")
    answer = b""
    while b'"ok"}' not in answer:
        answer += connection.recv(65536)
    ended = time.monotonic()
    if ended - begun > min(longest, SLOW):
        slow.append((begun, ended))
    longest = max(longest, ended - begun)
    time.sleep(0.001)
print(json.dumps(slow))
