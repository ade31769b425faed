"""The transformer, top to bottom. REFERENCE section 1.

Shape letters, here and everywhere: B rows, T positions, C d_model, H heads, K key/value heads, D head_dim,
F d_ff, V vocabulary (padded in the tables). There are no biases and no learnt gains.

The forward pass asks its `context` four things: the positions of the tokens, to attend, the embedding of the token
before each, and whose outputs are read at all. Training hands in whole rows (`attention.DenseContext`), the engine a
cache, evaluation trees; there is no second copy of this network.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, Protocol, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from fathom.model import fused
from fathom.model.fp8 import fp8_linear
from fathom.model.int8 import Int8Weight
from fathom.model.loss import chunk_gradient, head_loss, soft_cap, token_nll
from fathom.model.shape import GATE_CHANNELS, SMEAR_CHANNELS, Shape

ROTARY_BASE = 100_000
MATRICES = ("q", "k", "v", "out", "up", "down")  # of a layer


class Context(Protocol):
    """What the network may ask of whoever runs it."""

    positions: Tensor  # (T,) or (B, T)
    wanted: Tensor | None  # (B, W) columns whose outputs are read: the last layer attends from these only; None for all

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor, window: int) -> Tensor: ...

    def previous(self, x: Tensor) -> Tensor: ...


def norm(x: Tensor) -> Tensor:
    """Root-mean-square norm over the last axis, in float32 inside, without a gain."""
    return F.rms_norm(x, (x.size(-1),), eps=2**-23)


def linear(x: Tensor, weight: Tensor | Int8Weight) -> Tensor:
    """Weights are kept in float32 and cast to what flows."""
    if isinstance(weight, Int8Weight):
        return weight.multiply(x)
    return F.linear(x, weight.to(x.dtype))


def gate(x: Tensor) -> Tensor:
    """The sigmoid. Outside training it is rounded from float64: in float32 and below its last bit depends on whether an
    element is computed among others or alone, and so on how many tokens there are. (MPS has no float64.)
    """
    if torch.is_grad_enabled():
        return torch.sigmoid(x)
    return torch.sigmoid(x.float() if x.device.type == "mps" else x.double()).to(x.dtype)


def rotary_table(positions: Tensor, head_dim: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """cos and sin of every position: (…, T, 1, D/2), computed in float32."""
    exponent = torch.arange(0, head_dim, 2, device=positions.device, dtype=torch.float32) / head_dim
    angle = positions.float()[..., None] * (1.0 / ROTARY_BASE**exponent)
    return angle.cos().to(dtype)[..., None, :], angle.sin().to(dtype)[..., None, :]


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary embedding, halves layout. (B, T, H, D)"""
    first, second = x.chunk(2, dim=-1)
    return torch.cat((first * cos + second * sin, second * cos - first * sin), dim=-1)


def narrowed(x: Tensor, columns: Tensor) -> Tensor:
    """What stands in these columns (B, W) of x (B, T, …)."""
    return x[torch.arange(len(x), device=x.device)[:, None], columns]


def _replace(module: nn.Module, name: str, weight: Int8Weight) -> None:
    """Put a rounded weight in the place of a parameter."""
    delattr(module, name)
    setattr(module, name, weight)


