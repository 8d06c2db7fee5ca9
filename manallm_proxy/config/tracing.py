"""The endpoint for traces: ``traces.endpoint``, else OpenTelemetry's environment variables, as its SDKs read them."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from typing import Final

from manallm_proxy.config.extras import how_to_install
from manallm_proxy.config.model import Traces
from manallm_proxy.config.structure import Mistakes

PATH: Final = "/v1/traces"
"""OTLP/HTTP's path for traces, below the endpoint for all signals."""
OWN: Final = "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT"
"""The full URL."""
ALL: Final = "OTEL_EXPORTER_OTLP_ENDPOINT"
"""The base URL, without `PATH`."""


def traces_of(given: Traces, environ: Mapping[str, str], mistakes: Mistakes, notes: list[str]) -> Traces:
    """`given` with the full URL, or None for no traces. If the library is missing: a mistake, or a note if only the
    environment asks for traces.
    """
    if given.endpoint is not None:
        if not _is_installed():
            mistakes.add("traces.endpoint", _wanted())
        return Traces(f"{given.endpoint.removesuffix(PATH)}{PATH}")
    if environ.get("OTEL_SDK_DISABLED", "").lower() == "true" or environ.get("OTEL_TRACES_EXPORTER") == "none":
        return Traces()
    for name, path in ((OWN, ""), (ALL, PATH)):
        if not (url := environ.get(name, "").strip()):
            continue
        if not url.startswith(("http://", "https://")):
            notes.append(f"traces: {name} is no URL with http:// or https://, so there are none")
        elif not _is_installed():
            notes.append(f"traces: {name} is set, so they are wanted; that {_wanted()}")
        else:
            return Traces(f"{url.rstrip('/')}{path}" if path else url)
        return Traces()
    return Traces()


def _wanted() -> str:
    return f"needs OpenTelemetry: {how_to_install('otel')}"


def _is_installed() -> bool:
    """Whether the optional libraries are installed. Imports none of them but their namespace packages."""
    for name in ("opentelemetry", "opentelemetry.sdk", "opentelemetry.exporter", "opentelemetry.exporter.otlp"):
        if importlib.util.find_spec(name) is None:
            return False
    return importlib.util.find_spec("opentelemetry.exporter.otlp.proto.http") is not None
