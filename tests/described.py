"""Our surface as openapi.yaml describes it, for tests that hold an answer against it."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

from jsonschema import Draft202012Validator

from manallm_proxy.gateway.openapi import description

DOCUMENT: dict[str, Any] = json.loads(description())
METHODS = {"get", "post", "delete"}
OUR_HEADERS = re.compile(
    "x-mana-.*|x-ratelimit-.*|x-request-id|request-id|x-should-retry|retry-after|allow|www-authenticate"
)
"""What clients act upon. None of them may be sent where it is not described."""


def at(reference: str) -> Any:
    """What a ``$ref`` points to."""
    found: Any = DOCUMENT
    for step in reference.removeprefix("#/").split("/"):
        found = found[step.replace("~1", "/").replace("~0", "~")]
    return found


def resolved(value: dict[str, Any]) -> dict[str, Any]:
    return resolved(at(value["$ref"])) if "$ref" in value else value


def operations() -> Iterator[tuple[str, str, dict[str, Any]]]:
    """Path, method, operation."""
    for path, item in DOCUMENT["paths"].items():
        for method, operation in resolved(item).items():
            if method in METHODS:
                yield path, method, operation


def matches(schema: dict[str, Any], value: object, what: str) -> None:
    """Fails with every place at which `value` is not what `schema` says."""
    validator = Draft202012Validator(
        {**schema, "components": DOCUMENT["components"]}, format_checker=Draft202012Validator.FORMAT_CHECKER
    )
    wrong = [f"{what} {error.json_path}: {error.message}" for error in validator.iter_errors(value)]
    assert wrong == []


def conforms(path: str, method: str, code: int, headers: dict[str, str], body: bytes) -> None:
    """An answer is one of those that its operation describes: status, type, shape, headers."""
    responses = next(operation for p, m, operation in operations() if (p, m) == (path, method))["responses"]
    what = f"{method} {path} {code}"
    told = resolved(responses.get(str(code)) or responses[f"{code // 100}XX"])
    content_type = headers["content-type"].partition(";")[0]
    content = told["content"].get(content_type) or told["content"].get("*/*")
    assert content is not None, what
    schema = content["schema"]
    matches(schema, json.loads(body) if content_type == "application/json" else body.decode(errors="replace"), what)
    described = {name.lower(): resolved(header) for name, header in told.get("headers", {}).items()}
    for name, header in described.items():
        if name in headers:
            matches(header["schema"], headers[name], f"{what} {name}")
        else:
            assert not header.get("required"), f"{what} {name}"
    ours = {name for name in headers if OUR_HEADERS.fullmatch(name)}
    assert ours <= described.keys(), f"{what}: {ours - described.keys()} is not described"
