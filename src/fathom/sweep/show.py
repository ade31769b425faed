"""The result of a sweep, as JSON and on a screen."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fathom.report.tables import duration, figure, print_table, span
from fathom.screen import say
from fathom.sweep.grid import Candidate
from fathom.sweep.outcome import Standing, winner


def summary_of(
    name: str,
    folder: Path,
    points: Sequence[Candidate],
    found: Sequence[Standing],
    failures: dict[str, str],
    notes: list[str],
) -> dict[str, Any]:
    """What --json prints, before any trial at a larger depth."""
    best = winner(found)
    if best:
        said = f"{best.label} is better than the baseline, not confirmed at a larger depth (--confirm-depth)"
    else:
        said = "no point is shown to be better than the baseline"
    return {
        "sweep": name,
        "folder": str(folder),
        "baseline": points[0].label,
        "runs": {candidate.label: [point.run for point in candidate.points] for candidate in points},
        "standings": [standing.as_json() for standing in found],
        "best": best.label if best else None,
        "winner": None,
        "confirmed": False if best else None,
        "verdict": said,
        "confirmation": None,
        "failures": failures,
        "notes": notes,
    }


def confirmed(best: Standing, trial: Sequence[Standing], depth: int) -> dict[str, Any]:
    """What the trial at a larger depth changes of the result; `trial` holds the baseline, then the winner."""
    verdict = trial[1].verdict if len(trial) == 2 else None
    is_better = verdict is not None and verdict.word == "better"
    if is_better:
        said = f"{best.label} wins: better than the baseline, and again at depth {depth}"
    else:
        why = "it was not measured there" if verdict is None else f"there it is {_said(verdict.word)}: {verdict.reason}"
        said = f"{best.label} is better than the baseline here, but not confirmed at depth {depth} ({why.rstrip(': ')})"
    return {
        "winner": best.label if is_better else None,
        "confirmed": is_better,
        "verdict": said,
        "confirmation": [standing.as_json() for standing in trial],
    }


def show(summary: Mapping[str, Any]) -> None:
    """Print it."""
    for title, rows in (("", summary["standings"]), ("at the larger depth", summary["confirmation"])):
        if rows:
            say(f"\n{title or summary['sweep']}", style="bold")
            heads = ["", "seeds", "final bpb", "95 % interval", "time", "against the baseline"]
            print_table(heads, [_row(row) for row in rows], left=(0, 5))
    for run, why in summary["failures"].items():
        say(f"  {run} given up: {why}", style="red")
    for note in summary["notes"]:
        say(f"  {note}", style="yellow")
    say(f"\n{summary['verdict']}", style="bold green" if summary["confirmed"] else "bold")


def _said(word: str) -> str:
    """A verdict's word for people: "not shown" beside figures reads as if they were kept back."""
    return "undecided" if word == "not shown" else word


def _row(row: Mapping[str, Any]) -> list[str]:
    verdict = row["against_baseline"]
    if verdict is None:
        against = "the baseline"
    elif verdict["interval"] is None:
        against = f"{_said(verdict['verdict'])}: {verdict['reason']}"
    else:
        interval = verdict["interval"]
        against = f"{_said(verdict['verdict'])} ({interval['low']:+.4f} to {interval['high']:+.4f})"
    return [
        row["label"],
        f"{row['finished']} of {row['seeds']}",
        figure(row["final_bpb"], ".4f"),
        span(row, ".4f"),
        duration(row["seconds"] if row["seconds"] is not None else math.nan),
        against,
    ]
