"""Reads messages and events as JSON; prints, as JSON, what the anthropic SDK's types have to say against them."""

from __future__ import annotations

import json
import sys

from anthropic.types import Message, RawMessageStreamEvent
from pydantic import TypeAdapter, ValidationError


def main() -> list[str]:
    told = json.load(sys.stdin)
    events: TypeAdapter[object] = TypeAdapter(RawMessageStreamEvent)
    wrong: set[str] = set()
    for validate, values in ((Message.model_validate, told["messages"]), (events.validate_python, told["events"])):
        for value in values:
            try:
                validate(value)
            except ValidationError as error:
                wrong |= {f"{row['loc']}: {row['msg']} {str(row['input'])[:80]}" for row in error.errors()}
    return sorted(wrong)[:20]


if __name__ == "__main__":
    print(json.dumps(main()))
