"""When a plan is not worth its time, and what to type instead."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fathom.expectation import HARDLY_TRAINED
from fathom.model.shape import Shape
from fathom.report.plan_machine import Machine, can_probe
from fathom.report.plan_outlook import plan_command
from fathom.report.words import duration, percent
from fathom.screen import command_name

LONGEST_H = 30 * 24.0
LONGEST_ON_CPU_H = 12.0
NIGHT_H = 8.0
LEAST_IN_BLOCKS = 0.05
"""Of the parameters: with fewer the model is little but tables of its vocabulary."""
ENOUGH_IN_BLOCKS = 0.1
"""What a vocabulary that is advised leaves them."""
LEAST_VOCAB = 1024
SIZES = ("depth", "hours", "ratio", "steps", "flops", "batch_tokens", "device_batch")
"""What a plan by hours finds anew."""


def instead(
    flags: Mapping[str, Any],
    shape: Shape,
    ratio: float,
    hours: float | None,
    machine: Machine,
    better: tuple[int, float] | None = None,
) -> dict[str, Any] | None:
    """{"why", "commands"}; None for a plan that is worth following. `better` is the depth that its FLOPs train best."""
    free = {key: value for key, value in flags.items() if key not in SIZES}
    longest = LONGEST_ON_CPU_H if machine.device == "cpu" else LONGEST_H
    if hours is not None and hours > longest and flags.get("hours") is None:
        why = f"{duration(3600 * hours)} are not worth it. A night trains a smaller model in full"
        return _way(why, free | {"hours": NIGHT_H}, machine)
    if ratio < HARDLY_TRAINED:
        budget = {"hours": flags["hours"]} if flags.get("hours") else {"hours": NIGHT_H}
        return _way(f"{ratio:.2g} tokens a parameter are not worth it", free | budget, machine)
    if better is not None and better[0] != shape.n_layer:
        budget = {"hours": flags["hours"]} if flags.get("hours") else {"flops": float(f"{better[1]:.3g}")}
        few = f"{ratio:.2g} tokens a parameter are few for depth {shape.n_layer}"
        why = f"{few}: the same budget trains depth {better[0]} best"
        return {"why": why, "commands": [plan_command(free | budget, machine)]}
    smaller = _vocab_for(shape)
    if smaller is not None and smaller < shape.vocab_size:
        share = percent(1 - _in_blocks(shape, shape.vocab_size))
        changed = {"vocab": smaller, "tokenizer": None}
        why = f"{share} of the parameters are tables of {shape.vocab_size:,} tokens: a smaller vocabulary suits it"
        return {"why": why, "commands": [plan_command(dict(flags) | changed, machine)]}
    if hours is None and can_probe(machine):
        return _way("how long it takes here is not known, and may be days", dict(flags) | {"probe": True}, machine)
    return None


def _way(why: str, given: Mapping[str, Any], machine: Machine) -> dict[str, Any]:
    lines = [plan_command(given, machine)]
    return {"why": why, "commands": lines + ([f"{command_name()} quickstart"] if machine.is_here else [])}


def _in_blocks(shape: Shape, vocab: int) -> float:
    """The blocks' share of all parameters, were its vocabulary such."""
    total = shape.parameters["total"]
    blocks = 12 * shape.n_layer * shape.d_model**2
    return blocks / (blocks + (total - blocks) * vocab / shape.vocab_size)


def _vocab_for(shape: Shape) -> int | None:
    """The largest power of two that leaves the blocks their share; None where this vocabulary does."""
    if _in_blocks(shape, shape.vocab_size) >= LEAST_IN_BLOCKS:
        return None
    vocab = 1 << (shape.vocab_size - 1).bit_length()
    while vocab > LEAST_VOCAB and _in_blocks(shape, vocab) < ENOUGH_IN_BLOCKS:
        vocab //= 2
    return vocab
