"""Work on large requests and answers runs in threads, so that it does not delay other requests.

That does not make it cheaper, but the event loop gets its turns meanwhile. The threads are our own, and few: many large
requests wait for each other, and take no core from the loop.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import Final, ParamSpec, TypeVar

_P = ParamSpec("_P")
_T = TypeVar("_T")

LARGE_BYTES: Final = 256 * 1024
LARGE_PARTS: Final = 1000
"""Objects and lists from which a request costs milliseconds where it is translated, however few its bytes."""
REQUEST_ELEMENTS: Final = 3000
"""Objects, lists and commas from which a request costs milliseconds where it is translated, however few its bytes."""
ANSWER_ELEMENTS: Final = 8000
"""The same for an answer: five vectors of 1536 numbers are none of these."""
_TRIM_THRESHOLD: Final = -1
_MMAP_THRESHOLD: Final = -3
"""``M_TRIM_THRESHOLD`` and ``M_MMAP_THRESHOLD`` of malloc.h."""


@cache
def expect_large() -> None:
    """Lets glibc hold large blocks apart, as it does until the first of them is freed: so each goes back to the system.

    Else they come to lie among small ones that live longer, and a request of 30 MiB takes 160 MiB rather than 120. To
    be called before much that is large is held. Blocks up to a prompt of 200 KB do not go back each: memory that is new
    costs more than what is done with it.
    """
    import ctypes  # which takes long, and is not needed at the start

    with contextlib.suppress(OSError, AttributeError):  # another C library
        libc = ctypes.CDLL(None)
        libc.mallopt(_MMAP_THRESHOLD, 224 * 1024)
        libc.mallopt(_TRIM_THRESHOLD, 2**20)


_THREADS: Final = ThreadPoolExecutor(2, thread_name_prefix="large", initializer=expect_large)
"""They start with the first use."""


def is_large(body: bytes, elements: int = REQUEST_ELEMENTS) -> bool:
    """By bytes, or by what may be in them; commas in a text count, so that nothing has to be parsed."""
    size = len(body)
    if size > LARGE_BYTES:
        return True
    return size > elements and body.count(b",") + body.count(b"{") + body.count(b"[") > elements


def are_large(items: Sequence[bytes]) -> bool:
    """By bytes, or by number: all together, each a JSON object in which are two more at least."""
    return len(items) > LARGE_PARTS // 3 or sum(map(len, items)) > LARGE_BYTES


async def aside(large: bool, function: Callable[_P, _T], *args: _P.args, **kwargs: _P.kwargs) -> _T:
    """The result of `function`, which runs in a thread where its work is `large`, else here."""
    if not large:
        return function(*args, **kwargs)
    loop = asyncio.get_running_loop()
    return await loop.run_in_executor(_THREADS, lambda: function(*args, **kwargs))
