"""`fathom scaling`: the laws of a miniseries, on the screen, as a page with plots, and as JSON."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tyro

from fathom import scaling as rules
from fathom.errors import FathomError
from fathom.home import names, write_atomic
from fathom.model.shape import Shape
from fathom.report.history import History, history_of
from fathom.report.measured import bpb_curves, common_set, flops_per_step, loss_reasons, tokens_of
from fathom.report.miniseries import Analysis, Point, analyse, as_json, predictions
from fathom.report.scaling_page import PLAN_HEADS, POINT_HEADS, plan_rows, point_rows, scaling_page, sentences
from fathom.report.tables import print_table
from fathom.screen import say

DEEPEST = 100


@dataclass(frozen=True)
class Scaling:
    """Fit how bits per byte fall with FLOPs, size and tokens over finished runs, and what is best for given FLOPs.

    Runs of one size for each depth give a law of bpb against FLOPs. Runs of several sizes at the same FLOPs (pretrain
    --flops) also give the best size and number of tokens. All must have been measured on the same rows (--eval-tokens).
    """

    runs: tyro.conf.Positional[tuple[str, ...]] = ()
    """Names of runs."""
    prefix: str | None = None
    """Every finished run whose name begins so."""
    flops: tuple[float, ...] = ()
    """Budgets to predict. Default the largest that was run, and 10 and 100 times it."""
    out: str | None = None
    """The page with the plots. Default scaling.html in this folder, where a law was found."""
    json: bool = False
    """Print one JSON object on standard output."""

    def run(self) -> dict[str, Any]:
        if any(not 0 < budget < math.inf for budget in self.flops):
            raise FathomError(f"--flops is {self.flops}", "give numbers above zero, such as 1e18")
        histories = _runs(self.runs, self.prefix)
        points, left_out = points_of(histories)
        found = analyse(points)
        found.notes[:0] = left_out
        rows = predictions(found, self.flops)
        for row in rows:
            row["depth"] = nearest_depth(row["parameters"], histories)
        has_law = bool(found.frontier or found.surface or found.bottoms)
        page = Path(self.out or "scaling.html") if self.out or has_law else None
        if page is not None:
            write_atomic(page, scaling_page(found, rows))
        if not self.json:
            _show(found, rows)
            say(f"\nplots: {page}" if page else "\nno law was found, so no page was written", style="bold")
        return as_json(found, rows) | {"html": None if page is None else str(page.resolve())}


def _runs(asked: Sequence[str], prefix: str | None) -> list[History]:
    wanted = list(dict.fromkeys([*asked, *(name for name in names("runs") if prefix and name.startswith(prefix))]))
    if not wanted:
        what = f"no run begins with {prefix!r}" if prefix else "no run was named"
        raise FathomError(what, "name the runs of a miniseries, or give --prefix")
    histories = [history_of(name) for name in wanted]
    return histories if asked else [h for h in histories if h.stage == "pretrain"] or histories


def points_of(histories: Sequence[History]) -> tuple[list[Point], list[str]]:
    """Finished pretraining runs as points, and what was left out, with the reason. FathomError where none remain."""
    good, notes = [], []
    for run in histories:
        finals = [curve.final for curve in bpb_curves(run).values()]
        if run.stage != "pretrain" or run.shape is None or run.batch_tokens is None:
            notes.append(f"{run.name} left out: it is {run.stage}, or its run.toml tells no shape and batch")
        elif run.state != "finished":
            notes.append(f"{run.name} left out: it is {run.state}, and its rate has not come down")
        elif not finals:
            notes.append(f"{run.name} left out: it was never measured")
        elif not all(map(math.isfinite, finals)):
            notes.append(f"{run.name} left out: it ended with a bpb that is no number")
        else:
            good.append(run)
    if not good:
        raise FathomError(f"none of the {len(histories)} runs can be used ({notes[0]})", "finish them and measure them")
    reasons = loss_reasons(good)
    if serious := [reason for reason in reasons if reason.startswith(("data", "tokenizer"))]:
        raise FathomError(f"one law cannot hold for these runs: {serious[0]}", "give runs of one corpus and tokenizer")
    validation = common_set(good)
    points = []
    for run in good:
        assert run.shape is not None
        curve = bpb_curves(run)[validation]
        flops = float(curve.step[-1]) * flops_per_step(run)
        depth, n = run.shape.n_layer, run.shape.scaling_parameters
        points.append(Point(run.name, depth, n, tokens_of(run, curve), flops, curve.final))
    return points, notes + [f"not all alike: {reason}" for reason in reasons]


def nearest_depth(parameters: Mapping[str, float] | None, histories: Sequence[History]) -> int | None:
    """The depth whose blocks and head come nearest to so many parameters, at head size and vocabulary of these runs."""
    like = next((run.shape for run in histories if run.shape is not None), None)
    if parameters is None or like is None:
        return None

    def size(depth: int) -> int:
        heads = rules.n_head(depth, like.head_dim)
        shape = Shape(depth, heads, heads, like.head_dim, like.vocab_size, like.seq_len, like.window_pattern)
        return shape.scaling_parameters

    wanted = math.log(parameters["value"])
    return min(range(1, DEEPEST + 1), key=lambda depth: abs(math.log(size(depth)) - wanted))


def _show(found: Analysis, rows: Sequence[Mapping[str, Any]]) -> None:
    say("the runs; parameters are those of blocks and head, ratio is tokens for each", style="bold")
    print_table(POINT_HEADS, point_rows(found))
    for sentence in sentences(found):
        say(sentence.replace("   ", "\n  "))
    if rows:
        say("\nwhat is best for given FLOPs, with 95 % intervals", style="bold")
        print_table(PLAN_HEADS, plan_rows(rows))
    for note in found.notes:
        say(f"  {note}", style="yellow")
