"""How bpb went: still falling at the end, worse after a resume, measured otherwise than before."""

from __future__ import annotations

import math

import numpy as np

from fathom.report import measures
from fathom.report.commands import extendable_step, fine_tuned_again, resume
from fathom.report.findings.budget import longer_ratio, longer_words
from fathom.report.findings.finding import Finding
from fathom.report.findings.trend import Fit, fit_line
from fathom.report.history import History
from fathom.report.measures import Measured
from fathom.report.words import bpb, change, figure, percent

ANOTHER = 0.10
"""Of the run, for which the fit is asked what it would give."""
SMALLEST_GAIN = 0.001
"""Share of bpb that another tenth of a run must give to be worth the name."""
UNCLEAR = 0.005
"""Share of bpb that another tenth may well give, where the points do not tell whether it gives anything."""
FEWEST_POINTS = 4
BLOCKS = 16
NOISE = 0.003
"""Share of bpb by which two validations of one model may differ, and nothing be meant by it."""

NOUNS = {"started": "restart", "resumed": "resume", "extended": "extension"}


def last_third(history: History) -> tuple[str, np.ndarray, np.ndarray] | None:
    """(what, steps, values) of the last third of the steps, none from before the newest phase that changed the rates.

    Validations where there are enough of them, else the training loss in blocks.
    """
    done = history.steps_done
    begin = max(2 / 3 * done, _last_rise(history))
    found = {one.step: one.val_bpb for one in measures.measured(history) if begin <= one.step <= done and one.step > 0}
    if len(found) >= FEWEST_POINTS:
        steps = np.array(sorted(found))
        return "bpb", steps, np.array([found[step] for step in steps.tolist()])
    chosen = (history.step >= begin) & np.isfinite(history.loss)
    if chosen.sum() < 4 * BLOCKS:
        return None
    edges = np.linspace(0, chosen.sum(), BLOCKS + 1).astype(int)[:-1]
    counts = np.diff([*edges, chosen.sum()])
    steps = np.add.reduceat(history.step[chosen].astype(float), edges) / counts
    with np.errstate(over="ignore"):
        values = np.add.reduceat(history.loss[chosen], edges) / counts
    return ("training loss", steps, values) if np.isfinite(values).all() else None


def trend(history: History) -> tuple[str, Fit] | None:
    """(what, line) of the last third against the natural logarithm of the steps, which is that of the tokens.

    None where the points are too close together to say what lies beyond them.
    """
    points = last_third(history)
    if points is None or history.steps_done < 1 or not (points[2] > 0).all():
        return None
    if math.log(points[1][-1] / points[1][0]) < 2 * math.log(1 + ANOTHER):
        return None
    line = fit_line(np.log(points[1]), points[2])
    return None if line is None else (points[0], line)


def at_the_end(history: History) -> Finding | None:
    """Still improving, plateaued or rising, with what another tenth of the run would give."""
    found = trend(history)
    if found is None:
        return None
    what, line = found
    done, log_more = history.steps_done, math.log(1 + ANOTHER)
    level = line.at(math.log(done))
    gain, low, high = (slope * log_more for slope in (line.slope, line.low, line.high))
    unit = "" if what == "bpb" else " nats per token"
    extra = f"{change(gain)}{unit} (95 %: {change(low)} to {change(high)})"
    evidence = [
        f"{what} against log tokens over the last third, {line.n} points: slope {change(line.slope)}{unit} "
        f"(95 %: {change(line.low)} to {change(line.high)}), at the end {figure(level)}",
        f"another {percent(ANOTHER)} of the run ({round(ANOTHER * done):,} steps) would give {extra}",
    ]
    rate = measures.rate_at(history, done)
    if rate < 0.5:
        evidence.append(f"rates are at {percent(rate)} of their peak: part of the fall comes of that, once")
    place = "so far" if history.state == "running" else "at the end"
    if line.low > 0 and gain > SMALLEST_GAIN * level:
        sentence = f"Rising {place}: {what} grows by {change(gain)} with every tenth of the run."
        advice = "Keep the checkpoint with the lowest bpb, and lower the rates or find more text."
        return Finding("trend", "warn", sentence, tuple(evidence), advice)
    if line.high < 0 and -gain > SMALLEST_GAIN * level:
        sentence = f"Still improving {place}: another tenth of the run would give {extra} on {what}."
        return Finding("trend", "note", sentence, tuple(evidence), _advice_to_go_on(history))
    if -low > UNCLEAR * level:
        sentence = f"No clear trend {place}: another tenth of the run would give {extra} on {what}."
        return Finding("trend", "note", sentence, (*evidence, *_validated(history)), _advice_to_tell(history, what))
    sentence = f"Plateaued {place}: another tenth of the run would give {extra} on {what}."
    advice = "" if history.state == "running" else "More of the same will not help: a larger model or better text will."
    return Finding("trend", "note", sentence, tuple(evidence), advice)


def _advice_to_go_on(history: History) -> str:
    if history.state == "running":
        return "Let it run."
    begin, rate = measures.warmdown_from(history), measures.rate_at(history, history.steps_done)
    if history.state in ("stopped", "broken off"):
        return f"Go on with it: {resume(history) or '--resume'}."
    if history.stage != "pretrain":
        epochs = history.epoch[np.isfinite(history.epoch)]
        line = fine_tuned_again(
            history, f"{history.name}-longer", epochs=f"{2 * float(epochs[-1]):.2g}" if len(epochs) else 2
        )
        return f"Train longer: {line or '--epochs 2'}."
    ratio = longer_ratio(history)
    if ratio is None:
        return "Find more text, and then train longer: this one was read as often as is of use."
    if begin is None or extendable_step(history) is not None:
        return f"Train longer: {longer_words(history, ratio)}."
    why = (
        f"No checkpoint of before step {begin:,}, where its rate began to fall, is kept; going on from the end, at "
        f"{percent(rate)} of the full rate, would have to raise the rate again, and bpb with it at first"
    )
    return f"Train longer: {longer_words(history, ratio)}. {why}."


