"""The reference's weights under our names, and which of its versions made them. REFERENCE sections 1, 1.8 and 11."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fathom.errors import FathomError
from fathom.interop.folder import Found
from fathom.interop.torch_file import ANOTHER_COPY, FLOATS, float_tensor, read_torch_file
from fathom.model.gpt import GPT
from fathom.model.shape import GATE_CHANNELS, Shape

SIZES = ("sequence_len", "vocab_size", "n_layer", "n_head", "n_kv_head", "n_embd")

THEIRS = {
    "token_embedding": "transformer.wte.weight",
    "head": "lm_head.weight",
    "keep": "resid_lambdas",
    "add_first": "x0_lambdas",
    "smear_gate": "smear_gate.weight",
    "smear_scale": "smear_lambda",
    "backout_scale": "backout_lambda",
}
THEIRS_IN_BLOCK = {
    "q": "attn.c_q",
    "k": "attn.c_k",
    "v": "attn.c_v",
    "out": "attn.c_proj",
    "up": "mlp.c_fc",
    "down": "mlp.c_proj",
    "value_gate": "attn.ve_gate",
}
SMALLEST_WEIGHT = min(dtype.itemsize for dtype in FLOATS)


def shape_of(found: Found) -> Shape:
    """What model_config describes. Raises FathomError where that is no network, or one larger than the file."""
    config = found.meta["model_config"]
    for key in SIZES:
        if type(config.get(key)) is not int:
            raise FathomError(f"model_config in {found.meta_path} has no whole number for {key}", ANOTHER_COPY)
    unknown = sorted(config.keys() - {*SIZES, "window_pattern"})
    if unknown:
        raise FathomError(
            f"model_config in {found.meta_path} sets {unknown[0]!r}, which no version known here has",
            "use the version that wrote it",
        )
    window = config.get("window_pattern", "L")  # older models saw the whole context
    heads, width = config["n_head"], config["n_embd"]
    try:
        if heads < 1 or width % heads or not isinstance(window, str):
            raise FathomError(f"{width} channels for {heads} heads, window pattern {window!r}")
        sizes = (config["n_layer"], heads, config["n_kv_head"], width // heads)
        shape = Shape(*sizes, config["vocab_size"], config["sequence_len"], window)
    except FathomError as error:
        raise FathomError(f"{found.meta_path} describes no network: {error.problem[:200]}", ANOTHER_COPY) from None
    if shape.parameters["total"] * SMALLEST_WEIGHT > found.model.stat().st_size:
        raise FathomError(
            f"{found.meta_path} describes {shape.parameters['total']:,} parameters, more than {found.model.name} has "
            "room for",
            "a file is truncated, or files of different checkpoints have been mixed",
        )
    return shape


def read_weights(path: Path, shape: Shape) -> dict[str, Tensor]:
    """The state of our GPT of that shape, as stored: matrices in float32, tables as the reference computed."""
    content = read_torch_file(path)
    if not isinstance(content, dict) or not all(isinstance(name, str) for name in content):
        raise FathomError(f"{path} holds no named weights", ANOTHER_COPY)
    return translate({name.removeprefix("_orig_mod."): value for name, value in content.items()}, shape, path)


def translate(theirs: Mapping[str, Any], shape: Shape, path: Path) -> dict[str, Tensor]:
    """Weights by the reference's names -> by ours, every one of them once and of the right shape.

    Raises FathomError for a version of the network that computes otherwise than ours, with the reason.
    """
    _refuse_older(theirs, path)
    given = {"resid_lambdas": torch.ones(shape.n_layer), "x0_lambdas": torch.zeros(shape.n_layer), **theirs}
    with torch.device("meta"):
        wanted = {name: tuple(weight.shape) for name, weight in GPT(shape).state_dict().items()}
    names = {ours: their_name(ours) for ours in wanted}
    missing = [name for name in names.values() if name not in given]
    unknown = [name for name in given if name not in names.values()]
    if missing or unknown:
        what = f"lacks {missing[0]}" if missing else f"holds {unknown[0][:100]!r}"
        raise FathomError(
            f"{path} {what}, unlike every network of {shape.n_layer} layers known here",
            "files of different checkpoints may have been mixed",
        )
    return {ours: float_tensor(given[names[ours]], wanted[ours], names[ours], path) for ours in wanted}


def _refuse_older(theirs: Mapping[str, Any], path: Path) -> None:
    """Networks of before 14 March 2026 have other constants in the forward pass, which no weight can make up for."""
    if (
        "transformer.wte.weight" not in theirs
        or {"smear_gate.weight", "smear_lambda", "backout_lambda"} & theirs.keys()
    ):
        return
    gates = [value for name, value in theirs.items() if name.endswith(".ve_gate.weight") and isinstance(value, Tensor)]
    channels = gates[0].shape[-1] if gates and gates[0].ndim else 0
    if channels == GATE_CHANNELS:
        raise FathomError(
            f"{path} is of a version of 9 to 14 March 2026 (no smear, no backout): its queries and keys are scaled by "
            "1.15 where this network scales by 1.2, and its short windows are other ones",
            "run it with the version that trained it",
        )
    what = f"gates of {channels} channels" if channels else "no gated value embeddings"
    raise FathomError(
        f"{path} is of a version before 9 March 2026 ({what}): its rotary base is 10,000, its gates, soft cap and "
        "scales are other ones",
        "run it with the version that trained it",
    )


def their_name(ours: str) -> str:
    """The reference's name of one of our weights."""
    room, *rest = ours.split(".")
    if room == "blocks":
        return f"transformer.h.{rest[0]}.{THEIRS_IN_BLOCK[rest[1]]}.weight"
    if room == "value_embeddings":
        return f"value_embeds.{rest[0]}.weight"
    return THEIRS[room]
