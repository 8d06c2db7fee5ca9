"""``hash-key``: makes a new client key, and its entry for the configuration."""

from __future__ import annotations

import re
import secrets
import sys
from typing import Final

from manallm_proxy.config.keys_model import KEY_NAME
from manallm_proxy.gateway.client_keys import digest_of

PREFIX: Final = "sk-mana-"
"""Prefix by which people and secret scanners recognise a key."""


def hash_key(name: str) -> int:
    """Prints a new key and its entry; the key is stored nowhere. Returns 2 if `name` is not a valid name."""
    if re.fullmatch(KEY_NAME, name) is None:
        print("a key's name is letters, digits, '.', '_' and '-', at most 64 of them", file=sys.stderr)
        return 2
    key = PREFIX + secrets.token_urlsafe(32)
    print(ENTRY.format(key=key, name=name, digest=digest_of(key)))
    return 0


ENTRY: Final = """\
The key, shown this once. Give it to {name}, who sends it as 'Authorization: Bearer KEY':

  {key}

Its entry for proxy.yaml; then reload the proxy:

auth:
  keys:
    - name: {name}
      sha256: "{digest}"
      models: ["*"]                 # aliases and provider/model; '*' is any text
      # requests_per_minute: 60
      # concurrent_requests: 4
      # admin: true                 # opens /metrics and /v1/health too\
"""
