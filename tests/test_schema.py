"""A request read once, and rewritten without touching what is the client's."""

from __future__ import annotations

import contextlib
import json
from typing import Any

import msgspec
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from manallm_proxy.contract.answers import Usage
from manallm_proxy.contract.attempts import AttemptRecord, NoProvider
from manallm_proxy.contract.door import Client
from manallm_proxy.contract.errors import InvalidRequest
from manallm_proxy.contract.provider import RequestSummary
from manallm_proxy.contract.provider_errors import KeyRejected
from manallm_proxy.doors.openai_completions import CompletionsDoor
from manallm_proxy.openai import json_object, request
from manallm_proxy.openai.errors import error_body
from manallm_proxy.openai.json_object import split_object
from manallm_proxy.openai.request import made_request, may_have_images, read_summary
from manallm_proxy.openai.request import rewrite as rewrite_in_parts
from manallm_proxy.openai.usage import usage_from_openai, usage_to_openai
from manallm_proxy.openai.vectors import vector_length
from tests.cases import every

CHAT: tuple[str, type] = ("messages", list)
keys = st.text(max_size=3) | st.sampled_from(["model", "a", 'a"', 'a":1,"b', "\\", "\n", "\u00fc", "\ud83d\ude00", "{"])
leaves = st.none() | st.booleans() | st.integers(-9, 9) | st.floats(-9, 9) | keys
json_values = st.recursive(leaves, lambda inner: st.lists(inner, max_size=2) | st.dictionaries(keys, inner, max_size=2))


def rewrite(*args: Any, **options: Any) -> bytes:
    """In one piece."""
    return bytes(rewrite_in_parts(*args, **options))


def read(body: bytes) -> RequestSummary:
    return read_summary(body, CHAT)


@given(
    st.lists(st.tuples(keys, json_values), max_size=5),
    st.sampled_from([(", ", ": "), (",", ":"), (",", ": "), (" ,", ":"), (",  ", ":\n")]),
    st.booleans(),
    st.sampled_from(["", " ", ",", "}"]),
)
def test_where_values_stand_does_not_depend_on_how_they_are_looked_for(
    members: list[tuple[str, Any]], separators: tuple[str, str], ascii_only: bool, more: str
) -> None:
    """Written again and compared, or found one by one: the same places, and the same objects are refused."""

    def text(value: Any) -> str:
        return json.dumps(value, separators=separators, ensure_ascii=ascii_only)

    comma, colon = separators
    body = f"{{{comma.join(f'{text(key)}{colon}{text(value)}' for key, value in members)}}}{more}".encode(
        errors="surrogatepass"
    )

    def found() -> Any:
        try:
            return split_object(body)
        except InvalidRequest as error:
            return error.message, error.param

    usual = found()
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(json_object, "_usual_spans", lambda body, values: None)
        assert found() == usual


contents = st.text(max_size=3) | st.sampled_from(
    ["image_url", [{"type": "image_url", "image_url": {"url": "data:x"}}], [{"type": "text", "text": '"image_url"'}]]
)


@given(
    st.fixed_dictionaries(
        {"messages": st.lists(st.fixed_dictionaries({"role": st.just("user"), "content": contents}), max_size=2)},
        optional={
            "model": st.text(max_size=3),
            "stream": st.booleans(),
            "tools": st.lists(st.just({"type": "function", "function": {"name": "f"}}), max_size=1),
            "max_tokens": st.integers(1, 9),
        },
    ),
    st.sampled_from([None, "embedding"]),
    st.booleans(),
)
def test_what_was_made_here_is_not_read_again(fields: dict[str, Any], need: str | None, large: bool) -> None:
    """The same body, and the same of it, as if it had been written at once and read."""
    body, summary = made_request(fields, CHAT, need, large=large)
    expected = read_summary(body, CHAT, need)
    assert body == msgspec.json.encode(fields)
    assert summary.needs == expected.needs
    assert summary == expected


