"""How often torch compiled a kernel again: what costs a run half a minute a time without a word of it."""

from __future__ import annotations

import sys


class Recompilations:
    """Counts the graphs that torch has compiled in this process, and tells the expected from the others."""

    def __init__(self) -> None:
        self._known = graphs()

    def since(self, is_expected: bool) -> int:
        """New ones since the last time this was asked; none where they are expected: in a first step, or a change."""
        before, self._known = self._known, graphs()
        return 0 if is_expected else self._known - before


def graphs() -> int:
    """Graphs compiled so far; the compiler is not imported for it."""
    dynamo = sys.modules.get("torch._dynamo.utils")
    return 0 if dynamo is None else int(dynamo.counters["stats"]["unique_graphs"])
