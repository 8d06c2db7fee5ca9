"""OpenAI's list of models."""

from __future__ import annotations

from typing import Any


def model_object(id_: str, created: int, owned_by: str) -> dict[str, Any]:
    """One row of ``GET /v1/models``."""
    return {"id": id_, "object": "model", "created": created, "owned_by": owned_by}
