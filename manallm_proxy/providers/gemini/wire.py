"""Gemini's REST API (ai.google.dev/api): chat and legacy completions go to ``generateContent``, embeddings to
``batchEmbedContents``.

Google's own library, google-genai, is not used here: it builds a validated object for each message and part on the
event loop, and fails a finished answer because of an unexpected counter. The tests compare with it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import partial
from typing import Final

from attrs import evolve

from manallm_proxy.contract.answers import DEFAULT_LIMITS, Answer, AnswerLimits
from manallm_proxy.contract.provider import Call, Endpoint, ModelList
from manallm_proxy.contract.provider_errors import ProviderError
from manallm_proxy.contract.targets import Entry
from manallm_proxy.providers.gemini import errors, reply
from manallm_proxy.providers.gemini import request as gemini_request
from manallm_proxy.providers.gemini.embeddings import embeddings
from manallm_proxy.providers.gemini.request import ANY_SIGNATURE_AS_IT_IS, SIGNATURES, THINKING
from manallm_proxy.providers.gemini.stream import GeminiTranslator
from manallm_proxy.providers.mending.effort import FIELD, is_wish
from manallm_proxy.providers.mending.history import note_changes, refuses_signatures
from manallm_proxy.providers.mending.length import clamp_max_tokens
from manallm_proxy.providers.mending.missing_results import misses_results, with_results
from manallm_proxy.providers.sniffer import Sniffer
from manallm_proxy.providers.wire import Request, Translator

KEY_HEADER: Final = "x-goog-api-key"
_BASE_URL: Final = "https://generativelanguage.googleapis.com"
_VERSION: Final = "v1beta"
"""The API version that also serves preview models (ai.google.dev/gemini-api/docs/api-versions)."""
_VERSIONED: Final = re.compile(r"\w+://[^/]+/(?:.*/)?v\d+\w*", re.ASCII)

_UNTHINKING: Final = re.compile(
    rb"\bthinking (?:level |budget )?(?:\w{1,20} )?is not (?:supported|enabled)|only works in thinking mode",
    re.IGNORECASE,
)


def versioned(base_url: str | None) -> str:
    """`base_url` (None: Google's own) with the API's version appended, unless it ends with one."""
    url = (base_url or _BASE_URL).rstrip("/")
    return url if _VERSIONED.fullmatch(url) else f"{url}/{_VERSION}"


class GeminiWire:
    """The dialect. It is stateless: one instance serves all providers of its kind."""

    probe_path: str | None = None
    """Google is not probed: each listing counts toward our limits."""

    def splices(self, call: Call) -> bool:
        return False

    def request(self, call: Call, entry: Entry) -> Request:
        return gemini_request.build(call, entry)

    def failure(self, status: int, headers: Mapping[str, str], body: bytes) -> ProviderError:
        return errors.failure(status, headers, body)

    def reshape(self, call: Call, entry: Entry, status: int, body: bytes) -> Request | None:
        """Replaces the signatures of the history, which may be of another model, or reduces ``max_tokens``.

        An effort that a client sets for all models is left out, and calls without a result get one.
        """
        if status != 400 or call.endpoint is not Endpoint.CHAT:
            return None
        if refuses_signatures(body):
            return self._with_stand_ins(call, entry)
        if _UNTHINKING.search(body) and not is_wish(call):
            call.remarks.append(f"not sent on: {FIELD}, which the target does not know")
            changed = evolve(call, denied=call.denied | {THINKING})
            return evolve(self.request(changed, entry), call=changed)
        if misses_results(body) and (paired := with_results(call)) is not call:
            return evolve(self.request(paired, entry), call=paired)
        shorter = clamp_max_tokens(call, body) if call.cuts_length else None
        return evolve(self.request(shorter, entry), call=shorter) if shorter is not None else None

    def _with_stand_ins(self, call: Call, entry: Entry) -> Request | None:
        """The request with a stand-in for each signature, and where that was sent already, with its other form."""
        refused = self.request(call, entry).content
        for denied in ({SIGNATURES}, {SIGNATURES, ANY_SIGNATURE_AS_IT_IS}):
            changed = evolve(call, denied=call.denied | denied)
            again = self.request(changed, entry)
            if again.content != refused:
                note_changes(call, "signatures replaced")
                return evolve(again, call=changed)
        return None

    def remember_reshaped(self, entry: Entry, request: Request) -> bool:
        """Nothing to learn."""
        return False

    def answer(self, call: Call, entry: Entry, body: bytes, content_type: str = "") -> Answer:
        if call.endpoint is Endpoint.EMBEDDINGS:
            return embeddings(call, entry.target.model, body)
        return _whole(body, names=call.names)

    def translator(
        self, call: Call, entry: Entry, content_type: str, limits: AnswerLimits = DEFAULT_LIMITS
    ) -> Translator:
        """Ignores `content_type`: an error may come as plain JSON in place of a stream."""
        reader = reply.Reader(call.names)
        return Sniffer(GeminiTranslator(limits, reader), partial(_whole, names=call.names), limits)

    def listed(self, body: bytes) -> ModelList:
        """Not used, since Google is not probed."""
        return ModelList()


def _whole(body: bytes, *, names: Mapping[str, str]) -> Answer:
    return reply.Reader(names).whole(reply.read(body))
