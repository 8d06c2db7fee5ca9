"""Connections to providers.

aiohttp is imported here, before anything else does it, so that it takes less. Its import makes two TLS contexts, and
reads all certificates of the system for each: 40 ms and 2 MiB. Neither is ever used: all connections have a context of
ours (`tls.context`), made for the first provider with ``https://``. And its ``frozenlist`` comes as Python: in C++ it
brings a library of 1 MiB, for lists of listeners that are looked at once a session.
"""

from __future__ import annotations

import os
import ssl
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

_PLAIN: Final = "FROZENLIST_NO_EXTENSIONS"


@contextmanager
def _slim() -> Iterator[None]:
    """TLS contexts made meanwhile know no certificate, so that they trust nobody."""
    was = os.environ.get(_PLAIN)
    os.environ[_PLAIN] = "1"
    ssl.SSLContext.set_default_verify_paths = lambda self: None  # type: ignore[method-assign]  # before the one in C
    try:
        yield
    finally:
        del ssl.SSLContext.set_default_verify_paths
        del os.environ[_PLAIN]
        if was is not None:
            os.environ[_PLAIN] = was


if "aiohttp" not in sys.modules:
    with _slim():
        import aiohttp  # noqa: F401
