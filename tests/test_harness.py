"""lm-eval on our model: its own task from a local file scores what we score, and each of its questions is answered."""

from __future__ import annotations

import json
import random
import sys
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from fathom import tokenizer as tokenizers
from fathom.errors import FathomError
from fathom.evaluate.core import Task, score_task
from fathom.evaluate.harness import measure
from fathom.evaluate.scorer import ModelScorer
from tests.oracles.generation import all_logits, answer, random_model
from tests.oracles.tiny_runs import WORDS, texts

needs_lm_eval = pytest.mark.skipif(find_spec("lm_eval") is None, reason="lm_eval is not installed (the extra `eval`)")
TOKENIZER = tokenizers.train(texts(60), 300)
MODEL = random_model(vocab_size=TOKENIZER.vocab_size, seq_len=128)
BOS = TOKENIZER.bos_id


def harness_model(share: tuple[int, int] = (0, 1), gather: Any = lambda mine: [mine]) -> Any:
    from fathom.evaluate.harness_model import HarnessModel  # loads lm_eval, which takes seconds

    return HarnessModel(MODEL, TOKENIZER, share, gather, lambda what, done, total: None)


def asked(*arguments: Any) -> list[Any]:
    """Requests as lm-eval makes them."""
    return [SimpleNamespace(args=one) for one in arguments]


@torch.inference_mode()
def log_likelihood(ids: list[int], start: int) -> tuple[float, bool]:
    """Of ids[start:], by the plain forward pass."""
    logits = all_logits(MODEL, ids)[start - 1 : -1]
    targets = torch.tensor(ids[start:])
    return -F.cross_entropy(logits, targets, reduction="sum").item(), bool((logits.argmax(1) == targets).all())


@pytest.fixture
def offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its library for data writes where it is told, and asks nobody."""
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)


def write_task(folder: Path, items: list[dict[str, Any]]) -> Path:
    (folder / "items.jsonl").write_text("".join(json.dumps(item) + "\n" for item in items))
    task = folder / "choosing.yaml"
    task.write_text(f"""
