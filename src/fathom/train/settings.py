"""From a few flags to every number of a pretraining run, each with where it came from (pure, no torch).

Precedence: the rule of `scaling`, then the recipe file, then the flag.
"""

from __future__ import annotations

import math
import tomllib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from fathom import scaling
from fathom.errors import FathomError
from fathom.estimate import Work, rows_that_fit
from fathom.model.shape import MOST, Shape
from fathom.optim.rates import Rates
from fathom.optim.schedule import Schedule
from fathom.train.sameness import difference, trained_longer

LATER = ("packing", "seed")
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
    planned_steps: int | None = None
    """Of the run that this one extends: what had risen by its length has risen."""
    origin: dict[str, str] = field(default_factory=dict)

    @property
    def schedule(self) -> Schedule:
        planned = self.planned_steps or self.steps
        return Schedule(
            self.steps,
            warmup_steps=self.warmup_steps,
            warmdown_share=self.warmdown_share,
            final_lr=self.final_lr,
            momentum_warmup_steps=scaling.momentum_warmup(_rules_at(self.rules, self.depth), planned),
            weight_decay=self.weight_decay,
        )

    @property
    def rows_per_step(self) -> int:
        return self.batch_tokens // self.shape.seq_len

    def flat(self) -> dict[str, Any]:
        """Plain values for run.toml."""
        values = {k: v for k, v in asdict(self).items() if k not in ("shape", "rates", "origin")}
        return values | asdict(self.rates)


def _rules_at(rules: str, depth: int) -> str:
    """From depth 12 up `auto` is the reference in all that decides what is computed; only packing stays its own."""
    return rules if depth < scaling.REFERENCE_DEPTH else "reference"


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
    heads = scaling.n_head(depth, head_dim)
    seq_len = value("seq_len", scaling.SEQ_LEN, "rule: 2048")
    window = value("window", scaling.WINDOW, "rule: three short windows, one long")
    shape = Shape(depth, heads, heads, head_dim, vocab_size, seq_len, window)
    heads_12 = scaling.n_head(scaling.REFERENCE_DEPTH, head_dim)
    at_12 = Shape(scaling.REFERENCE_DEPTH, heads_12, heads_12, head_dim, vocab_size, seq_len, window)

    ratio = value("ratio", scaling.TOKENS_PER_PARAMETER, "rule: 12 tokens per parameter in blocks and head")
    tokens = scaling.horizon(ratio, shape.scaling_parameters)
    tokens_12 = ratio * at_12.scaling_parameters
    whole = own = scaling.batch_tokens(tokens, tokens_12)
    if rules != "reference":
        own = scaling.auto_batch(depth, _asked_tokens(given, shape) or tokens, tokens, tokens_12, seq_len)
    why = "smaller for a short run" if own < whole else "grows with horizon^0.383"
    batch = value("batch_tokens", own, f"rule: {why}")
    if batch < seq_len or batch % seq_len:
        raise FathomError(
            f"a batch of {batch} tokens is not a whole number of rows of {seq_len}",
            f"choose --batch-tokens as a multiple of {seq_len}",
        )
    steps = _steps(given, value, shape, batch, tokens)
    boost = 1.0 if rules == "reference" else scaling.auto_boost(depth, steps * batch)
    larger = f", × {boost:.3g} for a short run" if boost != 1 else ""
    rates = Rates(
        matrix_lr=value("matrix_lr", Rates.matrix_lr, "rule"),
        embedding_lr=value("embedding_lr", Rates.embedding_lr, "rule"),
        head_lr=value("head_lr", Rates.head_lr, "rule"),
        scalar_lr=value("scalar_lr", Rates.scalar_lr, "rule"),
    )
    lr_scale = value("lr_scale", scaling.lr_scale(batch) * boost, f"rule: √batch{larger}")
    decay = scaling.weight_decay(batch, tokens, tokens_12)
    if rules != "reference":
        decay = scaling.auto_decay(decay, rates.matrix_lr * lr_scale)
    return Settings(
        shape=shape,
        depth=depth,
        tokens=tokens,
        batch_tokens=batch,
        steps=steps,
        rules=rules,
        packing=value("packing", scaling.PACKING[rules], f"rule: {rules}"),
        lr_scale=lr_scale,
        width_scale=scaling.width_scale(shape.d_model),
        rates=rates,
        weight_decay=value("weight_decay", decay, "rule: √batch / horizon"),
        warmup_steps=value("warmup_steps", scaling.warmup(_rules_at(rules, depth), steps), "rule"),
        warmdown_share=value("warmdown_share", 0.65, "rule"),
        final_lr=value("final_lr", 0.05, "rule"),
        seed=value("seed", 1, "default"),
        origin=origin,
    )


