"""A run as a leaderboard knows it: what it reached when, and all it takes to do it again from its folder alone."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from fathom.errors import FathomError
from fathom.home import check_name
from fathom.report.history import History
from fathom.report.measured import BpbCurve, ValidationSet, bpb_curves, flops_per_step
from fathom.report.reproduce import rebuilt_command, record_problems

FORMAT = 1
MOST_CHARACTERS = 10_000
MOST_POINTS = 100_000


@dataclass(frozen=True)
class Entry:
    name: str
    command: str
    """What trains it again; "" where run.toml does not tell."""
    fathom: str
    torch: str
    device: str
    corpus_digest: str
    tokenizer_digest: str
    data_digest: str
    weights_sha256: str
    """What the command ends with, bit for bit, on such a device."""
    created: str
    parameters: int
    tokens: float
    flops: float
    seconds: float
    bpb: tuple[tuple[ValidationSet, tuple[tuple[float, float, float], ...]], ...]
    """Per validation set: (step, seconds, bpb)."""
    core: tuple[tuple[float, float, float], ...]
    """(step, seconds, CORE)."""
    problems: tuple[str, ...]
    """Why it cannot be reproduced; empty where it can."""
    source: str = "here"
    """here, or added from a file."""

    def curve(self, validation: ValidationSet) -> BpbCurve | None:
        for key, points in self.bpb:
            if key == validation and points:
                step, seconds, bpb = (np.array(column, dtype=np.float64) for column in zip(*points, strict=True))
                return BpbCurve(step.astype(np.int64), seconds, bpb)
        return None

    def as_json(self) -> dict[str, Any]:
        curves = [{"validation": asdict(key), "points": [list(p) for p in points]} for key, points in self.bpb]
        plain = {key: value for key, value in asdict(self).items() if key != "source"}
        return {"format": FORMAT, **plain, "bpb": curves}


def entry_of(run: History) -> Entry:
    """From its folder; whatever is missing there becomes one of the problems."""
    about, config = run.config.get("run", {}), run.config.get("config", {})
    command, problems = rebuilt_command(run)
    result = run.result or {}
    return Entry(
        name=run.name,
        command=command,
        fathom=str(about.get("fathom", "")),
        torch=str(about.get("torch", "")),
        device=str(run.circumstances.get("device_name", "")),
        corpus_digest=str(about.get("corpus_digest", "")),
        tokenizer_digest=str(about.get("tokenizer_digest", "")),
        data_digest=str(config.get("data_digest", "")),
        weights_sha256=str(result.get("weights_sha256", "")),
        created=str(about.get("created", "")),
        parameters=run.shape.parameters["total"] if run.shape else 0,
        tokens=float(run.tokens_done or 0),
        flops=_number(run.steps_done * flops_per_step(run)),
        seconds=_number(float(run.train_s[-1]) if len(run.train_s) else math.nan),
        bpb=tuple((key, _points(curve)) for key, curve in sorted(bpb_curves(run).items())),
        core=core_points(run),
        problems=(*record_problems(run), *problems),
    )


def _points(curve: BpbCurve) -> tuple[tuple[float, float, float], ...]:
    rows = zip(curve.step.tolist(), curve.seconds.tolist(), curve.bpb.tolist(), strict=True)
    return tuple(row for row in rows if all(map(math.isfinite, row)))


def core_points(run: History) -> tuple[tuple[float, float, float], ...]:
    """(step, training seconds, CORE) of every evaluation in evals/core*.json, by step; that of most items counts."""
    found: dict[int, tuple[float, float, float, float]] = {}
    for name, value in run.evals.items():
        core, step = value.get("core"), value.get("step")
        if name.startswith("core") and isinstance(core, float) and isinstance(step, int) and math.isfinite(core):
            seconds = value.get("train_s", np.interp(step, run.step, run.train_s) if len(run.step) else None)
            if isinstance(seconds, (int, float)) and math.isfinite(seconds):
                n = value.get("n")
                point = n if isinstance(n, int) else 0.0, float(step), float(seconds), core
                found[step] = max(point, found.get(step, point))
    return tuple(sorted(point[1:] for point in found.values()))


def entry_from(text: str, source: str) -> Entry:
    """An entry that somebody exported. FathomError says what is wrong with it; nothing of it is trusted."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        raise _bad(source, "it is no JSON") from None
    if not isinstance(value, dict) or value.get("format") != FORMAT:
        raise _bad(source, f"it does not say format {FORMAT}")

    def word(key: str) -> str:
        return _text(value.get(key), key, source)

    def count(key: str) -> float:
        return _count(value.get(key), key, source)

    check_name(word("name"), "leaderboard entry")
    if not all(isinstance(value.get(key), list) for key in ("bpb", "core", "problems")):
        raise _bad(source, "bpb, core and problems must be lists")
    bpb = tuple((_validation(part, source), _triples(part.get("points"), source)) for part in value["bpb"])
    problems = [_text(problem, "problems", source) for problem in value["problems"]]
    needed = ("command", "corpus_digest", "tokenizer_digest", "data_digest", "weights_sha256")
    problems += [f"its file has no {key}" for key in needed if not word(key) and not problems]
    return Entry(
        name=word("name"),
        command=word("command"),
        fathom=word("fathom"),
        torch=word("torch"),
        device=word("device"),
        corpus_digest=word("corpus_digest"),
        tokenizer_digest=word("tokenizer_digest"),
        data_digest=word("data_digest"),
        weights_sha256=word("weights_sha256"),
        created=word("created"),
        parameters=int(count("parameters")),
        tokens=count("tokens"),
        flops=count("flops"),
        seconds=count("seconds"),
        bpb=bpb,
        core=_triples(value["core"], source),
        problems=tuple(problems),
        source="added",
    )


