"""Checkpoints and tokenizers in the reference's layout, written from REFERENCE sections 1, 2, 4 and 11 alone."""

from __future__ import annotations

import json
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import tiktoken
import torch
from torch import Tensor

from fathom.tokenizer import Tokenizer

Config = dict[str, Any]
Weights = dict[str, Tensor]


def config(
    vocab_size: int, n_layer: int = 4, n_head: int = 2, width: int = 64, context: int = 32, **more: Any
) -> Config:
    return {
        "sequence_len": context,
        "vocab_size": vocab_size,
        "n_layer": n_layer,
        "n_head": n_head,
        "n_kv_head": n_head,
        "n_embd": width,
        "window_pattern": "SSSL",
    } | more


def shapes(config: Config) -> dict[str, tuple[int, ...]]:
    """Every tensor of the network, by the reference's name."""
    width, rows = config["n_embd"], 64 * -(-config["vocab_size"] // 64)
    kv_width = width // config["n_head"] * config["n_kv_head"]
    found: dict[str, tuple[int, ...]] = {"resid_lambdas": (config["n_layer"],), "x0_lambdas": (config["n_layer"],)}
    found |= {"smear_lambda": (1,), "backout_lambda": (1,), "transformer.wte.weight": (rows, width)}
    for layer in range(config["n_layer"]):
        block = f"transformer.h.{layer}."
        found |= {block + "attn.c_q.weight": (width, width), block + "attn.c_k.weight": (kv_width, width)}
        found |= {block + "attn.c_v.weight": (kv_width, width), block + "attn.c_proj.weight": (width, width)}
        if layer % 2 == (config["n_layer"] - 1) % 2:
            found[block + "attn.ve_gate.weight"] = (config["n_kv_head"], 12)
        found |= {block + "mlp.c_fc.weight": (4 * width, width), block + "mlp.c_proj.weight": (width, 4 * width)}
    found |= {"lm_head.weight": (rows, width), "smear_gate.weight": (1, 24)}
    for layer in range(config["n_layer"]):
        if layer % 2 == (config["n_layer"] - 1) % 2:
            found[f"value_embeds.{layer}.weight"] = (rows, kv_width)
    return found


def random_weights(config: Config, seed: int = 0, tables: torch.dtype = torch.float32) -> Weights:
    """Every tensor random, also those that begin at zero; `tables` is what embeddings are stored in."""
    dice = torch.Generator().manual_seed(seed)
    found = {}
    for name, shape in shapes(config).items():
        weight = torch.randn(shape, generator=dice) * (0.5 if len(shape) == 1 else shape[-1] ** -0.5)
        if name.endswith("_lambdas"):
            weight = 1 + 0.3 * weight
        is_table = name.startswith(("transformer.wte", "value_embeds"))
        found[name] = (8 * weight).to(tables) if is_table else weight
    return found


def groups(config: Config) -> list[tuple[str, list[str]]]:
    """The optimizer's groups in order: (adamw or muon, names of the parameters)."""
    every = shapes(config)
    matrices = [name for name in every if name.startswith("transformer.h.")]
    tables = [name for name in every if name.startswith("value_embeds.")]
    singles = [["lm_head.weight"], ["transformer.wte.weight"], tables, ["resid_lambdas"], ["x0_lambdas"]]
    singles.append(["smear_gate.weight", "smear_lambda", "backout_lambda"])
    stacks = [[name for name in matrices if every[name] == one] for one in sorted({every[name] for name in matrices})]
    return [("adamw", names) for names in singles] + [("muon", names) for names in stacks]


def random_moments(config: Config, step: int, seed: int = 1) -> dict[str, dict[str, Any]]:
    """The whole optimizer state by parameter: AdamW's moments, or a matrix's momentum and second moment."""
    dice, every = torch.Generator().manual_seed(seed), shapes(config)
    found: dict[str, dict[str, Any]] = {}
    for kind, names in groups(config):
        for name in names:
            first = 1e-3 * torch.randn(every[name], generator=dice)
            if kind == "adamw":
                second = 1e-6 * torch.rand(every[name], generator=dice)
                found[name] = {"step": step, "exp_avg": first, "exp_avg_sq": second}
            else:
                rows, columns = every[name]
                reduced = (rows, 1) if rows >= columns else (1, columns)
                second = 1e-2 * torch.rand(reduced, generator=dice)
                found[name] = {"momentum_buffer": first, "second_momentum_buffer": second}
    return found


def shard(config: Config, moments: Mapping[str, Mapping[str, Any]], rank: int, ranks: int) -> dict[str, Any]:
    """What the optimizer's state_dict holds on one of `ranks`."""
    every, states, param_groups, index = shapes(config), {}, [], 0
    for kind, names in groups(config):
        numbers = list(range(index, index + len(names)))
        param_groups.append({"kind": kind, "lr": 0.01, "initial_lr": 0.02, "params": numbers})
        if kind == "adamw":
            for number, name in zip(numbers, names, strict=True):
                state = dict(moments[name])
                if ranks > 1 and torch.Size(every[name]).numel() >= 1024:
                    own = every[name][0] // ranks
                    for key in ("exp_avg", "exp_avg_sq"):
                        state[key] = state[key][rank * own : (rank + 1) * own].clone()
                states[number] = state
        else:
            share = -(-len(names) // ranks)
            states[index] = {}
            for key in ("momentum_buffer", "second_momentum_buffer"):
                whole = torch.stack([moments[name][key] for name in names])
                padded = torch.cat([whole, torch.zeros(share * ranks - len(names), *whole.shape[1:])])
                states[index][key] = padded[rank * share : (rank + 1) * share].clone()
        index += len(names)
    return {"state": states, "param_groups": param_groups}


def write_checkpoint(
    folder: Path,
    config: Config,
    weights: Mapping[str, Any],
    step: int,
    moments: Mapping[str, Mapping[str, Any]] | None = None,
    ranks: int = 1,
    **meta: Any,
) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    torch.save(dict(weights), folder / f"model_{step:06d}.pt")
    told = {"step": step, "val_bpb": 1.5, "model_config": config, "user_config": {}} | meta
    (folder / f"meta_{step:06d}.json").write_text(json.dumps(told, indent=2))
    for rank in range(ranks if moments else 0):
        torch.save(shard(config, moments or {}, rank, ranks), folder / f"optim_{step:06d}_rank{rank}.pt")
    return folder


def encoding(tokenizer: Tokenizer) -> tiktoken.Encoding:
    ranks = {token: rank for rank, token in enumerate(tokenizer.tokens)}
    return tiktoken.Encoding(
        "rustbpe", pat_str=tokenizer.pattern, mergeable_ranks=ranks, special_tokens=tokenizer.specials
    )


def write_tokenizer(folder: Path, tokenizer: Tokenizer) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "tokenizer.pkl").write_bytes(pickle.dumps(encoding(tokenizer)))
    torch.save(torch.from_numpy(tokenizer.token_bytes()), folder / "token_bytes.pt")
    return folder
