"""``chat`` on a terminal: an interactive conversation. Its history is sent with each turn and is not stored."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Mapping
from typing import Final

from manallm_proxy.cli.chat import ChatResult, ask, parts, report
from manallm_proxy.cli.client import Client, Failed, printable

PROMPT: Final = "> "
ENDS: Final = frozenset(("/exit", "/quit", "/bye"))


def is_wanted(text: str | None, as_json: bool) -> bool:
    """Whether to start a conversation: no text was given, and both ends are terminals."""
    return text is None and not as_json and all(each is not None and each.isatty() for each in (sys.stdin, sys.stdout))


def converse(url: str | None, model: str | None, environ: Mapping[str, str]) -> int:
    """Runs until ``/exit`` or end of input; Ctrl-C stops an answer or clears a line. Raises Failed without a proxy."""
    client = Client.find(url, environ)
    client.get("/v1/models", "list its models")
    with contextlib.suppress(ImportError):
        import readline  # noqa: F401  # input() edits lines with it, and brings earlier ones back
    print(f"{client.place}, {printable(model or 'the default alias')}. Ctrl-C stops an answer, /exit ends.")
    said: list[dict[str, str]] = []
    while True:
        try:
            text = input(PROMPT)
        except EOFError:
            print()
            return 0
        except KeyboardInterrupt:
            print()
            continue
        if text.strip() in ENDS:
            return 0
        if text.strip():
            _turn(client, model, said, text, environ)


def _turn(client: Client, model: str | None, said: list[dict[str, str]], text: str, environ: Mapping[str, str]) -> None:
    """Asks `text` and appends it with its answer to `said`; a question without an answer is removed again."""
    heard = ChatResult(time.monotonic())
    said.append({"role": "user", "content": text})
    try:
        response = ask(client, said, model)
        with contextlib.closing(response):  # closing the connection also stops the provider
            try:
                for part in parts(response, heard):
                    print(printable(part), end="", flush=True)
            except KeyboardInterrupt:
                print(" (stopped)", end="" if heard.text else "\n")
            report(response, heard, False, environ)
    except Failed as failed:
        print(failed, file=sys.stderr)
    except KeyboardInterrupt:  # before any text
        print("(stopped)")
    if heard.text:
        said.append({"role": "assistant", "content": heard.text})
    else:
        said.pop()
