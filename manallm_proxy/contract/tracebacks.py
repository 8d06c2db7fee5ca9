"""Releases what a handled exception keeps alive through its traceback."""

from __future__ import annotations


def clear_tracebacks(error: BaseException) -> None:
    """Drops the tracebacks of `error` and of its causes, whose frames keep a request's prompt alive.

    Error, traceback, frame and the frame's own variable for the error form a reference cycle, and the garbage
    collector runs rarely here. Call this once the error has been handled.
    """
    seen: set[int] = set()
    links: list[BaseException | None] = [error]
    while links:
        link = links.pop()
        if link is not None and id(link) not in seen:
            seen.add(id(link))
            links += (link.__context__, link.__cause__)
            link.__traceback__ = link.__context__ = None
