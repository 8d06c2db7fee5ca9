"""Words of a refusal are found in a text of a request whichever way its client has written them."""

from __future__ import annotations

import json
from collections.abc import Callable

from manallm_proxy.contract.provider import Call, Endpoint, RequestSummary
from manallm_proxy.openai.json_object import split_object
from manallm_proxy.providers.mending import evidence
from manallm_proxy.providers.mending.history import refuses_signatures
from manallm_proxy.providers.mending.refused_fields import BESIDE_TEMPERATURE, TEMPERATURE, TOP_P, refused_field
from manallm_proxy.providers.mending.tool_schemas import JOINED, SCHEMAS, refused_form, refuses_schemas
from manallm_proxy.providers.mending.turns import DEVELOPER, refused_order
from manallm_proxy.providers.native import evidence as native
from manallm_proxy.providers.native.hints import ADAPTIVE, refused_hint
from manallm_proxy.providers.native.history import DEVELOPERS, UNSIGNED
from tests.cases import every


def call_with(text: str) -> Call:
    body = f'{{"messages":[{{"role":"user","content":{text}}}],"temperature":0.5,"top_p":0.5}}'.encode()
    _, spans = split_object(body)
    return Call(Endpoint.MESSAGES, RequestSummary("m", False, False, frozenset(), spans), body, "id")


def field(refusal: bytes) -> str:
    return refused_field(call_with('""'), refusal)


def form(refusal: bytes) -> str:
    return refused_form(refusal) if refuses_schemas(refusal) else ""


def hint(refusal: bytes) -> str:
    return refused_hint(call_with('""'), refusal)


def unsigned(refusal: bytes) -> str:
    return UNSIGNED if refuses_signatures(refusal) else ""


def developers(refusal: bytes) -> str:
    return DEVELOPERS if refused_order(refusal) == DEVELOPER else ""


QUOTED: list[tuple[Callable[[bytes], str], str, str]] = [
    (refused_order, DEVELOPER, "unknown variant 'developer"),
    (refused_order, DEVELOPER, 'unknown variant ""developer'),
    (refused_order, DEVELOPER, "tag \tdeveloper"),
    (refused_order, DEVELOPER, "developer\u2014is not supported"),
    (developers, DEVELOPERS, "developer: role is not one of"),
    (form, SCHEMAS, "the parameters: type"),
    (form, SCHEMAS, "parameters \u2014properties"),
    (form, JOINED, "anyOf at the top level"),
    (field, TEMPERATURE, f"temperature {'<' * 50} does not support"),
    (field, TOP_P, "top_p {` is unsupported"),
    (field, BESIDE_TEMPERATURE, f"temperature and top_p {'&' * 40} cannot both"),
    (hint, ADAPTIVE, "tag 'adaptive' found"),
    (hint, ADAPTIVE, "adaptive thinking' is not supported"),
    (unsigned, UNSIGNED, "signature\n in ''thinking"),
]


@every(QUOTED)
def test_words_of_a_text_that_a_server_may_quote(read: Callable[[bytes], str], what: str, words: str) -> None:
    """As Python's, Go's and .NET's write JSON: what is in a text of the caller's is no evidence."""
    assert read(words.encode()) == what
    angles = json.dumps(words).replace("<", r"\u003c").replace("&", r"\u0026")
    for text in (json.dumps(words), json.dumps(words, ensure_ascii=False), angles, angles.replace("'", r"\u0027")):
        assert not (native if what in native.LEARNED else evidence).is_for_all(call_with(text), what), text
