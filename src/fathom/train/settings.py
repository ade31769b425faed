"""From a few flags to every number of a pretraining run, each with where it came from (pure, no torch).

Precedence: the rule of `scaling`, then the recipe file, then the flag.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from fathom import scaling
from fathom.errors import FathomError
from fathom.model.shape import Shape
from fathom.optim.rates import Rates
from fathom.optim.schedule import Schedule

CPU_MICRO_TOKENS = 8192
GPU_MICRO_TOKENS = 32_768


@dataclass(frozen=True)
class Settings:
    """All that decides what a run computes. `origin` says of each value which rule, or that recipe or flag, set it."""

    shape: Shape
    depth: int
    tokens: int
    """The horizon as the rule gives it; a run trains steps × batch_tokens."""
    batch_tokens: int
    steps: int
    rules: str
    packing: str
    lr_scale: float
    width_scale: float
    rates: Rates
    weight_decay: float
    warmup_steps: int
    warmdown_share: float
    final_lr: float
    seed: int
    origin: dict[str, str] = field(default_factory=dict)

    @property
    def schedule(self) -> Schedule:
        return Schedule(
            self.steps,
            warmup_steps=self.warmup_steps,
            warmdown_share=self.warmdown_share,
            final_lr=self.final_lr,
            momentum_warmup_steps=scaling.momentum_warmup(self.rules, self.steps),
            weight_decay=self.weight_decay,
        )

    @property
    def rows_per_step(self) -> int:
        return self.batch_tokens // self.shape.seq_len

    def flat(self) -> dict[str, Any]:
        """Plain values for run.toml."""
        values = {k: v for k, v in asdict(self).items() if k not in ("shape", "rates", "origin")}
        return values | asdict(self.rates)


def resolve(flags: Mapping[str, Any], recipe: Mapping[str, Any], vocab_size: int) -> Settings:
    """Every number of a run. `flags` and `recipe` hold what was given, by the names of `KNOBS`; None is not given."""
    given = _given(flags, recipe)
    origin: dict[str, str] = {}

    def value(name: str, rule: Any, why: str) -> Any:
        if name in given:
            chosen, origin[name] = given[name]
            return chosen
        origin[name] = why
        return rule

    depth = value("depth", None, "")
    if depth is None:
        raise FathomError("no depth was given", "try --depth 4 on a CPU, --depth 12 on a GPU")
    rules = value("rules", "auto", "default")
    head_dim = value("head_dim", scaling.HEAD_DIM, "rule: 128")
    heads = scaling.n_head(depth, head_dim) if head_dim > 0 and depth > 0 else 0
    seq_len = value("seq_len", scaling.SEQ_LEN, "rule: 2048")
    window = value("window", scaling.WINDOW, "rule: three short windows, one long")
    shape = Shape(depth, heads, heads, head_dim, vocab_size, seq_len, window)
    heads_12 = scaling.n_head(scaling.REFERENCE_DEPTH, head_dim)
    at_12 = Shape(scaling.REFERENCE_DEPTH, heads_12, heads_12, head_dim, vocab_size, seq_len, window)

    ratio = value("ratio", scaling.TOKENS_PER_PARAMETER, "rule: 12 tokens per parameter in blocks and head")
    tokens = scaling.horizon(_positive("ratio", ratio), shape.scaling_parameters)
    tokens_12 = ratio * at_12.scaling_parameters
    batch = value(
        "batch_tokens",
        scaling.batch_tokens(tokens, tokens_12)
        if rules == "reference"
        else scaling.auto_batch(depth, _asked_tokens(given, shape) or tokens, tokens, tokens_12, seq_len),
        "rule: 2^19 at depth 12, growing with the horizon to the 0.383" if rules == "reference" else "rule: auto_batch",
    )
    if batch < seq_len or batch % seq_len:
        raise FathomError(
            f"a batch of {batch} tokens is not a whole number of rows of {seq_len}",
            f"choose --batch-tokens as a multiple of {seq_len}",
        )
    steps = _steps(given, value, shape, batch, tokens)
    boost = 1.0 if rules == "reference" else scaling.auto_boost(depth, steps * batch)
    rates = Rates(
        matrix_lr=value("matrix_lr", Rates.matrix_lr, "rule"),
        embedding_lr=value("embedding_lr", Rates.embedding_lr, "rule"),
        head_lr=value("head_lr", Rates.head_lr, "rule"),
        scalar_lr=value("scalar_lr", Rates.scalar_lr, "rule"),
    )
    decay = scaling.weight_decay(batch, tokens, tokens_12)
    return Settings(
        shape=shape,
        depth=depth,
        tokens=tokens,
        batch_tokens=batch,
        steps=steps,
        rules=rules,
        packing=value("packing", scaling.PACKING[rules], f"rule: {rules}"),
        lr_scale=value("lr_scale", scaling.lr_scale(batch) * boost, "rule: sqrt of the batch, times auto_boost"),
        width_scale=scaling.width_scale(shape.d_model),
        rates=rates,
        weight_decay=value("weight_decay", decay, "rule: sqrt of the batch, against the horizon"),
        warmup_steps=value("warmup_steps", scaling.warmup(rules, steps), "rule"),
        warmdown_share=value("warmdown_share", 0.65, "rule"),
        final_lr=value("final_lr", 0.05, "rule"),
        seed=value("seed", 1, "default"),
        origin=origin,
    )


KNOBS = {
    "depth": int,
    "rules": str,
    "head_dim": int,
    "seq_len": int,
    "window": str,
    "ratio": float,
    "steps": int,
    "flops": float,
    "batch_tokens": int,
    "packing": str,
    "lr_scale": float,
    "matrix_lr": float,
    "embedding_lr": float,
    "head_lr": float,
    "scalar_lr": float,
    "weight_decay": float,
    "warmup_steps": int,
    "warmdown_share": float,
    "final_lr": float,
    "seed": int,
}


def read_recipe(path: str | None) -> dict[str, Any]:
    """The values of a recipe file (TOML, flat, the flags' words with dashes or underscores)."""
    if path is None:
        return {}
    try:
        values = tomllib.loads(Path(path).read_text())
    except OSError as error:
        raise FathomError(f"the recipe {path} cannot be read ({error.strerror})", "check its path") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise FathomError(f"the recipe {path} is not TOML ({error})", "write lines such as depth = 4") from None
    return {key.replace("-", "_"): value for key, value in values.items()}


def _given(flags: Mapping[str, Any], recipe: Mapping[str, Any]) -> dict[str, tuple[Any, str]]:
    for key in recipe.keys() - KNOBS.keys():
        near = get_close_matches(key, KNOBS, n=1)
        hint = f"did you mean {near[0]}?" if near else f"the settings are {', '.join(KNOBS)}"
        raise FathomError(f"the recipe sets {key!r}, which is no setting", hint)
    for key, found in recipe.items():
        fits = isinstance(found, (int, float) if KNOBS[key] is float else KNOBS[key]) and not isinstance(found, bool)
        if not fits:
            raise FathomError(f"the recipe sets {key} to {found!r}", f"it must be of type {KNOBS[key].__name__}")
    given = {key: (found, "recipe") for key, found in recipe.items()}
    return given | {key: (found, "flag") for key, found in flags.items() if found is not None and key in KNOBS}


def _positive(name: str, number: float) -> float:
    if not 0 < number < float("inf"):
        raise FathomError(f"{name} is {number}", "it must be a number above zero")
    return number


def _asked_tokens(given: Mapping[str, tuple[Any, str]], shape: Shape) -> int:
    """Tokens that --flops asks for, 0 where it is not given."""
    return int(given["flops"][0] / shape.flops_per_token) if "flops" in given else 0


def _steps(given: Mapping[str, tuple[Any, str]], value: Any, shape: Shape, batch: int, tokens: int) -> int:
    if "steps" in given:
        return int(_positive("steps", value("steps", 0, "")))
    if "flops" in given:
        flops = _positive("flops", value("flops", 0.0, ""))
        return scaling.steps_for_flops(flops, shape.flops_per_token, batch)
    return int(value("steps", scaling.steps_for(batch, tokens), "rule: horizon / batch"))


def device_rows(asked: int | None, rows_per_step: int, seq_len: int, device: str) -> int:
    """Rows of a micro-batch: what was asked for, else the largest divisor of the step's within the device's measure."""
    if asked is None:
        most = max((CPU_MICRO_TOKENS if device == "cpu" else GPU_MICRO_TOKENS) // seq_len, 1)
        return max(rows for rows in range(1, min(rows_per_step, most) + 1) if rows_per_step % rows == 0)
    if asked < 1 or rows_per_step % asked:
        raise FathomError(
            f"a device batch of {asked} rows does not divide the step's {rows_per_step}",
            "choose --device-batch so that batch-tokens is a multiple of device-batch × seq-len",
        )
    return asked
