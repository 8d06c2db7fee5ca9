"""Maps paths in a chat that a door made to paths in the client's own request.

A provider's dialect names what it cannot express by its path in the chat (``messages[2].content[1].image_url.url``). A
client of another API has never seen that path: in its request it may be ``input[3].content[0]``.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Final

from attrs import field

from manallm_proxy.contract.errors import ProxyError
from manallm_proxy.contract.records import define

_MESSAGE: Final = re.compile(
    r"messages\[(?P<n>\d{1,9})\](?:\.content\[(?P<part>\d{1,9})\]|\.tool_calls\[(?P<call>\d{1,9})\])?"
    r"(?:\.\w+|\[\d+\])*"
)
"""The number of digits is limited, since the text may be a provider's."""
_FIELD: Final = re.compile(r"(\w+)(?:\.\w+|\[\d+\])*")


@define
class Origins:
    """The origin of each message of a chat.

    Plain strings, and tuples of them: a history has thousands, and every container object would slow down each garbage
    collection, which blocks all requests.
    """

    paths: list[str] = field(factory=list)
    """The client's path of each message."""
    parts: dict[int, tuple[str, ...]] = field(factory=dict)
    """By message: the path of each part of its content, if the parts have paths of their own."""
    calls: dict[int, tuple[str, ...]] = field(factory=dict)
    """By message: the path of each of its tool calls."""

    def add(self, path: str, parts: tuple[str, ...] = (), calls: tuple[str, ...] = ()) -> None:
        """Adds the next message."""
        if parts:
            self.parts[len(self.paths)] = parts
        if calls:
            self.calls[len(self.paths)] = calls
        self.paths.append(path)


@define
class HistoryPaths:
    """Paths in a list to which the items `before` were prepended, which came from the request's field `field_`."""

    root: str
    before: int
    field_: str

    def translate_error(self, error: ProxyError) -> None:
        """As `CallerPaths.translate_error`."""
        place = re.compile(rf"\b{re.escape(self.root)}\[(\d{{1,9}})\]((?:\.\w+|\[\d+\])*)")
        if error.param is not None:
            error.param = place.sub(self._own, error.param)
        error.message = place.sub(self._own, error.message)

    def _own(self, match: re.Match[str]) -> str:
        number = int(match[1]) - self.before
        return self.field_ if number < 0 else f"{self.root}[{number}]{match[2]}"


@define
class CallerPaths:
    """``root``: the client's name for all messages. ``fields``: its names of other fields, if they differ."""

    root: str
    origins: Origins
    fields: Mapping[str, str] = field(factory=dict)

    def path(self, param: str) -> str:
        """The client's path for a path in the chat, as far as it is known."""
        if param == "messages":
            return self.root
        match = _MESSAGE.fullmatch(param)
        if match is not None:
            return self._of_message(match)
        named = _FIELD.fullmatch(param)
        return self.fields.get(named[1], param) if named is not None else param

    def translate_error(self, error: ProxyError) -> None:
        """Puts the client's path into ``error.param``, and into the message where it names a path."""
        param = error.param
        rest = [error.message]
        if param is not None:
            error.param = self.path(param)
            rest = error.message.split(f"'{param}'")
        # the client's own path may look like one of the chat's, so nothing is translated twice
        error.message = f"'{error.param}'".join([_MESSAGE.sub(self._of_message, words) for words in rest])

    def _of_message(self, match: re.Match[str]) -> str:
        number = int(match["n"])
        if number >= len(self.origins.paths):
            return self.root
        for name, known in (("part", self.origins.parts), ("call", self.origins.calls)):
            paths = known.get(number, ())
            if match[name] is not None and int(match[name]) < len(paths):
                return paths[int(match[name])]
        return self.origins.paths[number]
