"""Every item of a sample of all 22 tasks, beside the reference's procedure written out one item at a time."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fathom import tokenizer as tokenizers
from fathom.evaluate.core import Bundle, open_bundle, score_task
from fathom.evaluate.scorer import ModelScorer
from fathom.model.gpt import GPT
from fathom.tokenizer import Tokenizer
from tests.oracles import core_reference, small_bundle
from tests.oracles.generation import random_model
from tests.oracles.tiny_runs import texts

LIMIT = 14  # from which the examples are drawn, too
SIZES: dict[str, Any] = {"n_layer": 4, "n_head": 2, "n_kv_head": 2}
SHORT: dict[str, Any] = {"window_pattern": "SSSL", "seq_len": 256}
WHOLE: dict[str, Any] = {"window_pattern": "L", "seq_len": 1024}


@cache
def slowly_read(place: Path, label: str) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """What the oracle reads of a task, read once."""
    (entry,) = (one for one in core_reference.read_tasks(place) if one["label"] == label)
    return entry, core_reference.read_items(place, entry, LIMIT)


def sampled(model: GPT, tokenizer: Tokenizer, place: Path, bundle: Bundle, label: str, share: tuple[int, int]) -> None:
    """Compare all that can be seen of the items of one task that fall to `share`."""
    entry, items = slowly_read(place, label)
    found: list[dict[str, Any]] = []
    score = score_task(
        ModelScorer(model, tokenizer.bos_id, 3000),
        tokenizer,
        bundle.task(label),
        limit=LIMIT,
        share=share,
        dump=found.append,
    )
    wanted = [core_reference.evaluate_item(model, tokenizer, entry, items, i) for i in range(share[0], LIMIT, share[1])]
    assert len(found) == len(wanted) == score.n and score.right == sum(line["correct"] for line in wanted)
    for ours, theirs in zip(found, wanted, strict=True):
        assert ours.keys() == theirs.keys()
        for key in theirs.keys() - {"losses"}:
            assert ours[key] == theirs[key], (label, ours["index"], key)
        for one, other in zip(ours["losses"], theirs["losses"], strict=True):
            np.testing.assert_allclose(one, other, rtol=0, atol=5e-5, err_msg=label)
    assert score.n_long == sum(max(map(len, line["tokens"])) > model.shape.seq_len for line in wanted)


@pytest.fixture(scope="module")
def real(shared: Path) -> tuple[Path, Bundle, Tokenizer]:
    place = shared / "eval_bundle" / "eval_bundle.zip"
    bundle, words = open_bundle(place), []
    for task in bundle.tasks:
        items = task.items()
        object.__setattr__(task, "items", lambda items=items: items)  # read once
        words += [str(value) for item in items[:50] for value in item.values()]
    return place, bundle, tokenizers.train(words, 1200)


@pytest.mark.parametrize("windows", [SHORT, WHOLE], ids=["SSSL", "L"])
def test_all_tasks(real: tuple[Path, Bundle, Tokenizer], windows: dict[str, Any]) -> None:
    place, bundle, tokenizer = real
    model = random_model(vocab_size=tokenizer.vocab_size, **SIZES, **windows)
    for number, task in enumerate(bundle.tasks):
        sampled(model, tokenizer, place, bundle, task.label, (number % 7, 7) if windows is SHORT else (3, LIMIT))


@pytest.mark.long
def test_every_item_of_all_tasks(real: tuple[Path, Bundle, Tokenizer]) -> None:
    """Some two minutes: all that the limit leaves, 308 items."""
    place, bundle, tokenizer = real
    model = random_model(vocab_size=tokenizer.vocab_size, **SIZES, **SHORT)
    for task in bundle.tasks:
        sampled(model, tokenizer, place, bundle, task.label, (0, 1))


@pytest.mark.parametrize("windows", [SHORT, WHOLE], ids=["SSSL", "L"])
def test_all_kinds_of_tasks(windows: dict[str, Any], tmp_path: Path) -> None:
    """The same without the real files."""
    place = small_bundle.write_zip(tmp_path / "b.zip", small_bundle.contents())
    tokenizer = tokenizers.train(texts(60), 300)
    model = random_model(vocab_size=tokenizer.vocab_size, **SIZES, **windows)
    for label in small_bundle.TASKS:
        sampled(model, tokenizer, place, open_bundle(place), label, (0, 1))
