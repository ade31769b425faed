"""Whether a checkpoint's files hold all that its metadata speak of: told without torch, and without trusting them."""

from __future__ import annotations

import io
import pickle
from collections import defaultdict
from pathlib import Path
from typing import Any

MOST_BYTES = 100_000_000


class _Anything(dict[Any, Any]):
    """Stands for every type of a checkpoint's metadata: takes whatever it is made of, and does nothing."""

    def __new__(cls, *made_of: Any, **named: Any) -> _Anything:
        return super().__new__(cls)

    def __init__(self, *made_of: Any, **named: Any) -> None:
        super().__init__()

    def __setstate__(self, state: Any) -> None:
        if isinstance(state, dict):
            self.update(state)

    def __hash__(self) -> int:  # type: ignore[override]
        return id(self)


class _Reader(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        return _Anything


def trouble_with(folder: Path) -> str:
    """What is wrong with the files of this checkpoint, in a few words; "" where nothing that can be told from outside.

    A file may be as long as it should be and still hold other bytes: that, only loading it tells.
    """
    try:
        kept = (folder / ".metadata").read_bytes()
    except OSError as error:
        return f".metadata cannot be read ({error.strerror})"
    try:
        ends = _ends(kept)
    except Exception:  # bytes that are no pickle make it stumble in many ways
        return ".metadata is no checkpoint's"
    for name, needed in ends.items():
        path = folder / name
        there = path.stat().st_size if path.is_file() else None
        if there is None:
            return f"{name} is missing"
        if there < needed:
            return f"{name} is cut off ({there:,} of {needed:,} bytes)"
    return ""


def _ends(metadata: bytes) -> dict[str, int]:
    """How many bytes each file needs, so that every tensor is in it."""
    ends: dict[str, int] = defaultdict(int)
    for one in _Reader(io.BytesIO(metadata[:MOST_BYTES])).load()["storage_data"].values():
        name = str(one["relative_path"])
        ends[name] = max(ends[name], int(one["offset"]) + int(one["length"]))
    return ends
