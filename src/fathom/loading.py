"""A word while torch is being loaded: from a cold disk that takes many seconds, and nothing else can move meanwhile."""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType

from fathom.screen import say

PATIENCE_S = 1.5


class _Watch(MetaPathFinder):
    """Finds nothing; learns only that torch is about to be loaded."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname == "torch":
            timer = threading.Timer(PATIENCE_S, say_if_loading)
            timer.daemon = True
            timer.start()
        return None


def say_when_torch_takes_long() -> None:
    """From now on; of several ranks the first speaks."""
    if os.environ.get("RANK", "0") == "0" and not any(isinstance(finder, _Watch) for finder in sys.meta_path):
        sys.meta_path.insert(0, _Watch())


def say_if_loading() -> None:
    spec = getattr(sys.modules.get("torch"), "__spec__", None)
    if getattr(spec, "_initializing", False):
        say("  loading torch, which takes some seconds", style="dim")
