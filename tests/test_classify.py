"""What a provider's refusal means, row by row."""

from __future__ import annotations

import base64
import errno
import ssl
import time
from typing import Any

import aiohttp
import pytest
from aiohttp.client_reqrep import ConnectionKey
from aiohttp.http_exceptions import BadStatusLine, LineTooLong
from hypothesis import given
from hypothesis import strategies as st

from manallm_proxy.contract.provider_errors import (
    BadResponse,
    Blame,
    ConnectFailed,
    ConnectTimeout,
    ContentBlocked,
    ContextTooLong,
    Disconnected,
    KeyRejected,
    MissingModel,
    ModelFailed,
    PaymentRequired,
    ProviderError,
    RateLimited,
    ReadTimeout,
    RequestRejected,
    RetryableStatus,
    ServerBusy,
    ServerFailed,
    Unsupported,
)
from manallm_proxy.http_client.api import secrets_of
from manallm_proxy.http_client.errors import ERRORS, transport_error, was_stale
from manallm_proxy.providers.classify import ErrorDetails, as_retryable, classify, envelope, in_band, parse_error
from manallm_proxy.providers.retry_after import duration, retry_after_of
from manallm_proxy.providers.scrub import clean, redact_secrets
from tests.cases import each_with_each, every

ROWS: list[tuple[int, str, str | None, type[ProviderError], Blame]] = [
    (302, "", None, BadResponse, Blame.TARGET),
    (204, "", None, BadResponse, Blame.TARGET),
    (400, "bad", None, RequestRejected, Blame.NOBODY),
    (400, "x", "context_length_exceeded", ContextTooLong, Blame.NOBODY),
    (400, "This model's maximum context length is 8192 tokens", None, ContextTooLong, Blame.NOBODY),
    (400, "m does not support tools", None, Unsupported, Blame.NOBODY),
    (400, "flagged", "content_policy_violation", ContentBlocked, Blame.NOBODY),
    (400, "no such", "model_not_found", MissingModel, Blame.MODEL),
    (400, "exceeds", "exceed_context_size_error", ContextTooLong, Blame.NOBODY),
    (400, "the prompt is longer than the context length", None, ContextTooLong, Blame.NOBODY),
    (413, "too many tokens", None, ContextTooLong, Blame.NOBODY),
    (400, '"m" does not support chat', None, Unsupported, Blame.NOBODY),
    (400, "m doesn't support images", None, Unsupported, Blame.NOBODY),
    (400, "flagged", "content_filter", ContentBlocked, Blame.NOBODY),
    (401, "", None, KeyRejected, Blame.NOBODY),
    (403, "<html>challenge</html>", None, KeyRejected, Blame.NOBODY),
    (405, "", None, RequestRejected, Blame.NOBODY),
    (408, "", None, RequestRejected, Blame.NOBODY),
    (410, "", None, RequestRejected, Blame.NOBODY),
    (415, "", None, RequestRejected, Blame.NOBODY),
    (424, "", None, RequestRejected, Blame.NOBODY),
    (498, "capacity", None, RequestRejected, Blame.NOBODY),
    (429, "", "credit_balance_exhausted", RateLimited, Blame.LOAD),
    (520, "<html>", None, ServerFailed, Blame.TARGET),
    (999, "", None, ServerFailed, Blame.TARGET),
    (403, "", None, KeyRejected, Blame.NOBODY),
    (403, "requires moderation", None, ContentBlocked, Blame.NOBODY),
    (402, "pay", None, PaymentRequired, Blame.NOBODY),
    (404, "no model", None, MissingModel, Blame.MODEL),
    (409, "", None, RequestRejected, Blame.NOBODY),
    (413, "", None, RequestRejected, Blame.NOBODY),
    (422, "", None, RequestRejected, Blame.NOBODY),
    (451, "", None, RequestRejected, Blame.NOBODY),
    (429, "", None, RateLimited, Blame.LOAD),
    (429, "", "insufficient_quota", RateLimited, Blame.LOAD),
    (500, "", None, ModelFailed, Blame.TARGET),
    (501, "", None, Unsupported, Blame.NOBODY),
    (502, "", None, ServerFailed, Blame.TARGET),
    (503, "", None, ServerFailed, Blame.TARGET),
    (503, "server busy, please try again.", None, ServerBusy, Blame.LOAD),
    (503, "Loading model", "unavailable_error", ServerBusy, Blame.LOAD),
    (504, "", None, ServerFailed, Blame.TARGET),
    (524, "", None, ServerFailed, Blame.TARGET),
    (529, "Overloaded", None, ServerBusy, Blame.LOAD),
]