Half = Callable[..., Any]
Attend = Callable[[Tensor, Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]
"""x, q, k, v -> x and what attention gave, of the columns whose outputs are read."""


class Block(nn.Module):
    """One layer, in two halves with attention between them, so that each half can be compiled once for all layers."""

    qk_scale = 1.2  # of normed queries and keys

    def __init__(self, shape: Shape, value_embedding: bool) -> None:
        super().__init__()
        width, kv_width = shape.d_model, shape.d_kv
        self.head_dim = shape.head_dim
        self.q = nn.Parameter(torch.empty(width, width))
        self.k = nn.Parameter(torch.empty(kv_width, width))
        self.v = nn.Parameter(torch.empty(kv_width, width))
        self.out = nn.Parameter(torch.empty(width, width))
        self.up = nn.Parameter(torch.empty(shape.d_ff, width))
        self.down = nn.Parameter(torch.empty(width, shape.d_ff))
        self.value_gate = nn.Parameter(torch.empty(shape.n_kv_head, GATE_CHANNELS)) if value_embedding else None
        self.fp8 = False

    def product(self, x: Tensor, weight: Tensor) -> Tensor:
        """In fp8 where that was asked for, while training."""
        return fp8_linear(x, weight) if self.fp8 and self.training else linear(x, weight)

    def forward(
        self,
        x: Tensor,
        first: Tensor,
        keep: Tensor,
        add: Tensor,
        extra: Tensor | None,
        cos: Tensor,
        sin: Tensor,
        attend: Attend,
        halves: tuple[Half, Half],
    ) -> Tensor:
        """`attend` is asked between the two halves, which are this class's own, or compiled forms of them."""
        before, after = halves
        x, q, k, v = before(self, x, first, keep, add, extra, cos, sin)
        x, y = attend(x, q, k, v)
        return cast(Tensor, after(self, x, y))

    def before_attention(
        self, x: Tensor, first: Tensor, keep: Tensor, add: Tensor, extra: Tensor | None, cos: Tensor, sin: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """x and first (B, T, C), extra (B, T, K·D) the value embedding -> x, q (B, T, H, D), k, v (B, T, K, D)."""
        x = keep.to(x.dtype) * x + add.to(x.dtype) * first
        h = norm(x)
        q, k, v = (self.product(h, w).unflatten(-1, (-1, self.head_dim)) for w in (self.q, self.k, self.v))
        if extra is not None and self.value_gate is not None:
            weight = 3 * gate(linear(h[..., :GATE_CHANNELS], self.value_gate))  # (B, T, K)
            v = v + weight[..., None] * extra.unflatten(-1, (-1, self.head_dim))
        q = self.qk_scale * norm(rotate(q, cos, sin))
        k = self.qk_scale * norm(rotate(k, cos, sin))
        return x, q, k, v

    def products(self) -> Iterator[Tensor | Int8Weight]:
        """Every matrix that hidden states are multiplied with."""
        for name in MATRICES:
            yield getattr(self, name)
        if self.value_gate is not None:
            yield self.value_gate

    def after_attention(self, x: Tensor, y: Tensor) -> Tensor:
        """x (B, T, C) and what attention gave (B, T, H, D) -> (B, T, C)."""
        x = x + self.product(y.flatten(-2), self.out)
        return x + self.product(F.relu(self.product(norm(x), self.up)).square(), self.down)


def use(weight: Any, work: Callable[[Any], Tensor]) -> Tensor:
    """What `work` makes of a weight outside of the blocks."""
    return work(weight)


class GPT(nn.Module):
    """ids (B, T) -> hidden (B, T or W, C), normed; `logits` or `loss.head_loss` take it from there."""

    def __init__(self, shape: Shape, dtype: torch.dtype = torch.float32) -> None:
        """`dtype` is what flows; matrices stay float32, tables are kept in it (in float32 where it is float16)."""
        super().__init__()
        self.shape, self.dtype = shape, dtype
        self.recompute = False  # keep a layer's input only, and compute the layer again in the backward pass
        table_dtype = torch.float32 if dtype == torch.float16 else dtype
        rows = shape.padded_vocab
        self.token_embedding = nn.Parameter(torch.empty(rows, shape.d_model, dtype=table_dtype))
        self.head = nn.Parameter(torch.empty(rows, shape.d_model))
        self.keep = nn.Parameter(torch.empty(shape.n_layer))
        self.add_first = nn.Parameter(torch.empty(shape.n_layer))
        self.smear_gate = nn.Parameter(torch.empty(1, SMEAR_CHANNELS))
        self.smear_scale = nn.Parameter(torch.empty(1))
        self.backout_scale = nn.Parameter(torch.empty(1))
        blocks = nn.ModuleList(Block(shape, shape.has_value_embedding(i)) for i in range(shape.n_layer))
        self.blocks = cast(Sequence[Block], blocks)
        self.value_embeddings = nn.ParameterDict(
            {
                str(layer): nn.Parameter(torch.empty(rows, shape.d_kv, dtype=table_dtype))
                for layer in range(shape.n_layer)
                if shape.has_value_embedding(layer)
            }
        )
        self.use: Callable[[Any, Callable[[Any], Tensor]], Tensor] = use  # another where weights are split over ranks
        self._before: Half = Block.before_attention
        self._after: Half = Block.after_attention
        self._chunk = chunk_gradient
        self.has_cpu_kernels = False

    @property
    def device(self) -> torch.device:
        return self.token_embedding.device

    @property
    def is_split(self) -> bool:
        """Whether its weights lie over several ranks, which have to compute together then."""
        return self.use is not use

    def parameter_kinds(self) -> dict[str, list[nn.Parameter]]:
        """Every parameter once, by the kind that the optimizer's rates go by."""
        matrices = [weight for block in self.blocks for weight in block.parameters()]
        return {
            "head": [self.head],
            "token_embedding": [self.token_embedding],
            "value_embeddings": list(self.value_embeddings.values()),
            "keep": [self.keep],
            "add_first": [self.add_first],
            "smear": [self.smear_gate, self.smear_scale, self.backout_scale],
            "matrices": matrices,
        }

    def train_in_fp8(self) -> None:
        """From now on products of the blocks' large matrices are in fp8; in `eval()` mode they stay as they were."""
        for block in self.blocks:
            block.fp8 = True

    def compile_kernels(self) -> None:
        """From now on training runs a layer's two halves and the loss as compiled kernels, compiled once for all.

        In `eval()` mode, whose batches have all sorts of sizes, everything stays eager.
        """
        self._before = torch.compile(Block.before_attention, dynamic=False)
        self._after = torch.compile(Block.after_attention, dynamic=False)
        self._chunk = torch.compile(chunk_gradient, dynamic=False)

    def use_cpu_kernels(self) -> None:
        """From now on training runs a layer's two halves and the loss on kernels of our own (`fathom.kernels`)."""
        self._before, self._after, self._chunk = fused.before_attention, fused.after_attention, fused.chunk_gradient
        self.has_cpu_kernels = True

    def embed(self, ids: Tensor) -> Tensor:
        """ids (…) -> (…, C), normed: what the first layer starts from and `Context.previous` hands back."""
        return norm(self._rows(self.token_embedding, ids))

    def _rows(self, table: Tensor, ids: Tensor) -> Tensor:
        return self.use(table, lambda whole: F.embedding(ids, whole)).to(self.dtype)

    def forward(self, ids: Tensor, context: Context, halves: tuple[Half, Half] | None = None) -> Tensor:
        """`halves` are compiled forms of a layer's two, by default those of `compile_kernels` in training."""
        x = self.embed(ids)
        smear = self.smear_scale.to(x.dtype) * gate(linear(x[..., :SMEAR_CHANNELS], self.smear_gate))
        x = x + smear * context.previous(x)
        first = middle = x
        cos, sin = rotary_table(context.positions, self.shape.head_dim, self.dtype)
        if halves is None:
            halves = (self._before, self._after) if self.training else (Block.before_attention, Block.after_attention)
        for layer, block in enumerate(self.blocks):
            table = self.value_embeddings.get(str(layer))
            extra = None if table is None else self._rows(table, ids)
            attend = partial(self._attend, context, layer)
            asked = (x, first, self.keep[layer], self.add_first[layer], extra, cos, sin, attend, halves)
            again = self.recompute and self.training
            x = checkpoint(block, *asked, use_reentrant=False) if again else block(*asked)
            if context.wanted is not None and layer == self.shape.n_layer - 1:
                middle = narrowed(middle, context.wanted)
            if layer == self.shape.n_layer // 2:
                middle = x
        return norm(x - self.backout_scale.to(x.dtype) * middle)

    def products(self) -> Iterator[Tensor | Int8Weight]:
        """Every matrix that hidden states are multiplied with, but for the head."""
        yield self.smear_gate
        for block in self.blocks:
            yield from block.products()

    def _attend(
        self, context: Context, layer: int, x: Tensor, q: Tensor, k: Tensor, v: Tensor
    ) -> tuple[Tensor, Tensor]:
        if context.wanted is not None and layer == self.shape.n_layer - 1:
            x, q = (narrowed(part, context.wanted) for part in (x, q))
        return x, context.attend(layer, q, k, v, self.shape.windows[layer])

    @torch.no_grad()
    def for_inference(self, int8: bool = False) -> GPT:
        """This network with every weight in the type that flows: cast once what `forward` casts at each use, so the
        results are the same. Weights of that type already are shared, and the network itself is where all are, or where
        they are split over ranks.

        With `int8` the large matrices are rounded to whole numbers, and the results are no longer quite the same.
        """
        is_cast = all(weight.dtype == self.dtype for weight in self.parameters())
        if self.is_split or (is_cast and not self.training and not int8):
            return self
        with torch.device("meta"):
            copy = GPT(self.shape, self.dtype)
        weights = {name: weight.detach().to(self.dtype) for name, weight in self.named_parameters()}
        copy.load_state_dict(weights, assign=True)
        if int8:
            for source, block in zip(self.blocks, copy.blocks, strict=True):
                for name in MATRICES:
                    _replace(block, name, Int8Weight(getattr(source, name), self.dtype))
            _replace(copy, "head", Int8Weight(self.head, self.dtype))
        return copy.eval()

    def logits(self, hidden: Tensor) -> Tensor:
        """hidden (…, C) -> (…, V) float32, soft-capped; V is the tokenizer's, without the padding."""
        vocab = self.shape.vocab_size
        return self.use(self.head, lambda head: soft_cap(linear(hidden, head)[..., :vocab]))

    def loss(self, hidden: Tensor, targets: Tensor, weights: Tensor | None = None) -> Tensor:
        """Sum over tokens of weight × cross-entropy in nats. hidden (B, T, C), targets and weights (B, T)."""
        flat = None if weights is None else weights.flatten()
        rest = targets.flatten(), flat, self.shape.vocab_size, self._chunk
        return self.use(self.head, lambda head: head_loss(hidden.flatten(0, 1), head, *rest))

    def token_nll(self, hidden: Tensor, targets: Tensor) -> Tensor:
        """Cross-entropy of each token in nats, without a gradient. hidden (N, C), targets (N,) -> (N,) float32."""
        return self.use(self.head, lambda head: token_nll(hidden, head, targets, self.shape.vocab_size))

    @torch.no_grad()
    def init_weights(self, generator: torch.Generator | None = None) -> None:
        """Every starting value, drawn in the order of REFERENCE section 1.4."""
        bound = math.sqrt(3 / self.shape.d_model)  # uniform with standard deviation 1/sqrt(C)
        last = max(self.shape.n_layer - 1, 1)

        def normal(weight: Tensor, std: float) -> None:
            weight.copy_(torch.empty(weight.shape, device=weight.device).normal_(0, std, generator=generator))

        def uniform(weight: Tensor, low: float, high: float) -> None:
            weight.copy_(torch.empty(weight.shape, device=weight.device).uniform_(low, high, generator=generator))

        normal(self.token_embedding, 0.8)
        normal(self.head, 0.001)
        for layer, block in enumerate(self.blocks):
            for weight in (block.q, block.k, block.v):
                uniform(weight, -bound, bound)
            block.out.zero_()
            uniform(block.up, -0.4 * bound, 0.4 * bound)
            block.down.zero_()
            self.keep[layer] = 1.15 - 0.10 * layer / last
            self.add_first[layer] = 0.20 - 0.15 * layer / last
        self.smear_scale.zero_()
        self.backout_scale.fill_(0.2)
        uniform(self.smear_gate, 0, 0.02)
        for table in self.value_embeddings.values():
            uniform(table, -bound, bound)
        for block in self.blocks:
            if block.value_gate is not None:
                uniform(block.value_gate, 0, 0.02)
