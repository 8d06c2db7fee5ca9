"""What a provider's refusal means, row by row (wire.md E.2)."""

from __future__ import annotations

import pytest

from manallm_proxy.errors import (
    BadResponse,
    Blame,
    ContentBlocked,
    ContextTooLong,
    KeyRejected,
    MissingModel,
    ModelFailed,
    NotImplementedByProvider,
    PaymentRequired,
    ProviderError,
    RateLimited,
    ServerBusy,
    ServerFailed,
    Unsupported,
    UpstreamSaid,
)
from manallm_proxy.wires.classify import classify, clean, duration, envelope, in_band, retry_after_of, said

ROWS: list[tuple[int, str, str | None, type[ProviderError], Blame]] = [
    (302, "", None, BadResponse, Blame.SERVICE),
    (204, "", None, BadResponse, Blame.SERVICE),
    (400, "bad", None, UpstreamSaid, Blame.NOBODY),
    (400, "x", "context_length_exceeded", ContextTooLong, Blame.NOBODY),
    (400, "This model's maximum context length is 8192 tokens", None, ContextTooLong, Blame.NOBODY),
    (400, "m does not support tools", None, Unsupported, Blame.NOBODY),
    (400, "flagged", "content_policy_violation", ContentBlocked, Blame.NOBODY),
    (400, "no such", "model_not_found", MissingModel, Blame.TARGET),
    (401, "", None, KeyRejected, Blame.NOBODY),
    (403, "", None, KeyRejected, Blame.NOBODY),
    (403, "requires moderation", None, ContentBlocked, Blame.NOBODY),
    (402, "pay", None, PaymentRequired, Blame.NOBODY),
    (404, "no model", None, MissingModel, Blame.TARGET),
    (409, "", None, UpstreamSaid, Blame.NOBODY),
    (413, "", None, UpstreamSaid, Blame.NOBODY),
    (422, "", None, UpstreamSaid, Blame.NOBODY),
    (451, "", None, UpstreamSaid, Blame.NOBODY),
    (429, "", None, RateLimited, Blame.LOAD),
    (429, "", "insufficient_quota", RateLimited, Blame.LOAD),
    (500, "", None, ModelFailed, Blame.TARGET),
    (501, "", None, NotImplementedByProvider, Blame.NOBODY),
    (502, "", None, ServerFailed, Blame.SERVICE),
    (503, "", None, ServerFailed, Blame.SERVICE),
    (503, "server busy, please try again.", None, ServerBusy, Blame.LOAD),
    (503, "Loading model", "unavailable_error", ServerBusy, Blame.LOAD),
    (504, "", None, ServerFailed, Blame.SERVICE),
    (524, "", None, ServerFailed, Blame.SERVICE),
    (529, "Overloaded", None, ServerBusy, Blame.LOAD),
]


@pytest.mark.parametrize(("status", "message", "code", "kind", "blame"), ROWS)
def test_each_status_has_its_error(
    status: int, message: str, code: str | None, kind: type[ProviderError], blame: Blame
) -> None:
    """Class and blame; the retryable ones are exactly the provider's."""
    error = classify(status, {}, message, code=code)
    assert (type(error), error.blame) == (kind, blame)
    assert error.retryable is (status < 400 or status == 429 or status >= 500)


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
    """The crowd's error bodies (wire.md C.2)."""
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
        ({"error": {"message": "m", "type": "BadRequestError"}}, UpstreamSaid),
        ({"error": {"message": "m", "type": "InternalServerError"}}, ServerFailed),
        ({"error": "text"}, ServerFailed),
        ({"error": {}}, ServerFailed),
    ],
)
def test_an_error_inside_a_200_has_the_status_of_its_words(data: object, kind: type[ProviderError]) -> None:
    """A number, a numeric string or a word (C.3.5); unknown is 502."""
    assert type(in_band(said(data))) is kind


@pytest.mark.parametrize(
    ("headers", "text", "seconds"),
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
        ({}, "no idea", None),
    ],
)
def test_when_to_come_back_in_every_dialect(headers: dict[str, str], text: str, seconds: float | None) -> None:
    """C.3.6; nonsense is ignored."""
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
