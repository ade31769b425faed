"""A run against the recipe that it was meant to be (pure)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from fathom.errors import FathomError
from fathom.model.shape import Shape
from fathom.report.history import History

IN_MODEL = {"depth": "n_layer", "head_dim": "head_dim", "seq_len": "seq_len", "window": "window_pattern"}


@dataclass(frozen=True)
class Difference:
    setting: str
    meant: str
    was: str
    """What the run did; "not recorded" where its record does not tell."""


def differences(history: History, recipe: Mapping[str, Any]) -> list[Difference]:
    """Settings of a recipe that the run did not follow, in the recipe's order."""
    config, model = (_table(history, key) for key in ("config", "model"))
    found = []
    for name, meant in recipe.items():
        was = _what_was(name, config, model)
        if was is None:
            found.append(Difference(name, _said(meant), "not recorded"))
        elif not _alike(was, meant):
            found.append(Difference(name, _said(meant), _said(was)))
    return found


def _said(value: Any) -> str:
    return f"{value:.6g}" if isinstance(value, float) else f"{value:,}" if type(value) is int else str(value)


def _table(history: History, key: str) -> Mapping[str, Any]:
    value = history.config.get(key, {})
    return value if isinstance(value, Mapping) else {}


def _what_was(name: str, config: Mapping[str, Any], model: Mapping[str, Any]) -> Any:
    if name in config:
        return config[name]
    if name in IN_MODEL:
        return model.get(IN_MODEL[name])
    tokens = config.get("tokens")
    return _ratio(tokens, model) if name == "ratio" and isinstance(tokens, int) else None


def _ratio(tokens: int, model: Mapping[str, Any]) -> float | None:
    """Tokens for each parameter in blocks and head, as the settings had it."""
    try:
        return tokens / Shape(**model).scaling_parameters
    except (TypeError, FathomError):
        return None


def _alike(was: Any, meant: Any) -> bool:
    if isinstance(was, (int, float)) and isinstance(meant, (int, float)):
        return math.isclose(was, meant, rel_tol=1e-6)
    return bool(was == meant)
