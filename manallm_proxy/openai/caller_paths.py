"""From places in a chat that a door made to places in the client's own request.

A provider's dialect refuses what it cannot say by its place in the chat (``messages[2].content[1].image_url.url``). A
client of another API has never seen that: there it may be ``input[3].content[0]``.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Final

from attrs import define, field, frozen

from manallm_proxy.contract.errors import ProxyError

_MESSAGE: Final = re.compile(
    r"messages\[(?P<n>\d+)\](?:\.content\[(?P<part>\d+)\]|\.tool_calls\[(?P<call>\d+)\])?(?:\.\w+|\[\d+\])*"
)
_FIELD: Final = re.compile(r"(\w+)(?:\.\w+|\[\d+\])*")


@frozen
class Origin:
    """Where one message of the chat came from. ``parts``, ``calls``: of its content's parts and its tool calls.

    Those may be left out where they stand in one place.
    """

    path: str
    parts: Sequence[str] = ()
    calls: Sequence[str] = ()


@define
class CallerPaths:
    """``root``: what the client calls all messages. ``fields``: its names of other fields, where they differ."""

    root: str
    origins: Sequence[Origin]
    fields: Mapping[str, str] = field(factory=dict)

    def path(self, told: str) -> str:
        """The client's path for one in the chat: as far in as it is known, and without an index where none is."""
        if told == "messages":
            return self.root
        match = _MESSAGE.fullmatch(told)
        if match is not None:
            return self._of_message(match)
        named = _FIELD.fullmatch(told)
        return self.fields.get(named[1], told) if named is not None else told

    def retell(self, error: ProxyError) -> None:
        """Puts the client's path into ``param``, and into the message where it names that or a message."""
        told = error.param
        if told is not None:
            error.param = self.path(told)
            error.message = error.message.replace(f"'{told}'", f"'{error.param}'")
        error.message = _MESSAGE.sub(self._of_message, error.message)

    def _of_message(self, match: re.Match[str]) -> str:
        number = int(match["n"])
        if number >= len(self.origins):
            return self.root
        origin = self.origins[number]
        for name, paths in (("part", origin.parts), ("call", origin.calls)):
            if match[name] is not None and int(match[name]) < len(paths):
                return paths[int(match[name])]
        return origin.path