@given(st.lists(st.sampled_from([b"_", b"_" * 60, b'"image', b'"image_url"', b'_url"', b"x"]), max_size=9))
def test_a_word_is_found_wherever_it_stands(parts: list[bytes]) -> None:
    """By its underscore first, as long as there are few of them."""
    body = b"".join(parts)
    assert may_have_images(body) is (b'"image_url"' in body)


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
    b"": (None, "empty"),
    b"{": (None, "JSON"),
    b"[]": (None, "object"),
    b'"x"': (None, "object"),
    b"null": (None, "object"),
    b'{"messages":[]} x': (None, "JSON"),
    b'{"messages":["\xff"]}': (None, "UTF-8"),
    b'{"messages":[{"content":[{"text":"\xc0\x80"}]}]}': (None, "UTF-8"),
    b'{"messages":["\xed\xa0\x80"]}': (None, "UTF-8"),
    b'{"mess\xffages":[]}': (None, "UTF-8"),
    b" \n": (None, "JSON"),
    b"\x00": (None, "JSON"),
    b"3": (None, "object"),
    b'{"messages":[],}': (None, "JSON"),
    b'{"messages":[]}{"messages":[]}': (None, "JSON"),
    b'{"messages":["a\nb"]}': (None, "JSON"),
    b"{'messages':[]}": (None, "JSON"),
    b'{"messages":[],"x":Infinity}': (None, "JSON"),
    b'{"messages":[],"x":01}': (None, "JSON"),
    b'{"messages":[NaN]}': (None, "JSON"),
    b'{"messages":' + b"[" * 10**6 + b"]" * 10**6 + b"}": (None, "deep"),
    b'{"messages":[],"model":"a","model":"b"}': ("model", "twice"),
    b'{"messages":[],"model":"a","model":"a"}': ("model", "twice"),
    b'{"messages":[],"model":"a","mod\\u0065l":"b"}': ("model", "twice"),
    b'{"messages":[],"messages":[]}': ("messages", "twice"),
    b'{"mod\\u0065l":"b","messages":[],"model":"a"}': ("model", "twice"),
    b'{"messages":[], "model" : "a" , "model" : "ab" }': ("model", "twice"),
    b'{"seed":12,"seed":1,"model":"a","messages":[]}': ("seed", "twice"),
    b'{"seed":1,"seed":12,"model":"a","messages":[]}': ("seed", "twice"),
    b'{"seed":1.5,"seed":1,"model":"a","messages":[]}': ("seed", "twice"),
    b'{"":1,"":1,"messages":[]}': ("", "twice"),
    b'{"messages":[],"model":3}': ("model", "string"),
    b'{"messages":[],"model":["a"]}': ("model", "string"),
    b'{"messages":[],"model":' + b"9" * 5000 + b"}": ("model", "string"),
    b'{"messages":[],"model":true}': ("model", "string"),
    b'{"messages":[],"stream_options":"x"}': ("stream_options", "object"),
    b'{"messages":[],"stream":"true"}': ("stream", "true or false"),
    b'{"messages":[],"stream":1}': ("stream", "true or false"),
    b'{"messages":[],"stream_options":[]}': ("stream_options", "object"),
    b'{"messages":{}}': ("messages", "array"),
    b'{"messages":null}': ("messages", "array"),
    b'{"messages":"hi"}': ("messages", "array"),
    b'{"messages":7}': ("messages", "array"),
    b'{"model":"a"}': ("messages", "missing"),
    b"{}": ("messages", "missing"),
}


@every(BAD)
def test_bad_input_names_its_param(body: bytes) -> None:
    """Before any provider is asked."""
    param, word = BAD[body]
    with pytest.raises(InvalidRequest, match=word) as told:
        read(body)
    assert told.value.param == param


