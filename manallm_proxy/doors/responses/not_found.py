"""References that lead nowhere. The message names the id, and says how to do without this proxy's memory."""

from __future__ import annotations

from manallm_proxy.contract.errors import InvalidRequest
from manallm_proxy.doors.responses.store import LONGEST_ID

_WHY = (
    "it was made with store: false, with another key, too long ago, or was deleted. "
    "Send the whole conversation as 'input' and set store to false"
)


class PreviousResponseNotFound(InvalidRequest):
    """``previous_response_id`` is unknown, gone, or somebody else's."""

    code = "previous_response_not_found"

    def __init__(self, id_: str) -> None:
        super().__init__(
            f"Previous response with id '{id_[:LONGEST_ID]}' not found: {_WHY}", param="previous_response_id"
        )


class ItemNotFound(InvalidRequest):
    """The same for an ``item_reference``."""

    status = 404
    code = "item_not_found"

    def __init__(self, id_: str, path: str) -> None:
        super().__init__(f"Item with id '{id_[:LONGEST_ID]}' not found ({path}): {_WHY}", param=path)


class ResponseNotFound(InvalidRequest):
    """The same for a response that is asked for by its address."""

    status = 404
    code = "response_not_found"

    def __init__(self, id_: str) -> None:
        super().__init__(
            f"Response with id '{id_[:LONGEST_ID]}' not found: it was made with store: false, with another key, "
            "too long ago, or was deleted"
        )