def settings_of(tables: Mapping[str, Mapping[str, Any]], **undecided: Any) -> Settings:
    """The settings of a run that there is, from its run.toml; `undecided` are those that an import may lack."""
    config = tables["config"]
    names = {one.name for one in fields(Settings)} - {"shape", "rates", "origin"}
    values = {"packing": scaling.PACKING["reference"], "seed": 1, **undecided, **config}
    return Settings(
        shape=Shape(**tables["model"]),
        rates=Rates(**{name: config[name] for name in asdict(Rates())}),
        origin=dict(tables.get("origin", {})),
        **{name: value for name, value in values.items() if name in names},
    )


def continued(
    name: str, tables: Mapping[str, Mapping[str, Any]], flags: Mapping[str, Any], recipe: Mapping[str, Any]
) -> Settings:
    """The settings of the run `name` that goes on, from its run.toml; they may be repeated, but not changed.

    How documents are packed, and in which order, an imported run may be told when it first trains here.
    """
    config, shape = tables["config"], Shape(**tables["model"])
    given = _given(flags, recipe)
    has = {**config, "head_dim": shape.head_dim, "seq_len": shape.seq_len, "window": shape.window_pattern}
    for key, (value, origin) in given.items():
        option = f"--{key.replace('_', '-')}" if origin == "flag" else f"the recipe's {key}"
        if key in has and value != has[key]:
            problem = f"the run {name!r} began {difference(option, has[key], value)}"
            is_longer = key == "steps" and value > has[key] and "corpus" in config
            raise FathomError(
                problem, trained_longer(name, value) if is_longer else f"leave {option} out, or choose another --run"
            )
        if key not in has and key not in LATER:
            raise FathomError(f"the run {name!r} goes on with the settings it has", f"leave {option} out")
    return settings_of(tables, **{key: value for key, (value, _) in given.items() if key in LATER})


def longer(settings: Settings, steps: int, why: str) -> Settings:
    """The same for more steps; its rates, batch and decay stay what they were."""
    planned = settings.planned_steps or settings.steps
    return replace(settings, steps=steps, planned_steps=planned, origin=settings.origin | {"steps": why})


@dataclass(frozen=True)
class Knob:
    """What may be set: its type, and the values that make sense of it."""

    kind: type
    least: float = -math.inf
    most: float = math.inf
    words: tuple[str, ...] = ()
    even: bool = False

    def check(self, name: str, found: Any, origin: str) -> Any:
        """`found`, if it is one of them. Raises FathomError that names what is, where it was found and what fits."""
        at = f"--{name.replace('_', '-')} is" if origin == "flag" else f"the recipe sets {name} to"
        fits = isinstance(found, (int, float) if self.kind is float else self.kind) and not isinstance(found, bool)
        if not fits:
            raise FathomError(f"{at} {found!r}", f"it must be {_KINDS[self.kind]}")
        if self.words and found not in self.words:
            near = get_close_matches(found, self.words, n=1)
            remedy = f"did you mean {near[0]}?" if near else f"choose {' or '.join(self.words)}"
            raise FathomError(f"{at} {found!r}", remedy)
        if self.kind is not str and not self.least <= found <= self.most:
            bounds = f"{_figure(self.least)} to {_figure(self.most)}"
            raise FathomError(f"{at} {str(found)[:40]}", f"choose {_KINDS[self.kind]} from {bounds}")
        if self.even and found % 2:
            raise FathomError(f"{at} {found}", "choose an even number, which rotary embedding needs")
        return found


_KINDS = {int: "a whole number", float: "a number", str: "text in quotes"}

# Wide bounds: they keep out what no run could mean, and what no arithmetic of the rules could bear.
KNOBS = {
    "depth": Knob(int, 1, MOST["n_layer"]),
    "rules": Knob(str, words=("auto", "reference")),
    "head_dim": Knob(int, 2, MOST["head_dim"], even=True),
    "seq_len": Knob(int, 1, MOST["seq_len"]),
    "window": Knob(str),
    "ratio": Knob(float, 0.001, 1e6),
    "steps": Knob(int, 1, 1e12),
    "flops": Knob(float, 1, 1e30),
    "batch_tokens": Knob(int, 1, 1e12),
    "packing": Knob(str, words=("best-fit", "lossless")),
    "lr_scale": Knob(float, 0, 1e6),
    "matrix_lr": Knob(float, 0, 1e6),
    "embedding_lr": Knob(float, 0, 1e6),
    "head_lr": Knob(float, 0, 1e6),
    "scalar_lr": Knob(float, 0, 1e6),
    "weight_decay": Knob(float, 0, 1e6),
    "warmup_steps": Knob(int, 0, 1e12),
    "warmdown_share": Knob(float, 0, 1),
    "final_lr": Knob(float, 0, 1),
    "seed": Knob(int, 0, 1e18),
}