@pytest.mark.parametrize(
    ("body", "sent"),
    [
        (b'{"messages":["a \\ud83d"],"model":"x"}', b'{"messages":["a \\ud83d"],"model":"p/m"}'),
        (
            b'{"messages":["\\ude00\\ud83d \\ud83d\\ude00"]}',
            b'{"model":"p/m","messages":["\\ude00\\ud83d \\ud83d\\ude00"]}',
        ),
        (b'{"messages":["\\\\ud83d"]}', b'{"model":"p/m","messages":["\\\\ud83d"]}'),
        (b'{"messages":[],"\\udfff":1}', b'{"model":"p/m","messages":[],"\\udfff":1}'),
        (b'\xef\xbb\xbf {"messages":[]}', b' {"model":"p/m","messages":[]}'),
    ],
)
def test_legal_json_that_our_decoder_refuses_keeps_its_bytes(body: bytes, sent: bytes) -> None:
    """RFC 8259 8.1 and 8.2: half of a surrogate pair goes on as it came, a byte order mark is dropped."""
    assert rewrite(read(body), body, "p/m") == sent


@pytest.mark.parametrize("prompt", [b"{}", b"3", b"true"])
def test_a_prompt_of_a_wrong_type_is_refused(prompt: bytes) -> None:
    """Found by schemathesis: where null is allowed too, it was a 500."""
    with pytest.raises(InvalidRequest, match="'prompt' must be a string or an array or null"):
        CompletionsDoor().read(b'{"prompt":' + prompt + b"}", Client("id-1"))


@pytest.mark.parametrize("prompt", [b"null", b'""', b"[]"])
def test_what_a_prompt_may_be(prompt: bytes) -> None:
    """null is the beginning of a text."""
    assert CompletionsDoor().read(b'{"prompt":' + prompt + b"}", Client("id-1"))[0].summary.model == ""


@pytest.mark.parametrize("number", [b"9" * 5000, b"-" + b"9" * 5000, b"1e999", b"0." + b"1" * 5000])
def test_a_huge_number_is_the_providers_business(number: bytes) -> None:
    """Its bytes are kept."""
    body = b'{"messages":[],"seed":' + number + b"}"
    assert rewrite(read(body), body, "m").endswith(number + b"}")


@pytest.mark.parametrize("body", [b'{"messages":[]}', b'{"messages":[],"model":""}', b'{"messages":[],"model":null}'])
def test_no_model_is_the_default_one(body: bytes) -> None:
    """Missing, empty and null say the same."""
    assert read(body).model == ""
    assert json.loads(rewrite(read(body), body, "m"))["model"] == "m"


@pytest.mark.parametrize("nothing", [b"[]", b"[ ]", b"[\n\t]", b"null"])
def test_no_tools_are_no_need(nothing: bytes) -> None:
    """However an empty list is written; a model without tools is not refused for it."""
    assert read(b'{"messages":[],"tools":' + nothing + b"}").needs == frozenset()
    assert read(b'{"messages":[],"tools":[ {}]}').needs == {"tools"}


def test_what_an_endpoint_needs_is_added() -> None:
    """Embeddings, of every body that asks for them."""
    assert read_summary(b'{"input":"x"}', ("input", (str, list)), "embedding").needs == {"embedding"}
    with pytest.raises(InvalidRequest, match="a string or an array"):
        read_summary(b'{"input":3}', ("input", (str, list)), "embedding")


def test_a_key_twice_further_in_is_the_providers_business() -> None:
    """We route by nothing in there."""
    body = b'{"messages":[{"role":"user","role":"system"}],"x":{"model":1,"model":2},"model":"a"}'
    assert rewrite(read(body), body, "b") == body.replace(b'"a"', b'"b"')


@pytest.mark.parametrize("space", [b" ", b"\t", b"\n", b"\r\n", b" " * 70, b"\n" * 1000])
def test_white_space_anywhere_stays(space: bytes) -> None:
    """Before, between, after; more of it than anyone would write."""
    parts = [b"", b"{", b'"messages"', b":", b"[]", b",", b'"model"', b":", b'"x"', b",", b'"n"', b":", b"1", b"}", b""]
    body = space.join(parts)
    assert rewrite(read(body), body, "a/b") == body.replace(b'"x"', b'"a/b"')


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
    new = rewrite(head, body, "p/m", ask_usage=True)
    assert json.loads(new) == {**sent, "model": "p/m", "stream_options": {**(options or {}), "include_usage": True}}
    before, after = split_object(body)[0], split_object(new)[0]
    assert {k: bytes(v) for k, v in before.items() if k not in ("model", "stream_options")}.items() <= {
        k: bytes(v) for k, v in after.items()
    }.items()
    if model is not None:
        assert rewrite(head, body, model) == body or '"' in model


