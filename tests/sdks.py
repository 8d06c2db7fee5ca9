"""Clients' SDKs, installed beside the environment, and run as processes of their own."""

from __future__ import annotations

import asyncio
import json
import os
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
INSTALLED = Path(os.environ.get("SDKS", HERE.parent / ".venv" / "sdks"))
"""A folder each, named as the lists of pins in tests/clients; Node's are in ``node_modules``."""


async def run(*command: str, env: dict[str, str] | None = None) -> dict[str, Any]:
    """A client's one line of JSON."""
    child = await asyncio.create_subprocess_exec(
        *command, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE, env={**os.environ, **(env or {})}
    )
    out, err = await asyncio.wait_for(child.communicate(), 50)
    assert child.returncode == 0, err.decode()
    saw: dict[str, Any] = json.loads(out)
    return saw
