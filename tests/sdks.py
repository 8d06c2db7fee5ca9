"""Clients' SDKs, installed beside the environment, and run as processes of their own."""

from __future__ import annotations

import asyncio
import json
import os
import socket
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from manallm_proxy.openai.json_object import encode
from tests.command import ROOT, server
from tests.needs import require
from tests.upstreams import Connection, Seen, answers, chunk, completion

HERE = Path(__file__).parent
INSTALLED = Path(os.environ.get("SDKS", HERE.parent / ".venv" / "sdks"))
"""A folder each, named as the lists of pins in tests/clients; Node's are in ``node_modules``."""
CLIENTS = {
    "python 1.x": ("python", "openai-1"),
    "python newest": ("python", "openai-newest"),
    "npm 6": ("node", "openai-6"),
    "npm newest": ("node", "openai"),
}
"""OpenAI's: what each is called, its language and its folder."""
TOOL_STREAM = (
    b'data: {"id":"c","object":"chat.completion.chunk","created":1,"model":"m","choices":[{"index":0,"delta":'
    b'{"role":"assistant","content":null,"tool_calls":[{"index":0,"id":"call_1","type":"function",'
    b'"function":{"name":"add","arguments":""}}]},"finish_reason":null}]}\n\n',
    b'data: {"id":"c","object":"chat.completion.chunk","created":1,"model":"m","choices":[{"index":0,"delta":'
    b'{"tool_calls":[{"index":0,"function":{"arguments":"{\\"a\\": "}}]},"finish_reason":null}]}\n\n',
    b'data: {"id":"c","object":"chat.completion.chunk","created":1,"model":"m","choices":[{"index":0,"delta":'
    b'{"tool_calls":[{"index":0,"function":{"arguments":"1}"}}]},"finish_reason":null}]}\n\n',
    b'data: {"id":"c","object":"chat.completion.chunk","created":1,"model":"m","choices":[{"index":0,"delta":{},'
    b'"finish_reason":"tool_calls"}]}\n\ndata: [DONE]\n\n',
)
"""One call of ``add``, in parts."""


MODULES = {
    "openai-newest": ("openai.resources.chat", "openai.resources.responses", "openai.types.responses"),
    "openai-1": ("openai.resources.chat", "openai.resources.responses", "openai.types.responses"),
    "anthropic": ("anthropic.resources", "anthropic.types"),
    "ollama": ("ollama",),
    "langchain-ollama": ("langchain_ollama",),
}
"""What is imported once of each folder of Python's: it takes up to 1.7 s of CPU, and each has several programs."""
SECONDS = 150
ENVIRON = {"NO_PROXY": "127.0.0.1", "LANGSMITH_TRACING": "false"}


async def run(*command: str, env: dict[str, str] | None = None) -> dict[str, Any]:
    """A client's one line of JSON."""
    child = await asyncio.create_subprocess_exec(
        *command, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE, env={**os.environ, **(env or {})}
    )
    out, err = await asyncio.wait_for(child.communicate(), SECONDS)
    assert child.returncode == 0, err.decode()
    saw: dict[str, Any] = json.loads(out)
    return saw


def start_servers() -> None:
    """The processes from which Python's SDKs are forked, all at a time."""
    for folder in MODULES:
        if (INSTALLED / folder).exists():
            _server(folder)


def _server(folder: str) -> socket.socket:
    return server(folder, MODULES[folder], {**os.environ, **ENVIRON, "PYTHONPATH": str(INSTALLED / folder)})


async def python(folder: str, program: str, *arguments: str) -> dict[str, Any]:
    """What a program of tests/clients saw, with the SDK in `folder`."""
    saw: dict[str, Any] = json.loads(await asyncio.to_thread(_forked, folder, program, arguments))
    return saw


def judged(folder: str, program: str, values: dict[str, list[Any]]) -> list[str]:
    """What an SDK's own types have to say against `values`; `program` in tests/clients knows which are which."""
    wrong: list[str] = json.loads(_forked(folder, program, (), encode(values)))
    return wrong


def _forked(folder: str, program: str, arguments: Sequence[str], text: bytes = b"") -> bytes:
    """What `program` printed that was given `text`: a process of its own, forked from one that has imported the SDK."""
    where, path = require(INSTALLED / folder, "the SDK is installed by make test"), str(HERE / "clients" / program)
    environ = {**os.environ, **ENVIRON, "PYTHONPATH": str(where)}
    if not hasattr(os, "pidfd_open"):
        command = [sys.executable, path, *arguments]
        done = subprocess.run(command, input=text, capture_output=True, env=environ, timeout=SECONDS, check=False)
        assert done.returncode == 0, done.stderr.decode()
        return done.stdout
    request = {"program": path, "arguments": arguments, "environ": environ, "folder": str(ROOT)}
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours, tempfile.TemporaryFile() as given, tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        given.write(text)
        given.seek(0)
        with theirs:
            descriptors = [given.fileno(), out.fileno(), err.fileno(), theirs.fileno()]
            socket.send_fds(_server(folder), [encode(request)], descriptors)
        ours.settimeout(SECONDS)
        pid, code = ours.recv(16), ours.recv(16)
        out.seek(0)
        err.seek(0)
        assert pid and code == b"0", err.read().decode()
        return out.read()


async def cloud(connection: Connection, seen: Seen) -> None:
    """An OpenAI-compatible server whose model's name says how it behaves."""
    request = seen.json
    model = request["model"]
    if model.isdigit():
        error = {"message": "as you asked", "type": "some_error", "param": None, "code": None}
        await connection.reply({"error": error}, f"{model} Refused")
    elif "input" in request:
        rows = [{"object": "embedding", "index": i, "embedding": [0.5, -0.25]} for i in range(len(request["input"]))]
        await connection.reply(
            {"object": "list", "data": rows, "model": "m", "usage": {"prompt_tokens": 2, "total_tokens": 2}}
        )
    elif "prompt" in request:
        choice = {"index": 0, "text": "Hello", "finish_reason": "stop", "logprobs": None}
        await connection.reply(
            {"id": "1", "object": "text_completion", "created": 1, "model": "m", "choices": [choice]}
        )
    elif model == "tools":
        await connection.head()
        for frame in TOOL_STREAM:
            await connection.chunk(frame)
        await connection.end()
    elif model == "broken":
        await connection.head()
        await connection.chunk(chunk("one"))
        connection.writer.close()
    elif model == "structured":
        await connection.reply(completion('{"ok": true}'))
    else:
        await answers(connection, seen)
