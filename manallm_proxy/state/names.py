"""The prefix of all keys in Redis."""

from __future__ import annotations

from typing import Final

PREFIX: Final = "manallm:1:"
"""Includes a version: another format of the entries gets another prefix."""
