"""A recipe and a grid -> the runs of a sweep, each with its name and settings (pure)."""

from __future__ import annotations

import hashlib
import json
import re
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from itertools import product
from typing import Any

from fathom.errors import FathomError
from fathom.train.settings import KNOBS

MOST_RUNS = 10_000
LONGEST_NAME = 90


@dataclass(frozen=True)
class Point:
    """One run."""

    run: str
    settings: Mapping[str, Any]
    """What its recipe file holds: the sweep's recipe, the grid's values, the seed."""


@dataclass(frozen=True)
class Candidate:
    """One combination of the grid: a run for each seed."""

    label: str
    values: Mapping[str, Any]
    points: tuple[Point, ...]


def parse_grid(texts: Sequence[str]) -> dict[str, list[Any]]:
    """`key=a,b,c` for each --grid -> the values of each setting. FathomError names what is no setting or no value."""
    grid: dict[str, list[Any]] = {}
    for text in texts:
        key, equals, listed = text.partition("=")
        key = key.strip().replace("-", "_")
        words = [word.strip() for word in listed.split(",")]
        if not equals or not all(words):
            raise FathomError(f"--grid {text!r} lists no values", "write --grid lr_scale=0.5,1,2")
        if key == "seed":
            raise FathomError("--grid sets the seed", "use --seeds 1,2,3: seeds show the noise, they are not compared")
        if key not in KNOBS:
            near = get_close_matches(key, KNOBS, n=1)
            hint = f"did you mean {near[0]}?" if near else f"the settings are {', '.join(KNOBS)}"
            raise FathomError(f"--grid sets {key!r}, which is no setting", hint)
        if key == "seq_len":
            raise FathomError(
                "--grid sets seq_len", "runs of other contexts are measured on other rows, so nothing shows"
            )
        if key in grid:
            raise FathomError(f"--grid sets {key} twice", "list all its values after one --grid")
        grid[key] = [KNOBS[key].check(key, _value(word), "flag") for word in words]
        if len(set(grid[key])) < len(grid[key]):
            raise FathomError(f"--grid lists a value of {key} twice", "list each once")
    return grid


def parse_seeds(text: str) -> list[int]:
    """`1,2,3` -> [1, 2, 3]."""
    words = [word.strip() for word in text.split(",")]
    if not all(word.isdecimal() for word in words) or len(set(map(int, words))) < len(words):
        raise FathomError(f"--seeds is {text!r}", "list whole numbers, each once, such as 1,2,3")
    return [int(word) for word in words]


def _value(word: str) -> Any:
    """A word as TOML reads it; what is no TOML value is text."""
    try:
        return tomllib.loads(f"v = {word}")["v"]
    except tomllib.TOMLDecodeError:
        return word


def candidates(
    sweep: str, recipe: Mapping[str, Any], grid: Mapping[str, Sequence[Any]], seeds: Sequence[int]
) -> list[Candidate]:
    """Every combination of the grid, the last key changing first. The first of all is the baseline."""
    combinations = [dict(zip(grid, values, strict=True)) for values in product(*grid.values())]
    if len(combinations) * len(seeds) > MOST_RUNS:
        raise FathomError(f"the grid has {len(combinations) * len(seeds):,} runs", f"keep to {MOST_RUNS:,}")
    found = []
    for values in combinations:
        stem = _stem(sweep, values)
        points = tuple(Point(f"{stem}-s{seed}", {**recipe, **values, "seed": seed}) for seed in seeds)
        found.append(Candidate(_label(values), values, points))
    stems = [candidate.points[0].run for candidate in found]
    if len(set(stems)) < len(stems):
        raise FathomError(
            "two points of the grid would have the same name", "leave out values that are nearly the same"
        )
    return found


def _label(values: Mapping[str, Any]) -> str:
    return ", ".join(f"{key.replace('_', ' ')} {value}" for key, value in values.items()) or "the recipe"


def _stem(sweep: str, values: Mapping[str, Any]) -> str:
    """A run's name without its seed: the values where they fit a name, else their digest."""
    parts = [re.sub(r"[^A-Za-z0-9._-]", "", f"{key.replace('_', '-')}-{value}") for key, value in values.items()]
    stem = "-".join([sweep, *parts])
    if len(stem) <= LONGEST_NAME:
        return stem
    digest = hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:12]
    return f"{sweep[: LONGEST_NAME - 13]}-{digest}"
