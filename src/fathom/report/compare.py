"""`fathom compare`: groups of seeds on the three axes that count (steps, FLOPs, training time), with a verdict."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import combinations
from typing import Annotated, Any

import numpy as np
import tyro

from fathom.errors import FathomError
from fathom.record import newest_runs, stage_of
from fathom.report.commands import again, fine_tuned_again
from fathom.report.history import History, history_of, series
from fathom.report.measured import (
    AXES,
    BpbCurve,
    Group,
    ValidationSet,
    bpb_curves,
    common_set,
    cost,
    differences,
    grouped,
    loss_reasons,
    named_group,
    tokens_of,
)
from fathom.report.scores import Score, common_core
from fathom.report.verdict import (
    LEVEL,
    MOST_DEGREES,
    Interval,
    Verdict,
    Word,
    cost_interval,
    crossing,
    judge,
    judge_costs,
    mean_interval,
    over_all,
    t_quantile,
)


@dataclass(frozen=True)
class Compare:
    """Compare runs on steps, FLOPs and training time, with intervals over seeds and a verdict for each pair.

    Runs that differ in the seed alone are one group. What is compared is bits per byte on the validation set that all
    of them were measured on.
    """

    runs: tyro.conf.Positional[tuple[str, ...]] = ()
    """Names of runs."""
    group: Annotated[tuple[str, ...], tyro.conf.UseAppendAction] = ()
    """NAME=RUN,RUN,RUN: runs that differ in the seed alone. May be given several times."""
    target: float | None = None
    """Bits per byte to reach. Default the worst of the finals."""
    json: bool = False
    """Print one JSON object on standard output."""

    def run(self) -> dict[str, Any]:
        found = compare(groups_of(self.runs, self.group), self.target)
        if not self.json:
            from fathom.report.compare_screen import show

            show(found)
        return found


def groups_of(runs: Sequence[str], named: Sequence[str]) -> list[Group]:
    """Those that were asked for by name, then the other runs, grouped by what they have in common."""
    groups: list[Group] = []
    for text in named:
        name, equals, members = text.partition("=")
        names = [run for run in members.split(",") if run]
        if not (equals and name and names):
            raise FathomError(f"--group {text!r} names no runs", "write --group NAME=run1,run2,run3")
        groups.append(named_group(name, [history_of(run) for run in names]))
    groups += grouped([history_of(run) for run in dict.fromkeys(runs)])
    names = [run.name for group in groups for run in group.runs] + [group.name for group in groups if group.runs[1:]]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise FathomError(f"{twice[0]!r} is there twice", "name every run and every group once")
    return groups


def compare(groups: Sequence[Group], target: float | None = None, level: float = LEVEL) -> dict[str, Any]:
    """What `--json` prints. FathomError for fewer than two groups, no common validation set, or nothing to compare."""
    if len(groups) < 2:
        found = f"there is {groups[0].name!r} alone to compare" if groups else "no runs were named to compare"
        raise FathomError(found, f"name at least two that differ in more than the seed{_choice(groups)}")
    if target is not None and not 0 < target < math.inf:
        raise FathomError(f"--target is {target}", "give bits per byte above zero")
    runs = [run for group in groups for run in group.runs]
    if len({run.stage for run in runs}) > 1:
        told = ", ".join(f"{run.name} is {run.stage}" for run in runs[:4])
        raise FathomError(
            f"the runs are of different stages ({told})",
            "compare pretrain with pretrain, sft with sft; `fathom eval RUN` puts the same tasks to runs of any stage",
        )
    validation = common_set(runs)
    curves = {run.name: bpb_curves(run)[validation] for run in runs}
    finals = [curve.final for curve in curves.values() if math.isfinite(curve.final)]
    if not finals:
        raise FathomError("no run ended with a bpb that is a number", "compare runs that did not diverge")
    reached = max(finals) if target is None else target
    reasons = loss_reasons(runs)
    measured = [_group(group, curves, reached, with_loss=not reasons) for group in groups]
    cores, identical = common_core(runs), _identical(groups)
    known = dict(zip((run.name for run in runs), cores, strict=True)) if cores else {}
    return {
        "validation": asdict(validation),
        "identical": identical,
        "core": [_core(group, known) for group in groups] if cores else None,
        "next": _next_seeds(groups, identical),
        "target_bpb": reached,
        "target_is": "the worst of the finals" if target is None else "given",
        "loss_comparable": not reasons,
        "loss_reasons": reasons,
        "groups": measured,
        "differences": {
            key: dict(zip((g.name for g in groups), v, strict=True)) for key, v in differences(groups).items()
        },
        "pairs": [_pair(b, a, level, known, identical) for a, b in combinations(measured, 2)],
        "level": level,
        "notes": _notes(groups, curves, validation, reached),
    }


def _choice(groups: Sequence[Group], most: int = 12) -> str:
    """Which other runs are here to choose from, the newest first, with the stage where it is not pretrain."""
    named = {run.name for group in groups for run in group.runs}
    there = [run for run in newest_runs() if run not in named]
    stages = {run: stage_of(run) for run in there[:most]}
    known = [run if stage == "pretrain" else f"{run} ({stage})" for run, stage in stages.items()]
    more = f" and {len(there) - most:,} more" if len(there) > most else ""
    if not known:
        return "; there is no other run here" if named else ""
    return f"; here {'is' if len(there) == 1 else 'are'} {', '.join(known)}{more}"


def _group(group: Group, curves: Mapping[str, BpbCurve], target: float, with_loss: bool) -> dict[str, Any]:
    by_run = [_run(run, curves[run.name], target) for run in group.runs]

    def mean(key: str) -> float:
        return float(np.mean([found[key] for found in by_run]))

    finals = [found["final_bpb"] for found in by_run]
    losses = [_last_loss(run) for run in group.runs]
    return {
        "name": group.name,
        "seeds": group.seeds,
        "final_bpb": _spread(finals, mean_interval(finals)),
        "train_loss": float(np.mean(losses)) if with_loss else None,
        **{key: mean(key) for key in ("steps", "tokens", "flops", "seconds", "tokens_per_s")},
        "to_target": {axis: _to_target(by_run, axis) for axis in AXES},
        "runs": by_run,
    }


def _run(run: History, curve: BpbCurve, target: float) -> dict[str, Any]:
    seconds, tokens = float(curve.seconds[-1]), tokens_of(run, curve)
    return {
        "run": run.name,
        "final_bpb": curve.final,
        "steps": int(curve.step[-1]),
        "tokens": tokens,
        "flops": float(cost(run, curve, "flops")[-1]),
        "seconds": seconds,
        "tokens_per_s": tokens / seconds if seconds > 0 else math.nan,
        "to_target": {axis: crossing(cost(run, curve, axis), curve.bpb, target) for axis in AXES},
    }


def _to_target(by_run: Sequence[Mapping[str, Any]], axis: str) -> dict[str, Any]:
    costs = [float(found["to_target"][axis]) for found in by_run]
    if not all(map(math.isfinite, costs)):
        return {"value": None, "low": None, "high": None, "never": sum(not math.isfinite(c) for c in costs)}
    return _spread(costs, cost_interval(costs)) | {"never": 0}


def _spread(values: Sequence[float], interval: Interval | None) -> dict[str, Any]:
    if interval is None:
        return {"value": float(np.mean(values)), "low": None, "high": None}
    return {"value": interval.mid, "low": interval.low, "high": interval.high}


def _pair(
    one: Mapping[str, Any],
    against: Mapping[str, Any],
    level: float,
    cores: Mapping[str, Score],
    identical: Sequence[Sequence[str]],
) -> dict[str, Any]:
    """Of the later group against the earlier one, which is thought of as the baseline."""

    def finals(group: Mapping[str, Any]) -> list[float]:
        return [found["final_bpb"] for found in group["runs"]]

    def costs(group: Mapping[str, Any], axis: str) -> list[float]:
        return [found["to_target"][axis] for found in group["runs"]]

    def middle(axis: str) -> float:
        ours, theirs = (float(np.mean(np.log(costs(group, axis)))) for group in (one, against))
        return math.expm1(ours - theirs) if math.isfinite(ours) and math.isfinite(theirs) else math.nan

    def of_core(group: Mapping[str, Any]) -> list[Score]:
        return [cores[found["run"]] for found in group["runs"]]

    axes = {axis: judge_costs(costs(one, axis), costs(against, axis), level) for axis in AXES}
    known = {AXES[axis]: verdict for axis, verdict in axes.items() if not _is_unknown(one, against, axis)}
    overall = over_all(known) if known else Verdict("not shown", None, "nothing says what the runs cost")
    why = {verdict.reason for verdict in known.values()}
    if overall.reason == "on no axis" and len(why) == 1:
        overall = Verdict("not shown", None, why.pop())
    if any({found["run"] for group in (one, against) for found in group["runs"]} <= set(names) for names in identical):
        overall = Verdict("not shown", None, "they ended with the same weights")
    apart = float(np.mean(finals(one))) - float(np.mean(finals(against)))
    return {
        "run": one["name"],
        "against": against["name"],
        "verdict": overall.word,
        "reason": overall.reason,
        "final_bpb": {"difference": apart, **judge(finals(one), finals(against), level).as_json()},
        "core": _core_verdict(of_core(one), of_core(against), level) if cores else None,
        **{axis: {"difference": middle(axis), **verdict.as_json()} for axis, verdict in axes.items()},
    }


def _core(group: Group, known: Mapping[str, Score]) -> dict[str, Any]:
    found = [known[run.name] for run in group.runs]
    value, error = _core_mean(found)
    return {"name": group.name, "value": value, "standard_error": error, "limit": found[0].limit, "step": found[0].step}


def _core_mean(found: Sequence[Score]) -> tuple[float, float]:
    """The mean of several seeds, and its standard error from that of the items of each."""
    errors = [one.standard_error for one in found]
    return float(np.mean([one.value for one in found])), math.sqrt(sum(e * e for e in errors)) / len(errors)


def _core_verdict(ours: Sequence[Score], theirs: Sequence[Score], level: float) -> dict[str, Any]:
    """By the seeds where both have several, else by the standard errors of the items, joined. CORE is better when it
    is larger.
    """
    (a, of_a), (b, of_b) = _core_mean(ours), _core_mean(theirs)
    error = math.hypot(of_a, of_b)
    apart = {"difference": a - b, "standard_error": error}
    if len(ours) > 1 and len(theirs) > 1:
        found = judge([-one.value for one in ours], [-one.value for one in theirs], level)
        if found.interval is not None:
            found = replace(found, interval=Interval(-found.interval.high, a - b, -found.interval.low))
        return apart | found.as_json()
    half = t_quantile(level, MOST_DEGREES) * error
    if not math.isfinite(half) or half == 0:
        return apart | Verdict("not shown", None, "its standard error is not known").as_json()
    interval = Interval(a - b - half, a - b, a - b + half)
    word: Word = "better" if interval.low > 0 else "worse" if interval.high < 0 else "not shown"
    reason = "the interval holds zero" if word == "not shown" else "by its items; another seed may differ more"
    return apart | Verdict(word, interval, reason).as_json()


def _identical(groups: Sequence[Group]) -> list[list[str]]:
    """Names of runs that ended with the same weights, bit for bit."""
    by_weights: dict[str, list[str]] = {}
    for run in (run for group in groups for run in group.runs):
        if digest := (run.result or {}).get("weights_sha256"):
            by_weights.setdefault(str(digest), []).append(run.name)
    return [names for names in by_weights.values() if names[1:]]


def _next_seeds(groups: Sequence[Group], identical: Sequence[Sequence[str]]) -> list[str]:
    """What trains a second seed of every group that has one alone; of runs that are one, once."""
    lines, again_there = [], {name for names in identical for name in names[1:]}
    for group in groups:
        run, seed = group.runs[0], group.seeds[0]
        if group.runs[1:] or type(seed) is not int or run.name in again_there:
            continue
        name = f"{run.name}-s{seed + 1}"
        lines.append(again(run, name, seed=seed + 1) or fine_tuned_again(run, name, seed=seed + 1))
    return [line for line in lines if line]


def _is_unknown(one: Mapping[str, Any], against: Mapping[str, Any], axis: str) -> bool:
    """Whether a record does not say what a run cost on this axis: then the axis says nothing either way."""
    return any(math.isnan(found[axis]) for group in (one, against) for found in group["runs"])


def _last_loss(run: History) -> float:
    """Nats per token at the end, smoothed."""
    _, loss = series(run, "loss_smooth")
    return float(loss[-1]) if len(loss) else math.nan


def _notes(
    groups: Sequence[Group], curves: Mapping[str, BpbCurve], validation: ValidationSet, target: float
) -> list[str]:
    """What a reader must know before believing the table, a sentence each."""
    runs = [run for group in groups for run in group.runs]
    notes = []
    for run in runs:
        curve = curves[run.name]
        if not math.isfinite(curve.final):
            notes.append(f"{run.name} ended with {curve.final} bits per byte: its group has no interval")
        elif not (curve.bpb <= target).any():
            notes.append(f"{run.name} never reached {target:.4f}; its best is {np.nanmin(curve.bpb):.4f}")
        elif len(curve.step) == 1:
            notes.append(
                f"{run.name} was measured once only: when it reached {target:.4f} is not known, at the latest then"
            )
        elif curve.bpb[0] <= target:
            notes.append(f"{run.name} was below {target:.4f} when it was first measured, at step {curve.step[0]:,}")
        if run.state != "finished":
            notes.append(f"{run.name} is {run.state}; what it had at step {curve.step[-1]:,} is compared")
        if len(bpb_curves(run)) > 1:
            notes.append(f"{run.name} was also measured on other rows; only those on {validation.words} count")
    notes += _uneven(groups, curves)
    alone = [group.name for group in groups if len(group.runs) == 1]
    if alone:
        notes.append(f"one seed only, so no interval: {', '.join(alone[:6])}{' …' if len(alone) > 6 else ''}")
    if len(groups) > 2:
        notes.append(
            f"each of the {len(groups) * (len(groups) - 1) // 2} verdicts is at 95 % by itself, not all together"
        )
    return notes


def _uneven(groups: Sequence[Group], curves: Mapping[str, BpbCurve]) -> list[str]:
    notes = []
    steps = {group.name: max(int(curves[run.name].step[-1]) for run in group.runs) for group in groups}
    if max(steps.values()) > min(steps.values()):
        told = ", ".join(f"{name} {count:,}" for name, count in list(steps.items())[:6])
        notes.append(
            f"the runs are of unequal length (steps: {told}); a long run in its middle, at a high rate, "
            "looks worse than a run that was planned to end there"
        )
    devices = {str(run.circumstances.get("device_name") or "?") for group in groups for run in group.runs}
    if len(devices) > 1:
        notes.append(f"training time compares machines as well: {', '.join(sorted(devices)[:4])}")
    return notes
