"""How many tokens a pass may have so that each token's numbers do not depend on how many they are.

A library picks another kernel for a product of 1 row than for 8, and another one adds in another order: the last bits
differ, and in the end a word does. So the widths that are used are only those whose products give a row the same bits
as all others do. Which these are is found out on the machine, with the network's own weights.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor

from fathom.generate.pages import PAGE
from fathom.model.gpt import GPT, linear

if TYPE_CHECKING:
    from fathom.model.shape import Shape

WIDTHS = (1, 2, 4, 8, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512)
HEAD_WIDTHS = WIDTHS[:9]
REFERENCE = 32  # the width that the others have to agree with
QUERY_ROWS = (1, 8)

_known: dict[Any, Steady] = {}


@dataclass(frozen=True)
class Steady:
    """Widths that agree, ascending."""

    passes: tuple[int, ...] = WIDTHS
    """Of tokens through the layers."""
    heads: tuple[int, ...] = HEAD_WIDTHS
    """Of hidden states to logits."""
    query_rows: int = 1
    """The fewest queries that attention is asked about at once."""


def fitting(widths: Sequence[int], n: int) -> int:
    """The least of these widths that holds `n`, or the greatest of all."""
    return next((width for width in widths if width >= n), widths[-1])


@torch.inference_mode()
def steady(model: GPT) -> Steady:
    """What agrees for this network on this machine; found out once for each shape."""
    if not isinstance(model, GPT):
        return Steady()  # a network of the tests, without products
    key = model.shape, model.dtype, model.device.type, torch.get_num_threads(), type(model.blocks[0].up)
    if key not in _known:
        weights = {weight.shape: weight for block in model.blocks for weight in block.products()}
        bodies = [lambda x, weight=weight: linear(x, weight) for weight in weights.values()]
        inputs = [weight.shape[1] for weight in weights.values()]
        passes = set(WIDTHS)
        for product, n_in in zip(bodies, inputs, strict=True):
            passes &= _agreeing(product, n_in, WIDTHS, model)
        heads = _agreeing(model.logits, model.shape.d_model, HEAD_WIDTHS, model)
        rows = next((rows for rows in QUERY_ROWS if _attention_agrees(rows, model)), PAGE)
        _known[key] = Steady(tuple(sorted(passes)), tuple(sorted(heads)), rows)
    return _known[key]


def _agreeing(product: Callable[[Tensor], Tensor], n_in: int, widths: Sequence[int], model: GPT) -> set[int]:
    row = _random(model, 1, n_in)
    expected = product(row.repeat(REFERENCE, 1))[:1]
    agrees = {REFERENCE}
    for width in widths:
        found = product(row.repeat(width, 1))
        if torch.equal(found, expected.expand_as(found)):
            agrees.add(width)
    return agrees


def _attention_agrees(rows: int, model: GPT) -> bool:
    """Whether `rows` queries alone get what they get among a page of them, over one page of keys and over many."""
    shape: Shape = model.shape
    for n_page in (1, 2, 9):
        k, v = (_random(model, 1, n_page * PAGE, shape.n_kv_head, shape.head_dim).transpose(1, 2) for _ in "kv")
        q = _random(model, 1, PAGE, shape.n_head, shape.head_dim).transpose(1, 2)
        distance = torch.arange((n_page - 1) * PAGE, n_page * PAGE)[:, None] - torch.arange(n_page * PAGE)
        mask = torch.zeros(distance.shape, dtype=q.dtype).masked_fill_(distance < 0, -torch.inf).to(q.device)
        shared = shape.n_kv_head != shape.n_head
        whole = F.scaled_dot_product_attention(q, k, v, attn_mask=mask[None, None], enable_gqa=shared)
        for first in (0, 24, PAGE - rows):
            part = slice(first, first + rows)
            alone = F.scaled_dot_product_attention(
                q[:, :, part], k, v, attn_mask=mask[None, None, part], enable_gqa=shared
            )
            if not torch.equal(alone, whole[:, :, part]):
                return False
    return True


def _random(model: GPT, *sizes: int) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(sizes, generator=generator).to(model.device, model.dtype)
