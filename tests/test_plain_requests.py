"""A request of Responses that is recognised without being decoded is the same request, or is not recognised."""

from __future__ import annotations

import json
import warnings
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from manallm_proxy.contract.door import Client
from manallm_proxy.contract.errors import InvalidRequest, ProxyError
from manallm_proxy.contract.provider import Call
from manallm_proxy.doors.carried import KEPT, Carried, pack
from manallm_proxy.doors.responses import door, native, request
from manallm_proxy.doors.responses.plain_request import plain_request
from manallm_proxy.doors.responses.request import Asked, read_request
from manallm_proxy.doors.responses.store import MemoryStore
from tests.cases import every
from tests.responses import Clock

SOME: Any = st.sampled_from([None, True, False, 0, 1, 3.0, 2**64, "", "x", [], ["x"], [1], {}, {"a": [{}]}])
ITEM: Any = st.fixed_dictionaries(
    {},
    optional={
        "type": st.sampled_from(
            ["message", "function_call", "function_call_output", "reasoning", "item_reference", "x"]
        )
        | SOME,
        "id": st.just("m_1") | SOME,
        "role": st.just("user"),
        "content": SOME,
        "encrypted_content": st.sampled_from([None, pack(Carried("p")), "sealed"]),
        KEPT: st.sampled_from([None, pack(Carried("p"))]),
    },
)
KEYS = [
    *("instructions", "max_tool_calls", "metadata", "previous_response_id", "prompt_cache_key", "reasoning", "store"),
    *("safety_identifier", "text", "truncation", "background", "conversation", "prompt", "include", "stream", "model"),
    *("temperature", "tools", "tool_choice", "error"),
]
FIELDS: Any = st.dictionaries(st.sampled_from(KEYS), SOME, max_size=4)
INPUT: Any = st.lists(ITEM | ITEM | SOME, max_size=3) | SOME


def outcome(body: bytes) -> Any:
    try:
        return read_request(body)
    except ProxyError as error:
        return type(error), str(error), error.status


def apart(asked: Asked) -> Any:
    return asked.summary, asked.include, asked.stores, asked.previous, asked.fields(), asked.items()


@given(FIELDS, INPUT, st.booleans())
def test_it_is_read_as_if_it_were_decoded(fields: dict[str, Any], given_: Any, escaped: bool) -> None:
    """Or refused with the same words; and what is recognised so is for every provider, and refers to nothing."""
    body = json.dumps({**fields, "input": given_}).encode()
    if escaped:  # a name may be written otherwise
        body = body.replace(b'"encrypted_content"', b'"encrypted\\u005fcontent"').replace(b'"id"', b'"\\u0069d"')
    got = outcome(body)
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(request, "plain_request", lambda body: None)
        wanted = outcome(body)
    if not isinstance(got, Asked):
        assert got == wanted
        return
    assert apart(got) == apart(wanted) and not wanted.is_plain
    if got.is_plain:
        assert not any(map(door._is_reference, got.items()))
        assert not any(map(native._is_for_one, got.items()))


@every(
    [
        ("a text", {"input": "hi", "store": False, "instructions": "x", "temperature": 1, "tools": [{"type": "x"}]}),
        ("items", {"input": [{"role": "user", "content": "hi"}, {"type": "message", "id": "m_1", "content": []}]}),
        ("a call", {"input": [{"type": "function_call", "call_id": "c", "name": "f", "arguments": "{}", "id": "f_1"}]}),
        (
            "what it includes",
            {"input": "hi", "include": ["reasoning.encrypted_content"], "reasoning": {"effort": "low"}},
        ),
    ]
)
def test_what_is_plain(case: str, fields: dict[str, Any]) -> None:
    """And is asked of no decoder that makes something of it."""
    assert plain_request(json.dumps(fields).encode()) is not None, case


def test_a_number_beyond_all_is_the_providers_business() -> None:
    """As in a chat; what is written here does not repeat it, and what has to be translated is refused."""
    body = b'{"input":"hi","store":false,"stream":true,"temperature":1e999}'
    one = door.ResponsesDoor(MemoryStore(Clock()))
    reading = one.read(body, Client("r", None, {}, frozenset({"responses"})))
    assert isinstance(reading, tuple)
    call, reply = reading
    assert call.at("p", ("responses",)).body is body
    assert b'"temperature":null' in reply.heartbeat()
    with pytest.raises(InvalidRequest):
        call.translated()
    with pytest.raises(InvalidRequest):
        one.read(body, Client("r"))


def test_a_plain_request_is_not_decoded_for_a_provider_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where nothing of it is kept."""
    body = b'{"model":"m","input":[{"role":"user","content":"hi"}],"store":false}'
    monkeypatch.setattr(request, "read_texts", lambda *_: pytest.fail("it was decoded"))
    reading = door.ResponsesDoor(MemoryStore(Clock())).read(body, Client("r", None, {}, frozenset({"responses"})))
    assert isinstance(reading, tuple)
    call: Call = reading[0]
    assert call.at("p", ("responses",)) is call and call.response_fields["store"] == b"false"


@pytest.mark.parametrize("fields", [{"input": "x" * 300_000}, {"input": "hi", "previous_response_id": "resp_1"}])
def test_a_request_whose_client_left_while_it_was_read_gives_no_warning(fields: dict[str, Any]) -> None:
    """A large one is given to a thread, and what the thread made of it is awaited by nobody then."""
    body = json.dumps(fields).encode()
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        reading = door.ResponsesDoor(MemoryStore(Clock())).read(body, Client("r"))
        assert not isinstance(reading, tuple)
        del reading
    assert not seen
