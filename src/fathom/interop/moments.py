"""The reference's optimizer state, of any number of ranks, as ours. REFERENCE sections 2.1 and 2.4.

Its groups stand in the order of ours, and within them the parameters; they are numbered through. With R ranks each
keeps 1/R of the rows of an AdamW tensor (of tiny ones everything), and of a stack of K matrices the next ceil(K/R).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fathom.errors import FathomError
from fathom.interop.torch_file import ANOTHER_COPY, float_tensor, read_torch_file
from fathom.model.gpt import GPT
from fathom.model.shape import Shape
from fathom.optim.muon import second_moment_shape
from fathom.optim.optimizer import by_shape

SHARDED_FROM = 1024  # numbers in an AdamW tensor


def read_moments(paths: Sequence[Path], shape: Shape) -> dict[str, Any]:
    """The files of all ranks, by rank -> the state that `Optimizer.load_state` takes.

    Raises FathomError where a rank's file is missing or does not fit the network.
    """
    with torch.device("meta"):
        kinds = GPT(shape).parameter_kinds()
    ranks = [_states(path) for path in paths]
    stacks = by_shape(kinds.pop("matrices"))
    singles = [weight for kind in kinds.values() for weight in kind]
    heads = accumulate((len(stack) for stack in stacks), initial=len(singles))  # a stack's state hangs on its first
    return {
        "adam": {str(i): _adam(ranks, paths, i, tuple(weight.shape)) for i, weight in enumerate(singles)},
        "muon": {
            str(i): _muon(ranks, paths, head, len(stack), tuple(stack[0].shape))
            for i, (head, stack) in enumerate(zip(heads, stacks, strict=False))
        },
    }


def _states(path: Path) -> Mapping[int, Any]:
    content = read_torch_file(path)
    states = content.get("state") if isinstance(content, dict) else None
    if not isinstance(states, dict) or not all(isinstance(state, dict) for state in states.values()):
        raise FathomError(f"{path} is no optimizer's state", ANOTHER_COPY)
    return states


def _adam(ranks: Sequence[Mapping[int, Any]], paths: Sequence[Path], i: int, shape: tuple[int, ...]) -> dict[str, Any]:
    sharded = len(ranks) > 1 and torch.Size(shape).numel() >= SHARDED_FROM
    parts = len(ranks) if sharded else 1
    step = ranks[0].get(i, {}).get("step")
    if isinstance(step, Tensor) and step.numel() == 1:
        step = int(step)
    if type(step) is not int or step < 1:
        raise FathomError(f"{paths[0]} has no step of parameter {i}", ANOTHER_COPY)
    state = {"step": torch.tensor(float(step))}
    for name in ("exp_avg", "exp_avg_sq"):
        shard = (shape[0] // parts, *shape[1:])
        state[name] = _joined(ranks[:parts], paths, i, name, shard, shape[0])
    return state


def _muon(
    ranks: Sequence[Mapping[int, Any]], paths: Sequence[Path], head: int, count: int, shape: tuple[int, ...]
) -> dict[str, Any]:
    share = -(-count // len(ranks))
    second = (share, *second_moment_shape(shape[0], shape[1]))
    return {
        "momentum": _joined(ranks, paths, head, "momentum_buffer", (share, *shape), count),
        "second": _joined(ranks, paths, head, "second_momentum_buffer", second, count),
    }


def _joined(
    ranks: Sequence[Mapping[int, Any]],
    paths: Sequence[Path],
    index: int,
    name: str,
    shard: tuple[int, ...],
    rows: int,
) -> Tensor:
    """The ranks' shards one after another, without what fills up the last ones."""
    parts = []
    for states, path in zip(ranks, paths, strict=False):
        part = states.get(index, {}).get(name)
        if isinstance(part, Tensor) and part.ndim == len(shard) and part.shape[1:] == shard[1:] and part.shape != shard:
            raise FathomError(
                f"{path} holds {part.shape[0]:,} of {rows:,} rows ({name} of parameter {index}), not what one of "
                f"{len(paths)} rank{'s' * (len(paths) > 1)} keeps",
                "bring the files of all ranks, or none",
            )
        parts.append(float_tensor(part, shard, f"{name} of parameter {index}", path))
    return parts[0] if len(parts) == 1 else torch.cat(parts)[:rows]
