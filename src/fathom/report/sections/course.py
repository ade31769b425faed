"""How a run went: bits per byte, training loss, rates and speed, phases, token budget, timeline."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from fathom.report import measures, words
from fathom.report.document import Plot, Section, Table, Text, section, without_empty
from fathom.report.findings.budget import CHINCHILLA, OPTIMUM
from fathom.report.history import History
from fathom.report.measures import Measured
from fathom.report.plots import bpb_chart, gradient_chart, loss_chart, rate_chart, speed_chart
from fathom.report.sections.stretches import Stretch, stretches
from fathom.report.words import change, duration, figure, large, moment

MOST_ROWS = 48
FIRST_STEPS = (1, 11, 21, 31, 41, 50)
"""Of a run that starts anew: what the first lines of its log show."""


def progression(history: History) -> Section | None:
    """Every validation with what is notable about it, and the curve."""
    found = measures.measured(history)
    if not found:
        return None
    notes = _notes(history, found)
    shown = _thinned(len(found), [i for i, note in enumerate(notes) if note])
    batch = history.batch_tokens or 0
    rows = []
    for i in shown:
        one = found[i]
        step = change(one.val_bpb - found[i - 1].val_bpb) if i else ""
        rate = measures.rate_at(history, one.step)
        tokens = large(one.step * batch) if batch else ""
        rows.append((f"{one.step:,}", tokens, words.bpb(one.val_bpb), step, figure(rate, 3), notes[i]))
    head = ("step", "tokens", "bpb", "change", "rate", "note")
    left_out = len(found) - len(shown)
    return section(
        "Validation in bits per byte",
        Table(head, tuple(rows), frozenset(range(5))),
        Text(f"{left_out:,} further validations are left out.") if left_out else None,
        Plot(bpb_chart(history)) if len(found) > 1 else None,
    )


def _notes(history: History, found: Sequence[Measured]) -> list[str]:
    """What is to be said of each validation."""
    begin, best = measures.warmdown_from(history), min(range(len(found)), key=lambda i: found[i].val_bpb)
    drops = [before.val_bpb - after.val_bpb for before, after in zip(found, found[1:], strict=False)]
    largest = max(range(len(drops)), key=lambda i: drops[i]) + 1 if len(drops) > 2 and max(drops) > 0 else None
    lowest = math.inf
    notes: list[str] = []
    for i, one in enumerate(found):
        said = []
        before = found[i - 1] if i else None
        if one.step == 0:
            said.append("random weights" if history.stage == "pretrain" else "before the first step")
        if before is not None and one.phase != before.phase:
            phase = history.phases[one.phase] if one.phase < len(history.phases) else None
            said.append(f"{phase.kind} at step {phase.first_step:,}" if phase else "")
        if begin is not None and (before is None or before.step <= begin) and begin < one.step:
            said.append(f"warm-down began at {begin:,}")
        if i == largest:
            said.append("largest drop")
        crossed = _tenths_crossed(lowest, one.val_bpb)
        if crossed:
            said.append(f"crosses below {crossed}")
        if before is not None and one.val_bpb > 1.003 * before.val_bpb:
            said.append("worse than before")
        if i == best and len(found) > 1:
            said.append("best")
        if i == len(found) - 1:
            said.append("last")
        lowest = min(lowest, one.val_bpb)
        notes.append(", ".join(filter(None, said)))
    return notes


def _tenths_crossed(before: float, now: float) -> str:
    """The multiple of 0.1 that was crossed, if it was that one alone."""
    if not math.isfinite(before) or not 0 <= now < before < 1e6:
        return ""
    above, below = math.ceil(before * 10 - 1e-9), math.ceil(now * 10 - 1e-9)
    return f"{below / 10:.1f}" if above - below == 1 else ""


def _thinned(count: int, notable: Sequence[int]) -> list[int]:
    """At most about MOST_ROWS of `count` rows: evenly many, and those that are notable."""
    if count <= MOST_ROWS:
        return list(range(count))
    even = np.linspace(0, count - 1, MOST_ROWS // 2).astype(int).tolist()
    return sorted({*even, *notable[: MOST_ROWS // 4], *notable[-MOST_ROWS // 4 :]})


def training(history: History) -> Section | None:
    """The smoothed training loss along the way, with its curve, rates and speed."""
    if not len(history.step):
        return None
    done = history.steps_done
    early = [step for step in FIRST_STEPS if step < done / 10] if measures.starts_anew(history) else []
    wanted = [*early, *(round(done * k / 10) for k in range(1, 11))]
    at = sorted({int(np.searchsorted(history.step, step)) for step in wanted if step >= history.step[0]})
    rows = [_loss_row(history, i) for i in at if i < len(history.step)]
    charts = (loss_chart(history), gradient_chart(history), rate_chart(history), speed_chart(history))
    plots = [Plot(chart) for chart in charts if chart]
    head = ("step", "loss", "smoothed", "gradient", "rate", "tokens/s", "note")
    return section("Training", without_empty(Table(head, tuple(rows), frozenset(range(6)))), *plots)


def _loss_row(history: History, i: int) -> tuple[str, ...]:
    step, seconds = int(history.step[i]), float(history.step_s[i])
    speed = history.batch_tokens / seconds if history.batch_tokens and seconds > 0 else math.nan
    note = ""
    if i == 0 and measures.starts_anew(history) and history.shape:
        vocab = history.shape.vocab_size
        note = f"random weights give ln {vocab:,} = {math.log(vocab):.2f}"
    losses = (float(history.loss[i]), float(history.loss_smooth[i]))
    norm, rate = float(history.grad_norm[i]), float(history.lr[i])
    gradient = figure(norm, 3) if math.isfinite(norm) else ""
    return (f"{step:,}", *(figure(loss) for loss in losses), gradient, figure(rate, 3), f"{large(speed)}", note)


def phases(history: History) -> Section | None:
    """What each start, resume or extension added."""
    found = stretches(history)
    rows = tuple(_phase_row(history, stretch) for stretch in found)
    head = ("", "phase", "steps", "training", "loss", "rate", "bpb", "tokens/s", "saved", "ended by")
    return section("Phases", Table(head, rows, frozenset({0, 7, 8})), *_devices(found))


def _phase_row(history: History, one: Stretch) -> tuple[str, ...]:
    speed = history.batch_tokens * one.steps / one.train_s if history.batch_tokens and one.train_s > 0 else math.nan
    return (
        str(one.number),
        one.phase.kind,
        f"{one.phase.first_step:,} → {one.last_step:,}",
        duration(one.train_s),
        " → ".join(figure(loss, 3) for loss in one.losses),
        " → ".join(figure(rate, 3) for rate in one.rates),
        words.bpb(one.val_bpb),
        large(speed),
        str(one.saved),
        _end_of(history, one),
    )


def _end_of(history: History, one: Stretch) -> str:
    if one.phase.ended_by:
        return one.phase.ended_by
    return "at work" if history.is_running and one.number == len(history.phases) else "broke off"


def _devices(found: Sequence[Stretch]) -> list[Text]:
    """What each phase ran on, where that changed."""
    about = [(one.number, _machine(one.phase.circumstances)) for one in found if one.phase.circumstances]
    if len({machine for _, machine in about}) < 2:
        return []
    return [Text("It moved: " + "; ".join(f"phase {number} on {machine}" for number, machine in about) + ".")]


def _machine(about: Mapping[str, Any]) -> str:
    return f"{about.get('device_name', '?')} ({about.get('dtype', '?')}, {about.get('device_batch', '?')} rows)"


def budget(history: History) -> Section | None:
    """Tokens phase by phase, in all, and for each parameter by both counts."""
    batch, shape = history.batch_tokens, history.shape
    if not batch:
        return None
    rows = [
        (f"phase {one.number}, {one.phase.kind}", f"{one.steps:,}", f"{one.steps * batch:,}")
        for one in stretches(history)
        if one.steps
    ]
    done, planned = history.steps_done, history.steps_planned
    first = history.phases[0].first_step if history.phases else 0
    if first and rows:
        rows.insert(0, ("before this record", f"{first:,}", f"{first * batch:,}"))
    rows.append(("all so far" if history.state != "finished" else "all", f"{done:,}", f"{done * batch:,}"))
    if planned and planned > done:
        rows.append(("still planned", f"{planned - done:,}", f"{(planned - done) * batch:,}"))
        rows.append(("as planned", f"{planned:,}", f"{planned * batch:,}"))
    table = Table(("", "steps", "tokens"), tuple(rows), frozenset({1, 2}))
    if shape is None:
        return section("Token budget", table)
    tokens = [("trained" if history.state == "finished" else "so far", done * batch)] if done else []
    tokens += [("as planned", planned * batch)] if planned and planned != done else []
    ratios = tuple(
        (
            name,
            figure(count / shape.scaling_parameters, 4),
            figure(count / shape.parameters["total"], 4),
            f"{count * shape.flops_per_token:.4g}",
        )
        for name, count in tokens
    )
    optimum = ("compute-optimal", f"{OPTIMUM[0]:g} to {OPTIMUM[1]:g}", f"{CHINCHILLA:g} (Chinchilla)", "")
    head = ("tokens per parameter", "blocks and head", "all", "training FLOPs")
    return section("Token budget", table, Table(head, (*ratios, optimum), frozenset({1, 2, 3})))


KINDS = {"extended": "went on for longer"}
"""Of phases, where the record's word is not plain."""