@every(ROWS)
def test_each_status_has_its_error(
    status: int, message: str, code: str | None, kind: type[ProviderError], blame: Blame
) -> None:
    """Class and blame; the retryable ones are exactly the provider's."""
    error = classify(status, {}, ErrorDetails(message, code=code))
    assert (type(error), error.blame) == (kind, blame)
    assert error.retryable is (status < 400 or status == 429 or (status >= 500 and status != 501))


SHAPES: dict[str, tuple[bytes, str]] = {
    "OpenAI": (b'{"error":{"message":"m","type":"t","code":"c"}}', "m"),
    "Ollama": (b'{"error":"m"}', "m"),
    "OpenRouter": (b'{"error":{"code":502,"message":"m","metadata":{"error_type":"provider_unavailable"}}}', "m"),
    "Mistral": (b'{"object":"error","message":{"detail":[{"msg":"m"}]},"type":"t"}', "m"),
    "old vLLM": (b'{"object":"error","message":"m","type":"BadRequestError"}', "m"),
    "FastAPI": (b'{"detail":"m"}', "m"),
    "a list": (b'[{"error":{"code":400,"message":"m"}}]', "m"),
    "Venice": (b'{"error_type":"x","error_message":"m"}', "m"),
    "LM Studio": (b'{"error":{"message":"m"},"message":"m"}', "m"),
    "HTML": (b"<html>no</html>", ""),
    "nothing": (b"", ""),
    "a number": (b"3", ""),
    "deep": (b"[" * 5000, ""),
}


@pytest.mark.parametrize("shape", SHAPES)
def test_the_message_is_found_in_every_shape(shape: str) -> None:
    """Error bodies of OpenAI-compatible servers."""
    body, message = SHAPES[shape]
    assert envelope(body).message == message


@pytest.mark.parametrize(
    ("data", "kind"),
    [
        ({"error": {"message": "m", "code": 429}}, RateLimited),
        ({"error": {"message": "m", "code": "502"}}, ServerFailed),
        ({"error": {"message": "m", "code": "rate_limit_exceeded"}}, RateLimited),
        ({"error": {"message": "m", "code": "server_error"}}, ServerFailed),
        ({"error": {"message": "m", "code": "context_length_exceeded"}}, ContextTooLong),
        ({"error": {"message": "m", "type": "overloaded_error"}}, ServerBusy),
        ({"error": {"message": "m", "type": "BadRequestError"}}, RequestRejected),
        ({"error": {"message": "m", "type": "InternalServerError"}}, ServerFailed),
        ({"error": "text"}, ServerFailed),
        ({"error": {}}, ServerFailed),
    ],
)
def test_an_error_inside_a_200_has_the_status_of_its_words(data: object, kind: type[ProviderError]) -> None:
    """A number, a numeric string or a word; unknown is 502."""
    assert type(in_band(parse_error(data))) is kind


