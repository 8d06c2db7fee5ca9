"""Debian's real nginx before a proxy, with the example configuration that we ship."""

from __future__ import annotations

import asyncio
import os
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Protocol

from tests.needs import require
from tests.ports import free_port

EXAMPLE = Path(__file__).parent.parent / "config" / "nginx.conf.example"


class HasPort(Protocol):
    """A proxy on loopback."""

    @property
    def port(self) -> int: ...


@asynccontextmanager
async def nginx(p: HasPort, folder: Path, site: str | None = None) -> AsyncIterator[str]:
    """nginx in front of `p`, unprivileged; its address. `site`: another configuration than the example."""
    program = require("nginx", "Debian: apt-get install nginx-light")
    port = free_port()
    site = (site or EXAMPLE.read_text()).replace("127.0.0.1:3025", f"127.0.0.1:{p.port}")
    site, listens = re.subn(r"(?m)^(\s*listen\s+)(?!\[)[^;]*;", rf"\g<1>127.0.0.1:{port};", site, count=1)
    assert listens == 1
    site = re.sub(r"(?m)^\s*listen\s+\[.*\n", "", site)
    (folder / "site.conf").write_text(site)
    kinds = ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    temporary = "".join(f"{kind}_temp_path {folder}/{kind};" for kind in kinds)
    (folder / "nginx.conf").write_text(
        f"daemon off; pid {folder}/pid; error_log {folder}/error.log; events {{}}"
        f"{'user root;' if os.geteuid() == 0 else ''}"
        f"http {{ {temporary} access_log off; include {folder}/site.conf; }}"
    )
    child = await asyncio.create_subprocess_exec(
        str(program), "-e", f"{folder}/error.log", "-p", str(folder), "-c", f"{folder}/nginx.conf"
    )
    try:
        async with asyncio.timeout(40):
            while True:
                assert child.returncode is None, (folder / "error.log").read_text()
                try:
                    _, writer = await asyncio.open_connection("127.0.0.1", port)
                except ConnectionError:
                    await asyncio.sleep(0.02)
                else:
                    writer.close()
                    break
        yield f"http://127.0.0.1:{port}"
    finally:
        child.terminate()
        await child.wait()
