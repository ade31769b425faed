"""How long a training step takes on a GPU of the table, by part (pure, no torch).

Every part is work over a rate: FLOPs over what products or attention reach, bytes over the memory's bandwidth. The
constants below are one set for all cards; tests/test_pace.py holds them against every figure that REFERENCE and FIELD
have of the reference and of llm.c (8 % or better on 12 of 13).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from fathom.estimate import Work
from fathom.gpus import Gpu

if TYPE_CHECKING:
    from fathom.model.shape import Shape

BANDWIDTH_SHARE = 0.87
"""Of the nominal bandwidth, what a kernel that only reads and writes reaches."""
LAYER_NUMBERS = 56
"""Numbers per token and channel that a layer's fused elementwise kernels read and write: some 18 forward (residuals,
norms, rotary, the square of 4 of the feed-forward) and twice that backward."""
LOGIT_BYTES = {"reference": 16, "ours": 12}
"""Read and written per logit: ours never writes them in float32."""
WEIGHT_BYTES = 24
"""Per matrix weight and micro-batch: cast to what flows, its gradient written, widened and added."""
TABLE_BYTES = 8
"""Per number of a table and micro-batch: its gradient cleared, written and added."""
ADAM_BYTES = {2: 14, 4: 28}
"""Per parameter and update, by the bytes that it is stored in."""
MUON_BYTES = 60
FP8_GAIN = 0.38
"""Linear layers run 1.38 times as fast where fp8's nominal rate is twice bf16's, quantising included (REFERENCE 14)."""
FA3_SHARE = 0.50
"""FlashAttention 3 on Hopper, forward and backward: 625 to 648 of 989 TFLOP/s forward (FIELD C), less backward."""
DENSE_MASK_SHARE = 0.25
"""Attention through a whole T×T mask, over all of it: what a window costs the reference where it lacks FA3.
8×A100 226k tokens/s against 309k without windows; RTX 3090 40k (FIELD B and C)."""
ATTENTION_FLOPS = 14
"""Per channel and visible key: 4 forward, 10 backward, where scores are formed again."""
SPREAD = {True: 0.15, False: 0.35}
"""Half width of the interval, for families whose shares were measured and for those where they are guessed."""


def step_parts(work: Work, gpu: Gpu) -> dict[str, float]:
    """Seconds of one step by part; each device of `work.ranks` does its share of it at the same time."""
    tokens = work.micro_tokens * work.grad_accum
    shape, bandwidth = work.shape, gpu.bandwidth * 1e9 * BANDWIDTH_SHARE
    products = gpu.tflops * 1e12 * gpu.family.product_share
    linear = products * _fp8_gain(work, gpu)
    weights = WEIGHT_BYTES * shape.matmul_parameters + TABLE_BYTES * work.table_parameters
    return {
        "products": tokens * 6 * shape.matmul_parameters / linear,
        "attention": tokens * _attention_s(work, gpu),
        "elementwise": tokens * LAYER_NUMBERS * work.flow_bytes * shape.d_model * shape.n_layer / bandwidth,
        "logits": tokens * _logit_bytes(work) / bandwidth,
        "weights": work.grad_accum * weights / bandwidth,
        "optimizer": (muon_flops(shape) / products + _optimizer_bytes(work) / bandwidth) / work.ranks,
        "synchronisation": _synchronisation_s(work, gpu),
    }


def tokens_per_s(work: Work, gpu: Gpu) -> float:
    """Of the whole machine, in training steps alone."""
    return work.step_tokens / sum(step_parts(work, gpu).values())


def muon_flops(shape: Shape) -> float:
    """FLOPs of an update's orthogonalisations: five times two products with the smaller Gram matrix and its square."""
    wide, model, kv = shape.d_ff, shape.d_model, shape.d_kv
    pairs = [(model, model)] * 2 + [(kv, model)] * 2 + [(model, wide)] * 2
    return shape.n_layer * sum(5 * (4 * short * short * long + 2 * short**3) for short, long in pairs)


def visible_keys(window: int, seq_len: int) -> float:
    """Keys that a query sees on average: fewer at the beginning of a row."""
    return seq_len / 2 if window >= seq_len else window * (1 - window / (2 * seq_len))


def _fp8_gain(work: Work, gpu: Gpu) -> float:
    return 1 + FP8_GAIN * ((gpu.fp8_tflops or gpu.tflops) / gpu.tflops - 1) if work.fp8 else 1.0


def _attention_s(work: Work, gpu: Gpu) -> float:
    """Seconds a token."""
    shape, peak = work.shape, gpu.tflops * 1e12
    flash = FA3_SHARE if work.ways == "reference" and gpu.family.name == "hopper" else gpu.family.attention_share
    has_windows = work.ways == "ours" or gpu.family.name == "hopper"
    seconds = 0.0
    for window in shape.windows:
        if window < shape.seq_len and not has_windows:
            keys, share = float(shape.seq_len), DENSE_MASK_SHARE
        else:
            keys, share = visible_keys(window, shape.seq_len), flash
        seconds += ATTENTION_FLOPS * shape.d_model * keys / (peak * share)
    return seconds


def _logit_bytes(work: Work) -> float:
    return float(LOGIT_BYTES[work.ways] * work.shape.padded_vocab)


def _optimizer_bytes(work: Work) -> float:
    counts = work.shape.parameters
    tables = ADAM_BYTES[work.table_bytes] * work.table_parameters
    return tables + ADAM_BYTES[4] * counts["head"] + MUON_BYTES * counts["block_matrices"]


def _synchronisation_s(work: Work, gpu: Gpu) -> float:
    """Gradients gathered and weights handed back once a step."""
    if work.ranks == 1:
        return 0.0
    moved = 2 * (4 * work.shape.matmul_parameters + work.table_bytes * work.table_parameters)
    return moved / (gpu.family.link_gb_per_s * 1e9)
