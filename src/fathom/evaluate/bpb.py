"""Bits per byte: what a model needs to write down the text it is given, whatever its tokenizer. REFERENCE section 4."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator

import numpy as np
import torch

from fathom.model.attention import DenseContext
from fathom.model.documents import row_context
from fathom.model.gpt import GPT

Batch = tuple[np.ndarray, np.ndarray]
Sums = tuple[float, int, str]


def bits_per_byte(
    model: GPT,
    batches: Iterable[tuple[np.ndarray, np.ndarray]],
    token_bytes: np.ndarray,
    advance: Callable[[int], None] = lambda rows: None,
    document_start: int | None = None,
    gather: Callable[[Sums], list[Sums]] = lambda mine: [mine],
    in_step: bool = False,
) -> float:
    """Nats over all targets by the bytes they stand for; inf where they stand for none.

    Batches are inputs and targets (rows, T) int64, IGNORE where a target does not count; `token_bytes` (V,) int32 has
    the bytes of each token, 0 for specials, whose nats do not count either. `advance` is told the rows that were read.
    `document_start` is the token that begins a document, for a model whose documents do not see each other in a row.
    Where ranks share the batches, `gather` gives (nats, bytes, why it failed) of all of them for this one's. What fails
    on one fails on all, `in_step` before the next batch: of a model that is split no rank computes one alone.
    """
    nats, n_bytes = 0.0, 0
    failed: Exception | None = None
    try:
        together = _in_step(batches, gather) if in_step else batches
        for row_nats, row_bytes in nats_and_bytes(model, together, token_bytes, document_start):
            nats += float(row_nats.sum())
            n_bytes += int(row_bytes.sum())
            advance(len(row_nats))
    except _Told:
        raise
    except Exception as error:
        failed = error
    every = gather((nats, n_bytes, "" if failed is None else str(failed) or type(failed).__name__))
    if failed is not None:
        raise failed
    _raise_what_was_told(every)
    nats, n_bytes = sum(one[0] for one in every), sum(one[1] for one in every)
    return nats / (math.log(2) * n_bytes) if n_bytes else math.inf


class _Told(RuntimeError):
    """Why a rank has failed, as it told all others."""


def _raise_what_was_told(every: list[Sums]) -> None:
    if why := next((why for _, _, why in every if why), None):
        raise _Told(why)


def _in_step(batches: Iterable[Batch], gather: Callable[[Sums], list[Sums]]) -> Iterator[Batch]:
    """The same batches, each once all ranks have theirs. A rank that has none for a failure says so in its last gather.

    One that fails amid a batch (out of memory) leaves the others waiting in theirs: that nobody could have agreed on.
    """
    for batch in batches:
        _raise_what_was_told(gather((0.0, 0, "")))
        yield batch


def nats_and_bytes(
    model: GPT,
    batches: Iterable[tuple[np.ndarray, np.ndarray]],
    token_bytes: np.ndarray,
    document_start: int | None = None,
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """For each batch, as `bits_per_byte` takes them: nats (rows,) float64 and bytes (rows,) int64 of its rows."""
    lengths = torch.from_numpy(token_bytes).long()
    for inputs, targets in batches:
        with torch.inference_mode():
            ids = torch.from_numpy(inputs).to(model.device)
            context = row_context(ids, DenseContext(inputs.shape[1], model.device), document_start)
            hidden = model(ids, context).flatten(0, 1)
            wanted = torch.from_numpy(targets)
            nll = model.token_nll(hidden, wanted.flatten().to(model.device)).cpu()
            here = torch.where(wanted < 0, 0, lengths[wanted.clamp(min=0)])
            nats = torch.where(here > 0, nll.view_as(here).double(), 0.0).sum(dim=1)
        yield nats.numpy(), here.sum(dim=1).numpy()


def with_error(nats: np.ndarray, n_bytes: np.ndarray) -> tuple[float, float]:
    """Bits per byte of rows (n,) and its standard error, as of a ratio of two sums over independent rows."""
    total = int(n_bytes.sum())
    if not total:
        return math.inf, math.nan
    ratio = float(nats.sum()) / total
    spread = float(((nats - ratio * n_bytes) ** 2).sum())
    error = math.sqrt(spread * len(nats) / (len(nats) - 1)) / total if len(nats) > 1 else math.nan
    return ratio / math.log(2), error / math.log(2)