def timeline(history: History) -> Section | None:
    """When what happened."""
    found = stretches(history)
    rows: list[tuple[str, str]] = []
    for one in found:
        pause = f", {duration(one.wait_s)} after the phase before" if one.wait_s > 60 else ""
        kind = KINDS.get(one.phase.kind, one.phase.kind)
        rows.append((moment(one.phase.began), f"{kind} at step {one.phase.first_step:,}{pause}"))
        rows += _incidents(history, one)
        end = one.phase.ended
        if end is not None:
            rows.append((moment(end), f"{_end_of(history, one)} at step {one.phase.last_step:,}"))
    times = [at for one in found for at in (one.phase.began, one.phase.ended) if at is not None and math.isfinite(at)]
    total = max(times) - min(times) if times else 0.0
    text = f"{duration(total)} by the clock, {duration(measures.trained_s(history))} of them in training steps."
    return section("Timeline", Table(("when", "what"), tuple(rows)), Text(text) if total > 0 else None)


def _incidents(history: History, one: Stretch) -> list[tuple[str, str]]:
    """Steps skipped, returns and failures of a phase, at most six."""
    said = {
        "skipped": "step {step} left out: {why}",
        "rolled_back": "went back from step {from} to {to}, and on with the data after them: {why}",
        "out_of_memory": "out of memory at step {step}: micro-batches of {device_batch} rows from then on",
        "save_failed": "checkpoint of step {step} failed: {why}",
        "evaluation_failed": "{what} after step {step} failed: {why}",
        "damaged": "the checkpoint of step {step} could not be read and was put aside: {why}",
        "recompiled": "torch compiled a kernel again at step {step}",
    }
    end = one.phase.ended if one.phase.ended is not None else math.inf
    rows = []
    for line in history.events:
        at, kind = measures.number(line, "time"), str(line.get("event"))
        if kind in said and one.phase.began <= at <= end:
            known = {key: str(line.get(key, "?"))[:120] for key in ("step", "why", "from", "to", "device_batch")}
            known["what"] = str(line.get("what", "evaluation")).removeprefix("the ")
            rows.append((moment(at), said[kind].format(**known)))
    more = [("", f"and {len(rows) - 6:,} more of the kind")] if len(rows) > 6 else []
    return rows[:6] + more