def _validation(part: Any, source: str) -> ValidationSet:
    found = part.get("validation") if isinstance(part, dict) else None
    if not isinstance(found, dict):
        raise _bad(source, "a curve does not say what it was measured on")
    digest, rows_of = (_text(found.get(key), key, source) for key in ("data_digest", "rows_of"))
    rows, seq_len = (int(_count(found.get(key), key, source)) for key in ("rows", "seq_len"))
    return ValidationSet(digest, rows_of, rows, seq_len)


def _triples(found: Any, source: str) -> tuple[tuple[float, float, float], ...]:
    if not isinstance(found, list) or len(found) > MOST_POINTS:
        raise _bad(source, "a curve is no list of points")
    rows = []
    for row in found:
        if not isinstance(row, list) or len(row) != 3:
            raise _bad(source, "a point is not [step, seconds, value]")
        step, seconds, value = (_count(cell, "points", source) for cell in row)
        rows.append((step, seconds, value))
    if any(a[0] >= b[0] or a[1] > b[1] for a, b in zip(rows, rows[1:], strict=False)):
        raise _bad(source, "the points of a curve are not in order of steps and time")
    return tuple(rows)


def _text(value: Any, key: str, source: str) -> str:
    if not isinstance(value, str) or len(value) > MOST_CHARACTERS or not value.isprintable():
        raise _bad(source, f"{key} is no plain text")
    return value


def _count(value: Any, key: str, source: str) -> float:
    good = isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) < 1e30
    if not good or (key != "points" and value < 0):
        raise _bad(source, f"{key} is no number")
    return float(value)


def _bad(source: str, what: str) -> FathomError:
    return FathomError(
        f"{source} is no leaderboard entry ({what})", "export it again with `fathom leaderboard --export`"
    )


def _number(value: float) -> float:
    return value if math.isfinite(value) else 0.0


def unique(entries: Sequence[Entry]) -> list[Entry]:
    """Without those that are the same run twice: here, and added from a file."""
    seen: dict[tuple[str, str], Entry] = {}
    for entry in entries:
        seen.setdefault((entry.name, entry.weights_sha256), entry)
    return list(seen.values())
