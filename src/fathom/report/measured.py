"""Runs side by side: what each was measured on, what it cost until then, and which differ in the seed alone.

`compare`, `scaling`, `leaderboard` and `sweep` know runs through here and `history`. No torch.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from os.path import commonprefix
from typing import Any

import numpy as np

from fathom.data.batches import APART
from fathom.errors import FathomError
from fathom.report.history import History
from fathom.screen import command_name, plural

AXES = {"steps": "steps", "flops": "FLOPs", "seconds": "training time"}
"""What a result may cost. Time is that of training alone, evaluations apart."""

NAMES_ONLY = {"corpus", "tokenizer", "data"}
"""Settings that only say what something is called here; its digest says what it is."""

SURROUNDINGS = ("device_name", "device_batch", "compile_from")


@dataclass(frozen=True, order=True)
class ValidationSet:
    """What bits per byte were measured on: two figures of the same set can be compared, others cannot."""

    data_digest: str
    rows_of: str
    rows: int
    seq_len: int

    @property
    def words(self) -> str:
        return f"{plural(self.rows, f'{self.rows_of} row')} of {self.seq_len:,} tokens of data {self.data_digest[:8]}"


@dataclass(frozen=True)
class BpbCurve:
    """What one run had on one validation set, by step."""

    step: np.ndarray
    """(N,) int64, ascending."""
    seconds: np.ndarray
    """(N,) float64, of training alone."""
    bpb: np.ndarray
    """(N,) float64."""

    @property
    def final(self) -> float:
        return float(self.bpb[-1])


def bpb_curves(history: History) -> dict[ValidationSet, BpbCurve]:
    """Every set that the run was measured on, from evals/bpb-*.json."""
    found: dict[ValidationSet, dict[int, tuple[float, float]]] = {}
    for name, value in history.evals.items():
        key, step = _set_of(value, history), value.get("step")
        if name.startswith("bpb") and key is not None and isinstance(step, int) and not isinstance(step, bool):
            found.setdefault(key, {})[step] = _float(value.get("train_s")), _float(value.get("val_bpb"))
    return {key: _curve(points) for key, points in found.items()}


def _set_of(value: Mapping[str, Any], history: History) -> ValidationSet | None:
    digest, rows_of, rows = (value.get(key) for key in ("data_digest", "rows_of", "rows"))
    seq_len = value.get("seq_len", history.shape.seq_len if history.shape else None)
    if isinstance(digest, str) and isinstance(rows_of, str) and isinstance(rows, int) and isinstance(seq_len, int):
        return ValidationSet(digest, rows_of, rows, seq_len)
    return None


def _curve(points: Mapping[int, tuple[float, float]]) -> BpbCurve:
    order = sorted(points)
    seconds, bpb = (np.array([points[step][i] for step in order]) for i in (0, 1))
    return BpbCurve(np.array(order, dtype=np.int64), seconds, bpb)


def cost(history: History, curve: BpbCurve, axis: str) -> np.ndarray:
    """(N,) what each point of the curve had cost on one of AXES; NaN where the record does not say."""
    if axis == "steps":
        return curve.step.astype(np.float64)
    if axis == "seconds":
        return curve.seconds
    return curve.step * flops_per_step(history)


def flops_per_step(history: History) -> float:
    """NaN where run.toml does not tell shape or batch."""
    if history.shape is None or history.batch_tokens is None:
        return math.nan
    return float(history.batch_tokens) * history.shape.flops_per_token


def tokens_of(history: History, curve: BpbCurve) -> float:
    """Tokens trained when the run was measured last."""
    return math.nan if history.batch_tokens is None else float(curve.step[-1]) * history.batch_tokens


def common_set(runs: Sequence[History]) -> ValidationSet:
    """The set that every run was last measured on, with the most evaluations. FathomError, with the reason, for none.

    A set that a run was measured on only at the beginning says nothing of how it ended, so it does not count.
    """
    curves = {run.name: bpb_curves(run) for run in runs}
    for name, found in curves.items():
        if not found:
            raise FathomError(
                f"the run {name!r} has no evaluation that says what it was measured on",
                "train it further, or leave it out",
            )
    last = {name: max(int(c.step[-1]) for c in found.values()) for name, found in curves.items()}
    ends = [{s for s, c in found.items() if c.step[-1] == last[name]} for name, found in curves.items()]
    common = set.intersection(*ends)
    if not common:
        raise FathomError(_no_common_set(curves), _way_to_one(runs, curves))
    return max(common, key=lambda s: (min(len(found[s].step) for found in curves.values()), s))


def _no_common_set(curves: Mapping[str, Mapping[ValidationSet, BpbCurve]]) -> str:
    shown: dict[ValidationSet, str] = {}
    for name, found in curves.items():
        shown.setdefault(max(found, key=lambda s: int(found[s].step[-1])), name)
    (first, a), (second, b) = list(shown.items())[:2]
    parts = [key for key, value in asdict(first).items() if value != getattr(second, key)]
    words = {
        "data_digest": "data or tokenizer",
        "rows_of": "kind of rows",
        "rows": "rows",
        "seq_len": "context",
    }
    differ = "other " + ", ".join(words[key] for key in parts)
    return f"bits per byte cannot be compared: {a!r} was measured on {first.words}, {b!r} on {second.words} ({differ})"


def _way_to_one(runs: Sequence[History], curves: Mapping[str, Mapping[ValidationSet, BpbCurve]]) -> str:
    """What has them measured on one set: `eval` takes the same rows of a corpus for all that can read them."""
    sets = [one for found in curves.values() for one in found]
    if len({one.seq_len for one in sets}) > 1:
        return "train them with one --seq-len: rows of another length are other rows"
    if len({run.config.get("run", {}).get("tokenizer_digest") for run in runs}) > 1:
        return "train them with the same --corpus and --tokenizer: another tokenizer cuts other rows"
    if len({APART in one.rows_of for one in sets}) > 1:
        return "train them all with --document-mask, or none: it changes what a row tells"
    corpora = {run.config.get("config", {}).get("corpus") for run in runs}
    is_one = len({one.data_digest for one in sets}) == 1
    named = next((str(name) for name in corpora if name), "NAME")
    flag = "" if is_one else f" --corpus {named}"
    lines = [f"`{command_name()} eval {run.name} --tasks bpb{flag}`" for run in runs]
    return f"measure the same rows of each, in a minute or two for a small model: {_listed(lines, 6)}"


def loss_reasons(runs: Sequence[History]) -> list[str]:
    """Why the training losses of these runs are not to be compared; empty where they may be."""
    asked = {
        "stage": lambda run: run.stage,
        "data": lambda run: _short(run.config.get("config", {}).get("data_digest")),
        "tokenizer": lambda run: _short(run.config.get("run", {}).get("tokenizer_digest")),
        "packing": lambda run: str(run.config.get("config", {}).get("packing", "its own")),
        "rows": lambda run: f"{run.shape.seq_len if run.shape else '?'} tokens a row",
    }
    reasons = []
    for what, answer in asked.items():
        by_value: dict[str, list[str]] = {}
        for run in runs:
            by_value.setdefault(answer(run), []).append(run.name)
        if len(by_value) > 1:
            told = "; ".join(f"{value}: {_listed(names)}" for value, names in by_value.items())
            reasons.append(f"{what} differ{'s' if what not in ('data', 'rows') else ''} ({told})")
    return reasons


@dataclass(frozen=True)
class Group:
    """Runs that differ in the seed alone."""

    name: str
    runs: tuple[History, ...]

    @property
    def seeds(self) -> list[Any]:
        return [run.config.get("config", {}).get("seed") for run in self.runs]


def settings_of(run: History) -> dict[str, Any]:
    """What decides what a run computes, but for its seed."""
    tables = {**run.config.get("model", {}), **run.config.get("config", {})}
    digests = {key: run.config.get("run", {}).get(key) for key in ("stage", "tokenizer_digest", "base")}
    return {key: value for key, value in {**digests, **tables}.items() if key not in NAMES_ONLY | {"seed"}}


def surroundings_of(run: History) -> dict[str, Any]:
    """What it was computed with."""
    versions = {key: run.config.get("run", {}).get(key) for key in ("fathom", "torch")}
    versions |= {"skip_spikes": run.circumstances.get("skip_spikes", True)}
    return versions | {key: run.circumstances.get(key) for key in SURROUNDINGS}


def grouped(runs: Sequence[History]) -> list[Group]:
    """Runs that differ in the seed alone, together; where a seed is there twice, nobody can tell which belong."""
    alike: dict[str, list[History]] = {}
    for run in runs:
        key = repr(sorted({**settings_of(run), **surroundings_of(run)}.items(), key=lambda item: item[0]))
        alike.setdefault(key, []).append(run)
    groups: list[Group] = []
    for members in alike.values():
        seeds = [run.config.get("config", {}).get("seed") for run in members]
        parts = [members] if len(set(map(repr, seeds))) == len(seeds) else [[run] for run in members]
        for part in parts:
            groups.append(Group(_name([run.name for run in part], {g.name for g in groups}), tuple(part)))
    return sorted(groups, key=lambda group: min(runs.index(run) for run in group.runs))


def named_group(name: str, runs: Sequence[History]) -> Group:
    """A group that was asked for. FathomError where its runs differ in more than the seed, or are one sample twice."""
    first = settings_of(runs[0])
    for run in runs[1:]:
        its = settings_of(run)
        for key in sorted(first.keys() | its.keys()):
            if first.get(key) != its.get(key):
                found = f"{key} = {first.get(key)} in {runs[0].name!r} and {its.get(key)} in {run.name!r}"
                raise FathomError(f"the group {name!r} has {found}", "group only runs that differ in the seed")
    group = Group(name, tuple(runs))
    if len(set(map(repr, group.seeds))) < len(runs):
        raise FathomError(f"the group {name!r} has a seed twice ({_listed(group.seeds)})", "count each seed once")
    return group


def _name(names: Sequence[str], taken: set[str]) -> str:
    if len(names) == 1:
        return names[0]
    shared = re.sub(r"([-_.]+s|[-_.]*seed)?[-_.]*$", "", commonprefix(list(names)))
    if shared and shared not in taken:
        return shared
    more = f" and {len(names) - 3} more" if names[3:] else ""
    return ", ".join(names[:3]) + more


def differences(groups: Sequence[Group]) -> dict[str, list[Any]]:
    """Setting -> its value in each group, for those that differ; what was set by hand before what follows from it."""
    columns = [{**settings_of(g.runs[0]), **surroundings_of(g.runs[0])} for g in groups]
    keys = list(dict.fromkeys(key for column in columns for key in column))
    given = {
        key for g in groups for key, why in g.runs[0].config.get("origin", {}).items() if why in ("flag", "recipe")
    }
    keys.sort(key=lambda key: key not in given)
    found = {key: [column.get(key) for column in columns] for key in keys}
    return {key: values for key, values in found.items() if any(value != values[0] for value in values)}


def _listed(values: Iterable[Any], most: int = 4) -> str:
    words = [str(value) for value in values]
    return ", ".join(words[:most]) + (f" and {len(words) - most} more" if len(words) > most else "")


def _short(value: Any) -> str:
    return str(value)[:8] if value else "unknown"


def _float(value: Any) -> float:
    return float(value) if isinstance(value, (int, float)) and not isinstance(value, bool) else math.nan
