"""Reads answers and lines as JSON, by route; prints, as JSON, what ollama-python's types have to say against them."""

from __future__ import annotations

import json
import sys

from ollama import ChatResponse, EmbedResponse, GenerateResponse
from pydantic import BaseModel, ValidationError

TYPES: dict[str, type[BaseModel]] = {"chat": ChatResponse, "generate": GenerateResponse, "embed": EmbedResponse}


def main() -> list[str]:
    wrong: set[str] = set()
    for route, values in json.load(sys.stdin).items():
        for value in values:
            try:
                TYPES[route].model_validate(value)
            except ValidationError as error:
                wrong |= {f"{route} {row['loc']}: {row['msg']} {str(row['input'])[:80]}" for row in error.errors()}
    return sorted(wrong)[:20]


if __name__ == "__main__":
    print(json.dumps(main()))
