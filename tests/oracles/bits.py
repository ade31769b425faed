"""Bits per byte as the words say it: one token after another, in float64, from whole logits."""

from __future__ import annotations

import math

import numpy as np
import torch

from fathom.model.attention import DenseContext
from fathom.model.gpt import GPT


@torch.no_grad()
def bits_per_byte(model: GPT, batches: list[tuple[np.ndarray, np.ndarray]], token_bytes: np.ndarray) -> float:
    nats, n_bytes = 0.0, 0
    for inputs, targets in batches:
        for ids, wanted in zip(inputs, targets, strict=True):
            context = DenseContext(len(ids), "cpu")
            logits = model.logits(model(torch.tensor(ids)[None], context))[0].double()
            for position, target in enumerate(wanted.tolist()):
                if target == -1 or token_bytes[target] == 0:
                    continue
                every = [math.exp(x) for x in logits[position].tolist()]
                nats += math.log(sum(every)) - logits[position, target].item()
                n_bytes += int(token_bytes[target])
    return nats / math.log(2) / n_bytes
