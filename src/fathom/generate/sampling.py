"""From logits to the next token: pure functions, every row with settings of its own.

Only the values of the logits decide, never the order in which a sort happens to leave equal ones; and a row's
choice depends on nothing but its own logits, settings and number. So a request says the same whatever else runs.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fathom.errors import FathomError

TopLogprobs = tuple[tuple[int, float], ...]  # (token, log-probability), the likeliest first


@dataclass(frozen=True)
class Sampling:
    """How one request chooses: temperature, then top-k and min-p, then top-p of what these left."""

    temperature: float = 0.0
    """0 takes the most likely token."""
    top_k: int = 0
    """Only the k most likely tokens; 0 for all."""
    top_p: float = 1.0
    """Only the most likely tokens that together hold this probability."""
    min_p: float = 0.0
    """Only tokens at least this share as likely as the most likely one."""

    def __post_init__(self) -> None:
        _within("temperature", self.temperature, 0, 100)
        _within("top-p", self.top_p, 0, 1)
        _within("min-p", self.min_p, 0, 1)
        if self.top_k < 0:
            raise FathomError(f"top-k is {self.top_k}", "give 0 for all tokens, or a positive number")
        if self.top_p == 0:
            raise FathomError("top-p is 0, which leaves no token", "give a share above 0, at most 1")

    @property
    def greedy(self) -> bool:
        return self.temperature == 0


def _within(name: str, value: float, low: float, high: float) -> None:
    if not (math.isfinite(value) and low <= value <= high):
        raise FathomError(f"{name} is {value}", f"give a number from {low} to {high}")


def adjust(
    logits: Tensor, penalty: float, said: Collection[int], bias: Sequence[tuple[int, float]], allowed: Tensor | None
) -> Tensor:
    """One row (V,) with the repetition penalty on the tokens `said`, then the bias, then only what is allowed."""
    logits = logits.clone()
    if penalty != 1 and said:
        at = torch.tensor(sorted(said), device=logits.device)
        values = logits[at]
        logits[at] = torch.where(values > 0, values / penalty, values * penalty)
    for token, add in bias:
        logits[token] += add
    return logits if allowed is None else logits.masked_fill(~allowed.to(logits.device), -math.inf)


def log_probabilities(logits: Tensor, tokens: Sequence[int], n_top: int) -> list[tuple[float, TopLogprobs]]:
    """For each row of (N, V) the log-probability of its token and those of the likeliest, in nats."""
    logs = logits.log_softmax(dim=-1)
    chosen = logs.gather(1, torch.tensor(tokens, device=logits.device)[:, None])[:, 0].tolist()
    if not n_top:
        return [(value, ()) for value in chosen]
    values, at = logs.topk(min(n_top, logits.shape[-1]), dim=-1)
    top = [tuple(zip(*row, strict=True)) for row in zip(at.tolist(), values.tolist(), strict=True)]
    return list(zip(chosen, top, strict=True))


def sample(logits: Tensor, settings: Sequence[Sampling], uniform: Sequence[float]) -> Tensor:
    """The next token of each row, (N,) int64. logits (N, V) float32; uniform: a number in [0, 1) for each row."""
    chosen = logits.argmax(dim=-1)
    rows = [row for row, how in enumerate(settings) if not how.greedy]
    if rows:
        some = logits[rows].cpu() if logits.device.type == "mps" else logits[rows]  # MPS has no float64 to draw in
        drawn = draw(some, [settings[row] for row in rows], [uniform[row] for row in rows])
        chosen[rows] = drawn.to(chosen.device)
    return chosen


def draw(logits: Tensor, settings: Sequence[Sampling], uniform: Sequence[float]) -> Tensor:
    """Like `sample`, for rows of which none is greedy: the token at which the running sum passes the number."""
    sums = probabilities(logits, settings).cumsum(dim=-1)  # float64: V small shares in float32 would lose the tail
    target = torch.tensor(uniform, dtype=sums.dtype, device=sums.device)[:, None] * sums[:, -1:]
    # The product of the largest number below 1 may round up to the sum itself.
    return (sums <= torch.minimum(target, sums[:, -1:].nextafter(torch.zeros_like(target)))).sum(dim=-1)


def probabilities(logits: Tensor, settings: Sequence[Sampling]) -> Tensor:
    """What each row draws from, (N, V) float64, not normed: 0 for every token that the settings exclude."""
    temperature = _column([how.temperature for how in settings], logits)
    scaled = (logits - logits.amax(dim=-1, keepdim=True)).double() / temperature
    floor = torch.maximum(_top_k_floor(scaled, settings), _min_p_floor(scaled, settings))
    floor = torch.maximum(floor, _top_p_floor(scaled, floor, settings))
    return torch.where(scaled >= floor, scaled, -math.inf).exp()


def _column(values: list[float], like: Tensor) -> Tensor:
    return torch.tensor(values, dtype=torch.float64, device=like.device)[:, None]


def _top_k_floor(scaled: Tensor, settings: Sequence[Sampling]) -> Tensor:
    """The k-th best value of each row, (N, 1)."""
    n_token = scaled.shape[-1]
    counts = [how.top_k if 0 < how.top_k < n_token else 0 for how in settings]
    floor = torch.full_like(scaled[:, :1], -math.inf)
    rows = [row for row, count in enumerate(counts) if count]
    if rows:
        best = scaled[rows].topk(max(counts), dim=-1).values
        at = torch.tensor([counts[row] - 1 for row in rows], device=scaled.device)[:, None]
        floor[rows] = best.gather(1, at)
    return floor


def _min_p_floor(scaled: Tensor, settings: Sequence[Sampling]) -> Tensor:
    """The best value of a row is 0 here, so a share of its probability is the share's logarithm."""
    return _column([math.log(how.min_p) if how.min_p else -math.inf for how in settings], scaled)


def _top_p_floor(scaled: Tensor, floor: Tensor, settings: Sequence[Sampling]) -> Tensor:
    """The value of the last token needed to hold the share top-p of what `floor` leaves, (N, 1)."""
    result = torch.full_like(floor, -math.inf)
    rows = [row for row, how in enumerate(settings) if how.top_p < 1]
    if rows:
        values = torch.where(scaled >= floor, scaled, -math.inf)[rows].sort(dim=-1, descending=True).values
        sums = values.exp().cumsum(dim=-1)
        wanted = _column([settings[row].top_p for row in rows], scaled) * sums[:, -1:]
        last = (sums < wanted).sum(dim=-1, keepdim=True).clamp(max=scaled.shape[-1] - 1)
        result[rows] = values.gather(1, last)
    return result
