"""Whether a run that goes on is the one that began, and which option differs where it is not (pure, no torch)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, NoReturn

from fathom.errors import FathomError
from fathom.model.shape import Shape

Tables = Mapping[str, Mapping[str, Any]]
ASIDE = ("origin", "machine")

# Values of run.toml, each before those that follow from it: of several that differ the first is what was asked for.
OPTIONS = {
    "base": "",
    "planned_steps": "",
    "corpus": "--corpus",
    "tokenizer": "--tokenizer",
    "data": "--data",
    "validation": "--validation",
    "base_step": "--step",
    "corpus_digest": "",
    "tokenizer_digest": "",
    "data_digest": "",
    "rules": "--rules",
    "depth": "--depth",
    "n_layer": "--depth",
    "head_dim": "--head-dim",
    "seq_len": "--seq-len",
    "window_pattern": "--window",
    "packing": "--packing",
    "ratio": "--ratio",
    "batch_tokens": "--batch-tokens",
    "steps": "--steps",
    "lr_share": "--lr-share",
    "lr_scale": "--lr-scale",
    "matrix_lr": "--matrix-lr",
    "embedding_lr": "--embedding-lr",
    "head_lr": "--head-lr",
    "scalar_lr": "--scalar-lr",
    "weight_decay": "--weight-decay",
    "warmup_steps": "--warmup-steps",
    "warmdown_share": "--warmdown-share",
    "final_lr": "--final-lr",
    "seed": "--seed",
    "dtype": "--dtype",
    "fp8": "--fp8",
    "document_mask": "--document-mask",
}


def refuse_another(name: str, before: Tables, now: Tables, again: str) -> None:
    """FathomError where `now` sets something that the run `name` did not begin with, `before` being its run.toml.

    What only one of them holds differs from nothing: an older version may not have noted it. `again` is the line that
    goes on with the run as it is.
    """
    was, asked = _flat(before), _flat(now)
    if was.get("stage", asked["stage"]) != asked["stage"]:
        made = f"was made by `fathom {was['stage']}`, not by `fathom {asked['stage']}`"
        raise FathomError(f"the run {name!r} {made}", f"{again} goes on with it")
    for key in [*OPTIONS, *(key for key in asked if key not in OPTIONS)]:
        if key in was and key in asked and not _alike(was[key], asked[key]):
            _refuse(name, before, key, was[key], asked[key], again)


def _refuse(name: str, before: Tables, key: str, was: Any, asked: Any, again: str) -> NoReturn:
    remedy = f"{again} goes on with it; for other settings choose another --run"
    if key.endswith("_digest"):
        what = key.removesuffix("_digest")
        called = before.get("config", {}).get(what)
        which = f"{what} {called!r}" if isinstance(called, str) else what
        raise FathomError(
            f"the {which} had other contents when the run {name!r} began",
            f"put the old {what} back, or choose another --run",
        )
    if key == "base":
        raise FathomError(f"the run {name!r} was fine-tuned from {was!r}, not from {asked!r}", remedy)
    if key == "planned_steps":
        raise FathomError(f"the run {name!r} extends another one", remedy)
    if key == "steps" and before["run"].get("stage") == "pretrain" and asked > was:
        remedy = trained_longer(name, asked)
    raise FathomError(f"the run {name!r} began {difference(OPTIONS.get(key) or key, was, asked)}", remedy)


def trained_longer(name: str, steps: int) -> str:
    return f"`fathom pretrain --extend {name} --steps {steps}` trains it for longer, from before its rate fell"


def difference(option: str, was: Any, asked: Any) -> str:
    """ "with --depth 4, not 6", "without --fp8, not with it"."""
    if isinstance(was, bool):
        return f"with {option}, not without it" if was else f"without {option}, not with it"
    if was is None or asked is None:
        return f"without {option}, not with {_figure(asked)}" if was is None else f"with {option} {_figure(was)}"
    return f"with {option} {_figure(was)}, not {_figure(asked)}"


def _flat(tables: Tables) -> dict[str, Any]:
    """What decides what a run computes, all in one; its tokens by the ratio that was asked for."""
    found = {key: value for table, values in tables.items() if table not in ASIDE for key, value in values.items()}
    if "tokens" in found:
        found["ratio"] = float(f"{found.pop('tokens') / Shape(**tables['model']).scaling_parameters:.6g}")
    return found


def _alike(was: Any, asked: Any) -> bool:
    if isinstance(was, float) and isinstance(asked, (int, float)):
        return math.isclose(was, asked)
    return bool(was == asked)


def _figure(value: Any) -> str:
    if isinstance(value, (list, tuple)):
        return " ".join(str(one) for one in value)
    return f"{value:.6g}" if isinstance(value, float) else str(value)