@every(
    [
        ({"retry-after": "7"}, "", 7.0),
        ({"retry-after": "7.66s"}, "", 7.66),
        ({"retry-after": "1e9"}, "", None),
        ({"retry-after": "soon"}, "", None),
        ({"retry-after": "-5"}, "", None),
        ({"retry-after": "Sat, 01 Jan 2000 00:00:30 GMT"}, "", 30.0),
        ({"retry-after": "Sat, 01 Jan 1999 00:00:30 GMT"}, "", 0.0),
        ({"retry-after-ms": "1500", "retry-after": "9"}, "", 1.5),
        ({"x-ratelimit-reset-requests": "2m59.56s", "x-ratelimit-remaining-requests": "0"}, "", 179.56),
        ({"x-ratelimit-reset-tokens": "7.66s", "x-ratelimit-remaining-tokens": "5"}, "", None),
        ({}, "Please try again in 5.289s. Visit ...", 5.289),
        ({}, "Please try again in 1m2s.", 62.0),
        ({}, "Please try again in 20 seconds", 20.0),
        ({}, "Please try again in 5 minutes.", 300.0),
        ({}, "Please try again in 1 hour.", 3600.0),
        ({}, "Please try again in 500 ms.", 0.5),
        ({}, "Please retry in 36.2s.", 36.2),
        ({}, "try again in 3 monkeys", 3.0),
        ({}, "no idea", None),
        ({"retry-after": "1000000000"}, "", 1e9),
        ({"retry-after": "9" * 400}, "", None),
        ({"retry-after": "nan"}, "", None),
        ({"retry-after": "inf"}, "", None),
        ({"retry-after": ""}, "", None),
        ({"retry-after": "1m2s"}, "", 62.0),
        ({"retry-after": "850ms"}, "", 0.85),
        ({"retry-after-ms": "nonsense", "retry-after": "9"}, "", 9.0),
        ({"retry-after": "Saturday, 01-Jan-00 00:00:30 GMT"}, "", 30.0),
        ({"retry-after": "Sat, 01 Jan 2000 02:00:30 +0200"}, "", 30.0),
        (
            {
                "x-ratelimit-reset-requests": "1s",
                "x-ratelimit-remaining-requests": "0",
                "x-ratelimit-reset-tokens": "850ms",
                "x-ratelimit-remaining-tokens": "0",
            },
            "",
            1.0,
        ),
        ({"retry-after": "soon"}, "please try again in 20s", 20.0),
        ({"retry-after": "", "x-ratelimit-reset-tokens": "7s", "x-ratelimit-remaining-tokens": "0"}, "", 7.0),
    ]
)
def test_when_to_come_back_in_every_dialect(headers: dict[str, str], text: str, seconds: float | None) -> None:
    """In headers, bodies and messages; nonsense is ignored."""
    got = retry_after_of(headers, text, wall=946684800.0)
    assert got == (pytest.approx(seconds) if seconds is not None else None)


@pytest.mark.parametrize(
    ("text", "seconds"), [("850ms", 0.85), ("1h", 3600), ("1h1m1s", 3661), ("", None), ("s", None), ("9" * 50, None)]
)
def test_durations(text: str, seconds: float | None) -> None:
    """Go's notation."""
    assert duration(text) == seconds


def test_what_a_client_may_see() -> None:
    """Bounded, on one line, no markup, nothing like a key."""
    assert clean("<html>secret</html>") == ""
    assert clean("a\n  b") == "a b"
    assert "sk-" not in clean("your key sk-abcdefghijklmnop1234 is wrong")
    assert "abc" not in clean("sent Bearer abcdef")
    assert len(clean("x" * 10_000)) == 500
    assert "\n" not in clean("a\nb") and clean("  ") == ""


@pytest.mark.parametrize(
    ("message", "shown"),
    [
        ("\ufeff<html>secret</html>", ""),
        ("<!DOCTYPE html><title>secret</title>", ""),
        ("<?xml version='1.0'?><Error>secret</Error>", ""),
        ("Bad gateway: <!DOCTYPE html><html><body>secret</body></html>", "Bad gateway:"),
        ("upstream said <HTML ><p>secret", "upstream said"),
        ("unexpected token <|im_start|> in a<b", "unexpected token <|im_start|> in a<b"),
    ],
)
def test_a_page_is_never_shown(message: str, shown: str) -> None:
    """Wherever in a message it begins; a lesser-than sign is no page."""
    assert clean(message) == shown


@pytest.mark.parametrize(
    "key",
    [
        "sk-proj-abcdefghijklmnop",
        "gsk_abcdefghijklmnopqr",
        "AIzaSyA1234567890abcdef",
        "hf_abcdefghijklmnop",
        "xai-abcdefghijklmn",
    ],
)
def test_nothing_like_a_key_is_shown(key: str) -> None:
    """In whichever provider's form, in the message or in the words beside it."""
    error = classify(422, {}, ErrorDetails(f"your key {key} is odd", kind=key, code=key, param=key))
    assert all(
        key not in str(part) for part in (error, error.message, error.type, error.code, error.param, error.detail)
    )


