"""An error is one sentence: what was found, and what to do."""

from __future__ import annotations

import pytest

from fathom.errors import FathomError


@pytest.mark.parametrize(
    ("problem", "remedy", "sentence"),
    [
        ("the disk is full", "free 2 GB", "the disk is full; free 2 GB."),
        ("the disk is full.", "free 2 GB.", "the disk is full; free 2 GB."),
        ("the disk is full", "", "the disk is full."),
        ("there is no run 'a'", "did you mean 'b'?", "there is no run 'a'; did you mean 'b'?"),
    ],
)
def test_reads_as_one_sentence(problem: str, remedy: str, sentence: str) -> None:
    error = FathomError(problem, remedy)
    assert str(error) == sentence
    assert (error.problem, error.remedy) == (problem.rstrip("."), remedy.rstrip("."))
