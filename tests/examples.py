"""How many examples a property gets: few in a developer's `make test`, more in CI, 2,000 where somebody asks for them.

HYPOTHESIS_PROFILE is ``quick``, ``usual`` (CI's) or ``thorough``. A property whose faults hide better has a number of
its own, which is for the usual run; the others take it in proportion.
"""

from __future__ import annotations

import os
from typing import Final

from hypothesis import settings

USUAL: Final = 25
SHARES: Final = {"quick": 0.5, "usual": 1.0, "thorough": 80.0}
PROFILE: Final = os.environ.get("HYPOTHESIS_PROFILE") or ("usual" if os.environ.get("CI") else "quick")


def examples(usual: int = USUAL) -> int:
    """Of `usual` ones, those of this run."""
    return round(usual * SHARES[PROFILE])


def load() -> None:
    settings.register_profile(PROFILE, max_examples=examples(), deadline=None)
    settings.load_profile(PROFILE)