def test_the_words_beside_a_message_are_bounded() -> None:
    """A type, a code and a param are words, whatever a provider sends."""
    error = classify(400, {}, ErrorDetails("no", kind="t" * 9999, code="<html>secret</html>", param="p" * 9999))
    assert len(error.type) <= 500 and len(error.param or "") <= 500
    assert "<" not in str(error.code)


def test_our_own_key_is_taken_out_of_what_a_provider_quotes() -> None:
    """Whatever it looks like."""
    error = redact_secrets(classify(400, {}, ErrorDetails("who is hunter2?")), "hunter2")
    assert (error.message, str(error)) == ("who is [redacted]?", "who is [redacted]?")
    assert redact_secrets(classify(400, {}, ErrorDetails("no")), None).message == "no"


LONG_KEY = "k7Qv/0zTn+3bXw9LrYp2MdUe5sHfGa8c"


@each_with_each(range(440, 505), ["message", "kind", "code", "param"])
def test_no_part_of_a_key_is_left_where_a_text_is_cut(at: int, word: str) -> None:
    """Nor of a word beside the message: wherever in the key the five hundredth character lies."""
    said: dict[str, Any] = {"message": "no", word: "x" * at + LONG_KEY + "y" * 99}
    error = redact_secrets(classify(422, {}, ErrorDetails(**said)), LONG_KEY)
    shown = "".join(str(part) for part in (error, error.type, error.code, error.param, error.detail))
    assert LONG_KEY[:4] not in shown and LONG_KEY[4:8] not in shown


@pytest.mark.parametrize("length", [1990, 1999, 2010])
def test_no_part_of_a_key_is_left_of_a_text_that_shrinks(length: int) -> None:
    """Long keys become short marks, so a place far beyond the limit moves in front of it."""
    others = ("sk-" + "a" * 197 + " ") * 20
    error = redact_secrets(classify(422, {}, ErrorDetails(others[: length - 20] + LONG_KEY * 2)), LONG_KEY)
    assert LONG_KEY[:4] not in error.message


def test_a_key_that_looks_like_one_in_part_leaves_no_rest() -> None:
    """What looks like a key goes first, and would leave the rest of ours."""
    key = "sk-abcdefghijklmnop/qrstuvwxyz"
    error = redact_secrets(classify(400, {}, ErrorDetails(f"bad key {key}!")), key)
    assert error.message == "bad key [redacted]!"


BASIC = base64.b64encode(b"operator-name:hunter2").decode()


@pytest.mark.parametrize(
    ("name", "value", "quoted"),
    [
        ("Authorization", "Bearer t0kent0kent0ken", "t0kent0kent0ken"),
        ("Authorization", f"Basic {BASIC}", BASIC),
        ("Authorization", f"Basic {BASIC}", "operator-name:hunter2"),
        ("proxy-authorization", f"basic {BASIC}", "hunter2"),
        ("Authorization", f"Basic {BASIC}", "operator-name"),
        ("Cookie", "session=s3ss10ns3ss10n; theme=dark", "s3ss10ns3ss10n"),
        ("X-Api-Key", "value-of-it", "value-of-it"),
        ("X-Odd", "value-of-it", "value-of-it"),
    ],
)
def test_a_configured_header_is_taken_out_by_its_parts(name: str, value: str, quoted: str) -> None:
    """Whole, or as a provider takes it apart before it complains."""
    error = redact_secrets(classify(400, {}, ErrorDetails(f"no such {quoted} here")), *secrets_of(None, {name: value}))
    assert error.message == "no such [redacted] here"


def test_plain_words_of_a_header_stay() -> None:
    """A title's words are in many messages; a broken Basic is whatever it is."""
    assert secrets_of(None, {"X-Title": "Research assistant", "X": "flag"}) == ("Research assistant",)
    assert secrets_of("key-0123", {"Authorization": "Basic %%%"}) == ("Basic %%%", "key-0123")


@pytest.mark.parametrize("status", [408, 498, 409, 404])
def test_a_status_that_the_operator_lists_is_retryable(status: int) -> None:
    """It cools, and its own number is its reason; not listed it is the caller's."""
    error = classify(status, {"retry-after": "7"}, ErrorDetails("later"))
    listed = as_retryable(error, "groq", frozenset({status}))
    assert type(listed) is RetryableStatus
    assert (listed.error_type, listed.blame, listed.retryable) == (f"http_{status}", Blame.LOAD, True)
    assert as_retryable(error, "groq", frozenset()) is error


