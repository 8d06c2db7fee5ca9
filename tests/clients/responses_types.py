"""Reads responses and events as JSON; prints, as JSON, what the openai SDK's types have to say against them."""

from __future__ import annotations

import json
import sys

from openai.types.responses import Response, ResponseStreamEvent
from pydantic import TypeAdapter, ValidationError


def main() -> list[str]:
    told = json.load(sys.stdin)
    events: TypeAdapter[object] = TypeAdapter(ResponseStreamEvent)
    wrong: set[str] = set()
    for validate, values in ((Response.model_validate, told["responses"]), (events.validate_python, told["events"])):
        for value in values:
            try:
                validate(value)
            except ValidationError as error:
                wrong |= {f"{row['loc']}: {row['msg']} {str(row['input'])[:80]}" for row in error.errors()}
    return sorted(wrong)[:20]


if __name__ == "__main__":
    print(json.dumps(main()))
