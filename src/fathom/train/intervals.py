"""How often a run is measured and saved: what the flags say, as numbers (pure, no torch)."""

from __future__ import annotations

import math
from dataclasses import dataclass

from fathom.errors import FathomError

EVALUATIONS_SHARE = 0.05
FORWARD_SHARE = 1 / 3  # of a training step's time, the forward pass alone


def evaluation_plan(
    every: int | None, tokens: int | None, steps: int, batch_tokens: int, seq_len: int, available_rows: int | None
) -> tuple[int, int]:
    """(eval every so many steps, validation rows each time): by default at most 5 % of the run's time in all.

    Raises FathomError when so few tokens are asked for that they fill no row.
    """
    if every is not None and every < 0:
        raise FathomError(f"--eval-every is {every}", "give a number of steps, or 0 for the end only")
    every = max(250, math.ceil(steps / 40)) if every is None else every
    if tokens is not None and tokens < seq_len:
        raise FathomError(f"--eval-tokens {tokens} fills no row of {seq_len} tokens", "ask for more")
    times = max(1, -(-steps // every)) if every else 1
    budget = EVALUATIONS_SHARE / FORWARD_SHARE * steps * batch_tokens / times
    rows = max(1, int((budget if tokens is None else tokens) // seq_len))
    if tokens is None:
        rows = min(rows, 80 * 524_288 // seq_len)
    return every, rows if available_rows is None else min(rows, available_rows)


def parse_save_every(text: str) -> tuple[int | None, float | None]:
    """ "500" is steps, "10m" minutes, "30s" seconds -> (steps, seconds)."""
    unit = {"s": 1.0, "m": 60.0, "h": 3600.0}.get(text[-1:])
    try:
        number = float(text[:-1] if unit else text)
    except ValueError:
        number = 0.0
    if not 0 < number < math.inf or (unit is None and number != int(number)):
        raise FathomError(f"--save-every {text!r} says no interval", "write steps (500) or minutes (10m)")
    return (None, number * unit) if unit else (int(number), None)


@dataclass(frozen=True)
class Saving:
    """When a checkpoint is due, by steps or by seconds, how many of the newest are kept, and which for good."""

    every_steps: int | None
    every_s: float | None
    keep: int
    keep_every: int = 0
    keep_step: int | None = None


def saving(every: str, keep: int, keep_every: int = 0, keep_step: int | None = None) -> Saving:
    """From what --save-every, --keep and --keep-every say."""
    if keep < 1:
        raise FathomError(f"--keep is {keep}", "keep at least one checkpoint")
    if keep_every < 0:
        raise FathomError(f"--keep-every is {keep_every}", "give a number of steps, or 0 for none")
    return Saving(*parse_save_every(every), keep, keep_every, keep_step)


def check_core(every: int, limit: int) -> None:
    """FathomError for what --core-every and --core-limit cannot be."""
    for flag, number in (("--core-every", every), ("--core-limit", limit)):
        if number < 0:
            raise FathomError(f"{flag} is {number}", "give a number, or 0")