@pytest.mark.parametrize("status", [401, 429, 500])
def test_only_what_would_be_the_callers_can_be_listed(status: int) -> None:
    """The rest has its own rules already."""
    error = classify(status, {}, ErrorDetails())
    assert as_retryable(error, "groq", frozenset({status})) is error


def test_how_long_each_error_asks_to_wait() -> None:
    """From the header, the body or the text; an exhausted quota for ten minutes."""
    assert classify(429, {"retry-after": "7"}, ErrorDetails()).retry_after == 7.0
    assert classify(429, {"retry-after": "7"}, ErrorDetails("", retry_after=3.0)).retry_after == 3.0
    assert classify(429, {"retry-after": "7"}, ErrorDetails("", code="insufficient_quota")).retry_after == 600.0
    assert classify(503, {"retry-after": "7"}, ErrorDetails()).retry_after == 7.0
    assert [type(classify(n, {"retry-after": "7"}, ErrorDetails())) for n in (500, 502, 503)] == [
        ModelFailed,
        ServerFailed,
        ServerBusy,
    ]
    assert classify(429, {}, ErrorDetails()).retry_after is None


def test_a_status_of_the_caller_keeps_the_providers_words() -> None:
    """Same status, message, type, code and param."""
    error = classify(422, {}, ErrorDetails("too hot", kind="validation_error", code="too_hot", param="temperature"))
    assert (error.status, error.message, error.type, error.code, error.param) == (
        422,
        "too hot",
        "validation_error",
        "too_hot",
        "temperature",
    )
    assert "status 418" in classify(418, {}, ErrorDetails()).message


def test_the_message_of_a_failed_server_is_its_own_business() -> None:
    """It may hold a traceback; the status is enough."""
    assert "Traceback" not in classify(500, {}, ErrorDetails("Traceback (most recent call last)")).message


@pytest.mark.parametrize("depth", [10, 600, 900, 5000])
def test_a_message_nested_without_end_is_none(depth: int) -> None:
    """It is read as deep as real servers nest; deeper ones do not break the reader."""
    body = b'{"error":' + b'{"message":' * depth + b'"x"' + b"}" * depth + b"}"
    assert envelope(body).message in ("", "x")
    assert envelope(b'{"detail":' + b"[" * depth + b"]" * depth + b"}").message == ""


@pytest.mark.parametrize("wait", [b"-5", b"true", b"9" * 400, b"1e308", b'"soon"', b"[]", b"null"])
def test_a_wait_that_is_none(wait: bytes) -> None:
    """``availability.retry_after`` as anything but a sensible number."""
    assert envelope(b'{"error":{"message":"m","availability":{"retry_after":' + wait + b"}}}").retry_after is None


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(
                ["error", "code", "message", "detail", "metadata", "availability", "type", "param", "retry_after"]
            ),
            inner,
            max_size=5,
        )
    ),
)


@given(JSON, st.sampled_from([302, 400, 402, 403, 404, 429, 500, 503]))
def test_any_shape_becomes_an_error(data: object, status: int) -> None:
    """Whatever the body holds: a class of ours, a bounded message, a wait that is none or positive."""
    spoken = parse_error(data)
    for error in (
        in_band(spoken),
        classify(status, {}, spoken),
    ):
        assert len(error.message) <= 600
        assert error.retry_after is None or error.retry_after >= 0


@given(st.text(max_size=40) | st.from_regex(r"[A-Z][a-z]{2},? \d+ \w{3} -?\d+ \d+:\d+(:\d+)? \S*", fullmatch=True))
def test_any_header_is_a_wait_or_none(value: str) -> None:
    """Nothing that stands there raises."""
    got = retry_after_of({"retry-after": value, "retry-after-ms": value}, value, wall=0.0)
    assert got is None or got >= 0


def test_a_date_without_a_zone_is_in_the_worlds_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """In UTC, not in the time zone of this machine."""
    monkeypatch.setenv("TZ", "America/New_York")
    time.tzset()
    try:
        assert retry_after_of({"retry-after": "Sat, 01 Jan 2000 00:00:30 -0000"}, wall=946684800.0) == 30.0
    finally:
        monkeypatch.undo()
        time.tzset()


