from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fathom.data.corpus import duplicates, shuffle
from fathom.data.corpus.duplicates import DuplicateFinder
from fathom.data.corpus.shuffle import Document, Spool, key, keys


def through(texts: list[bytes], seed: int | None, expected_bytes: int, bucket_bytes: int) -> list[Document]:
    with tempfile.TemporaryDirectory() as folder:
        spool = Spool(Path(folder) / "spool", seed, expected_bytes, bucket_bytes)
        for index, text in enumerate(texts):
            spool.add(Document(index, text))
        out = list(spool)
        assert not [path for path in (Path(folder) / "spool").rglob("*") if path.is_file()], "read buckets are deleted"
        return out


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.binary(max_size=60), max_size=60),
    st.integers(0, 2**64 - 1),
    st.integers(0, 3000),
    st.integers(1, 500),
)
def test_the_order_is_that_of_the_keys_however_it_was_made(
    texts: list[bytes], seed: int, expected_bytes: int, bucket_bytes: int
) -> None:
    documents = [Document(index, text) for index, text in enumerate(texts)]
    by_key = sorted(documents, key=lambda document: key(seed, document.index))
    assert through(texts, seed, expected_bytes, bucket_bytes) == by_key


@settings(max_examples=20, deadline=None)
@given(st.lists(st.binary(max_size=60), max_size=60))
def test_without_a_seed_the_order_stays(texts: list[bytes]) -> None:
    assert [document.text for document in through(texts, None, 1000, 10)] == texts


def test_buckets_that_turn_out_too_full_are_divided(monkeypatch: pytest.MonkeyPatch) -> None:
    divided = []
    original = Path.mkdir
    monkeypatch.setattr(Path, "mkdir", lambda self, *a, **k: (divided.append(self.suffix), original(self, *a, **k))[1])
    texts = [str(i).encode() * 20 for i in range(2000)]
    out = through(texts, 3, 0, 2000)
    assert sorted(document.index for document in out) == list(range(2000))
    assert divided.count(".parts") > 1, "the only bucket was divided, and parts of it again"


def test_blocks_are_written_while_reading_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shuffle, "BUFFER_BYTES", 1 << 16)
    spool = Spool(tmp_path, 0, 10_000_000, 1_000_000)
    for index in range(1000):
        spool.add(Document(index, np.random.default_rng(index).bytes(2000)))
    assert sum(path.stat().st_size for path in tmp_path.rglob("*")) > 1_000_000


def test_keys_differ_and_are_the_same_one_by_one_and_together() -> None:
    for seed in (0, 1, -5, 2**63):
        together = keys(seed, 3, 5000)
        assert together.tolist() == [key(seed, index) for index in range(3, 5000)]
        assert len(np.unique(together)) == len(together)
    assert key(0, 0) == 0xE220A8397B1DCDAF, "the first number of splitmix64 seeded with 0"
    assert key(0, 1) == 0x6E789E6AA1B965F4


def test_keys_are_spread_evenly() -> None:
    counts = np.bincount((keys(7, 0, 64_000) >> np.uint64(58)).astype(int), minlength=64)
    assert counts.min() > 850 and counts.max() < 1150


@settings(max_examples=40, deadline=None)
@given(st.lists(st.sampled_from([b"", b"a", b"b", b"longer", b"c" * 300]), max_size=50))
def test_of_equal_documents_the_first_stays(texts: list[bytes]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        finder = DuplicateFinder(Path(folder))
        for index, text in enumerate(texts):
            finder.add(index, text)
        dropped = finder.find()
    seen: set[bytes] = set()
    repeats = []
    for index, text in enumerate(texts):
        if text in seen:
            repeats.append(index)
        seen.add(text)
    assert [index for index in range(len(texts)) if index in dropped] == repeats
    assert np.flatnonzero(dropped.mask(0, len(texts))).tolist() == repeats
    assert dropped.n_documents == len(repeats)
    assert dropped.n_bytes == sum(len(texts[index]) for index in repeats)


def test_digests_go_to_disk_when_there_are_many(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(duplicates, "_BUFFER_RECORDS", 2)
    finder = DuplicateFinder(tmp_path)
    for index in range(5000):
        finder.add(index, str(index % 4000).encode())
    assert len(list(tmp_path.iterdir())) == 256
    dropped = finder.find()
    assert dropped.n_documents == 1000
    assert np.flatnonzero(dropped.mask(0, 5000)).tolist() == list(range(4000, 5000))
    assert dropped.mask(3992, 4008).tolist() == [False] * 8 + [True] * 8
