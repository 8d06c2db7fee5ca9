"""Requests made from openapi.yaml by schemathesis, against a running proxy of the loopback provider."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import tempfile
from pathlib import Path

from tests.proxy import process, settings


async def main(seconds: int) -> int:
    """schemathesis' exit code: 0 where no answer was a 500 or other than described."""
    with tempfile.TemporaryDirectory() as folder:
        config = settings({"loopback": {"kind": "loopback"}}, ["loopback/echo"])
        async with process(config, Path(folder)) as running:
            command = [
                *(str(Path(sys.executable).with_name("schemathesis")), "run", f"{running.url}/openapi.json"),
                *("--phases", "examples,coverage,fuzzing", "--max-examples", "100", "--workers", "1", "--no-color"),
                *("--checks", "not_a_server_error,status_code_conformance,content_type_conformance"),
                *("--checks", "response_headers_conformance,response_schema_conformance"),
                *("--exclude-path", "/readyz", "--suppress-health-check", "all", "--max-time", str(seconds)),
            ]
            return await asyncio.to_thread(lambda: subprocess.run(command, cwd=folder, check=False).returncode)


if __name__ == "__main__":
    sys.exit(asyncio.run(main(int(sys.argv[1]) if sys.argv[1:] else 60)))