KEY = ConnectionKey("gpu.lan", 443, True, True, None, None, None)
REQUEST: aiohttp.RequestInfo = aiohttp.RequestInfo(url=None, method="POST", headers=None, real_url=None)  # type: ignore[arg-type]  # never read

TRANSPORT: list[tuple[BaseException, type[ProviderError], str | None]] = [
    (aiohttp.ClientConnectorDNSError(KEY, OSError(-2, "gpu.lan")), ConnectFailed, "dns"),
    (aiohttp.ClientConnectorError(KEY, OSError(errno.ECONNREFUSED, "x")), ConnectFailed, "refused"),
    (aiohttp.ClientConnectorError(KEY, OSError(errno.EHOSTUNREACH, "x")), ConnectFailed, "unreachable"),
    (aiohttp.ClientConnectorError(KEY, OSError(errno.ENETUNREACH, "x")), ConnectFailed, "unreachable"),
    (aiohttp.ClientConnectorError(KEY, OSError("x")), ConnectFailed, "failed"),
    (aiohttp.ClientConnectorSSLError(KEY, ssl.SSLError(1, "x")), ConnectFailed, "tls: handshake failed"),
    (
        aiohttp.ClientConnectorCertificateError(KEY, ssl.SSLCertVerificationError("x")),
        ConnectFailed,
        "tls: not verified",
    ),
    (ssl.SSLError(1, "x"), ConnectFailed, "tls: handshake failed"),
    (aiohttp.ConnectionTimeoutError(), ConnectTimeout, None),
    (aiohttp.SocketTimeoutError(), ReadTimeout, None),
    (TimeoutError(), ReadTimeout, None),
    (aiohttp.ServerDisconnectedError(), Disconnected, "closed"),
    (aiohttp.ClientPayloadError("x"), Disconnected, "closed"),
    (aiohttp.ClientOSError(errno.ECONNRESET, "x"), Disconnected, "reset"),
    (ConnectionResetError(), Disconnected, "reset"),
    (aiohttp.ClientResponseError(REQUEST, (), status=400, message="secret"), BadResponse, "malformed http"),
    (aiohttp.ContentTypeError(REQUEST, ()), BadResponse, "malformed http"),
    (LineTooLong(b"secret", 9), BadResponse, "malformed http"),
    (BadStatusLine("secret"), BadResponse, "malformed http"),
    (aiohttp.InvalidURL("x"), BadResponse, "malformed http"),
    (aiohttp.ClientConnectionError("secret"), Disconnected, "ClientConnectionError"),
]


@every(TRANSPORT)
def test_each_exception_of_the_transports_has_its_error(
    raised: BaseException, kind: type[ProviderError], detail: str | None
) -> None:
    """Retryable, with the provider's name, and without a word of what the exception held."""
    assert isinstance(raised, ERRORS)
    error = transport_error(raised, "gpu")
    assert (type(error), error and error.detail) == (kind, detail)
    assert error is not None and error.retryable and error.message.startswith("gpu: ")
    assert "secret" not in error.message and error.provider_status is None


@pytest.mark.parametrize("raised", [RuntimeError("x"), ValueError("x"), KeyError("x")])
def test_a_bug_is_none_of_the_transports(raised: BaseException) -> None:
    """So that no fallback hides it."""
    assert transport_error(raised, "gpu") is None


@pytest.mark.parametrize(
    ("raised", "stale"),
    [
        (aiohttp.ServerDisconnectedError(), True),
        (aiohttp.ClientOSError(errno.ECONNRESET, "x"), True),
        (ConnectionResetError(), True),
        (BrokenPipeError(), True),
        (TimeoutError(), False),
        (aiohttp.SocketTimeoutError(), False),
        (aiohttp.ClientConnectorError(KEY, OSError(errno.ECONNREFUSED, "x")), False),
        (aiohttp.ClientPayloadError("x"), False),
        (LineTooLong(b"x", 9), False),
    ],
)
def test_a_second_try_is_only_for_connections_that_were_dead(raised: BaseException, stale: bool) -> None:
    """A pooled one that was closed before a byte was read; never one that took its time."""
    assert was_stale(raised) is stale
