"""The figures that the pages name are those of the code.

Tests of what a figure is for take it from the code, so that each stands in one place; here it is compared with what
a reader was told.
"""

from __future__ import annotations

from typing import Final

import attrs
import pytest

from manallm_proxy.cli import discovery, server_scan
from manallm_proxy.config.file_model import EntryGiven
from manallm_proxy.config.model import Responses
from manallm_proxy.contract import attempts
from manallm_proxy.doors.messages import tokens
from manallm_proxy.gateway import credentials
from manallm_proxy.http_client import api
from manallm_proxy.http_server import aiohttp_server
from manallm_proxy.observe import live_feed, log, request_log
from manallm_proxy.openai import large, token_counts
from manallm_proxy.openai.reasoning import effort_of_budget
from manallm_proxy.process import spend_keeper, supervisor, workers
from manallm_proxy.routing import circuit, residency, slots, tiers
from manallm_proxy.state import link, scripts
from tests.command import ROOT

README: Final = "README.md"
ALIASES, API, BOX = "docs/aliases.md", "docs/apis.md", "docs/gpu-box.md"
CLIENTS, PROVIDERS = "docs/clients.md", "docs/providers.md"
NGINX, SPEND, WORKERS = "docs/nginx.md", "docs/spend.md", "docs/several-workers.md"
DAY_IN_MS: Final = 24 * 3600 * 1000

FIGURES: Final[tuple[tuple[str, str, object, object], ...]] = (
    (README, "`Retry-After`: 1 to 60 s", attempts.RETRY_AFTER_LONGEST, 60),
    (README, "if you sent one of up to 128 visible characters", credentials.REQUEST_ID_LIMIT, 128),
    (README, "The last 1,000 requests are kept", request_log.KEPT, 1000),
    (README, "resumes after a break of up to a minute", live_feed.LINGER, 60),
    (README, "events of the last two seconds may be repeated", live_feed.OVERLAP, 2),
    (README, "Above 50 requests a second the rest is only counted", (live_feed.RATE, live_feed.SECOND), (50, 1)),
    (README, "a whole head four times that and 100 lines (431)",
     (aiohttp_server.HEAD_FACTOR, aiohttp_server.HEADER_LIMIT), (4, 100)),
    (README, "logged at most 20 times a second", log.REFUSALS_PER_SECOND, 20),
    (README, "at the ports 11434, 1234, 8080, 9931 and 8000, for a second at most",
     ([port for port, _ in discovery.USUAL], server_scan.LONGEST), ([11434, 1234, 8080, 9931, 8000], 1)),
    (ALIASES, "(15 s without one, 3 s if it is loading its model, at most 5 min; used-up quota 10 min)",
     (circuit.COOLING_DEFAULT, circuit.COOLING_LONGEST, circuit.COOLING_QUOTA), (15, 300, 600)),
    (ALIASES, "`x-should-retry: false` if that is more than 5 s", attempts.WORTH_A_RETRY, 5),
    (ALIASES, "and once a minute another one, to measure it", tiers.STALE, 60),
    (ALIASES, "one use may take 50 ms", link.BUDGET, 0.05),
    (API, "become `reasoning_effort`: below 4,096 tokens `low`, below 16,384 `medium`, else `high`",
     [effort_of_budget(budget) for budget in (4095, 4096, 16_383, 16_384)], ["low", "medium", "medium", "high"]),
    (API, "four bytes a token, 1,500 tokens a picture or document",
     (tokens.BYTES_A_TOKEN, tokens.TOKENS_A_FILE), (4, 1500)),
    (API, "64 MiB in each worker, least recently used evicted first, for an hour after the last use",
     (Responses().memory, Responses().ttl), (64 * 2**20, 3600)),
    (API, "Tools, instructions and the like of more than 256 KiB are repeated once", large.LARGE_BYTES, 256 * 1024),
    (BOX, "every 3 s while there is traffic, otherwise every 60 s",
     (residency.POLL_BUSY, residency.POLL_IDLE), (3, 60)),
    (BOX, "by default 5 minutes at first, then three times the longest recent load, at least 10 s",
     (residency.LOAD_TIMEOUT_MAX, residency.LOAD_TIMEOUT_FACTOR, residency.LOAD_TIMEOUT_MIN), (300, 3, 10)),
    (BOX, "must be repeated within 30 s, rests: 5 s, 10 s, ... 15 min",
     (residency.FLAP, residency.REST_FIRST, residency.REST_LONGEST), (30, 5, 900)),
    (BOX, "the next trial follows after 30 s, 1 min, ... 15 min", (slots.REST, slots.REST_LONGEST), (30, 900)),
    (BOX, "longer than the entry's `max_wait` (1 s) moves on at once",
     attrs.fields_dict(EntryGiven)["max_wait"].default, 1),
    (BOX, "less than 90 % of its bytes in VRAM", residency.VRAM_WHOLE, 0.9),
    (CLIENTS, "ends 200 ms behind its error", aiohttp_server.LINGER, 0.2),
    (PROVIDERS, "Ours are kept for 4 s", api.KEEP_ALIVE_TIMEOUT, 4),
    (NGINX, "below the proxy's own 75 s", aiohttp_server.KEEP_ALIVE, 75),
    (SPEND, "four bytes of a prompt or a whole answer per token, and 200 of a stream",
     (token_counts.BYTES_PER_TOKEN, token_counts.STREAMED_BYTES_PER_TOKEN), (4, 200)),
    (SPEND, "A thread writes it within half a second", spend_keeper.WRITE_AFTER, 0.5),
    (SPEND, "learns within a tenth of a second what the others have spent", spend_keeper.SHARE_AFTER, 0.1),
    (SPEND, "(50 ms without an answer)", link.BUDGET, 0.05),
    (SPEND, "A reservation of a dead process expires after a quarter of an hour", scripts.HELD_MINUTES, 15),
    (SPEND, "a budget's record 33 days after its last change",
     f"LIFETIME = {33 * DAY_IN_MS}" in scripts.SETTLE.text, True),
    (WORKERS, "that does not answer within half a second is left out", workers.GATHERING, 0.5),
    (WORKERS, "after 0.1 s, a delay that doubles up to 10 s and resets after a minute of uptime",
     (workers.DELAY, workers.DELAY_LONGEST, workers.PROVEN), (0.1, 10, 60)),
    (WORKERS, "whose loop hangs for 20 s", supervisor.STALL_TIMEOUT, 20),
)  # fmt: skip


@pytest.mark.parametrize("page", sorted({page for page, *_ in FIGURES}))
def test_a_figure_is_the_codes(page: str) -> None:
    """As the page says it, and as the code has it."""
    text = " ".join((ROOT / page).read_text().split())
    told = [(words, figure, said) for place, words, figure, said in FIGURES if place == page]
    assert [words for words, _, _ in told if words not in text] == []
    assert [(words, figure) for words, figure, said in told if figure != said] == []
