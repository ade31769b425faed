"""From a budget, hours or FLOPs, to the depth and the tokens that make the most of it."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from fathom import scaling
from fathom.errors import FathomError
from fathom.estimate import Work, fits, rows_that_fit
from fathom.kernels import build
from fathom.report.plan_machine import Machine, Speed
from fathom.train.settings import Settings, micro_rows, resolve

DEPTHS = tuple(range(2, 66, 2))
LEAST_STEPS = 20
LEAST_HOURS = 0.1
MOST_HOURS = 87_600.0
RATIOS = (0.001, 1e6)


def work_of(
    settings: Settings, machine: Machine, device_batch: int | None, ways: str = "ours", fp8: bool = False
) -> Work:
    """What one device does in a step. Where its rows do not divide by the ranks, all compute as many as the first."""
    own = -(-settings.rows_per_step // machine.ranks)
    has_kernels = machine.device == "cpu" and bool(build.compiler())
    whole = Work(settings.shape, own, 1, machine.ranks, machine.device, machine.dtype, ways, fp8, has_kernels)
    rows = micro_rows(device_batch, whole, machine.memory_gb)
    return replace(whole, rows=rows, grad_accum=own // rows)


def fitted(work: Work, machine: Machine) -> Work:
    """The same step in micro-batches that fit; as it was where they do, or where none does."""
    rows = rows_that_fit(work, machine.memory_gb) if fits(work, machine.memory_gb) is False else None
    return work if rows is None else replace(work, rows=rows, grad_accum=work.rows * work.grad_accum // rows)


def fill_hours(
    hours: float,
    given: Mapping[str, Any],
    vocab: int,
    machine: Machine,
    speed: Speed,
    works: Callable[[Settings], Work],
) -> dict[str, Any]:
    """{"depth", "ratio"} of the run that fills so many hours best: tokens for each parameter nearest to the rule's.

    Of what `given` holds nothing is changed. Raises FathomError where no run fills them.
    """

    def tokens_in_time(settings: Settings) -> float:
        return hours * 3600 * speed.tokens_per_s(works(settings))

    found = [choice for depth in _depths(given) if (choice := _at(depth, given, vocab, machine, works, tokens_in_time))]
    if not found:
        raise FathomError(f"nothing worth training fits into {hours:g} h on {machine.label}", "give it more hours")
    if given.get("ratio") is not None:
        enough = [choice for choice in found if choice[1] >= given["ratio"]]
        if not enough:
            raise FathomError(
                f"in {hours:g} h no depth gets {given['ratio']:g} tokens for each parameter", "leave --ratio out"
            )
        return {"depth": enough[-1][0], "ratio": given["ratio"]}
    depth, ratio = min(found, key=lambda choice: abs(math.log(choice[1] / scaling.TOKENS_PER_PARAMETER)))
    return {"depth": depth, "ratio": ratio}


def deepest_that_fits(
    given: Mapping[str, Any], vocab: int, machine: Machine, works: Callable[[Settings], Work]
) -> int | None:
    """The largest even depth of which at least one row fits; None where none does."""
    for depth in reversed(DEPTHS):
        try:
            work = works(resolve(dict(given) | {"depth": depth}, {}, vocab))
        except FathomError:
            continue
        if rows_that_fit(work, machine.memory_gb) is not None:
            return depth
    return None


def fill_flops(flops: float, given: Mapping[str, Any], vocab: int) -> int:
    """The depth that so many FLOPs train with the rule's number of tokens for each parameter, or nearest to it."""

    def away(depth: int) -> float:
        shape = resolve(dict(given) | {"depth": depth}, {}, vocab).shape
        ratio = given.get("ratio") or scaling.TOKENS_PER_PARAMETER
        return abs(math.log(flops / shape.flops_per_token / shape.scaling_parameters / ratio))

    return min(DEPTHS, key=away)


def better_depth(
    hours: float | None,
    flops: float,
    given: Mapping[str, Any],
    vocab: int,
    machine: Machine,
    speed: Speed | None,
    works: Callable[[Settings], Work],
) -> int | None:
    """What so many hours, or FLOPs, train best where neither depth nor length is given; None where nothing does."""
    lengths = ("depth", "ratio", "steps", "flops", "batch_tokens")
    free = {key: value for key, value in given.items() if key not in lengths}
    if hours is None or speed is None:
        return fill_flops(flops, free, vocab)
    try:
        return int(fill_hours(hours, free, vocab, machine, speed, works)["depth"])
    except FathomError:
        return None


def check_hours(hours: float, given: Mapping[str, Any]) -> None:
    if not LEAST_HOURS <= hours <= MOST_HOURS:
        bounds = f"from six minutes ({LEAST_HOURS:g}) to ten years ({MOST_HOURS:,.0f})"
        raise FathomError(f"--hours is {hours:g}", f"give a time {bounds}")
    for other in ("steps", "flops"):
        if given.get(other) is not None:
            raise FathomError(f"--hours and --{other} both say how long to train", "give one of them")


def _depths(given: Mapping[str, Any]) -> tuple[int, ...]:
    return DEPTHS if given.get("depth") is None else (given["depth"],)


def _at(
    depth: int,
    given: Mapping[str, Any],
    vocab: int,
    machine: Machine,
    works: Callable[[Settings], Work],
    tokens_in_time: Callable[[Settings], float],
) -> tuple[int, float] | None:
    """(depth, ratio) that fill the time; None where memory does not hold one row, or hardly a step is done."""
    ratio = scaling.TOKENS_PER_PARAMETER
    for _ in range(3):  # the speed depends a little on the batch, which depends on the ratio
        try:
            settings = resolve(dict(given) | {"depth": depth, "ratio": ratio}, {}, vocab)
            work = works(settings)
        except FathomError:
            return None
        ratio = tokens_in_time(settings) / settings.shape.scaling_parameters
        if not RATIOS[0] <= ratio <= RATIOS[1]:
            return None
        ratio = float(f"{ratio:.3g}")
    if settings.steps < LEAST_STEPS or rows_that_fit(work, machine.memory_gb) is None:
        return None
    return depth, ratio
