"""The gradient of a training step as the words say it: the mean over all supervised tokens of the step, from whole
logits, in one piece.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from fathom.model.attention import DenseContext
from fathom.model.gpt import GPT


def loss_and_gradient(model: GPT, inputs: np.ndarray, targets: np.ndarray) -> tuple[float, dict[str, Tensor]]:
    model.zero_grad()
    total, count = torch.zeros(()), 0
    for ids, wanted in zip(inputs, targets, strict=True):
        hidden = model(torch.from_numpy(ids)[None], DenseContext(len(ids), "cpu"))[0]
        logits = 15 * torch.tanh(hidden @ model.head[: model.shape.vocab_size].T / 15)
        chances = logits.log_softmax(dim=-1)
        for position, target in enumerate(wanted.tolist()):
            if target != -1:
                total = total - chances[position, target]
                count += 1
    mean = total / count
    mean.backward()
    gradient = {name: weight.grad.clone() for name, weight in model.named_parameters() if weight.grad is not None}
    model.zero_grad()
    return mean.item(), gradient
