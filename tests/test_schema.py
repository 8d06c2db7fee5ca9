"""A request read once, and rewritten without touching what is the client's."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from manallm_proxy.errors import InvalidRequest, KeyRejected
from manallm_proxy.schema import Head, Usage, error_body, split_object, vector_length

CHAT: tuple[str, type] = ("messages", list)


def read(body: bytes) -> Head:
    return Head.read(body, CHAT)


def test_what_routing_needs() -> None:
    """Model, stream, usage, capabilities."""
    head = read(
        b'{"model":"mana/x","stream":true,"stream_options":{"include_usage":true},"tools":[{}],'
        b'"messages":[{"role":"user","content":[{"type":"image_url","image_url":{"url":"data:"}}]}]}'
    )
    assert (head.model, head.stream, head.wants_usage) == ("mana/x", True, True)
    assert head.needs == {"tools", "vision"}
    head = read(b'{"messages":[{"content":"image_url and \\"type\\":\\"image_url\\""}],"tools":[],"model":null}')
    assert (head.model, head.stream, head.wants_usage, head.needs) == ("", False, False, frozenset())


BAD: dict[bytes, tuple[str | None, str]] = {
    b"": (None, "JSON"),
    b"{": (None, "JSON"),
    b"[]": (None, "object"),
    b'"x"': (None, "object"),
    b"null": (None, "object"),
    b'\xef\xbb\xbf{"messages":[]}': (None, "JSON"),
    b'{"messages":[]} x': (None, "JSON"),
    b'{"messages":["\xff"]}': (None, "UTF-8"),
    b'{"messages":[NaN]}': (None, "JSON"),
    b'{"messages":["\\ud800"]}': (None, "JSON"),
    b'{"messages":' + b"[" * 100_000 + b"]" * 100_000 + b"}": (None, "deep"),
    b'{"messages":[],"model":"a","model":"b"}': ("model", "twice"),
    b'{"messages":[],"model":"a","model":"a"}': ("model", "twice"),
    b'{"messages":[],"model":"a","mod\\u0065l":"b"}': ("model", "twice"),
    b'{"messages":[],"messages":[]}': ("messages", "twice"),
    b'{"messages":[],"model":3}': ("model", "string"),
    b'{"messages":[],"model":["a"]}': ("model", "string"),
    b'{"messages":[],"stream":"true"}': ("stream", "true or false"),
    b'{"messages":[],"stream":1}': ("stream", "true or false"),
    b'{"messages":[],"stream_options":[]}': ("stream_options", "object"),
    b'{"messages":{}}': ("messages", "array"),
    b'{"messages":null}': ("messages", "array"),
    b'{"model":"a"}': ("messages", "missing"),
    b"{}": ("messages", "missing"),
}


@pytest.mark.parametrize("body", BAD, ids=lambda body: body[:40])
def test_bad_input_names_its_param(body: bytes) -> None:
    """Before any provider is asked."""
    param, word = BAD[body]
    with pytest.raises(InvalidRequest, match=word) as told:
        read(body)
    assert told.value.param == param


def test_a_huge_number_is_the_providers_business() -> None:
    """Its bytes are kept."""
    body = b'{"messages":[],"seed":' + b"9" * 5000 + b"}"
    assert read(body).rewrite(body, "m").endswith(b"9" * 5000 + b"}")


SCALARS = st.none() | st.booleans() | st.integers(-(2**60), 2**60) | st.text(st.characters(codec="utf-8"), max_size=20)
VALUES = st.recursive(
    SCALARS,
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(st.text(st.characters(codec="utf-8"), max_size=8), inner, max_size=4)
    ),
    max_leaves=10,
)
OBJECTS = st.dictionaries(st.text(st.characters(codec="utf-8"), max_size=8), VALUES, max_size=6)


@given(
    OBJECTS,
    st.sampled_from([None, "old", 'od"d\\']),
    st.sampled_from([None, {}, {"include_usage": False, "x": [1]}]),
    st.sampled_from([(", ", ": "), (",", ":"), (" ,\n\t", " :\r\n")]),
    st.booleans(),
)
def test_a_rewrite_changes_what_it_must_and_nothing_else(
    extra: dict[str, Any],
    model: str | None,
    options: dict[str, Any] | None,
    separators: tuple[str, str],
    ascii_only: bool,
) -> None:
    """As a value: the update. As bytes: all other values stay as they were."""
    sent: dict[str, Any] = {**extra, "messages": [{"role": "user", "content": "hi"}]}
    sent.pop("stream", None)
    sent.pop("tools", None)
    sent.pop("model", None)
    sent.pop("stream_options", None)
    if model is not None:
        sent["model"] = model
    if options is not None:
        sent["stream_options"] = options
    body = json.dumps(sent, separators=separators, ensure_ascii=ascii_only).encode()
    head = read(body)
    new = head.rewrite(body, "p/m", ask_usage=True)
    assert json.loads(new) == {**sent, "model": "p/m", "stream_options": {**(options or {}), "include_usage": True}}
    before, after = split_object(body)[0], split_object(new)[0]
    assert {k: bytes(v) for k, v in before.items() if k not in ("model", "stream_options")}.items() <= {
        k: bytes(v) for k, v in after.items()
    }.items()
    if model is not None:
        assert head.rewrite(body, model) == body or '"' in model


@pytest.mark.parametrize("odd", [None, 3, [], "x"])
def test_usage_that_is_none(odd: object) -> None:
    """Not every server sends an object."""
    assert Usage.from_openai(odd) is None


def test_odd_numbers_in_usage_count_as_nothing() -> None:
    """Strings, null, negative, true."""
    assert Usage.from_openai({"prompt_tokens": "7", "completion_tokens": -1}) == Usage()
    assert Usage.from_openai({"prompt_tokens": True, "completion_tokens_details": {"reasoning_tokens": 3}}) == Usage(
        reasoning=3
    )
    assert Usage(3, 2, 1, 1).to_openai()["total_tokens"] == 5


@pytest.mark.parametrize(
    ("body", "length"),
    [
        (b'{"embedding": [0.1,\n 2, 3e5]}', 3),
        (b'{"embedding":[]}', 0),
        (b'{"embedding":"AAAAPwAAgL4="}', 2),
        (b"{}", None),
    ],
)
def test_the_length_of_a_vector(body: bytes, length: int | None) -> None:
    """Floats or base64."""
    assert vector_length(body) == length


def test_the_envelope_says_whose_error_it_is() -> None:
    """The proxy's own, or a provider's with its target."""
    assert error_body(InvalidRequest("no", param="model"))["error"] == {
        "message": "no",
        "type": "invalid_request_error",
        "param": "model",
        "code": "invalid_request",
        "source": "manallm-proxy",
    }
    error = KeyRejected("x")
    error.target = "groq/a/b"
    told = error_body(error)["error"]
    assert (told["source"], told["provider"], told["target"]) == ("provider", "groq", "groq/a/b")
