"""Our models as Ollama's ``/api/tags`` and ``/api/show`` describe them."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from typing import Any, Final

from manallm_proxy.contract.records import frozen
from manallm_proxy.doors.ollama.lines import rfc3339

VERSION: Final = "0.33.0"
"""The reported version of Ollama's API. VS Code's Copilot requires 0.6.4 or later, in dotted numbers."""
FAMILY: Final = "manallm"
"""Placeholder for the architecture, which only the model's file contains."""
_ASSUMED_CAPABILITIES: Final = ("completion", "thinking", "tools", "vision")
"""Capabilities of a model whose provider does not report them: clients do not even try what is missing here. VS Code's
Copilot lists no model without ``tools``, and attaches no picture without ``vision``; llm refuses ``think`` itself."""


@frozen
class ModelRow:
    """What is known of a model. ``name``: as in requests, with a tag; ``modified``: seconds since the epoch."""

    name: str
    modified: float
    capabilities: Iterable[str] | None = None
    context_length: int = 0

    def listed(self) -> dict[str, Any]:
        """Its row in ``/api/tags``. The digest changes with what is said here: llm keeps the capabilities of each."""
        known = " ".join((self.name, *self._capabilities(), str(self.context_length)))
        digest = hashlib.sha256(known.encode()).hexdigest()
        return {
            "name": self.name,
            "model": self.name,
            "modified_at": rfc3339(self.modified),
            "size": 0,
            "digest": digest,
            "details": self._details(),
            "capabilities": self._capabilities(),
        }

    def shown(self) -> dict[str, Any]:
        """The answer to ``/api/show``."""
        info: dict[str, Any] = {"general.architecture": FAMILY, "general.basename": self.name.removesuffix(":latest")}
        if self.context_length:
            info[f"{FAMILY}.context_length"] = self.context_length
        return {
            "license": "",
            "modelfile": "",
            "parameters": "",
            "template": "",
            "details": self._details(),
            "model_info": info,
            "capabilities": self._capabilities(),
            "modified_at": rfc3339(self.modified),
        }

    def _capabilities(self) -> list[str]:
        return sorted(self.capabilities) if self.capabilities is not None else list(_ASSUMED_CAPABILITIES)

    def _details(self) -> dict[str, Any]:
        details: dict[str, Any] = {
            "parent_model": "",
            "format": "",
            "family": FAMILY,
            "families": [FAMILY],
            "parameter_size": "",
            "quantization_level": "",
        }
        return details | ({"context_length": self.context_length} if self.context_length else {})


def tagged(name: str) -> str:
    """`name` as Ollama lists it: with a tag, since clients add one and look the name up in the list."""
    return name if ":" in name.rpartition("/")[2] else f"{name}:latest"
