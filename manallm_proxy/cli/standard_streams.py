"""Standard input, output and error, as every command finds them."""

from __future__ import annotations

import io
import os
import sys


def prepare() -> None:
    """Opens those that are closed on /dev/null, and makes both outputs take every character.

    Else a socket would get the number of a closed one, and what is printed would go to a client. Python has None for a
    closed one, and prints to standard output what is meant for a closed standard error.
    """
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        try:
            os.fstat(number)
        except OSError:
            opened = os.open(os.devnull, os.O_RDWR)  # the lowest number that is free, so most likely this one
            if opened != number:
                os.dup2(opened, number)
                os.close(opened)
        if getattr(sys, name) is None:
            setattr(sys, name, open(number, "w" if number else "r", closefd=False))  # noqa: SIM115  # kept to the end
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a model's name that the locale cannot write must not end a start
            stream.reconfigure(errors="backslashreplace")
