"""How many rows a GPU really holds: the memory model's answer, corrected by two measured micro-batches.

The model counts tensors; an attention kernel's scratch, and what other programs hold, it cannot know.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from fathom.model.attention import DenseContext
from fathom.model.documents import row_context
from fathom.model.gpt import GPT
from fathom.screen import say

SPARE = 0.04  # of the memory that is free, left for what a later step may need more


def fitted_rows(
    asked: int | None, rows: int, rows_per_step: int, model: GPT, notes: dict[str, Any], document_start: int | None
) -> int:
    """Rows of a micro-batch: what was asked for, else what this run found to fit before, else `rows`, on CUDA measured.

    `notes` is what the run's checkpoints remember: steps of a run that is resumed are split as they were.
    """
    if asked is not None:
        return rows
    if "fits" in notes:
        known = int(notes["fits"][0])
        return known if rows_per_step % known == 0 else rows
    if model.device.type != "cuda":
        return rows
    torch.cuda.empty_cache()
    free = float(torch.cuda.mem_get_info()[0])
    found = rows_measured(rows, rows_per_step, free, bytes_of_a_pass(model, document_start))
    say(f"  fits    micro-batches of {found} rows, measured with {free / 1e9:.1f} GB free; by the estimate {rows}")
    notes["fits"] = (found, False)
    return found


def rows_measured(rows: int, rows_per_step: int, free: float, needs: Callable[[int], float]) -> int:
    """Rows of a micro-batch, a divisor of the step's, for a GPU with `free` bytes; `rows` is what the model says.

    `needs(n)` are the bytes that a pass of n rows takes on top of what is there; it is asked twice, which tells what
    a row costs, and what all passes cost alike. Where even the smaller of the two does not fit it is for the loop to
    find out, whose micro-batches shrink.
    """
    few, half = max(1, rows // 4), max(2, rows // 2)
    if rows == 1:
        return rows
    try:
        small, large = needs(few), needs(half)
    except torch.OutOfMemoryError:
        return _divisor(rows_per_step, few)
    a_row = (large - small) / (half - few)
    if a_row <= 0:
        return rows
    return _divisor(rows_per_step, int(few + ((1 - SPARE) * free - small) / a_row))


def _divisor(whole: int, most: int) -> int:
    """The largest divisor of `whole` that is at most `most`, 1 where there is none."""
    return max(n for n in range(1, min(whole, max(most, 1)) + 1) if whole % n == 0)


def bytes_of_a_pass(model: GPT, document_start: int | None = None) -> Callable[[int], float]:
    """Measures forward and backward passes of a model on a CUDA device; gradients are gone afterwards."""

    def needs(rows: int) -> float:
        ids = torch.zeros(rows, model.shape.seq_len, dtype=torch.int64, device=model.device)
        torch.cuda.synchronize()
        torch.cuda.empty_cache()
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        context = row_context(ids, DenseContext(model.shape.seq_len, model.device), document_start)
        try:
            model.loss(model(ids, context), ids).backward()
            torch.cuda.synchronize()
            return float(torch.cuda.max_memory_allocated() - before)
        finally:  # where memory ran out, the layers that the pass came to have gradients, which a step would add to
            model.zero_grad(set_to_none=True)

    return needs
