"""How many tokens a pass may have so that each token's numbers do not depend on how many they are.

A library picks another kernel for a product of 1 row than for 8, and another one adds in another order: the last bits
differ, and in the end a word does. So tokens go through the network in two lanes, those of prompts and those that were
said, and each lane has passes only of such widths as give a row the same bits. Which these are is found out on the
machine, with matrices of the network's shapes in which every sum cancels: all that is left is the order of adding.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fathom.model.gpt import GPT, linear
from fathom.model.int8 import Int8Weight

WIDTHS = (1, 2, 4, 8, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512)
USUAL = 32  # a width of the lane of what is said
LONG = 128  # prompts are slow in passes that are shorter

_known: dict[Any, Steady] = {}


@dataclass(frozen=True)
class Steady:
    """Widths that agree with each other, ascending, for each of three lanes."""

    prompts: tuple[int, ...] = WIDTHS
    said: tuple[int, ...] = WIDTHS
    heads: tuple[int, ...] = WIDTHS
    """Of hidden states to logits."""


def fitting(widths: Sequence[int], n: int) -> int:
    """The least of these widths that holds `n`, or the greatest of all."""
    return next((width for width in widths if width >= n), widths[-1])


@torch.inference_mode()
def steady(model: GPT) -> Steady:
    """What agrees for this network on this machine; found out once for each shape."""
    key = model.shape, model.dtype, model.device.type, torch.get_num_threads(), type(model.head)
    if key not in _known:
        bodies = alike(model.products(), model.dtype)
        heads = alike([model.head], model.dtype)
        _known[key] = Steady(for_prompts(bodies), _with(USUAL, bodies), _with(USUAL, heads))
    return _known[key]


def alike(weights: Iterable[Tensor | Int8Weight], dtype: torch.dtype) -> list[tuple[int, ...]]:
    """The widths in classes: within each, products with these weights give a row the same bits."""
    by_shape = {weight.shape: weight for weight in weights}
    bits: dict[int, list[bytes]] = {width: [] for width in WIDTHS}
    for weight in by_shape.values():
        mirrored = _mirrored(weight)
        generator = torch.Generator().manual_seed(1)
        half = torch.randn(1, weight.shape[1] // 2, generator=generator).to(mirrored.device, dtype)
        rest = half.new_zeros(1, weight.shape[1] % 2)
        row = torch.cat([half, -half, rest], dim=1)
        for width in WIDTHS:
            found = linear(row.repeat(width, 1), mirrored)
            same = torch.equal(found, found[:1].expand_as(found))
            bits[width].append(found[0].view(torch.uint8).cpu().numpy().tobytes() if same else b"%d" % width)
    classes: dict[tuple[bytes, ...], list[int]] = {}
    for width in WIDTHS:
        classes.setdefault(tuple(bits[width]), []).append(width)
    return [tuple(widths) for widths in classes.values()]


def for_prompts(classes: Sequence[tuple[int, ...]]) -> tuple[int, ...]:
    """The class with most choice among those with long passes, else the one with the longest."""
    return max(classes, key=lambda widths: (widths[-1] >= LONG, len(widths) if widths[-1] >= LONG else widths[-1]))


def _with(width: int, classes: Sequence[tuple[int, ...]]) -> tuple[int, ...]:
    return next(widths for widths in classes if width in widths)


def _mirrored(weight: Tensor | Int8Weight) -> Tensor | Int8Weight:
    """The same shape, with columns whose second half repeats the first."""
    if isinstance(weight, Int8Weight):
        return weight.with_values(_mirrored_columns(weight.values))
    return _mirrored_columns(weight.detach())


def _mirrored_columns(values: Tensor) -> Tensor:
    half = values.shape[1] // 2
    return torch.cat([values[:, :half], values[:, :half], values[:, 2 * half :]], dim=1)
