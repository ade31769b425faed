"""The cache gives the logits of the plain forward pass, however a text is cut, shared and resumed, beside whatever."""

from __future__ import annotations

from random import Random

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from oracles.generation import all_logits, random_model

from fathom.generate.cache import PagedCache, Table
from fathom.generate.pages import PAGE, chain
from fathom.model.gpt import GPT

TOLERANCE = 1e-4
N_TOKEN = 300  # longer than the short windows


@pytest.fixture(scope="module")
def model() -> GPT:
    return random_model()


@pytest.fixture(scope="module")
def texts(model: GPT) -> list[list[int]]:
    """Four texts; the first two begin alike, over three pages and a bit."""
    random = Random(0)
    made = [[random.randrange(model.shape.vocab_size) for _ in range(N_TOKEN)] for _ in range(4)]
    made[1][:200] = made[0][:200]
    return made


@pytest.fixture(scope="module")
def plain(model: GPT, texts: list[list[int]]) -> list[torch.Tensor]:
    return [all_logits(model, text) for text in texts]


def new_cache(model: GPT, cache_tokens: int = 4096, max_batch: int = 8) -> PagedCache:
    return PagedCache(model.shape, model.dtype, model.device, cache_tokens, max_batch, N_TOKEN)


def opened(cache: PagedCache, text: list[int]) -> Table:
    """A table that begins with what the cache has of a text."""
    digests = chain(text)
    return cache.open(text, digests, cache.find(len(text), digests))


@torch.inference_mode()
def feed(model: GPT, cache: PagedCache, pieces: list[tuple[Table, list[int]]]) -> list[torch.Tensor]:
    """Logits (count, V) of each piece, fed in one pass with some padding."""
    for table, piece in pieces:
        assert cache.reserve(table, len(piece))
    context = cache.begin(pieces, sum(len(piece) for _, piece in pieces) + 3, model.embed)
    logits = model.logits(model(context.ids, context))[0]
    cache.commit(pieces)
    return list(logits[: sum(context.counts)].split(context.counts))


@pytest.mark.parametrize(
    "sizes",
    [[N_TOKEN], [1] * N_TOKEN, [5, *[1] * (N_TOKEN - 5)], [128, 1, 1, 128, 42], [100, 100, 100], [7] * 42 + [6]],
)
def test_one_text_in_any_pieces(
    model: GPT, texts: list[list[int]], plain: list[torch.Tensor], sizes: list[int]
) -> None:
    cache, at = new_cache(model), 0
    table = opened(cache, texts[0])
    for size in sizes:
        logits = feed(model, cache, [(table, texts[0][at : at + size])])[0]
        torch.testing.assert_close(logits, plain[0][at : at + size], atol=TOLERANCE, rtol=0)
        at += size
    assert table.tokens == texts[0]


@given(st.integers(0, 2**32))
@settings(max_examples=20, deadline=None)
def test_texts_that_come_and_go_beside_each_other(
    model: GPT, texts: list[list[int]], plain: list[torch.Tensor], seed: int
) -> None:
    random = Random(seed)
    cache = new_cache(model, cache_tokens=1100)  # less than four texts: contents are thrown out
    held: list[tuple[Table, int]] = []
    for _ in range(25):
        what = random.choice(["open", "open", "feed", "feed", "feed", "feed", "close"])
        if what == "open" and len(held) < 4:
            text = random.randrange(len(texts))
            held.append((opened(cache, texts[text]), text))
        if what == "close" and held:
            cache.close(held.pop(random.randrange(len(held)))[0])
        if what == "feed" and held:
            longest = random.choice([1, 1, 4, 150])
            pieces, expected = [], []
            for table, text in random.sample(held, random.randint(1, len(held))):
                end = min(N_TOKEN, len(table) + random.randint(1, longest))
                if len(table) < end and cache.reserve(table, end - len(table)):
                    pieces.append((table, texts[text][len(table) : end]))
                    expected.append(plain[text][len(table) : end])
            if pieces:
                for got, wanted in zip(feed(model, cache, pieces), expected, strict=True):
                    torch.testing.assert_close(got, wanted, atol=TOLERANCE, rtol=0)
    for table, _ in held:
        cache.close(table)
    assert all(pages.n_held == 0 for pages in cache.pages.values())


