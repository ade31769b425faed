"""CORE of a run as it goes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from fathom.evaluate.core import Bundle, score_bundle
from fathom.evaluate.scorer import ModelScorer
from fathom.model.gpt import GPT
from fathom.screen import bar
from fathom.tokenizer import Tokenizer


@dataclass(frozen=True)
class CoreWatch:
    """Every so many steps, `measure` scores the network; it gives `value`, `standard_error`, `settings` and more."""

    every: int
    measure: Callable[[], Mapping[str, Any]]


def core_watch(every: int, limit: int, bundle: Bundle, model: GPT, tokenizer: Tokenizer) -> CoreWatch:
    """CORE of `model`, on at most `limit` items of each task (0 for all), with a progress bar."""

    def measure() -> dict[str, Any]:
        with bar("  CORE", len(bundle.tasks)) as progress:
            found = score_bundle(
                ModelScorer(model, tokenizer.bos_id),
                tokenizer,
                bundle,
                limit or None,
                on_task=lambda score: progress.advance(1),
                on_items=lambda label, done, right: progress.advance(0, f"{label} {right} of {done}"),
            )
        return {"data": {"bundle": bundle.digest}, "settings": {"limit": limit or None}, **found}

    return CoreWatch(every, measure)
