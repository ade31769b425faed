"""Bits per byte: what a model needs to write down the text it is given, whatever its tokenizer. REFERENCE section 4."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable

import numpy as np
import torch

from fathom.model.attention import DenseContext
from fathom.model.gpt import GPT
from fathom.model.loss import token_nll


@torch.inference_mode()
def bits_per_byte(
    model: GPT,
    batches: Iterable[tuple[np.ndarray, np.ndarray]],
    token_bytes: np.ndarray,
    advance: Callable[[int], None] = lambda rows: None,
) -> float:
    """Nats over all targets by the bytes they stand for; inf where they stand for none.

    Batches are inputs and targets (rows, T) int64, IGNORE where a target does not count; `token_bytes` (V,) int32 has
    the bytes of each token, 0 for specials, whose nats do not count either. `advance` is told the rows that were read.
    """
    lengths = torch.from_numpy(token_bytes).long()
    nats, n_bytes = 0.0, 0
    for inputs, targets in batches:
        context = DenseContext(inputs.shape[1], model.device)
        hidden = model(torch.from_numpy(inputs).to(model.device), context).flatten(0, 1)
        wanted = torch.from_numpy(targets).flatten()
        nll = token_nll(hidden, model.head, wanted.to(model.device), model.shape.vocab_size).cpu()
        here = torch.where(wanted < 0, 0, lengths[wanted.clamp(min=0)])
        nats += float(nll[here > 0].double().sum())
        n_bytes += int(here.sum())
        advance(len(inputs))
    return nats / (math.log(2) * n_bytes) if n_bytes else math.inf