def test_a_prefix_is_found_in_whole_pages_and_goes_on_as_if_it_was_fed(
    model: GPT, texts: list[list[int]], plain: list[torch.Tensor]
) -> None:
    cache = new_cache(model)
    first = opened(cache, texts[0])
    assert len(first) == 0
    feed(model, cache, [(first, texts[0])])
    second = opened(cache, texts[1])  # while the first one still runs
    assert len(second) == 3 * PAGE
    long = max(cache.windows)
    assert second.pages[long] == first.pages[long][:3]
    assert second.pages[min(cache.windows)][0] == -1  # outside the window of what comes next
    cache.close(first)
    for at in (3 * PAGE, 3 * PAGE + 50):
        logits = feed(model, cache, [(second, texts[1][at : at + 50])])[0]
        torch.testing.assert_close(logits, plain[1][at : at + 50], atol=TOLERANCE, rtol=0)
    again = opened(cache, texts[0][: 4 * PAGE])
    assert len(again) == 3 * PAGE  # at least one token is left to feed
    assert len(opened(cache, texts[2])) == len(cache.open(texts[0], chain(texts[0]), 0)) == 0


def test_layers_with_a_short_window_keep_only_their_window(model: GPT, texts: list[list[int]]) -> None:
    cache = new_cache(model)
    table = opened(cache, texts[0])
    short, long = cache.windows
    held = []
    for at in range(0, N_TOKEN, 10):
        feed(model, cache, [(table, texts[0][at : at + 10])])
        held.append(cache.pages[short].n_held)
    assert max(held) <= short // PAGE + 2
    assert cache.pages[long].n_held == -(-N_TOKEN // PAGE)


@pytest.mark.parametrize("sizes", [{"n_kv_head": 4}, {"n_kv_head": 1}, {"window_pattern": "L"}, {"n_layer": 1}])
def test_other_shapes(texts: list[list[int]], sizes: dict[str, int | str]) -> None:
    model = random_model(**sizes)
    cache = new_cache(model)
    table = opened(cache, texts[0])
    expected = all_logits(model, texts[0][:150])
    torch.testing.assert_close(feed(model, cache, [(table, texts[0][:140])])[0], expected[:140], atol=TOLERANCE, rtol=0)
    for at in range(140, 150):
        logits = feed(model, cache, [(table, texts[0][at : at + 1])])[0]
        torch.testing.assert_close(logits, expected[at : at + 1], atol=TOLERANCE, rtol=0)


def test_bfloat16_stays_near(texts: list[list[int]]) -> None:
    model, exact = random_model(torch.bfloat16), random_model(torch.float32)
    cache = new_cache(model)
    table = opened(cache, texts[0])
    logits = torch.cat([feed(model, cache, [(table, texts[0][at : at + 20])])[0] for at in range(0, 60, 20)])
    plain = all_logits(model, texts[0][:60])
    distance = (plain - all_logits(exact, texts[0][:60])).abs().mean()
    assert (logits - plain).abs().mean() < distance


def test_what_a_request_leaves_does_not_reach_the_next(
    model: GPT, texts: list[list[int]], plain: list[torch.Tensor]
) -> None:
    cache = new_cache(model)
    for window in cache.windows:
        cache._storage[window].fill_(torch.nan)
    first, second = opened(cache, texts[2]), opened(cache, texts[3])
    for start, end in ((0, 50), (50, 51), (51, 70)):
        pieces = [(first, texts[2][start:end]), (second, texts[3][start:end])]
        for got, text in zip(feed(model, cache, pieces), (2, 3), strict=True):
            torch.testing.assert_close(got, plain[text][start:end], atol=TOLERANCE, rtol=0)


def test_nothing_changes_without_commit(model: GPT, texts: list[list[int]], plain: list[torch.Tensor]) -> None:
    cache = new_cache(model)
    table = opened(cache, texts[0])
    feed(model, cache, [(table, texts[0][:20])])
    assert cache.reserve(table, 5)
    with torch.inference_mode():
        context = cache.begin([(table, texts[1][:5])], 5, model.embed)
        model(context.ids, context)
    assert len(table) == 20
    logits = feed(model, cache, [(table, texts[0][20:30])])[0]
    torch.testing.assert_close(logits, plain[0][20:30], atol=TOLERANCE, rtol=0)


def test_room_is_reserved_whole_or_not_at_all(model: GPT, texts: list[list[int]]) -> None:
    cache = new_cache(model, cache_tokens=4 * PAGE)
    table, other = opened(cache, texts[0]), opened(cache, texts[2])
    assert cache.reserve(table, 2 * PAGE)
    assert not cache.reserve(other, 3 * PAGE)
    assert all(pages.n_held == 2 for pages in cache.pages.values())
    with pytest.raises(ValueError, match="no room reserved"):
        cache.begin([(other, [1])], 1, model.embed)
    assert cache.reserve(other, 2 * PAGE)
