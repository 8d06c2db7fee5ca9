"""Errors without the frames in which they were raised."""

from __future__ import annotations


def forget_frames(error: BaseException) -> None:
    """Lets go of the frames of `error` and of what led to it, and so of all that those frames hold: a prompt, twice.

    Error, traceback, frame and the frame's own variable for the error are a cycle. Only the collector would end it,
    which runs rarely here. Call it where an error has been dealt with.
    """
    seen: set[int] = set()
    links: list[BaseException | None] = [error]
    while links:
        link = links.pop()
        if link is not None and id(link) not in seen:
            seen.add(id(link))
            links += (link.__context__, link.__cause__)
            link.__traceback__ = link.__context__ = None
