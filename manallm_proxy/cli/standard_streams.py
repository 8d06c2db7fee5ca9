"""Makes standard input, output and error safe to use for every command."""

from __future__ import annotations

import io
import os
import sys


def discard_output() -> None:
    """Sends standard output to /dev/null from now on, after it could not be written: Python would try again at exit."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def greet(text: str) -> None:
    """Prints `text` for a person. A program that serves must not end because nobody reads it, or a disk is full."""
    try:
        print(text, flush=True)
    except OSError:
        discard_output()


def prepare() -> None:
    """Opens closed streams on /dev/null, and makes both outputs accept every character.

    Otherwise a socket would get the descriptor of a closed stream, and printed text would go to a client. Python has
    None for a closed stream, and prints to standard output what is meant for a closed standard error.
    """
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        try:
            os.fstat(number)
        except OSError:
            opened = os.open(os.devnull, os.O_RDWR)  # gets the lowest free number, so most likely this one
            if opened != number:
                os.dup2(opened, number)
                os.close(opened)
        if getattr(sys, name) is None:
            setattr(sys, name, open(number, "w" if number else "r", closefd=False))  # noqa: SIM115  # open to the end
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a name that the locale cannot encode must not prevent the start
            stream.reconfigure(errors="backslashreplace")
