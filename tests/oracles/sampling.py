"""One row at a time, in plain Python: which tokens the settings leave, with which share."""

from __future__ import annotations

import math


def shares(logits: list[float], temperature: float, top_k: int, top_p: float, min_p: float) -> list[float]:
    """Probability of every token after temperature, top-k, min-p and top-p (logits must all differ)."""
    best = max(logits)
    weight = [math.exp((x - best) / temperature) for x in logits]
    order = sorted(range(len(logits)), key=lambda i: -weight[i])
    if top_k:
        order = order[:top_k]
    order = [i for i in order if weight[i] >= min_p * weight[order[0]]]
    total, kept, mass = sum(weight[i] for i in order), [], 0.0
    for i in order:
        kept.append(i)
        mass += weight[i] / total
        if top_p < 1 and mass >= top_p:
            break
    total = sum(weight[i] for i in kept)
    return [weight[i] / total if i in kept else 0.0 for i in range(len(logits))]
