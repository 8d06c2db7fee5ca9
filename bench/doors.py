"""``make doors``: what an answer costs through each door, beside a relayed chat, in one run.

CPU time of the proxy alone (the kernel's own count, in nanoseconds), per chunk of a stream and per whole answer. The
doors take turns, so that a busy machine is busy for all of them; a ratio is the median over the rounds. Aims: a chunk
that is translated costs at most 1.6 times a relayed one, a whole answer 2 times, in the provider's own dialect 1.1.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, Final

from attrs import frozen

from bench.machine import free_port
from manallm_proxy.doors.responses.store import MemoryStore, Stored

CHUNKS: Final = 400
"""Of one stream: what a request costs by itself is hardly seen in them."""
PACE: Final = 0.002
"""Seconds between two chunks, so that each is a read of its own."""
STREAMS: Final = 12
"""Streams at a time, and once, in each round."""
WHOLE: Final = 400
"""Whole answers in each round, four at a time."""
ROUNDS: Final = int(os.environ.get("ROUNDS", "7"))
WORDS: Final = "What is the answer to the question? "
LIMIT: Final = 60.0


@frozen
class Way:
    """A door, and whether its provider speaks its format. ``aim``: the most it may cost, over a relayed chat."""

    name: str
    path: str
    provider: str
    body: dict[str, Any]
    aim: tuple[float, float]
    """Of a chunk, and of a whole answer."""


USER: Final = {"role": "user", "content": WORDS * 28}
CHAT: Final = {"messages": [USER]}
INPUT: Final = {"input": WORDS * 28}
MESSAGES: Final = {"messages": [USER], "max_tokens": 1000}
TRANSLATED, NATIVE = (1.6, 2.0), (1.1, 1.1)
WAYS: Final = (
    Way("chat, relayed", "/v1/chat/completions", "chat", CHAT, (1.0, 1.0)),
    Way("responses, translated", "/v1/responses", "chat", INPUT, TRANSLATED),
    Way("messages, translated", "/v1/messages", "chat", MESSAGES, TRANSLATED),
    Way("ollama, translated", "/api/chat", "chat", CHAT, TRANSLATED),
    Way("responses, native", "/v1/responses", "native", INPUT, NATIVE),
    Way("messages, native", "/v1/messages", "native", MESSAGES, NATIVE),
)

# -- the provider ------------------------------------------------------------------------------------------------------

Row = dict[str, Any]


def data(row: Row, name: str = "") -> bytes:
    front = f"event: {name}\n" if name else ""
    return f"{front}data: {json.dumps(row, separators=(',', ':'))}\n\n".encode()


def named(kind: str, **more: Any) -> bytes:
    return data({"type": kind, **more}, kind)


def chat_stream() -> list[bytes]:
    def chunk(delta: Row, finish: str | None = None) -> bytes:
        choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish}
        row = {"id": "chatcmpl-1", "object": "chat.completion.chunk", "created": 1767225600, "model": "m"}
        return data({**row, "system_fingerprint": "fp_1", "choices": [choice]})

    usage = {"prompt_tokens": 200, "completion_tokens": CHUNKS, "total_tokens": 200 + CHUNKS}
    counted = data({"id": "chatcmpl-1", "object": "chat.completion.chunk", "choices": [], "usage": usage})
    words = [chunk({"content": f"word{n} "}) for n in range(CHUNKS)]
    return [chunk({"role": "assistant", "content": ""}), *words, chunk({}, "stop"), counted, b"data: [DONE]\n\n"]


def response(status: str, output: list[Row]) -> Row:
    usage = {"input_tokens": 200, "output_tokens": CHUNKS, "total_tokens": 200 + CHUNKS}
    row = {"id": "resp_1", "object": "response", "created_at": 1767225600, "status": status, "error": None}
    more: Row = {"incomplete_details": None, "instructions": None, "metadata": {}, "parallel_tool_calls": True}
    last = {"store": False, "temperature": 1.0, "tool_choice": "auto", "tools": [], "top_p": 1.0}
    return {**row, **more, **last, "model": "m", "output": output, "usage": usage if output else None}


def item(text: str) -> Row:
    part = {"type": "output_text", "text": text, "annotations": [], "logprobs": []}
    return {"id": "msg_1", "type": "message", "status": "completed", "role": "assistant", "content": [part]}


def responses_stream() -> list[bytes]:
    at = {"item_id": "msg_1", "output_index": 0, "content_index": 0}
    begun, part = response("in_progress", []), item("")["content"][0]
    kind, text = "response.output_text", "".join(f"word{n} " for n in range(CHUNKS))
    return [
        named("response.created", sequence_number=0, response=begun)
        + named("response.in_progress", sequence_number=1, response=begun)
        + named("response.output_item.added", sequence_number=2, output_index=0, item={**item(""), "content": []})
        + named("response.content_part.added", sequence_number=3, **at, part=part),
        *(named(f"{kind}.delta", sequence_number=4 + n, **at, delta=f"word{n} ", logprobs=[]) for n in range(CHUNKS)),
        named(f"{kind}.done", sequence_number=CHUNKS + 4, **at, text=text, logprobs=[])
        + named("response.output_item.done", sequence_number=CHUNKS + 5, output_index=0, item=item(text)),
        named("response.completed", sequence_number=CHUNKS + 6, response=response("completed", [item(text)])),
    ]


def message(content: list[Row], stop: str | None) -> Row:
    usage = {"input_tokens": 200, "output_tokens": CHUNKS}
    row = {"id": "msg_1", "type": "message", "role": "assistant", "model": "m", "content": content}
    return {**row, "stop_reason": stop, "stop_sequence": None, "usage": usage}


def messages_stream() -> list[bytes]:
    def delta(n: int) -> bytes:
        return named("content_block_delta", index=0, delta={"type": "text_delta", "text": f"word{n} "})

    return [
        named("message_start", message=message([], None))
        + named("content_block_start", index=0, content_block={"type": "text", "text": ""}),
        *(delta(n) for n in range(CHUNKS)),
        named("content_block_stop", index=0)
        + named("message_delta", delta={"stop_reason": "end_turn", "stop_sequence": None}, usage={"output_tokens": 9})
        + named("message_stop"),
    ]


def whole(kind: str) -> Row:
    """An answer of about 1 KB."""
    text = WORDS * 18
    if kind == "responses":
        return response("completed", [item(text)])
    if kind == "messages":
        return message([{"type": "text", "text": text}], "end_turn")
    choice = {"index": 0, "message": {"role": "assistant", "content": text, "refusal": None}, "finish_reason": "stop"}
    usage = {"prompt_tokens": 200, "completion_tokens": 100, "total_tokens": 300}
    row = {"id": "chatcmpl-1", "object": "chat.completion", "created": 1767225600, "model": "m"}
    return {**row, "choices": [choice], "usage": usage}


STREAM: Final = {"completions": chat_stream, "responses": responses_stream, "messages": messages_stream}


async def provide() -> None:
    """Answers in the format of the path; a stream at its pace."""
    streams = {kind: make() for kind, make in STREAM.items()}
    answers = {kind: json.dumps(whole(kind)).encode() for kind in STREAM}

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                length = next(
                    (int(line[15:]) for line in head.split(b"\r\n") if line.lower()[:15] == b"content-length:"), 0
                )
                body = await reader.readexactly(length)
                kind = head.split(b" ", 2)[1].rpartition(b"/")[2].decode()
                if b'"stream":true' not in body.replace(b" ", b""):
                    said = answers.get(kind, b'{"object":"list","data":[{"id":"m"}]}')
                    writer.write(
                        b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%b"
                        % (len(said), said)
                    )
                    continue
                writer.write(
                    b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
                )
                for frame in streams[kind]:
                    writer.write(b"%x\r\n%b\r\n" % (len(frame), frame))
                    await asyncio.sleep(PACE)
                writer.write(b"0\r\n\r\n")

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()


# -- the client --------------------------------------------------------------------------------------------------------


async def ask(port: int, way: Way, *, stream: bool, times: int) -> None:
    """One connection, request after request. Each answer has to be whole."""
    body = json.dumps({"model": f"{way.provider}/m", **way.body, "stream": stream, "store": False}).encode()
    head = (
        f"POST {way.path} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    for _ in range(times):
        writer.write(head.encode() + body)
        answer = await reader.readuntil(b"\r\n\r\n")
        if b" 200 " not in answer.split(b"\r\n", 1)[0]:
            raise SystemExit(f"{way.name}: {answer!r} {await reader.read(1000)!r}")
        lines = dict(line.lower().split(b": ", 1) for line in answer.split(b"\r\n")[1:] if line)
        if b"content-length" in lines:
            said = await reader.readexactly(int(lines[b"content-length"]))
        else:
            said = b""
            while not said.endswith(b"0\r\n\r\n"):
                said += await reader.read(65536)
        if (b"word%d " % (CHUNKS - 1) if stream else b"question") not in said:
            raise SystemExit(f"{way.name}: this is no answer: {said[-300:]!r}")
    writer.close()


def spent(pid: int) -> int:
    """Nanoseconds of CPU time of all threads."""
    return sum(int(path.read_text().split()[0]) for path in Path(f"/proc/{pid}/task").glob("*/schedstat"))


async def measure(pid: int, port: int, way: Way) -> tuple[float, float]:
    """Microseconds of CPU time of a chunk, and of a whole answer."""
    before = spent(pid)
    async with asyncio.timeout(LIMIT):
        await asyncio.gather(*(ask(port, way, stream=True, times=1) for _ in range(STREAMS)))
    chunk = (spent(pid) - before) / 1000 / STREAMS / CHUNKS
    before = spent(pid)
    async with asyncio.timeout(LIMIT):
        await asyncio.gather(*(ask(port, way, stream=False, times=WHOLE // 4) for _ in range(4)))
    return chunk, (spent(pid) - before) / 1000 / WHOLE


async def run(pid: int, port: int) -> dict[str, list[tuple[float, float]]]:
    """Round by round, each way in turn; the first round warms up."""
    found: dict[str, list[tuple[float, float]]] = {way.name: [] for way in WAYS}
    for number in range(ROUNDS + 1):
        for way in WAYS[number % len(WAYS) :] + WAYS[: number % len(WAYS)]:
            cost = await measure(pid, port, way)
            if number:
                found[way.name].append(cost)
    return found


def shown(found: dict[str, list[tuple[float, float]]]) -> str:
    lines = [f"{'':24}{'chunk':>10}{'ratio':>8}{'aim':>6}{'answer':>12}{'ratio':>8}{'aim':>6}"]
    first = found[WAYS[0].name]
    for way in WAYS:
        cells = []
        for which, unit in ((0, 10), (1, 12)):
            median = statistics.median(cost[which] for cost in found[way.name])
            ratio = statistics.median(a[which] / b[which] for a, b in zip(found[way.name], first, strict=True))
            mark = "!" if ratio > way.aim[which] + 0.005 else " "
            cells.append(f"{median:{unit - 3}.1f} us{ratio:7.2f}{mark}{way.aim[which]:6.1f}")
        lines.append(f"{way.name:24}" + "".join(cells))
    return "\n".join(lines)


def stored() -> str:
    """What 100,000 items, two of each of 50,000 responses, do to a store of the default size."""
    before, began, highest = resident(), time.perf_counter(), 0
    store = MemoryStore(time.monotonic)
    for n in range(50_000):
        items = [json.dumps({**item(f"{which}{n} {WORDS * 8}"), "id": f"msg_{which}{n}"}).encode() for which in "io"]
        store.keep("key", Stored(f"resp_{n}", b'{"object":"response"}', (items[0],), (items[1],), (f"msg_o{n}",)))
        highest = max(highest, store.size)
    each = (time.perf_counter() - began) / 50_000 * 1e6
    assert highest <= store.bounds().memory, "the bound does not hold"
    return (
        f"100,000 items stored: at most {highest / 2**20:.1f} MiB counted of {store.bounds().memory / 2**20:.0f}, "
        f"{resident() - before:.1f} MiB resident, {len(store):,} responses left, {each:.0f} us for two"
    )


def resident() -> float:
    """MiB of this process."""
    return int(Path("/proc/self/status").read_text().split("VmRSS:")[1].split()[0]) / 1024


def main() -> None:
    print(stored())
    provider = subprocess.Popen([sys.executable, "-m", "bench.doors", "provide"], stdout=subprocess.PIPE, text=True)
    proxy: subprocess.Popen[bytes] | None = None
    try:
        assert provider.stdout is not None
        url = f"http://127.0.0.1:{int(provider.stdout.readline())}/v1"
        port = free_port()
        one = {"kind": "openai", "base_url": url, "api_key": "unused"}
        native = {**one, "speaks": ["chat", "responses", "messages"]}
        config = {"listen": {"port": port}, "providers": {"chat": one, "native": native}, "aliases": {}}
        with tempfile.TemporaryDirectory(prefix="manallm-doors-") as folder:
            path = Path(folder) / "proxy.yaml"
            path.write_text(json.dumps(config))
            with (Path(folder) / "log").open("wb") as log:
                command = [sys.executable, "-m", "manallm_proxy", "serve", "--config", str(path)]
                proxy = subprocess.Popen(command, stdout=log, stderr=log)
            time.sleep(2)
            print(shown(asyncio.run(run(proxy.pid, port))))
    finally:
        for child in (proxy, provider):
            if child is not None:
                child.terminate()
                child.wait(20)


if __name__ == "__main__":
    if sys.argv[1:] == ["provide"]:
        asyncio.run(provide())
    else:
        main()
