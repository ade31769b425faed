"""The dial: depth -> sizes, horizon, batch, rates, decay. Pure functions, each with its rule.

The formulas of REFERENCE section 3.1; what `--rules auto` does differently for small models stands at the end.
"""

from __future__ import annotations

import math

ASPECT = 64
HEAD_DIM = 128
SEQ_LEN = 2048
WINDOW = "SSSL"
TOKENS_PER_PARAMETER = 12.0
REFERENCE_DEPTH = 12
REFERENCE_BATCH = 2**19
REFERENCE_WEIGHT_DECAY = 0.28


def d_model(depth: int, head_dim: int = HEAD_DIM) -> int:
    """64 channels a layer, rounded up to whole heads."""
    return head_dim * -(-depth * ASPECT // head_dim)


def n_head(depth: int, head_dim: int = HEAD_DIM) -> int:
    return d_model(depth, head_dim) // head_dim


def horizon(ratio: float, scaling_parameters: int) -> int:
    """Training tokens: `ratio` for each parameter in block matrices and head."""
    return int(ratio * scaling_parameters)


def batch_tokens(tokens: float, tokens_at_reference: float) -> int:
    """Tokens a step: 2^19 at depth 12, growing with the horizon to the 0.383 (Power Lines), a power of two."""
    return int(2 ** round(math.log2(REFERENCE_BATCH * (tokens / tokens_at_reference) ** 0.383)))


def lr_scale(batch: int) -> float:
    """Every rate grows with the square root of the batch."""
    return math.sqrt(batch / REFERENCE_BATCH)


def width_scale(width: int) -> float:
    """AdamW's rates fall with the square root of the width; 768 channels are the reference."""
    return (width / 768) ** -0.5


def weight_decay(batch: int, tokens: float, tokens_at_reference: float) -> float:
    """Muon's decay: 0.28 at depth 12, with the square root of the batch, against the horizon."""
    return REFERENCE_WEIGHT_DECAY * math.sqrt(batch / REFERENCE_BATCH) * tokens_at_reference / tokens


def steps_for(batch: int, tokens: int) -> int:
    return max(1, tokens // batch)


def steps_for_flops(flops: float, flops_per_token: int, batch: int) -> int:
    return max(1, round(flops / (flops_per_token * batch)))


# What `--rules auto` does differently. The reference's rules were tuned from depth 12 up and for horizons of hours;
# for minutes on a small model they are timid. Figures and seeds: docs/LOG.md.

PACKING = {"reference": "best-fit", "auto": "lossless"}
BOOST_MOST = 8.0
BOOST_TOKENS = 20_000_000
MOST_DECAYED = 0.5


def auto_boost(depth: int, tokens: int) -> float:
    """Factor on all rates below depth 12: 8 for horizons of up to 20 M tokens, falling to 1 with the horizon.

    The fall is a power of the horizon that reaches 1 at depth 12's own horizon of 1.3 G tokens; at depth 12 and
    above, and for horizons beyond that, the rates are the reference's.
    """
    if depth >= REFERENCE_DEPTH:
        return 1.0
    span = math.log(1.3e9 / BOOST_TOKENS)
    left = math.log(1.3e9 / max(tokens, BOOST_TOKENS)) / span
    return float(BOOST_MOST ** max(0.0, left))


def auto_batch(depth: int, tokens: int, rule_tokens: float, tokens_at_reference: float, seq_len: int) -> int:
    """The reference's batch, but below depth 12 never so large that a horizon has fewer than 600 steps."""
    batch = batch_tokens(rule_tokens, tokens_at_reference)
    if depth >= REFERENCE_DEPTH:
        return batch
    most = 2 ** int(math.log2(max(tokens / 600, 2048)))
    return max(min(batch, most), seq_len)


def auto_decay(decay: float, matrix_rate: float) -> float:
    """The reference's decay, but never so large that a step at Muon's peak rate takes more than half a weight away.

    A step moves a weight by rate x decay of itself: beyond 1 it changes sign, and beyond 2 it grows. The reference's
    rule, decay against the horizon, gets there with large batches of a tiny model.
    """
    return min(decay, MOST_DECAYED / matrix_rate) if matrix_rate > 0 else decay


def warmup(rules: str, steps: int) -> int:
    """Steps of rate warm-up: 40, in `auto` at most a twentieth of the run."""
    return 40 if rules == "reference" else min(40, max(1, steps // 20))


def momentum_warmup(rules: str, steps: int) -> int:
    """Steps in which Muon's momentum rises: 400, in `auto` at most a fifth of the run."""
    return 400 if rules == "reference" else min(400, max(1, steps // 5))
