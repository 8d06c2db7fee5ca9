"""Anthropic's list of models, made from OpenAI's rows."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any


def anthropic_list(data: list[dict[str, Any]]) -> dict[str, Any]:
    """``GET /v1/models``: all models on one page. `data`: each as `anthropic_model` has it."""
    first, last = (data[0]["id"], data[-1]["id"]) if data else (None, None)
    return {"data": data, "has_more": False, "first_id": first, "last_id": last}


def anthropic_model(row: Mapping[str, Any], window: int | None, max_output: int | None) -> dict[str, Any]:
    """``GET /v1/models/{id}``. An unknown time is the epoch, as in Anthropic's API.

    `window` and `max_output`: tokens of a conversation and of one answer; what is not known is left out.
    """
    try:
        created = datetime.fromtimestamp(row["created"], UTC)
    except (ValueError, OverflowError, OSError):  # the number is a provider's
        created = datetime.fromtimestamp(0, UTC)
    sizes = {"max_input_tokens": window, "max_tokens": max_output}
    return {
        "type": "model",
        "id": row["id"],
        "display_name": row["id"],
        "created_at": created.strftime("%Y-%m-%dT%H:%M:%SZ"),
        "lifecycle": "active",
        **{name: tokens for name, tokens in sizes.items() if tokens},
    }
