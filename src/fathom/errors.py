"""The one kind of failure that a person is meant to read."""

from __future__ import annotations


class FathomError(Exception):
    """Something the user can mend: one sentence of what was found and where, and what to do about it.

    The command line prints it as a single sentence and exits with 2; a library caller catches it.
    """

    def __init__(self, problem: str, remedy: str = "") -> None:
        self.problem = problem.rstrip(". ")
        self.remedy = remedy.rstrip(". ")
        sentence = f"{self.problem}; {self.remedy}" if self.remedy else self.problem
        super().__init__(sentence if sentence.endswith("?") else sentence + ".")