task: choosing
dataset_path: json
dataset_kwargs: {{data_files: {{validation: {folder / "items.jsonl"}}}}}
output_type: multiple_choice
validation_split: validation
doc_to_text: "{{{{query}}}}"
doc_to_choice: "{{{{choices}}}}"
doc_to_target: gold
metric_list: [{{metric: acc, aggregation: mean, higher_is_better: true}}]
metadata: {{version: 3}}
""")
    return task


def choosing(n_items: int) -> list[dict[str, Any]]:
    """Choices of as many tokens each, so that a sum and a mean of losses choose the same."""
    dice, lengths = random.Random(3), {word: len(TOKENIZER.encode(f" {word}")) for word in WORDS}
    alike = [word for word in WORDS if lengths[word] == lengths["the"]]
    questions = [" ".join(dice.choices(WORDS, k=dice.randint(3, 20))) for _ in range(n_items)]
    return [{"query": q, "choices": dice.sample(alike, 3), "gold": dice.randrange(3)} for q in questions]


@needs_lm_eval
@pytest.mark.usefixtures("offline")
def test_a_local_task_scores_what_we_score(tmp_path: Path) -> None:
    items = choosing(40)
    assert len({choice for item in items for choice in item["choices"]}) > 3
    heard: list[tuple[str, int, int]] = []
    found = measure(MODEL, TOKENIZER, [str(write_task(tmp_path, items))], on_done=lambda *a: heard.append(a))
    files = SimpleNamespace(read=lambda path: (tmp_path / "items.jsonl").read_bytes(), name_of=str)
    ours = Task("choosing", "multiple_choice", 0, " ", 33.0, "items.jsonl", files)  # type: ignore[arg-type]
    score = score_task(ModelScorer(MODEL, BOS), TOKENIZER, ours, limit=None)
    assert 0 < score.right < 40
    assert found["choosing"]["acc"] == pytest.approx(score.accuracy, abs=1e-12)
    assert found["choosing"]["acc_stderr"] == pytest.approx(score.standard_error, rel=1e-6)
    assert found["choosing"] | {"n": 40, "n_shot": 0, "version": 3} == found["choosing"]
    assert heard[-1] == ("log-likelihoods", 120, 120)


@needs_lm_eval
@pytest.mark.usefixtures("offline")
def test_a_limit_takes_the_first_items(tmp_path: Path) -> None:
    assert measure(MODEL, TOKENIZER, [str(write_task(tmp_path, choosing(9)))], limit=4)["choosing"]["n"] == 4


@needs_lm_eval
def test_log_likelihoods() -> None:
    """Context and continuation meet where the tokens of the context end; BOS stands before all; none is too long."""
    model = harness_model()
    long = " ".join(random.Random(1).choices(WORDS, k=150))
    pairs = [("the sun", " is warm"), ("the sun", " sat"), ("", "a cat"), ("rain ", "fell"), (long, " hills")]
    found = model.loglikelihood(asked(*pairs), disable_tqdm=True)
    for (context, continuation), (value, greedy) in zip(pairs, found, strict=True):
        whole = [BOS, *TOKENIZER.encode(context + continuation)]
        start = 1 + len(TOKENIZER.encode(context.rstrip()))
        wanted = log_likelihood(whole, start)
        assert (value, greedy) == (pytest.approx(wanted[0], abs=1e-3), wanted[1])
    ids = [BOS, *TOKENIZER.encode("the red cat")]
    best = int(all_logits(MODEL, ids)[-1].argmax())
    assert model._loglikelihood_tokens([(("", ""), ids, [best])])[0][1]


@needs_lm_eval
def test_a_text_from_its_beginning_goes_in_windows() -> None:
    text = " ".join(random.Random(2).choices(WORDS, k=200))
    ids, width = TOKENIZER.encode(text), MODEL.shape.seq_len
    wanted, before = 0.0, BOS
    for first in range(0, len(ids), width):
        if first + width <= len(ids) or first == 0:
            wanted += log_likelihood([before, *ids[first : first + width]], 1)[0]
        else:  # the last window is full too, and only what is new in it counts
            window = ids[len(ids) - width - 1 :]
            wanted += log_likelihood(window, len(window) - (len(ids) - first))[0]
        before = ids[min(first + width, len(ids)) - 1]
    found = harness_model().loglikelihood_rolling(asked((text,), ("the sun",), ("",)))
    assert len(ids) > 2 * width
    assert found[0] == pytest.approx(wanted, rel=1e-4)
    assert found[1] == pytest.approx(log_likelihood([BOS, *TOKENIZER.encode("the sun")], 1)[0], abs=1e-3)
    assert found[2] == 0.0


@needs_lm_eval
def test_generation_ends_at_the_first_stop_string() -> None:
    request = SimpleNamespace(max_tokens=40, prompt=(BOS, *TOKENIZER.encode("the cat")), temperature=0.0, seed=1)
    request.sampling = harness_model()._request("the cat", {"max_gen_toks": 40, "do_sample": False}).sampling
    whole = TOKENIZER.decode([id for id in answer(MODEL, request, 128) if id < len(TOKENIZER.tokens)])
    stop = whole[7:9]
    kwargs = {"until": [stop, "never said"], "max_gen_toks": 40}
    long = " ".join(WORDS * 40)
    found = harness_model().generate_until(
        asked(("the cat", {"until": [], "max_gen_toks": 40}), ("the cat", kwargs), (long, kwargs))
    )
    assert len(whole) > 12
    assert found[1] == whole[: whole.find(stop)]
    assert found[0].startswith(found[1] + stop) and stop not in found[2]


@needs_lm_eval
def test_ranks_share_the_requests() -> None:
    """Each does its part; what all of them gather is what one alone would say."""
    pairs = asked(*[("the sun", f" {word}") for word in WORDS[:8]])
    prompts = asked(*[(word, {"until": ["."], "max_gen_toks": 5}) for word in WORDS[:4]])
    for name, requests in (("loglikelihood", pairs), ("generate_until", prompts)):
        parts: list[Any] = []

        def keep(mine: Any, parts: list[Any] = parts) -> list[Any]:
            parts.append(mine)
            return [mine, mine]

        for rank in (0, 1):
            getattr(harness_model((rank, 2), keep), name)(requests)
        assert [len(part) for part in parts] == [len(requests) // 2] * 2
        found = getattr(harness_model((0, 2), lambda mine, parts=parts: parts), name)(requests)
        wanted = getattr(harness_model(), name)(requests)
        if name == "generate_until":
            assert found == wanted
        else:
            np.testing.assert_allclose([v for v, _ in found], [v for v, _ in wanted], atol=1e-4)


@needs_lm_eval
@pytest.mark.usefixtures("offline")
def test_what_cannot_be_loaded_is_named(tmp_path: Path) -> None:
    with pytest.raises(FathomError, match="there is no file .*/none.yaml"):
        measure(MODEL, TOKENIZER, [str(tmp_path / "none.yaml")])
    task = write_task(tmp_path, choosing(3))
    task.write_text(task.read_text() + "unsafe_code: true\n")
    with pytest.raises(FathomError, match="task choosing needs to run what a model wrote outside of our sandbox"):
        measure(MODEL, TOKENIZER, [str(task)])
    (tmp_path / "items.jsonl").write_text("{broken\n")
    with pytest.raises(FathomError, match=r"lm-eval could not load .*choosing.yaml \("):
        measure(MODEL, TOKENIZER, [str(task)])


def test_without_the_library_it_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    with pytest.raises(
        FathomError, match="the package lm_eval, which is not installed; .* install -c constraints.txt lm_eval"
    ):
        measure(MODEL, TOKENIZER, ["hellaswag"])
