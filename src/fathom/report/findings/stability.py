"""Spikes, numbers that are none, steps skipped or lost, evaluations and checkpoints that failed."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from fathom.report import measures
from fathom.report.commands import gentler, resume
from fathom.report.findings.finding import Finding
from fathom.report.history import History
from fathom.report.words import duration, figure, percent
from fathom.screen import plural

WINDOW = 128
SIGMAS = 6.0
CURES = {
    "spike": "{gentler}; if one text is at fault, it is among those of the steps that were left out.",
    "non-finite": "{gentler}; or train with --dtype bf16 or fp32.",
    "float16": "Train with --dtype bf16 or fp32, where the device can.",
    "no target": "Those rows hold no answer to learn from: see that conversations fit into the context.",
}
"""What to do by why steps were left out (the beginning of the reason)."""
RETURNS_MEAN = (
    "four steps in a row had to be left out: it went back to the last good checkpoint, and on with the data after them"
)
LEAST_SHARE = 0.001
"""Of the loss: a scatter smaller than this is taken for this, lest a smooth curve's every ripple be a spike."""
HIGHEST = 1000.0
"""Nats; what is above counts as this."""
BACK = 64
"""Logged steps after a spike in which the loss should be back."""
JUMP_NATS, JUMP_TIMES, JUMP_NOISES = 1.0, 1.3, 5.0
"""So far above the lowest before it, by all three, lies a loss that has jumped; the noise is the usual change from
step to step, which is large where every batch holds other kinds of text.
"""
START_MARGIN = 0.5
LOST_S = 300.0
"""Less than this that was trained twice is not worth saving more often for."""


@dataclass(frozen=True)
class Spike:
    """A loss far above those before it; steps in a row are one."""

    step: int
    sigmas: float
    before: float
    """Mean loss of the window before."""
    loss: float
    recovered: bool | None
    """None where too little follows to tell."""


def spikes(history: History) -> list[Spike]:
    """Losses beyond SIGMAS standard deviations of the WINDOW logged steps before them, in order."""
    finite = np.isfinite(history.loss)
    loss, step = np.minimum(history.loss[finite], HIGHEST), history.step[finite]
    if len(loss) <= WINDOW:
        return []
    middle = float(np.median(loss))
    sums = np.concatenate([[0.0], np.cumsum(loss - middle)])
    squares = np.concatenate([[0.0], np.cumsum((loss - middle) ** 2)])
    mean = (sums[WINDOW:-1] - sums[: -WINDOW - 1]) / WINDOW
    variance = (squares[WINDOW:-1] - squares[: -WINDOW - 1]) / WINDOW - mean**2
    mean = mean + middle
    scatter = np.maximum(np.sqrt(np.maximum(variance, 0.0)), LEAST_SHARE * np.abs(mean) + 1e-9)
    sigmas = (loss[WINDOW:] - mean) / scatter
    found: list[Spike] = []
    last = -math.inf
    for i in np.flatnonzero(sigmas > SIGMAS).tolist():
        if i > last + BACK:
            found.append(_spike(loss, step, i + WINDOW, float(sigmas[i]), float(mean[i])))
        last = i
    return found


def _spike(loss: np.ndarray, step: np.ndarray, at: int, sigmas: float, before: float) -> Spike:
    after = loss[at + BACK : at + 2 * BACK]
    recovered = is_back(float(np.median(after)), before, float(loss[at])) if len(after) >= BACK // 4 else None
    return Spike(int(step[at]), sigmas, before, float(loss[at]), recovered)


def is_back(now: float, before: float, top: float) -> bool:
    """Whether a loss that rose from `before` to `top` has come down all but a tenth of the way."""
    return now < before + 0.1 * (top - before)


@dataclass(frozen=True)
class Jump:
    """A rise of the loss that chance does not make: medians of three steps in a row."""

    step: int
    before: float
    """The lowest until then."""
    loss: float
    """The highest since."""
    last: float


def jump(step: np.ndarray, loss: np.ndarray) -> Jump | None:
    """The first jump in (N,) steps and losses, however short the run; None where there is none."""
    finite = np.isfinite(loss)
    step, loss = step[finite], np.minimum(loss[finite], HIGHEST)
    if len(loss) < 6:
        return None
    level = np.median(np.stack([loss[:-2], loss[1:-1], loss[2:]]), axis=0)
    lowest = np.minimum.accumulate(np.minimum(level, loss[0]))  # by a first loss, it may jump at once
    least = max(JUMP_NATS, JUMP_NOISES * float(np.median(np.abs(np.diff(loss)))))
    far = np.flatnonzero((level - lowest > least) & (level > JUMP_TIMES * lowest))
    if not len(far):
        return None
    at = int(far[0])
    before = float(lowest[at])
    above = at + int(np.flatnonzero(loss[at : at + 3] > before + JUMP_NATS)[0])
    return Jump(int(step[above]), before, float(loss[at:].max()), float(level[-1]))


