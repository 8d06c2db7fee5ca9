"""What fuzzing has found stays tried: every input of the corpus, through its target (`make fuzz` looks for more)."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.fuzz.__main__ import CORPUS
from tests.fuzz.targets import TARGETS


@pytest.mark.parametrize("name", TARGETS)
def test_the_corpus_is_harmless(name: str) -> None:
    """Some inputs of each."""
    inputs = sorted((CORPUS / name).iterdir())
    assert inputs
    for path in inputs:
        TARGETS[name](path.read_bytes())


@pytest.mark.parametrize("name", TARGETS)
@given(data=st.binary(max_size=60))
def test_no_bytes_break_a_promise(name: str, data: bytes) -> None:
    """Each target, without a corpus."""
    TARGETS[name](data)
