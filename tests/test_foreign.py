"""Hugging Face models in a folder: scored as the plain forward pass scores them, by our CORE code."""

from __future__ import annotations

import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from fathom.errors import FathomError
from fathom.evaluate.core import open_bundle, score_bundle, score_task
from fathom.evaluate.foreign import ForeignScorer, ForeignTokenizer, open_foreign
from fathom.evaluate.foreign_folder import is_foreign
from fathom.evaluate.scorer import Group, Row
from tests.oracles import core_reference, small_bundle
from tests.oracles.tiny_runs import texts

needs_hf = pytest.mark.skipif(
    find_spec("transformers") is None, reason="transformers is not installed (the extra `hf`)"
)


def write_model(folder: Path, n_positions: int = 1024, n_more: int = 0) -> Path:
    """A random GPT-2 of two layers and a byte-level tokenizer trained on a few texts, as transformers writes them."""
    import tokenizers
    import transformers  # takes seconds

    tokenizer = tokenizers.ByteLevelBPETokenizer()
    tokenizer.train_from_iterator(texts(60), vocab_size=300, show_progress=False, special_tokens=["<|endoftext|>"])
    fast = transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer._tokenizer, bos_token="<|endoftext|>", eos_token="<|endoftext|>"
    )
    fast.save_pretrained(folder)
    config = transformers.GPT2Config(
        vocab_size=len(fast) + n_more,
        n_positions=n_positions,
        n_embd=32,
        n_layer=2,
        n_head=2,
        initializer_range=0.5,
        bos_token_id=0,
        eos_token_id=0,
    )
    torch.manual_seed(1)
    transformers.GPT2LMHeadModel(config).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("gpt2"))


@pytest.fixture(scope="module")
def foreign(folder: Path) -> tuple[ForeignScorer, ForeignTokenizer]:
    return open_foreign(folder)


class Plain:
    """The model as the slow oracle asks for one."""

    device = torch.device("cpu")

    def __init__(self, scorer: ForeignScorer) -> None:
        self._model = scorer._model

    def __call__(self, ids: torch.Tensor, context: Any) -> torch.Tensor:
        return self._model(input_ids=ids).logits

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        return hidden


@needs_hf
def test_losses_are_those_of_the_plain_forward_pass(
    foreign: tuple[ForeignScorer, ForeignTokenizer], monkeypatch: pytest.MonkeyPatch
) -> None:
    scorer, _ = foreign
    monkeypatch.setattr(scorer, "_batch_tokens", 100)
    dice = np.random.default_rng(1)
    rows = [Row(dice.integers(0, 300, n), max(0, n - k), n) for n, k in ((90, 5), (7, 3), (40, 40), (130, 9), (12, 0))]
    groups = [Group((rows[0], rows[1])), Group((rows[2],)), Group(tuple(rows[3:])), Group(())]
    heard: list[int] = []
    found = scorer.score(groups, lambda at, scores: heard.append(at))
    assert sorted(heard) == [0, 1, 2, 3] and [len(scores) for scores in found] == [2, 1, 2, 0]
    for group, scores in zip(groups, found, strict=True):
        for row, score in zip(group.rows, scores, strict=True):
            with torch.inference_mode():
                logits = scorer._model(input_ids=torch.from_numpy(row.ids)[None]).logits[0, :-1]
            losses = F.cross_entropy(logits, torch.from_numpy(row.ids[1:]), reduction="none").numpy()
            span = slice(row.start - 1, row.end - 1) if row.start else slice(0, 0)
            np.testing.assert_allclose(score.losses, losses[span], atol=1e-4)
            np.testing.assert_array_equal(score.likeliest, logits.argmax(1).numpy()[span])


@needs_hf
def test_core_is_what_the_slow_procedure_says(foreign: tuple[ForeignScorer, ForeignTokenizer], tmp_path: Path) -> None:
    """Prompts, tokens, spans, losses and answers of every kind of task, and the mean."""
    scorer, tokenizer = foreign
    place = small_bundle.write_zip(tmp_path / "eval_bundle.zip", small_bundle.contents(9))
    bundle, right = open_bundle(place), {}
    for task in bundle.tasks:
        entry = next(one for one in core_reference.read_tasks(place) if one["label"] == task.label)
        items = core_reference.read_items(place, entry, 0)
        dumped: list[dict[str, Any]] = []
        score_task(scorer, tokenizer, task, limit=None, dump=dumped.append)
        for index, found in enumerate(dumped):
            wanted = core_reference.evaluate_item(Plain(scorer), tokenizer, entry, items, index)  # type: ignore[arg-type]
            for mine, theirs in zip(found.pop("losses"), wanted.pop("losses"), strict=True):
                np.testing.assert_allclose(mine, theirs, atol=1e-4)
            assert found == wanted
        right[task.label] = sum(item["correct"] for item in dumped) / len(dumped)
    baselines = {task.label: task.baseline for task in bundle.tasks}
    score = score_bundle(scorer, tokenizer, bundle, None)
    assert score["value"] == pytest.approx(core_reference.core(right, baselines))


@needs_hf
def test_a_declared_maximum_crops(tmp_path: Path) -> None:
    scorer, tokenizer = open_foreign(write_model(tmp_path / "short", n_positions=48))
    assert (scorer.max_tokens, scorer.seq_len) == (48, 48)
    place = small_bundle.write_zip(tmp_path / "eval_bundle.zip", small_bundle.contents(9))
    dumped: list[dict[str, Any]] = []
    scores = [score_task(scorer, tokenizer, t, limit=None, dump=dumped.append) for t in open_bundle(place).tasks]
    assert max(len(row) for item in dumped for row in item["tokens"]) == 48
    assert sum(score.n_long for score in scores) > 0


@needs_hf
def test_bos_and_plain_text(foreign: tuple[ForeignScorer, ForeignTokenizer], folder: Path) -> None:
    import transformers

    scorer, tokenizer = foreign
    ids = tokenizer.encode("the sun is warm")
    assert scorer.bos_id == tokenizer.bos_id == 0 and tokenizer.bos_id not in ids
    fast = transformers.AutoTokenizer.from_pretrained(folder)
    fast.bos_token = None
    assert ForeignTokenizer(fast, folder).bos_id == 0  # <|endoftext|>, by its name


@needs_hf
def test_what_is_wrong_with_a_folder_is_said(tmp_path: Path) -> None:
    assert not is_foreign(tmp_path)
    with pytest.raises(FathomError, match="holds no config.json"):
        open_foreign(tmp_path)
    folder = write_model(tmp_path / "model", n_more=-5)
    with pytest.raises(FathomError, match="has 300 tokens and the model 295"):
        open_foreign(folder)
    (folder / "model.safetensors").write_bytes(b"torn")
    with pytest.raises(FathomError, match="cannot be read as a causal model"):
        open_foreign(folder)
    (folder / "config.json").write_text("{")
    with pytest.raises(FathomError, match="cannot be read as a causal model"):
        open_foreign(folder)


def test_without_the_library_it_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(FathomError, match="the package transformers, which is not installed; .* transformers"):
        open_foreign(tmp_path)
