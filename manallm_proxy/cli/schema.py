"""``schema``: prints a JSON schema of both files, for editors."""

from __future__ import annotations

import json

from manallm_proxy.config.schema import schema as document


def schema() -> int:
    """Prints one JSON document."""
    print(json.dumps(document(), indent=1))
    return 0
