"""``explain``: what would happen to a request for a model now, target by target. Calls no provider."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, Final

from manallm_proxy.cli.client import Client, clean
from manallm_proxy.cli.operator_client import OperatorClient

USUAL: Final = "chat/completions"


def explain(url: str | None, model: str, door: str | None, as_json: bool, environ: Mapping[str, str]) -> int:
    """Prints the explanation; `model` ``*``: of each alias. Raises Failed, also for an unknown `model` or `door`."""
    query = {"model": model} | ({"door": door} if door is not None else {})
    client = Client.find(url, environ)
    found = OperatorClient(client).get("/v1/explain", query)
    with client.reading():
        shown = [line for each in found.get("models", [found]) for line in lines(each)]
    print(json.dumps(found) if as_json else "\n".join(shown))
    return 0


def lines(found: Mapping[str, Any]) -> list[str]:
    """The explanation for people: the target that serves, then each target with the reason against it."""
    name = clean(found["alias"] or found["model"])
    head = f"{name}: {clean(found['serves'])} would serve" if found["serves"] else f"{name}: nobody can serve now"
    door = found.get("door", USUAL)
    head += f" ({clean(door)})" if door != USUAL else ""
    width = max((len(row["target"]) for row in found["chain"]), default=0)
    rows = []
    shows_prices = any(row.get("price", "unknown") not in ("unknown", "costs nothing") for row in found["chain"])
    for row in found["chain"]:
        mark = ">" if row["target"] == found["serves"] else " "
        fate = "ready" if row["usable"] else row["reason"]
        detail = f"  {row['detail']}" if row["detail"] else ""
        price = "price unknown" if row.get("price") == "unknown" else row.get("price")
        detail += f"  ({price})" if shows_prices else ""
        rows.append(f"{mark} {clean(row['target']):<{width}}  {clean(fate)}{clean(detail, None)}")
    return [head, *rows]
