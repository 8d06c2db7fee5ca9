"""``chat`` on a terminal: turn after turn, with all that was said before. Nothing of it is kept anywhere."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Mapping
from typing import Final

from manallm_proxy.cli.chat import Heard, ask, parts, report
from manallm_proxy.cli.client import Client, Failed, printable

PROMPT: Final = "> "
ENDS: Final = frozenset(("/exit", "/quit", "/bye"))


def is_wanted(text: str | None, as_json: bool) -> bool:
    """Whether a person is there to talk, and has not said all already."""
    return text is None and not as_json and all(each is not None and each.isatty() for each in (sys.stdin, sys.stdout))


def converse(url: str | None, model: str | None, environ: Mapping[str, str]) -> int:
    """Until ``/exit`` or the end of input; Ctrl-C ends an answer, or a line. Raises Failed where no proxy is."""
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
    """One question and its answer, added to `said`: without an answer, as if it had not been asked."""
    heard = Heard(time.monotonic())
    said.append({"role": "user", "content": text})
    try:
        response = ask(client, said, model)
        with contextlib.closing(response):  # which ends the provider's work where the answer is stopped
            try:
                for part in parts(response, heard):
                    print(printable(part), end="", flush=True)
            except KeyboardInterrupt:
                print(" (stopped)", end="" if heard.text else "\n")
            report(response, heard, False, environ)
    except Failed as failed:
        print(failed, file=sys.stderr)
    except KeyboardInterrupt:  # before the first word
        print("(stopped)")
    if heard.text:
        said.append({"role": "assistant", "content": heard.text})
    else:
        said.pop()
