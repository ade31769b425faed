"""The reference's forward pass in float64, a token and a head at a time, straight from REFERENCE section 1."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

Vector = np.ndarray


def norm(x: Vector) -> Vector:
    return x / math.sqrt(float(np.mean(x * x)) + 2.0**-23)


def sigmoid(x: Vector | float) -> Any:
    return 1 / (1 + np.exp(-x))


def rotated(x: Vector, position: int) -> Vector:
    half = len(x) // 2
    angle = np.array([position * 100_000 ** (-2 * j / len(x)) for j in range(half)])
    x1, x2 = x[:half], x[half:]
    return np.concatenate([x1 * np.cos(angle) + x2 * np.sin(angle), -x1 * np.sin(angle) + x2 * np.cos(angle)])


def window(config: Mapping[str, Any], layer: int) -> int:
    context, pattern = config["sequence_len"], config.get("window_pattern", "L").upper()
    if layer == config["n_layer"] - 1 or pattern[layer % len(pattern)] == "L":
        return int(context)
    return 128 * math.ceil(math.ceil(context / 4) / 128)


def logits(weights: Mapping[str, Vector], config: Mapping[str, Any], ids: list[int]) -> np.ndarray:
    """(T, V) float64 of one row of ids. `weights` are float64 arrays by the reference's names."""
    n_layer, n_head, n_kv = config["n_layer"], config["n_head"], config["n_kv_head"]
    size = config["n_embd"] // n_head
    embedded = [norm(weights["transformer.wte.weight"][i]) for i in ids]
    xs = [embedded[0]]
    for before, x in zip(embedded, embedded[1:], strict=False):
        gate = weights["smear_lambda"][0] * sigmoid(weights["smear_gate.weight"][0] @ x[:24])
        xs.append(x + gate * before)
    firsts = list(xs)
    middle = xs
    for layer in range(n_layer):
        of = {name.removeprefix(f"transformer.h.{layer}."): weight for name, weight in weights.items()}
        keep, add = weights["resid_lambdas"][layer], weights["x0_lambdas"][layer]
        xs = [keep * x + add * first for x, first in zip(xs, firsts, strict=True)]
        queries, keys, values = [], [], []
        for t, x in enumerate(xs):
            h = norm(x)
            q, k, v = (of[f"attn.c_{name}.weight"] @ h for name in "qkv")
            if layer % 2 == (n_layer - 1) % 2:
                gates = 3 * sigmoid(of["attn.ve_gate.weight"] @ h[:12])
                v = v + np.repeat(gates, size) * weights[f"value_embeds.{layer}.weight"][ids[t]]
            queries.append([1.2 * norm(rotated(part, t)) for part in q.reshape(n_head, size)])
            keys.append([1.2 * norm(rotated(part, t)) for part in k.reshape(n_kv, size)])
            values.append(v.reshape(n_kv, size))
        for t, x in enumerate(xs):
            seen = range(max(0, t - window(config, layer)), t + 1)
            heads = []
            for head in range(n_head):
                shared = head * n_kv // n_head
                scores = np.array([queries[t][head] @ keys[s][shared] for s in seen]) / math.sqrt(size)
                share = np.exp(scores - scores.max())
                share = share / share.sum()
                heads.append(sum(p * values[s][shared] for p, s in zip(share, seen, strict=True)))
            x = x + of["attn.c_proj.weight"] @ np.concatenate(heads)
            xs[t] = x + of["mlp.c_proj.weight"] @ np.maximum(of["mlp.c_fc.weight"] @ norm(x), 0) ** 2
        if layer == n_layer // 2:
            middle = list(xs)
    xs = [norm(x - weights["backout_lambda"][0] * mid) for x, mid in zip(xs, middle, strict=True)]
    raw = np.array([weights["lm_head.weight"] @ x for x in xs])[:, : config["vocab_size"]]
    return np.asarray(15 * np.tanh(raw / 15))
