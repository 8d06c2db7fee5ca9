"""How much Hypothesis looks: a little at each run, more where somebody asks for it (HYPOTHESIS_PROFILE=thorough)."""

from __future__ import annotations

import os

from hypothesis import settings

settings.register_profile("quick", max_examples=40, deadline=None)
settings.register_profile("thorough", max_examples=2000, deadline=None)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "quick"))
