"""Errors for references to responses: unknown ones, and too much of them. They say how to do without stored ones."""

from __future__ import annotations

from manallm_proxy.contract.errors import InvalidRequest, Overloaded
from manallm_proxy.doors.responses.store import LONGEST_ID

_LOST = (
    "it was made with store: false, with another key, too long ago (responses.ttl) or before this proxy was restarted, "
    "was deleted, or made room for others (responses.memory)"
)
_WHY = f"{_LOST}. Send the whole conversation as 'input' and set store to false"


class PreviousResponseNotFound(InvalidRequest):
    """``previous_response_id`` is unknown, expired, or another client's."""

    code = "previous_response_not_found"

    def __init__(self, id_: str) -> None:
        super().__init__(
            f"Previous response with id '{id_[:LONGEST_ID]}' not found: {_WHY}", param="previous_response_id"
        )


class ItemNotFound(InvalidRequest):
    """An ``item_reference`` names an item that is unknown, expired, or another client's."""

    status = 404
    code = "item_not_found"

    def __init__(self, id_: str, path: str) -> None:
        super().__init__(f"Item with id '{id_[:LONGEST_ID]}' not found ({path}): {_WHY}", param=path)


class ConversationTooLong(InvalidRequest):
    """A request is within its bounds, but not with what it refers to. `bound`: with the key that raises it."""

    def __init__(self, bound: str) -> None:
        super().__init__(f"the conversation, with all that the request refers to, has more than {bound}")


class ResponseNotFound(InvalidRequest):
    """The response of ``/v1/responses/{id}`` is unknown, expired, or another client's."""

    status = 404
    code = "response_not_found"

    def __init__(self, id_: str) -> None:
        super().__init__(f"Response with id '{id_[:LONGEST_ID]}' not found: {_LOST}")


class NotLookedUp(Overloaded):
    """Whether something is stored cannot be told now, since `keeper`, who may have it, does not answer: no reason for a
    client to give up a conversation."""

    def __init__(self, keeper: str) -> None:
        super().__init__(
            f"{keeper} does not answer now, and may keep what this request refers to; try again, or send the whole "
            "conversation as 'input'",
            retry_after=1.0,
        )
