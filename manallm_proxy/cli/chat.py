"""``chat`` and ``try``: one chat through a running proxy, streamed, then one line: who answered, and how fast.

On a terminal and without a text ``chat`` is a conversation instead, see `conversation`.
"""

from __future__ import annotations

import http.client
import json
import sys
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Final

from manallm_proxy.cli.client import Client, Failed, clean, colours, printable
from manallm_proxy.contract.records import define

TEXT_LIMIT: Final = 32 << 20
"""Max bytes of standard input: a proxy's default limit."""


@define
class ChatResult:
    """The outcome of a chat. Times are monotonic seconds."""

    began: float
    text: str = ""
    first_at: float | None = None
    last_at: float = 0.0
    tokens: int | None = None
    finish: str | None = None
    error: str | None = None


def chat(url: str | None, model: str | None, text: str | None, as_json: bool, environ: Mapping[str, str]) -> int:
    """Runs one chat. `text` None or ``-``: standard input. Raises Failed."""
    client = Client.find(url, environ)
    if hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(errors="replace")  # LANG=C must not end an answer
    if text is None or text == "-":
        try:
            text = sys.stdin.buffer.read(TEXT_LIMIT).decode(errors="replace")
        except (OSError, AttributeError):
            text = ""
    if not text.strip():
        raise Failed("there is no text to send: give it as TEXT, or on standard input", 2)
    heard = ChatResult(time.monotonic())
    response = ask(client, [{"role": "user", "content": text}], model)
    for part in parts(response, heard):
        if not as_json:
            print(printable(part), end="", flush=True)
    report(response, heard, as_json, environ)
    return 0 if heard.error is None else 1


def ask(client: Client, messages: Sequence[Mapping[str, str]], model: str | None) -> http.client.HTTPResponse:
    """The answer to a chat, as a stream. Raises Failed, with the proxy's own message if it refuses."""
    body: dict[str, Any] = {"messages": messages, "stream": True, "stream_options": {"include_usage": True}}
    if model:
        body["model"] = model
    response = client.open("POST", "/v1/chat/completions", "answer", body)
    if response.status != 200:
        raise Failed(_refusal(client, response))
    return response


def parts(response: Iterable[bytes], heard: ChatResult) -> Iterator[str]:
    """Yields the text as it arrives. A broken stream is noted in ``error``."""
    done = False
    try:
        for raw in response:
            line = raw.strip()
            if not line.startswith(b"data:"):
                continue
            if (data := line[5:].strip()) == b"[DONE]":
                done = True
                break
            event = json.loads(data)
            if "error" in event:
                error = event["error"]
                heard.error = str(error.get("message") if isinstance(error, dict) else error)
                return
            yield from _text(event, heard)
    except (OSError, ValueError, TypeError, AttributeError, http.client.HTTPException) as error:
        # the last two: JSON of another shape, which a provider's own events may have
        heard.error = f"the answer broke off ({type(error).__name__})"
        return
    if not done:
        heard.error = "the answer broke off"


def _text(event: Mapping[str, Any], heard: ChatResult) -> Iterator[str]:
    if usage := event.get("usage"):
        heard.tokens = usage.get("completion_tokens")
    for choice in event.get("choices") or ():
        delta = choice.get("delta") or {}
        heard.finish = choice.get("finish_reason") or heard.finish
        if delta.get("content") or delta.get("reasoning_content") or delta.get("reasoning"):
            heard.last_at = time.monotonic()
            heard.first_at = heard.first_at or heard.last_at
        content = delta.get("content")
        if isinstance(content, list):  # of blocks, of which others may be thoughts (Mistral's reasoning models)
            content = "".join([block["text"] for block in content if block.get("type") == "text"])
        if content:
            heard.text += content
            yield content


def report(response: http.client.HTTPResponse, heard: ChatResult, as_json: bool, environ: Mapping[str, str]) -> None:
    """Prints who answered, after how many attempts, and how fast; as JSON with the answer."""
    model, attempts = response.headers.get("X-Mana-LLM-Resolved"), response.headers.get("X-Mana-LLM-Attempts")
    first = heard.first_at - heard.began if heard.first_at is not None else None
    took = heard.last_at - (heard.first_at or heard.last_at)
    # the first token ends the wait; the others arrive between the first chunk and the last
    rate = (heard.tokens - 1) / took if heard.tokens and heard.tokens > 1 and took > 0.01 else None
    if as_json:
        value = {
            "answer": heard.text,
            "model": model,
            "attempts": int(attempts) if attempts and attempts.isdigit() else None,
            "first_token_ms": round(first * 1000) if first is not None else None,
            "tokens": heard.tokens,
            "tokens_per_second": round(rate, 1) if rate is not None else None,
            "finish_reason": heard.finish,
            "error": heard.error,
        }
        print(json.dumps(value, indent=2))
        return
    if heard.text and not heard.text.endswith("\n"):
        print(flush=True)
    if heard.error is not None:
        print(printable(heard.error), file=sys.stderr)
    words = [clean(model or "unknown"), f"{clean(attempts)} attempt{'' if attempts == '1' else 's'}"]
    if first is not None:
        words.append(f"first token after {first:.2f} s")
    if rate is not None:
        words.append(f"{rate:.0f} tokens/s")
    line = f"-- {', '.join(words)}"
    print(f"\033[2m{line}\033[0m" if colours(environ) else line)


def _refusal(client: Client, response: http.client.HTTPResponse) -> str:
    """The error's message, and whose it is if it is not the proxy's own, which says what to do next."""
    try:
        error = json.load(response)["error"]
        source = f" from {error.get('target')}" if error.get("source") == "provider" else ""
        return printable(f"{response.status}{source}: {error['message']}")
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError, http.client.HTTPException):
        return f"no proxy answers at {client.place}: what answers there is something else ({response.status})"
