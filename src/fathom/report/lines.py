"""The lines of a .jsonl file as objects, or as columns of numbers: in a second for a million, and never refused.

A file that a person may have cut, merged or copied badly is read as far as it goes. What was passed over is counted,
so that it can be said.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

CHUNK = 4 << 20
ARROW_FROM = 6 << 20
"""Bytes of a file from which Arrow's reader is worth the time of importing it."""
MOST_STEP = 10**15
"""No run has more steps; a larger number is a broken line."""


@dataclass(frozen=True)
class Columns:
    """Logged steps in the order of the file."""

    step: np.ndarray
    """(N,) int64, as written: 0 for the first step."""
    values: Mapping[str, np.ndarray]
    """(N,) float64 by name; NaN where a line lacks it or holds something else there."""
    torn: int
    """Lines that are no JSON object."""
    without_step: int
    """Objects that say no step."""


def read_objects(path: Path) -> tuple[list[dict[str, Any]], int]:
    """The objects of a file in order, and how many lines were none. A file that is not there has none.

    Raises OSError where the file cannot be read.
    """
    found: list[dict[str, Any]] = []
    torn = 0
    for chunk in _chunks(path):
        objects, bad = _objects(chunk)
        found += objects
        torn += bad
    return found, torn


def read_columns(path: Path, names: Sequence[str]) -> Columns:
    """The numbers of these names, and the step, of every line. Raises OSError where the file cannot be read."""
    parts: list[Columns] = []
    is_large = path.exists() and path.stat().st_size >= ARROW_FROM
    for chunk in _chunks(path):
        part = _by_arrow(chunk, names) if is_large else None
        parts.append(part or _by_line(chunk, names))
    return Columns(
        step=np.concatenate([part.step for part in parts] or [np.zeros(0, np.int64)]),
        values={name: np.concatenate([part.values[name] for part in parts] or [np.zeros(0)]) for name in names},
        torn=sum(part.torn for part in parts),
        without_step=sum(part.without_step for part in parts),
    )


def whole(value: Any) -> int | None:
    """A whole number as JSON or TOML has it, else None."""
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def number(value: Any) -> float:
    """A number as JSON or TOML has it, else NaN."""
    if not isinstance(value, (int, float)) or isinstance(value, bool):
        return math.nan
    try:
        return float(value)
    except OverflowError:
        return math.nan


def _chunks(path: Path) -> Iterator[bytes]:
    """The file in pieces that end where a line does; a line being written at the moment is the end of the last."""
    if not path.exists():
        return
    with open(path, "rb") as file:
        while block := file.read(CHUNK):
            yield block + (b"" if block.endswith(b"\n") else file.readline())


def _objects(chunk: bytes) -> tuple[list[dict[str, Any]], int]:
    found: list[dict[str, Any]] = []
    torn = 0
    for line in chunk.splitlines():
        try:
            value = json.loads(line.decode())
        except (ValueError, RecursionError):
            value = None
        if isinstance(value, dict):
            found.append(value)
        elif line.strip():
            torn += 1
    return found, torn


def _by_line(chunk: bytes, names: Sequence[str]) -> Columns:
    objects, torn = _objects(chunk)
    stepped = [(step, line) for line in objects if 0 <= (step := _step(line)) < MOST_STEP]
    return Columns(
        step=np.array([step for step, _ in stepped], dtype=np.int64),
        values={name: np.array([number(line.get(name)) for _, line in stepped], dtype=np.float64) for name in names},
        torn=torn,
        without_step=len(objects) - len(stepped),
    )


def _step(line: Mapping[str, Any]) -> int:
    step = whole(line.get("step"))
    return -1 if step is None else step


def _by_arrow(chunk: bytes, names: Sequence[str]) -> Columns | None:
    """What `_by_line` gives, several times faster; None where a line is not as it should be, and patience is needed."""
    import pyarrow
    from pyarrow import json as arrow_json

    schema = pyarrow.schema([("step", pyarrow.int64()), *((name, pyarrow.float64()) for name in names)])
    options = arrow_json.ParseOptions(explicit_schema=schema, unexpected_field_behavior="ignore")
    try:
        table = arrow_json.read_json(pyarrow.BufferReader(chunk), parse_options=options)
    except pyarrow.ArrowInvalid:
        return None
    # An object over two lines, or two on one, are fine with Arrow and not lines of ours.
    if table.num_rows != chunk.count(b"\n") + (not chunk.endswith(b"\n")):
        return None
    step = table.column("step").fill_null(-1).to_numpy()
    has_step = (step >= 0) & (step < MOST_STEP)
    return Columns(
        step=step[has_step],
        values={name: table.column(name).to_numpy()[has_step] for name in names},
        torn=0,
        without_step=int((~has_step).sum()),
    )