@pytest.mark.parametrize("odd", [None, 3, [], "x"])
def test_usage_that_is_none(odd: object) -> None:
    """Not every server sends an object."""
    assert usage_from_openai(odd) is None


def test_odd_numbers_in_usage_count_as_nothing() -> None:
    """Strings, null, negative, true."""
    assert usage_from_openai({"prompt_tokens": "7", "completion_tokens": -1}) == Usage()
    assert usage_from_openai({"prompt_tokens": True, "completion_tokens_details": {"reasoning_tokens": 3}}) == Usage(
        reasoning=3
    )
    assert usage_to_openai(Usage(3, 2, 1, 1))["total_tokens"] == 5


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
    assert json.loads(error_body(InvalidRequest("no", param="model")))["error"] == {
        "message": "no",
        "type": "invalid_request_error",
        "param": "model",
        "code": "invalid_request",
        "source": "manallm-proxy",
    }
    error = KeyRejected("x")
    error.target = "groq/a/b"
    told = json.loads(error_body(error))["error"]
    assert (told["source"], told["provider"], told["target"]) == ("provider", "groq", "groq/a/b")


WHITE = st.text(" \t\r\n", max_size=3).map(str.encode)
KEYS = st.text(st.characters(codec="utf-8"), max_size=8).filter(lambda key: key not in ("model", "stream_options"))


def in_letters(text: str, escaped: bool) -> bytes:
    """A JSON string, each letter of it escaped or none that need not be."""
    if not escaped:
        return json.dumps(text, ensure_ascii=False).encode()
    units = text.encode("utf-16-be")
    return b'"' + b"".join(b"\\u%02x%02x" % (units[n], units[n + 1]) for n in range(0, len(units), 2)) + b'"'


@st.composite
def bodies(draw: st.DrawFn) -> tuple[bytes, bytes]:
    """A request body spelled in any way JSON allows, and what must leave for target p/m."""
    fields: list[tuple[bytes, bytes, bytes]] = []
    for key in draw(st.lists(KEYS.filter(lambda key: key not in ("messages", "stream", "tools")), unique=True)):
        value = json.dumps(draw(VALUES), ensure_ascii=draw(st.booleans())).encode()
        fields.append((in_letters(key, draw(st.booleans())), value, value))
    fields.append((in_letters("messages", draw(st.booleans())), b"[ ]", b"[ ]"))
    front = b""
    if draw(st.booleans()):
        model = in_letters(draw(st.text(st.characters(codec="utf-8"), max_size=5)), draw(st.booleans()))
        fields.append((in_letters("model", draw(st.booleans())), model, b'"p/m"'))
    else:
        front += b'"model":"p/m",'
    if draw(st.booleans()):
        asked = b'{"x":[1],"include_usage":true}'
        fields.append((in_letters("stream_options", draw(st.booleans())), b'{ "x" : [ 1 ] }', asked))
    else:
        front += b'"stream_options":{"include_usage":true},'
    before = draw(WHITE) + b"{"
    after = before + front
    for number, (named, was, becomes) in enumerate(draw(st.permutations(fields))):
        start = (b"," if number else b"") + draw(WHITE) + named + draw(WHITE) + b":" + draw(WHITE)
        end = draw(WHITE)
        before, after = before + start + was + end, after + start + becomes + end
    end = b"}" + draw(WHITE)
    return before + end, after + end


@given(bodies())
def test_a_rewrite_keeps_every_other_byte(body: tuple[bytes, bytes]) -> None:
    """White space, escapes and order are the client's."""
    before, after = body
    assert rewrite(read(before), before, "p/m", ask_usage=True) == after


