"""What a test needs of the machine: missing, it skips with its reason at home and fails in CI."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest


def require(what: str | Path, why: str) -> Path:
    """The program's or folder's path."""
    found = shutil.which(what) if isinstance(what, str) else what if what.exists() else None
    if found is not None:
        return Path(found)
    message = f"{what} is not here: {why}"
    if os.environ.get("CI"):
        pytest.fail(message)
    pytest.skip(message)