def jumped(history: History) -> Finding | None:
    """A loss that jumped in a run too short for its spikes to be told by their scatter."""
    if int(np.isfinite(history.loss).sum()) > 2 * WINDOW:
        return None
    found = jump(history.step, history.loss)
    if found is None:
        return None
    back = "came back" if is_back(found.last, found.before, found.loss) else "did not come back"
    sentence = (
        f"The loss jumped at step {found.step:,}, from {figure(found.before, 3)} to {figure(found.loss, 3)} nats, and "
        f"{back}: {figure(found.last, 3)} at the end."
    )
    evidence = (f"medians of three steps in a row, more than {JUMP_NATS:g} nat above the lowest before them",)
    return Finding("stability", "warn", sentence, evidence, f"{_gentler(history)}.")


def instability(history: History) -> Finding | None:
    """Spikes of the loss; their absence, where there are steps enough to say so."""
    counted = int(np.isfinite(history.loss).sum())
    if counted <= 2 * WINDOW:
        return None
    found = spikes(history)
    if not found:
        if not np.isfinite(history.loss[~history.is_left_out]).all():
            return None
        sentence = f"Stable: no spike beyond {SIGMAS:g}σ and no loss without a number in {counted:,} logged steps."
        return Finding("stability", "good", sentence)
    worst = max(found, key=lambda spike: spike.sigmas)
    lasting = [spike for spike in found if spike.recovered is False]
    sentence = f"The loss spiked {plural(len(found), 'time')} beyond {SIGMAS:g}σ of the {WINDOW} logged steps before"
    sentence += f", {len(lasting)} of them without coming back within {2 * BACK}." if lasting else "."
    evidence = [
        f"the highest at step {worst.step:,}: {figure(worst.before)} → {figure(worst.loss)} nats, "
        f"{figure(worst.sigmas, 3)}σ",
        f"at steps {', '.join(f'{spike.step:,}' for spike in found[:8])}{' …' if len(found) > 8 else ''}",
    ]
    rare = len(found) <= 3 and not lasting
    warm = "a longer --warmup-steps helps too, or " if history.stage == "pretrain" else ""
    cure = f"{_gentler(history)}; {warm}look at the texts of those steps."
    advice = "" if rare else cure
    return Finding("stability", "note" if rare else "warn", sentence, tuple(evidence), advice)


def not_a_number(history: History) -> Finding | None:
    """Losses that are NaN or infinite."""
    broken = history.step[~np.isfinite(history.loss) & ~history.is_left_out]
    if not len(broken):
        return None
    sound = history.step[np.isfinite(history.loss)]
    to_the_end = not len(sound) or sound[-1] < broken[-1]
    first = int(broken[sound[-1] < broken][0]) if to_the_end and len(sound) else int(broken[0])
    if to_the_end:
        sentence = f"The loss is not a number from step {first:,} to the last logged, {int(broken[-1]):,}."
    else:
        sentence = f"The loss was not a number in {plural(len(broken), 'logged step')}, first in step {first:,}."
    evidence = [f"{len(broken):,} of {len(history.step):,} logged steps"]
    rate = measures.rate_at(history, first)
    if math.isfinite(rate):
        evidence.append(f"rates stood at {percent(rate)} of their peak")
    advice = (
        f"What was trained since is worthless. {_gentler(history)}, and --dtype fp32 is safer; for a fine-tuning, see "
        "that its rows hold answers to learn from."
    )
    return Finding("nan", "bad" if to_the_end else "warn", sentence, tuple(evidence), advice if to_the_end else "")


def skipped_steps(history: History) -> Finding | None:
    """Updates that were left out, and returns to an earlier checkpoint."""
    skipped = [line for line in history.events if line.get("event") == "skipped"]
    returns = [line for line in history.events if line.get("event") == "rolled_back"]
    if not skipped and not returns:
        return None
    share = len(skipped) / max(history.steps_done, 1)
    parts = [plural(len(skipped), "step") + " left out"] if skipped else []
    parts += [plural(len(returns), "return") + " to an earlier checkpoint"] if returns else []
    reasons = Counter(str(line.get("why", "no reason given")) for line in skipped)
    evidence = [f"{count:,} × {reason}" for reason, count in reasons.most_common(4)]
    evidence += [_went_back(line) for line in returns[:4]]
    few = share < 0.001 and not returns
    sentence = f"{' and '.join(parts)}: {percent(share)} of {history.steps_done:,} steps."
    cures = [cure for reason, cure in CURES.items() if any(why.startswith(reason) for why in reasons)]
    evidence += [RETURNS_MEAN] if returns else []
    advice = "" if few else " ".join(cures or [CURES["spike"]]).format(gentler=_gentler(history))
    return Finding("skipped", "note" if few else "warn", sentence, tuple(evidence), advice)


def _gentler(history: History) -> str:
    line = gentler(history)
    flag = "--lr-share" if history.stage == "sft" else "--lr-scale"
    return f"{line} begins again at half the rates" if line else f"Begin again with lower rates ({flag})"


