"""A run at a glance: its state, how far it is, and what calls for something."""

from __future__ import annotations

import math
from collections.abc import Sequence

from fathom.report import measures, words
from fathom.report.commands import fine_tuning
from fathom.report.document import Assessment, Section, Text, facts
from fathom.report.findings import Finding
from fathom.report.history import History
from fathom.report.lineage import Ancestor
from fathom.report.phases import AFTERWARDS
from fathom.report.words import duration, figure, percent
from fathom.screen import plural

REST = "Everything that was judged is under Assessment, at the end."
WORTH_DOING = ("trend", "short")
"""Kinds of notes whose advice stands at the top, too, the first that is there: what to do with a healthy run."""


def overview(
    history: History, ancestors: tuple[Ancestor, ...], findings: list[Finding], saved_bytes: int | None
) -> Section:
    """State, progress and the findings that call for something."""
    planned, done = history.steps_planned, history.steps_done
    run = history.config.get("run", {})
    left = (planned or 0) - done
    measured = measures.measured(history)
    eta = left * measures.step_seconds(history)
    kept = history.checkpoints
    table = facts(
        ("state", _state(history)),
        ("steps", f"{done:,} of {planned:,} ({percent(done / planned, 4)})" if planned else f"{done:,}"),
        ("tokens", f"{history.tokens_done:,}") if history.tokens_done is not None else None,
        ("validation", f"{words.bpb(measured[-1].val_bpb)} bits per byte at step {measured[-1].step:,}")
        if measured
        else None,
        ("training loss", f"{figure(_last_loss(history))} nats per token, smoothed") if len(history.step) else None,
        ("training time", duration(measures.trained_s(history))),
        ("still to go", f"about {duration(eta)}")
        if left > 0 and math.isfinite(eta) and history.state == "running"
        else None,
        ("stage", history.stage),
        ("fine-tuned in", tuned) if (tuned := fine_tuning(history)) else None,
        *_went_on_in(history, {history.name, *(one.name for one in ancestors)}),
        ("goes on from", ", ".join(f"{one.name} at step {one.step:,}" for one in ancestors)) if ancestors else None,
        ("base run", str(run["base"])) if run.get("base") else None,
        (
            "created",
            f"{run.get('created', words.NOTHING)} with fathom {run.get('fathom', '?')}, torch {run.get('torch', '?')}",
        ),
        ("checkpoints kept", _kept(kept, saved_bytes)),
    )
    grave = tuple(finding for finding in findings if finding.severity in ("bad", "warn"))
    told = grave or worth_doing(findings)
    return Section("At a glance", (Text(f"{verdict(findings)} {REST}"), *([Assessment(told)] if told else []), table))


def worth_doing(findings: Sequence[Finding]) -> tuple[Finding, ...]:
    """The note that says what to do with a run; none where what was trained is not worth to go on from."""
    if any(one.kind in ("stability", "nan", "rates") and one.severity in ("bad", "warn") for one in findings):
        return ()
    notes = {one.kind: one for one in findings if one.severity == "note" and one.advice}
    return tuple(notes[kind] for kind in WORTH_DOING if kind in notes)[:1]


def _went_on_in(history: History, lineage: set[str]) -> list[tuple[str, str]]:
    """The runs that were extended from this one; `lineage` is itself and those before it."""
    lines = [line for line in history.events if line.get("event") == AFTERWARDS and line.get("run") not in lineage]
    told = ", ".join(f"{line['run']} from step {line.get('step', '?')}" for line in lines)
    return [("extended in", told)] if told else []


def _state(history: History) -> str:
    if history.state == "stopped":
        return f"stopped ({history.phases[-1].ended_by})"
    return history.state


def _last_loss(history: History) -> float:
    known = history.loss_smooth[history.loss_smooth == history.loss_smooth]
    return float(known[-1]) if len(known) else math.nan


def _kept(kept: tuple[tuple[int, float], ...], saved_bytes: int | None) -> str:
    if not kept:
        return "none"
    steps = ", ".join(f"{step:,}" for step, _ in kept[-6:])
    which = f"{'step' if len(kept) == 1 else 'steps'} {'… ' if kept[6:] else ''}{steps}"
    size = f"; the newest has {saved_bytes / 1e6:,.1f} MB" if saved_bytes else ""
    return f"{len(kept)} ({which}){size}"


def verdict(findings: Sequence[Finding]) -> str:
    """All findings in a sentence."""
    good, grave = (sum(one.severity in kinds for one in findings) for kinds in (("good",), ("bad", "warn")))
    passed = f"{plural(good, 'check')} passed"
    if grave:
        return f"{passed}, {plural(grave, 'finding')} to mend."
    if not good:
        return "Too little to judge: no check could be made."
    healthy = "A healthy run, if a short one" if any(one.kind == "short" for one in findings) else "A healthy run"
    return f"{healthy}: {passed}, none failed."
