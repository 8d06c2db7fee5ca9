"""Asks ``GET /health`` over and over until a line comes on standard input; prints the longest answer in ms."""

import socket
import sys
import threading
import time

connection = socket.create_connection(("127.0.0.1", int(sys.argv[1])))
connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
stop = threading.Event()


def wait() -> None:
    sys.stdin.readline()
    stop.set()


threading.Thread(target=wait, daemon=True).start()
longest = 0.0
while not stop.is_set():
    begun = time.perf_counter()
    connection.sendall(b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n")
    answer = b""
    while b'"ok"}' not in answer:
        answer += connection.recv(65536)
    longest = max(longest, time.perf_counter() - begun)
    time.sleep(0.001)
print(longest * 1000)