def _validated(history: History) -> list[str]:
    """The course of the validations, where they are too few for a line."""
    found = [one for one in measures.measured(history) if one.step > 0]
    if len(found) < 2:
        return []
    told = " → ".join(bpb(one.val_bpb) for one in found[-FEWEST_POINTS:])
    return [f"bpb at steps {', '.join(f'{one.step:,}' for one in found[-FEWEST_POINTS:])}: {told}"]


def _advice_to_tell(history: History, what: str) -> str:
    often = max(1, history.steps_done // 24)
    if what == "bpb":
        if history.stage == "sft":
            return "Another time give it more conversations, of which more are held out, to tell."
        return "Another time measure on more text (--eval-tokens) to tell."
    return f"Another time measure more often (--eval-every {often}): the training loss scatters too much to tell."


def _last_rise(history: History) -> int:
    """First step of the newest phase whose rates begin above those before it; 0 where rates never rose again."""
    for phase in reversed(history.phases[1:]):
        before, after = _rates_about(history, phase.first_step, history.steps_done)
        if after > 1.5 * before:
            return phase.first_step
    return 0


def _rates_about(history: History, step: int, until: int) -> tuple[float, float]:
    """Rate at a step, and the highest of the steps after it up to `until`."""
    after = history.lr[(history.step > step) & (history.step <= until) & np.isfinite(history.lr)]
    return measures.rate_at(history, step), float(after.max()) if len(after) else math.nan


def worse_after_resume(history: History) -> Finding | None:
    """bpb higher after a resume or an extension than before it; the phase that lost most."""
    found = measures.measured(history)
    cases = []
    for i, phase in enumerate(history.phases[1:], start=1):
        before = [one for one in found if one.phase < i and one.step <= phase.first_step]
        after = [one for one in found if one.phase == i and one.step > phase.first_step]
        if before and after:
            worst = max(after, key=lambda one: one.val_bpb)
            if worst.val_bpb > (1 + NOISE) * before[-1].val_bpb:
                cases.append((worst.val_bpb - before[-1].val_bpb, i, before[-1], worst, after[-1]))
    if not cases:
        return None
    rise, i, before_it, worst, last = max(cases, key=lambda case: case[0])
    phase = history.phases[i]
    rates = _rates_about(history, phase.first_step, worst.step)
    word = NOUNS.get(phase.kind, phase.kind)
    sentence = (
        f"Got worse after the {word} at step {phase.first_step:,}: bpb {bpb(before_it.val_bpb)} → "
        f"{bpb(worst.val_bpb)} at step {worst.step:,} ({change(rise)})"
    )
    recovered = last.val_bpb <= before_it.val_bpb
    if last is not worst:
        sentence += f", {bpb(last.val_bpb)} at step {last.step:,}"
    evidence = [_lowest(found)]
    advice = "Compare what the two phases ran with: data, batch and rates are in the table of phases."
    if rates[1] > 1.5 * rates[0]:
        evidence.append(
            f"rates rose again from {percent(rates[0])} to {percent(rates[1])} of their peak; that undoes what the "
            "warm-down had brought, and is no over-fitting"
        )
        advice = _advice_after_a_rise(history, phase.first_step, recovered)
    return Finding("resume", "note" if recovered else "warn", sentence + ".", tuple(evidence), advice)


def _advice_after_a_rise(history: History, at: int, recovered: bool) -> str:
    later = "Next time `fathom pretrain --extend RUN` goes on from before the rate fell."
    begin, state = measures.warmdown_from(history), history.state
    if recovered:
        return f"It has made good what it lost. {later}"
    if state == "running" and begin is not None and begin > at:
        return (
            f"Wait: the next warm-down begins at step {begin:,} and ends with the run, at {history.steps_planned:,}; "
            f"judge the run by its end. {later}"
        )
    return f"Keep the checkpoint of step {at:,}, if the end is no better. {later}"


def _lowest(found: list[Measured]) -> str:
    best = min(found, key=lambda one: one.val_bpb)
    return f"lowest bpb of all: {bpb(best.val_bpb)} at step {best.step:,}"


def measured_otherwise(history: History) -> Finding | None:
    """The same weights, validated before and after a resume, with different results."""
    found = measures.measured(history)
    for i, phase in enumerate(history.phases[1:], start=1):
        before = [one for one in found if one.phase < i and one.step == phase.first_step]
        after = [one for one in found if one.phase == i and one.step == phase.first_step]
        if not before or not after:
            continue
        was, now = before[-1].val_bpb, after[0].val_bpb
        if was > 0 and abs(now / was - 1) > NOISE:
            sentence = (
                f"The same weights measure otherwise since step {phase.first_step:,}: bpb {bpb(was)} before the "
                f"{NOUNS.get(phase.kind, phase.kind)}, {bpb(now)} after it ({change(now - was)})."
            )
            apart = percent(abs(now / was - 1))
            evidence = (f"{apart} apart; the same weights on the same text differ by under {percent(NOISE)}",)
            advice = (
                "Validation text, rows or settings have changed: do not compare bpb across this step; evaluate both "
                "checkpoints anew on one set."
            )
            return Finding("validation", "warn", sentence, evidence, advice)
    return None