def read_recipe(path: str | None) -> dict[str, Any]:
    """The values of a recipe file (TOML, flat, the flags' words with dashes or underscores)."""
    if path is None:
        return {}
    try:
        values = tomllib.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise FathomError(f"the recipe {path} cannot be read ({error.strerror})", "check its path") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise FathomError(f"the recipe {path} is not TOML ({error})", "write lines such as depth = 4") from None
    return {key.replace("-", "_"): value for key, value in values.items()}


# Of what says how long a run is a flag puts aside what the recipe says otherwise. A recipe's ratio stays beside --steps
# and --flops, as one flag stays beside the other: batch and decay follow it, whatever is trained.
PUT_ASIDE = {"ratio": ("steps", "flops"), "steps": ("flops",), "flops": ("steps",)}


def combined(flags: Mapping[str, Any], recipe: Mapping[str, Any]) -> dict[str, Any]:
    """Both together: what the flags say, and what the recipe says besides."""
    aside = {other for key in flags for other in PUT_ASIDE.get(key, ())}
    return {key: found for key, found in recipe.items() if key not in aside} | dict(flags)


def _given(flags: Mapping[str, Any], recipe: Mapping[str, Any]) -> dict[str, tuple[Any, str]]:
    for key in sorted(recipe.keys() - KNOBS.keys()):
        near = get_close_matches(key, KNOBS, n=1)
        hint = f"did you mean {near[0]}?" if near else f"the settings are {', '.join(KNOBS)}"
        raise FathomError(f"the recipe sets {key!r}, which is no setting", hint)
    told = {key: (KNOBS[key].check(key, found, "recipe"), "recipe") for key, found in recipe.items()}
    asked = {key: found for key, found in flags.items() if found is not None and key in KNOBS}
    flagged = {key: (KNOBS[key].check(key, found, "flag"), "flag") for key, found in asked.items()}
    for given, both in ((told, "the recipe's steps and flops"), (flagged, "--steps and --flops")):
        if {"steps", "flops"} <= given.keys():
            raise FathomError(f"{both} both say how long to train", "give one of them")
    return combined(flagged, told)


def _figure(number: float) -> str:
    return f"10^{round(math.log10(number))}" if number >= 1e5 else f"{number:,g}"


def _asked_tokens(given: Mapping[str, tuple[Any, str]], shape: Shape) -> int:
    """Tokens that --flops asks for, 0 where it is not given."""
    return max(1, int(given["flops"][0] / shape.flops_per_token)) if "flops" in given else 0


def _steps(given: Mapping[str, tuple[Any, str]], value: Any, shape: Shape, batch: int, tokens: int) -> int:
    if "steps" in given:
        return int(value("steps", 0, ""))
    if "flops" in given:
        return scaling.steps_for_flops(value("flops", 0.0, ""), shape.flops_per_token, batch)
    return int(value("steps", scaling.steps_for(batch, tokens), "rule: horizon / batch"))


def device_rows(asked: int | None, rows_per_step: int, seq_len: int, device: str) -> int:
    """Rows of a micro-batch: what was asked for, else the largest divisor of the step's within the device's measure."""
    if asked is None:
        most = max((CPU_MICRO_TOKENS if device == "cpu" else GPU_MICRO_TOKENS) // seq_len, 1)
        return max(rows for rows in range(1, min(rows_per_step, most) + 1) if rows_per_step % rows == 0)
    if asked < 1 or rows_per_step % asked:
        raise FathomError(
            f"a device batch of {str(asked)[:40]} rows does not divide the step's {rows_per_step}",
            "choose --device-batch so that batch-tokens is a multiple of device-batch × seq-len",
        )
    return asked


def micro_rows(asked: int | None, whole: Work, memory_gb: float | None) -> int:
    """Rows of pretraining's micro-batch on a device that does `whole`, all its rows of a step at once.

    What was asked for; else on a GPU of known memory the most that it holds, elsewhere as `device_rows` has it.
    """
    if asked is None and whole.device == "cuda" and memory_gb is not None:
        return rows_that_fit(whole, memory_gb) or 1
    return device_rows(asked, whole.rows * whole.grad_accum, whole.shape.seq_len, whole.device)
