"""The cache gives the logits of the plain forward pass, however a text is cut, beside whatever others."""

from __future__ import annotations

from random import Random

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from oracles.generation import all_logits, random_model

from fathom.generate.cache import SlotCache
from fathom.model.gpt import GPT

TOLERANCE = 1e-4
N_TOKEN = 300  # longer than the short windows


@pytest.fixture(scope="module")
def model() -> GPT:
    return random_model()


@pytest.fixture(scope="module")
def texts(model: GPT) -> list[list[int]]:
    random = Random(0)
    return [[random.randrange(model.shape.vocab_size) for _ in range(N_TOKEN)] for _ in range(4)]


@pytest.fixture(scope="module")
def plain(model: GPT, texts: list[list[int]]) -> list[torch.Tensor]:
    return [all_logits(model, text) for text in texts]


def new_cache(model: GPT, seq_len: int = 512) -> SlotCache:
    return SlotCache(model.shape, seq_len, model.dtype, model.device)


@torch.inference_mode()
def feed(model: GPT, cache: SlotCache, first: int, pieces: list[list[int]]) -> list[torch.Tensor]:
    """Logits (count, V) of each piece, fed to neighbouring slots in one pass."""
    ids = torch.zeros(len(pieces), max(map(len, pieces)), dtype=torch.int64)
    for row, piece in zip(ids, pieces, strict=True):
        row[: len(piece)] = torch.tensor(piece)
    context = cache.begin(first, [len(piece) for piece in pieces])
    logits = model.logits(model(ids, context))
    context.commit()
    return [row[: len(piece)] for row, piece in zip(logits, pieces, strict=True)]


@pytest.mark.parametrize(
    "sizes",
    [[N_TOKEN], [1] * N_TOKEN, [5, *[1] * (N_TOKEN - 5)], [128, 1, 1, 128, 42], [100, 100, 100], [7] * 42 + [6]],
)
def test_one_text_in_any_pieces(
    model: GPT, texts: list[list[int]], plain: list[torch.Tensor], sizes: list[int]
) -> None:
    cache, at = new_cache(model), 0
    cache.open()
    for size in sizes:
        logits = feed(model, cache, 0, [texts[0][at : at + size]])[0]
        torch.testing.assert_close(logits, plain[0][at : at + size], atol=TOLERANCE, rtol=0)
        at += size
    assert cache.lengths == [N_TOKEN]


@given(st.integers(0, 2**32))
@settings(max_examples=12, deadline=None)
def test_texts_that_come_and_go_beside_each_other(
    model: GPT, texts: list[list[int]], plain: list[torch.Tensor], seed: int
) -> None:
    random, cache = Random(seed), new_cache(model)
    held: list[int] = []  # which text is in each slot
    for _ in range(25):
        what = random.choice(["open", "open", "feed", "feed", "feed", "feed", "swap", "close"])
        if what == "open" and len(held) < 5:
            cache.open()
            held.append(random.randrange(len(texts)))
        if what == "swap" and held:
            a, b = random.randrange(len(held)), random.randrange(len(held))
            cache.swap(a, b)
            held[a], held[b] = held[b], held[a]
        if what == "close" and held:
            cache.close_last()
            held.pop()
        if what == "feed" and held:
            first = random.randrange(len(held))
            last = random.randint(first + 1, len(held))
            longest = random.choice([1, 1, 4, 150])
            spans = []
            for slot in range(first, last):
                start = cache.lengths[slot]
                spans.append((held[slot], start, min(N_TOKEN, start + random.randint(1, longest))))
            if any(start == end for _, start, end in spans):
                continue
            logits = feed(model, cache, first, [texts[text][start:end] for text, start, end in spans])
            for got, (text, start, end) in zip(logits, spans, strict=True):
                torch.testing.assert_close(got, plain[text][start:end], atol=TOLERANCE, rtol=0)


@pytest.mark.parametrize("sizes", [{"n_kv_head": 4}, {"n_kv_head": 1}, {"window_pattern": "L"}, {"n_layer": 1}])
def test_other_shapes(texts: list[list[int]], sizes: dict[str, int | str]) -> None:
    model = random_model(**sizes)
    cache = new_cache(model)
    cache.open()
    expected = all_logits(model, texts[0][:150])
    torch.testing.assert_close(feed(model, cache, 0, [texts[0][:140]])[0], expected[:140], atol=TOLERANCE, rtol=0)
    for at in range(140, 150):
        logits = feed(model, cache, 0, [texts[0][at : at + 1]])[0]
        torch.testing.assert_close(logits, expected[at : at + 1], atol=TOLERANCE, rtol=0)


def test_bfloat16_stays_near(texts: list[list[int]]) -> None:
    model, exact = random_model(torch.bfloat16), random_model(torch.float32)
    cache = new_cache(model)
    cache.open()
    logits = torch.cat([feed(model, cache, 0, [texts[0][at : at + 20]])[0] for at in range(0, 60, 20)])
    plain = all_logits(model, texts[0][:60])
    distance = (plain - all_logits(exact, texts[0][:60])).abs().mean()
    assert (logits - plain).abs().mean() < distance


@torch.inference_mode()
def test_what_a_request_leaves_does_not_reach_the_next(
    model: GPT, texts: list[list[int]], plain: list[torch.Tensor]
) -> None:
    cache = new_cache(model)
    for _ in range(2):
        cache.open()
    feed(model, cache, 0, [texts[0][:200], texts[1][:10]])
    cache._keys_values[:, :, 0, :, :200] = torch.nan
    cache._last[0] = torch.nan
    cache.swap(0, 1)
    cache.close_last()
    cache.open()
    for start, end in ((0, 50), (50, 51)):
        first, second = feed(model, cache, 0, [texts[1][10 + start : 10 + end], texts[2][start:end]])
        torch.testing.assert_close(first, plain[1][10 + start : 10 + end], atol=TOLERANCE, rtol=0)
        torch.testing.assert_close(second, plain[2][start:end], atol=TOLERANCE, rtol=0)


def test_nothing_changes_without_commit(model: GPT, texts: list[list[int]], plain: list[torch.Tensor]) -> None:
    cache = new_cache(model)
    cache.open()
    feed(model, cache, 0, [texts[0][:20]])
    with torch.inference_mode():
        model(torch.tensor([texts[1][:5]]), cache.begin(0, [5]))
    assert cache.lengths == [20]
    logits = feed(model, cache, 0, [texts[0][20:30]])[0]
    torch.testing.assert_close(logits, plain[0][20:30], atol=TOLERANCE, rtol=0)


def test_a_full_slot_and_missing_slots_are_refused(model: GPT, texts: list[list[int]]) -> None:
    cache = new_cache(model, seq_len=32)
    cache.open()
    feed(model, cache, 0, [texts[0][:32]])
    for first, counts in ((0, [1]), (0, [1, 1]), (1, [1]), (0, [0])):
        with pytest.raises(ValueError, match="cannot take"):
            cache.begin(first, counts)


def test_storage_follows_the_lengths_in_use(model: GPT, texts: list[list[int]]) -> None:
    cache = new_cache(model, seq_len=400)
    cache.open()
    feed(model, cache, 0, [texts[0][:10]])
    assert cache._keys_values.shape[2:5:2] == (1, 64)
    feed(model, cache, 0, [texts[0][10:90]])
    assert cache._keys_values.shape[2:5:2] == (1, 128)
    feed(model, cache, 0, [texts[0][90:300]])
    assert cache._keys_values.shape[2:5:2] == (1, 300)
    feed(model, cache, 0, [texts[0][:1]])
    assert cache._keys_values.shape[2:5:2] == (1, 400)
