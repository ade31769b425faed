"""The reference's flags -> the settings that its run had, by its own rules. REFERENCE sections 3.1, 3.2 and 3.6."""

from __future__ import annotations

from typing import Any

from fathom import scaling
from fathom.errors import FathomError
from fathom.interop.folder import Found
from fathom.model.shape import Shape
from fathom.optim.rates import Rates
from fathom.train.settings import KNOBS, Settings

# flag: (its default, what it is called here). Below zero a horizon or a batch is not set.
FLAGS = {
    "num_iterations": (-1, "steps"),
    "target_flops": (-1.0, "flops"),
    "target_param_data_ratio": (scaling.TOKENS_PER_PARAMETER, "ratio"),
    "total_batch_size": (-1, "batch_tokens"),
    "matrix_lr": (Rates.matrix_lr, "matrix_lr"),
    "embedding_lr": (Rates.embedding_lr, "embedding_lr"),
    "unembedding_lr": (Rates.head_lr, "head_lr"),
    "scalar_lr": (Rates.scalar_lr, "scalar_lr"),
    "weight_decay": (scaling.REFERENCE_WEIGHT_DECAY, "weight_decay"),
    "warmup_steps": (40, "warmup_steps"),
    "warmdown_ratio": (0.65, "warmdown_share"),
    "final_lr_frac": (0.05, "final_lr"),
}
UNSET = ("num_iterations", "target_flops", "target_param_data_ratio", "total_batch_size")
OF_PRETRAINING = ("num_iterations", "target_flops", "warmup_steps", "warmdown_ratio", "final_lr_frac")


def settings_of(found: Found, shape: Shape) -> Settings:
    """What a run of ours by the rules `reference` would be with its flags; a flag that is missing has its default.

    A run that is past its horizon, or whose horizon no flag tells, ends where it is.
    """
    flags, origin = _flags(found)
    ratio = flags["target_param_data_ratio"]
    heads = -(-scaling.REFERENCE_DEPTH * _aspect(found) // shape.head_dim)
    at_12 = Shape(scaling.REFERENCE_DEPTH, heads, heads, shape.head_dim, shape.vocab_size, shape.seq_len)
    tokens, tokens_12 = scaling.horizon(ratio, shape.scaling_parameters), ratio * at_12.scaling_parameters
    batch = flags["total_batch_size"] if flags["total_batch_size"] > 0 else scaling.batch_tokens(tokens, tokens_12)
    batch = max(batch // shape.seq_len, 1) * shape.seq_len
    steps = _steps(flags, shape, batch, tokens) if found.stage == "pretrain" else found.step
    decay = scaling.weight_decay(batch, tokens, tokens_12) * flags["weight_decay"] / scaling.REFERENCE_WEIGHT_DECAY
    return Settings(
        shape=shape,
        depth=shape.n_layer,
        tokens=max(steps, found.step) * batch if ratio < 0 else tokens,
        batch_tokens=batch,
        steps=max(steps, found.step),
        rules="reference",
        packing=scaling.PACKING["reference"],
        lr_scale=scaling.lr_scale(batch),
        width_scale=scaling.width_scale(shape.d_model),
        rates=Rates(flags["matrix_lr"], flags["embedding_lr"], flags["unembedding_lr"], flags["scalar_lr"]),
        weight_decay=decay,
        warmup_steps=flags["warmup_steps"],
        warmdown_share=flags["warmdown_ratio"],
        final_lr=flags["final_lr_frac"],
        seed=1,
        origin=origin,
    )


def _flags(found: Found) -> tuple[dict[str, Any], dict[str, str]]:
    """Every flag of FLAGS, and of each where it came from."""
    given = found.meta.get("user_config") or {}
    if not isinstance(given, dict):
        raise FathomError(f"user_config in {found.meta_path} is no table of flags", "take the file from another copy")
    given = {key: value for key, value in given.items() if value is not None}
    if found.meta.get("total_batch_size") is not None:  # what the run had, where the flag only said "choose one"
        given["total_batch_size"] = found.meta["total_batch_size"]
    if found.stage != "pretrain":  # its flags of these names are about the fine-tuning
        given = {key: value for key, value in given.items() if key not in OF_PRETRAINING}
    flags, origin = {}, {}
    for name, (default, ours) in FLAGS.items():
        flags[name] = _checked(given.get(name, default), name, ours, found)
        is_set = name in given and not (name in UNSET and flags[name] < 0)
        if is_set or name not in ("target_flops", "target_param_data_ratio"):
            origin[ours] = f"the reference's {name if is_set else 'rule' if name in UNSET else 'default'}"
    return flags, origin


def _aspect(found: Found) -> int:
    """Channels a layer; depth 12, which the rules go by, is as wide as they make it."""
    given = (found.meta.get("user_config") or {}).get("aspect_ratio")
    return int(_checked(scaling.ASPECT if given is None else given, "aspect_ratio", "head_dim", found))


def _checked(value: Any, name: str, ours: str, found: Found) -> Any:
    knob = KNOBS[ours]
    is_number = isinstance(value, (int, float) if knob.kind is float else knob.kind) and not isinstance(value, bool)
    if is_number and value <= 0 and name in UNSET:
        return -1
    if not is_number or not knob.least <= value <= knob.most:
        raise FathomError(
            f"{found.meta_path} sets {name} to {str(value)[:40]!r}", "correct that value in a copy of the file"
        )
    return value


def _steps(flags: dict[str, Any], shape: Shape, batch: int, tokens: int) -> int:
    if flags["num_iterations"] > 0:
        return int(flags["num_iterations"])
    if flags["target_flops"] > 0:
        return scaling.steps_for_flops(flags["target_flops"], shape.flops_per_token, batch)
    return scaling.steps_for(batch, tokens) if tokens > 0 else 0
