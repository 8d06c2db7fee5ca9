"""Our command for a shell's line, forked: ``python -S -E tests/forked.py DESCRIPTOR ARGUMENT...``.

It hands its arguments, environment, folder and standard descriptors to the process that forks (`forkserver.py`), waits
for the end, and has the same exit code. It imports nothing of ours, so that it takes 20 ms of CPU in place of 500.
"""

from __future__ import annotations

import json
import os
import socket
import sys

if __name__ == "__main__":
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    request = {"arguments": sys.argv[2:], "environ": dict(os.environ), "folder": os.getcwd()}
    with theirs, socket.socket(fileno=int(sys.argv[1])) as requests:
        socket.send_fds(requests, [json.dumps(request).encode()], [0, 1, 2, theirs.fileno()])
    ours.recv(16)
    sys.exit(int(ours.recv(16)))