@given(st.integers(0, 3), OBJECTS, VALUES, VALUES, st.sampled_from([(", ", ": "), (",", ":")]))
@example(0, {}, 12, 1, (",", ":"))
def test_a_key_twice_is_never_overlooked(
    at: int, others: dict[str, Any], first: object, second: object, separators: tuple[str, str]
) -> None:
    """Whatever its two values are, and wherever it stands: a provider might read the other one."""
    rows = [(key, value) for key, value in others.items() if key not in ("twice", "messages")]
    rows[at:at] = [("twice", first), ("twice", second)]
    comma, colon = separators
    text = "{" + comma.join(json.dumps(k) + colon + json.dumps(v) for k, v in [*rows, ("messages", [])]) + "}"
    with pytest.raises(InvalidRequest) as told:
        read(text.encode())
    assert told.value.param == "twice"


@given(st.binary(max_size=80) | st.text('{}[]",:\\ \n19.eE-tn', max_size=40).map(str.encode))
def test_no_bytes_raise_anything_but_a_refusal(body: bytes) -> None:
    """A body is read, or refused with a reason."""
    with contextlib.suppress(InvalidRequest):
        assert isinstance(json.loads(rewrite(read(body), body, "p/m"))["messages"], list)


@pytest.mark.parametrize(
    ("usage", "counted"),
    [
        ({}, Usage()),
        ({"prompt_tokens": 3.0, "completion_tokens": None}, Usage(3)),
        ({"prompt_tokens": 3.5, "completion_tokens": True}, Usage()),
        ({"prompt_tokens": 3, "prompt_tokens_details": None, "completion_tokens_details": []}, Usage(3)),
        ({"prompt_tokens": 3, "prompt_tokens_details": {"cached_tokens": 2}}, Usage(3, cached=2)),
        (
            {"prompt_tokens": 9, "prompt_tokens_details": {"cached_tokens": 2, "cache_write_tokens": 4}},
            Usage(9, cached=2, written=4),
        ),
        ({"completion_tokens_details": {"reasoning_tokens": "9"}}, Usage()),
        ({"prompt_tokens": 9, "prompt_cache_hit_tokens": 4, "prompt_cache_miss_tokens": 5}, Usage(9, cached=4)),
        ({"prompt_tokens": 9, "cached_tokens": 4}, Usage(9, cached=4)),
        (
            {
                "prompt_tokens": 9,
                "prompt_tokens_details": {"cached_tokens": 3},
                "prompt_cache_hit_tokens": 4,
                "cached_tokens": 5,
            },
            Usage(9, cached=3),
        ),
    ],
)
def test_odd_usage_is_read_as_far_as_it_goes(usage: object, counted: Usage) -> None:
    """A count that is no whole number is none."""
    assert usage_from_openai(usage) == counted


def test_usage_as_clients_read_it() -> None:
    """Details only where there are any."""
    assert usage_to_openai(Usage(3, 2)) == {"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5}
    assert usage_from_openai(usage_to_openai(Usage(3, 2, 1, 1))) == Usage(3, 2, 1, 1)


def test_the_envelope_holds_what_is_added() -> None:
    """The attempt log stands beside the message; an error of no target names none."""
    told = json.loads(error_body(NoProvider("mana/x", [AttemptRecord("a/b", "cooling")], 3.0)))["error"]
    assert told["attempts"] == [{"model": "a/b", "reason": "cooling"}]
    told = json.loads(error_body(KeyRejected("x")))["error"]
    assert "target" not in told and "provider" not in told and "attempts" not in told


@pytest.mark.parametrize("key", ["Model", "MODEL", "\u017ftream", "Stream_Options", "Me\u017f\u017fages", "too\u212as"])
def test_a_key_that_go_would_read_as_ours_is_refused(key: str) -> None:
    """Servers in Go match keys without case: they would read this one where we route by the other."""
    body = json.dumps({"model": "m", "messages": [], key: 1}).encode()
    if key == "too\u212as":  # k is in none of them
        read_summary(body, ("messages", list))
        return
    with pytest.raises(InvalidRequest) as caught:
        read_summary(body, ("messages", list))
    assert caught.value.param == key


def test_keys_that_are_known_to_be_like_no_other() -> None:
    """Are left out of that look, so none of them may be."""
    known = request._KNOWN - request._ROUTED
    assert known and not {key.casefold() for key in known} & request._ROUTED
