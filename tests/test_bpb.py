"""Bits per byte against a plain oracle, and what must not count."""

from __future__ import annotations

import errno
import math
from collections.abc import Iterator
from threading import Barrier, Thread

import numpy as np
import pytest
import torch

from fathom.evaluate.bpb import bits_per_byte, with_error
from fathom.model import attention
from fathom.model.attention import DenseContext
from fathom.model.gpt import GPT
from fathom.model.shape import Shape
from tests.oracles import bits

VOCAB, SPECIALS, SEQ_LEN = 40, 4, 12
BYTES = np.array([1 + token % 5 for token in range(VOCAB - SPECIALS)] + [0] * SPECIALS, dtype=np.int32)

Batches = list[tuple[np.ndarray, np.ndarray]]


@pytest.fixture
def model() -> GPT:
    return made(Shape(2, 2, 2, 16, VOCAB, SEQ_LEN, "L"))


def made(shape: Shape) -> GPT:
    model, generator = GPT(shape), torch.Generator().manual_seed(5)
    model.init_weights(generator)
    with torch.no_grad():
        model.head.normal_(0, 0.3, generator=generator)  # else every token is as likely as any other
    return model


def batches(*rows: int, masked: float = 0.3, seed: int = 0) -> Batches:
    dice = np.random.default_rng(seed)
    found = []
    for n in rows:
        tokens = dice.integers(0, VOCAB, (n, SEQ_LEN + 1))
        hidden = dice.random((n, SEQ_LEN)) < masked
        found.append((tokens[:, :-1].copy(), np.where(hidden, -1, tokens[:, 1:])))
    return found


def test_it_agrees_with_the_oracle(model: GPT) -> None:
    some = batches(3, 1, 2)
    assert bits_per_byte(model, some, BYTES) == pytest.approx(bits.bits_per_byte(model, some, BYTES), rel=1e-5)


def test_how_rows_are_batched_does_not_matter(model: GPT) -> None:
    inputs, targets = batches(6)[0]
    single = [(inputs[i : i + 1], targets[i : i + 1]) for i in range(6)]
    assert bits_per_byte(model, single, BYTES) == pytest.approx(bits_per_byte(model, [(inputs, targets)], BYTES))


def test_a_batch_counts_by_its_bytes_not_as_one_of_many(model: GPT) -> None:
    many, few = batches(4, seed=1)[0], batches(1, masked=0.9, seed=2)[0]
    together = bits_per_byte(model, [many, few], BYTES)
    assert together == pytest.approx(bits.bits_per_byte(model, [many, few], BYTES), rel=1e-5)
    mean_of_means = (bits_per_byte(model, [many], BYTES) + bits_per_byte(model, [few], BYTES)) / 2
    assert together != pytest.approx(mean_of_means, rel=1e-3)


def test_specials_and_masked_targets_count_neither_nats_nor_bytes(model: GPT) -> None:
    inputs, targets = batches(3)[0]
    targets = np.where(targets >= VOCAB - SPECIALS, 7, targets)
    measured = bits_per_byte(model, [(inputs, targets)], BYTES)
    free = targets == -1
    assert free.any()
    specials = np.where(free, VOCAB - 1, targets)  # what was masked is now a special token
    assert bits_per_byte(model, [(inputs, specials)], BYTES) == pytest.approx(measured, rel=1e-9)


def test_no_bytes_at_all_is_infinity(model: GPT) -> None:
    inputs, targets = batches(2)[0]
    assert bits_per_byte(model, [(inputs, np.full_like(targets, -1))], BYTES) == math.inf
    assert bits_per_byte(model, [(inputs, np.full_like(targets, VOCAB - 1))], BYTES) == math.inf
    assert bits_per_byte(model, [], BYTES) == math.inf


def test_an_even_guess_costs_the_logarithm_of_the_vocabulary(model: GPT) -> None:
    with torch.no_grad():
        model.head.zero_()
    some = batches(2, masked=0)
    counted = [target for _, targets in some for target in targets.flatten() if BYTES[target]]
    expected = len(counted) * math.log2(VOCAB) / sum(int(BYTES[target]) for target in counted)
    assert bits_per_byte(model, some, BYTES) == pytest.approx(expected, rel=1e-6)


def test_the_standard_error_is_how_much_the_ratio_moves_among_samples_of_rows() -> None:
    dice = np.random.default_rng(0)
    n_bytes = dice.integers(5, 60, size=(4000, 50))
    nats = 0.8 * n_bytes + dice.normal(0, 5, size=n_bytes.shape)
    found = [with_error(*rows) for rows in zip(nats, n_bytes, strict=True)]
    assert np.mean([value for value, _ in found]) == pytest.approx(0.8 / math.log(2), rel=0.01)
    assert np.mean([error for _, error in found]) == pytest.approx(np.std([value for value, _ in found]), rel=0.05)
    assert with_error(nats[0, :1], n_bytes[0, :1])[0] == pytest.approx(nats[0, 0] / n_bytes[0, 0] / math.log(2))
    assert math.isnan(with_error(nats[0, :1], n_bytes[0, :1])[1])
    assert with_error(np.zeros(2), np.zeros(2, dtype=np.int64))[0] == math.inf


def test_it_tells_how_many_rows_are_done_and_leaves_the_model_alone(model: GPT) -> None:
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    told: list[int] = []
    bits_per_byte(model, batches(3, 2), BYTES, told.append)
    assert told == [3, 2]
    assert all(torch.equal(weight, before[name]) for name, weight in model.state_dict().items())
    assert all(weight.grad is None for weight in model.parameters())


def test_in_step_a_rank_that_cannot_read_stops_all_before_any_computes_alone(
    model: GPT, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Three ranks as threads, of which the second finds its second batch unreadable."""
    meeting, told = Barrier(3, timeout=30), [(0.0, 0, "")] * 3
    computed, failed = [0] * 3, dict[int, str]()

    def measure(rank: int) -> None:
        def read() -> Iterator[tuple[np.ndarray, np.ndarray]]:
            yield batches(2, seed=rank)[0]
            if rank == 1:
                raise OSError(errno.EIO, "a shard")
            yield batches(2, seed=rank)[0]

        def gather(mine: tuple[float, int, str]) -> list[tuple[float, int, str]]:
            told[rank] = mine
            meeting.wait()
            every = list(told)
            meeting.wait()
            return every

        def advance(_: int) -> None:
            computed[rank] += 1

        try:
            bits_per_byte(model, read(), BYTES, advance, None, gather, True)
        except (OSError, RuntimeError) as error:
            failed[rank] = str(error)

    ranks = [Thread(target=measure, args=(rank,), daemon=True) for rank in range(3)]
    for rank in ranks:
        rank.start()
    for rank in ranks:
        rank.join()
    assert failed == dict.fromkeys(range(3), "[Errno 5] a shard")
    assert computed == [1, 1, 1]


def test_a_model_measured_first_can_be_trained_after() -> None:
    """A window's mask made while measuring is a tensor that training may use too."""
    attention._band.cache_clear()
    model = made(Shape(2, 1, 1, 24, VOCAB, 256, "S"))
    assert model.shape.windows[0] < 255
    ids = np.arange(256)[None] % VOCAB
    assert math.isfinite(bits_per_byte(model, [(ids, ids)], BYTES))
    tokens = torch.from_numpy(ids)
    model.loss(model(tokens, DenseContext(256, "cpu")), tokens).backward()
    assert model.head.grad is not None and model.head.grad.isfinite().all()
