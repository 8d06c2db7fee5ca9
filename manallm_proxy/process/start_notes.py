"""Notes for the log line at the start, on settings that an operator might misunderstand."""

from __future__ import annotations

from pathlib import Path

from manallm_proxy.config.model import Config
from manallm_proxy.config.state_url import redacted_state_url


def per_worker_limits(config: Config) -> str:
    """Names the limits that hold per worker, not for all workers together; budgets are shared."""
    limits = [f"providers.{p.name}.max_concurrent" for p in config.providers.values() if p.max_concurrent]
    keys = [(key.name, key.limits_per_worker(shared=config.state is not None)) for key in config.auth.keys]
    limits += [f"auth.keys of {name} ({', '.join(names)})" for name, names in keys if names]
    return f"; each worker counts for itself: {', '.join(limits)}" if limits else ""


def budget_storage(config: Config, path: Path | None) -> str:
    """Names the Redis and the file that keep spending, or says that there is neither."""
    if not config.has_budgets:
        return ""
    places = ([] if config.state is None else [redacted_state_url(config.state)]) + (
        [] if path is None else [str(path)]
    )
    return f"; budgets are kept in {' and in '.join(places) or 'memory only (spend_file)'}"
