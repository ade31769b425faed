"""Generation without any cache: the whole text through the plain forward pass for every token."""

from __future__ import annotations

import torch
from torch import Tensor

from fathom.generate.running import Request
from fathom.generate.sampling import sample
from fathom.model.attention import DenseContext
from fathom.model.gpt import GPT
from fathom.model.shape import Shape


def random_model(dtype: torch.dtype = torch.float32, **sizes: int | str) -> GPT:
    """A small network with every weight in play: short windows of 128, shared heads, smear and backout."""
    shape = {"n_layer": 3, "n_head": 4, "n_kv_head": 2, "head_dim": 16, "vocab_size": 269, "seq_len": 512}
    model = GPT(Shape(**(shape | {"window_pattern": "SSL"} | sizes)), dtype)  # type: ignore[arg-type]
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        model.init_weights(generator)
        for name, weight in model.named_parameters():
            if weight.dim() == 2:
                weight.normal_(0, 1 if "embedding" in name else 0.25, generator=generator)
        model.smear_scale.fill_(0.5)
    return model


@torch.inference_mode()
def all_logits(model: GPT, ids: list[int]) -> Tensor:
    """(T, V) of the plain forward pass."""
    return model.logits(model(torch.tensor([ids]), DenseContext(len(ids), "cpu")))[0]


def answer(model: GPT, request: Request, seq_len: int) -> list[int]:
    """What the engine has to say to this request, stop tokens and tools apart."""
    generator = torch.Generator().manual_seed(request.seed)
    ids = list(request.prompt)
    for _ in range(min(request.max_tokens, seq_len - len(ids))):
        number = 0.0
        if request.temperature:
            number = float(torch.rand((), generator=generator, dtype=torch.float64))
        ids += sample(all_logits(model, ids)[-1:], [request.sampling], [number]).tolist()
    return ids[len(request.prompt) :]