def _went_back(line: Mapping[str, Any]) -> str:
    why = f" ({line['why']})" if line.get("why") else ""
    shift = (
        f"; {plural(line['data_shift'], 'batch', 'batches')} passed over" if type(line.get("data_shift")) is int else ""
    )
    return f"from step {line.get('from')} to {line.get('to')}{why}{shift}"


def short_of_memory(history: History) -> Finding | None:
    """Micro-batches that did not fit and were halved."""
    found = [line for line in history.events if line.get("event") == "out_of_memory"]
    if not found:
        return None
    rows = _whole(found[-1], "device_batch")
    again = " and every layer was computed twice" if found[-1].get("recompute") is True else ""
    times = plural(len(found), "time")
    sentence = f"Out of memory {times}; micro-batches came down to {rows} rows{again}, the batch stayed."
    evidence = tuple(
        f"at step {_whole(line, 'step')}: {_whole(line, 'device_batch')} rows from then on" for line in found[:4]
    )
    advice = f"Begin with --device-batch {rows} another time, or close what else holds the memory."
    return Finding("oom", "note", sentence, evidence, advice)


def _whole(line: Mapping[str, Any], key: str) -> str:
    """A whole number of an event; "?" where none stands there."""
    value = line.get(key)
    return str(value) if type(value) is int else "?"


def lost_steps(history: History) -> Finding | None:
    """Steps done twice, because a run broke off after its last checkpoint."""
    again = [
        (before.last_step - after.first_step, after.first_step)
        for before, after in zip(history.phases, history.phases[1:], strict=False)
        if after.kind == "resumed" and after.first_step < before.last_step
    ]
    if not again:
        resumed = sum(phase.kind == "resumed" for phase in history.phases)
        sentence = f"No step was lost in {plural(resumed, 'resume')}."
        return Finding("lost", "good", sentence) if resumed else None
    lost = sum(count for count, _ in again)
    seconds = lost * measures.step_seconds(history)
    cost = f", about {duration(seconds)} of training at its usual speed" if math.isfinite(seconds) else ""
    share = lost / max(history.steps_done, 1)
    sentence = f"{plural(lost, 'step')} lost and done again in {plural(len(again), 'resume')}{cost} ({percent(share)})."
    evidence = tuple(f"{count:,} after step {step:,}" for count, step in again[:6])
    much = share > 0.05 and not seconds < LOST_S
    advice = "Save more often (--save-every 5m)." if much else ""
    return Finding("lost", "warn" if much else "note", sentence, evidence, advice)


def ended_early(history: History) -> Finding | None:
    """A run that is neither finished nor at work."""
    planned, done = history.steps_planned, history.steps_done
    if history.state not in ("stopped", "broken off") or not planned or done >= planned:
        return None
    how = f"was stopped ({history.phases[-1].ended_by})" if history.state == "stopped" else "broke off"
    saved = history.checkpoints
    evidence = [f"{percent(done / planned)} of its steps"]
    evidence.append(f"newest checkpoint: step {saved[-1][0]:,}" if saved else "0 whole checkpoints are there")
    if history.refusal:
        evidence.append(f"its own last words: {history.refusal}")
    elif history.state == "broken off":
        evidence.append("nothing in the record says why: killed, out of memory, or the machine went down")
    line = resume(history) or "the same command with --resume"
    advice = f"{line[0].upper()}{line[1:]} goes on." if saved else f"Nothing of it was kept; {line} begins anew."
    return Finding("ended", "warn", f"The run {how} at step {done:,} of {planned:,}.", tuple(evidence), advice)


def failures(history: History) -> Finding | None:
    """Evaluations and checkpoints that failed while the run went on."""
    kinds = {"evaluation_failed": "evaluation", "save_failed": "checkpoint"}
    lines = [line for line in history.events if line.get("event") in kinds]
    if not lines:
        return None
    counts = Counter(kinds[str(line["event"])] for line in lines)
    sentence = " and ".join(plural(count, kind) for kind, count in sorted(counts.items())) + " failed."
    evidence = tuple(
        f"step {line.get('step', '?')}: {str(line.get('why', 'no reason given'))[:200]}" for line in lines[-4:]
    )
    advice = "Make room on the disk." if counts["checkpoint"] else "See the reason; the evaluation can be made again."
    return Finding("failures", "warn", sentence, evidence, advice)


def odd_start(history: History) -> Finding | None:
    """A first loss that is not that of random weights: the natural logarithm of the vocabulary."""
    if not measures.starts_anew(history) or history.shape is None or not math.isfinite(history.loss[0]):
        return None
    first, expected = float(history.loss[0]), math.log(history.shape.vocab_size)
    if abs(first - expected) <= START_MARGIN:
        return None
    vocab = history.shape.vocab_size
    sentence = f"The first loss is {figure(first)}; random weights give ln {vocab:,} = {figure(expected)}."
    advice = "Check the starting weights, and that data and tokenizer belong together."
    return Finding("start", "warn", sentence, (), advice)
