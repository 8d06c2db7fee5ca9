"""Notes for the log line at the start, on settings that an operator might misunderstand."""

from __future__ import annotations

from pathlib import Path

from attrs import evolve

from manallm_proxy.config.model import Config


def per_worker_limits(config: Config) -> str:
    """Names the limits that hold per worker, not for all workers together; budgets are shared."""
    limits = [f"providers.{p.name}.max_concurrent" for p in config.providers.values() if p.max_concurrent]
    keys = config.auth.keys
    if config.state is not None:  # then limits per minute are counted for all
        keys = tuple(evolve(key, requests_per_minute=None, tokens_per_minute=None) for key in keys)
    limits += [f"auth.keys of {key.name}" for key in keys if key.is_limited]
    return f"; each worker counts for itself: {', '.join(limits)}" if limits else ""


def budget_storage(config: Config, path: Path | None) -> str:
    """Names the file that keeps spending, or says that there is none."""
    if not config.has_budgets:
        return ""
    return f"; budgets are kept in {path}" if path is not None else "; budgets are kept in memory only (spend_file)"
