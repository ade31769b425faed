from __future__ import annotations

import itertools
import json
import subprocess
import sys
from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fathom.cli import main
from fathom.data.packing import best_fit, lossless, pack, parse_lengths
from fathom.errors import FathomError
from tests.oracles import packing as oracle

GOLDEN_LENGTHS = [4, 7, 3, 12, 5, 2, 6, 9, 3, 11, 8, 4, 5, 10, 6, 3]

lengths_lists = st.lists(st.integers(1, 30), max_size=60)
row_sizes = st.integers(2, 16)
buffers = st.integers(1, 12)


def test_best_fit_golden_rows_of_the_reference() -> None:
    rows = list(itertools.islice(best_fit(GOLDEN_LENGTHS, 10, buffer=4), 6))
    assert rows == [
        [(1, 0, 7), (2, 0, 3)],
        [(4, 0, 5), (0, 0, 4), (5, 0, 1)],
        [(7, 0, 9), (8, 0, 1)],
        [(10, 0, 8), (11, 0, 2)],
        [(6, 0, 6), (12, 0, 4)],
        [(13, 0, 10)],
    ]


def test_among_equals_the_first_to_arrive_goes_first() -> None:
    assert list(best_fit([5, 5, 5, 5], 10)) == [[(0, 0, 5), (1, 0, 5)], [(2, 0, 5), (3, 0, 5)]]
    assert list(best_fit([12, 12, 30], 10)) == [[(0, 0, 10)], [(1, 0, 10)], [(2, 0, 10)]]


def test_lossless_by_hand() -> None:
    # Document 0 fills two rows by itself; its last 4 tokens go with 6 of document 1, whose last 2 are left over.
    assert list(lossless([24, 8], 10)) == [[(0, 0, 10)], [(0, 10, 10)], [(1, 0, 8), (0, 20, 2)]]
    assert list(lossless([4, 6, 9, 3], 10)) == [[(2, 0, 9), (3, 0, 1)], [(1, 0, 6), (0, 0, 4)]]


@given(lengths_lists, row_sizes, buffers)
@settings(deadline=None, max_examples=300)
def test_best_fit_equals_the_oracle(lengths: list[int], row_tokens: int, buffer: int) -> None:
    assert list(best_fit(lengths, row_tokens, buffer)) == oracle.best_fit(lengths, row_tokens, buffer)


@given(lengths_lists, row_sizes, buffers)
@settings(deadline=None, max_examples=300)
def test_lossless_equals_the_oracle(lengths: list[int], row_tokens: int, buffer: int) -> None:
    assert list(lossless(lengths, row_tokens, buffer)) == oracle.lossless(lengths, row_tokens, buffer)


@pytest.mark.parametrize("packing", ["best-fit", "lossless"])
def test_many_documents_equal_the_oracle_across_chunks(packing: str) -> None:
    lengths = np.random.default_rng(5).integers(1, 90, 9000).tolist()
    ours, slow = (best_fit, oracle.best_fit) if packing == "best-fit" else (lossless, oracle.lossless)
    assert list(ours(lengths, 33, 20)) == slow(lengths, 33, 20)


@given(lengths_lists, row_sizes, buffers)
@settings(deadline=None)
def test_lossless_places_every_token_once_but_for_less_than_a_row(
    lengths: list[int], row_tokens: int, buffer: int
) -> None:
    rows = list(lossless(lengths, row_tokens, buffer))
    places = [(document, start + i) for row in rows for document, start, n in row for i in range(n)]
    every = {(document, i) for document, length in enumerate(lengths) for i in range(length)}
    assert len(places) == len(set(places)) and set(places) <= every
    assert 0 <= len(every) - len(places) < row_tokens
    assert all(sum(n for _, _, n in row) == row_tokens for row in rows)


@given(lengths_lists, row_sizes, buffers)
@settings(deadline=None)
def test_best_fit_rows_are_full_and_cut_only_their_last_document(
    lengths: list[int], row_tokens: int, buffer: int
) -> None:
    rows = list(best_fit(lengths, row_tokens, buffer))
    documents = [document for row in rows for document, _, _ in row]
    assert len(documents) == len(set(documents))
    for row in rows:
        assert sum(n for _, _, n in row) == row_tokens
        assert all(start == 0 for _, start, _ in row)
        assert all(n == lengths[document] for document, _, n in row[:-1])


def test_nothing_to_pack() -> None:
    assert list(best_fit([], 10)) == list(lossless([], 10)) == []
    assert list(best_fit([9], 10)) == list(lossless([9], 10)) == []


@pytest.mark.parametrize("packing", ["best-fit", "lossless"])
def test_packing_is_lazy(packing: str) -> None:
    """Documents that never end still give rows, and few are looked at for the first of them."""
    seen: list[int] = []

    def lengths_of(arrivals: np.ndarray) -> np.ndarray:
        seen.append(int(arrivals.max(initial=0)))
        return arrivals % 7 + 1

    rows = pack(lengths_of, None, 10, packing)  # type: ignore[arg-type]
    first = next(rows)
    assert len(first.ends) > 0 and max(seen) < 10_000
    assert len(next(rows).ends) > 0


def test_documents_longer_than_any_key_can_tell() -> None:
    huge = 1 << 40
    assert list(best_fit([huge, 3, huge], 10)) == [[(1, 0, 3), (0, 0, 7)], [(2, 0, 10)]]
    first = next(iter(pack(np.array([huge]).__getitem__, 1, huge // 2, "lossless")))
    assert first.segments.tolist() == [[0, 0, huge // 2], [0, huge // 2, huge // 2]]


def test_a_row_or_buffer_of_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="at least 1"):
        list(best_fit([1, 2], 0))
    with pytest.raises(ValueError, match="at least 1"):
        list(best_fit([1, 2], 3, buffer=0))


def _pack_json(capsys: pytest.CaptureFixture[str], *arguments: str) -> dict[str, list[list[list[int]]]]:
    with pytest.raises(SystemExit) as stop:
        main(["data", "pack", *arguments, "--json"])
    assert stop.value.code == 0
    result: dict[str, list[list[list[int]]]] = json.loads(capsys.readouterr().out)
    return result


def test_command_prints_rows_as_json(capsys: pytest.CaptureFixture[str]) -> None:
    lengths = "--lengths=" + ",".join(map(str, GOLDEN_LENGTHS))
    rows = _pack_json(capsys, lengths, "--seq-len", "9")["rows"]
    assert rows == [[list(s) for s in row] for row in oracle.best_fit(GOLDEN_LENGTHS, 10, 1000)]
    rows = _pack_json(capsys, lengths, "--seq-len", "9", "--packing", "lossless")["rows"]
    assert rows == [[list(s) for s in row] for row in oracle.lossless(GOLDEN_LENGTHS, 10, 1000)]
    assert _pack_json(capsys, "--lengths", "700,20") == {"rows": [[[1, 0, 20], [0, 0, 493]]]}


def test_command_prints_rows_for_a_person(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["data", "pack", "--lengths", "700,20"])
    captured = capsys.readouterr()
    assert captured.out == "row 0: document 1 (20) · document 0 (0–493 of 700)\n"
    assert "207 (28.7%) are left out" in captured.err.replace("\n", " ")


@pytest.mark.parametrize(
    "lengths", ["7,0", "7,-3", "7,x", "7,1.5", "", ",", "7,٣", "7,1e3", "--", "9" * 5000 + "x"], ids=lambda t: t[:8]
)
def test_bad_lengths_are_one_sentence(lengths: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["data", "pack", f"--lengths={lengths}"])
    captured = capsys.readouterr()
    assert stop.value.code == 2 and captured.out == "" and captured.err.startswith("fathom: ")
    assert "Traceback" not in captured.err


def test_lengths_may_come_from_standard_input(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import io

    monkeypatch.setattr("sys.stdin", io.StringIO("700\n20\n"))
    assert _pack_json(capsys, "--lengths", "-") == {"rows": [[[1, 0, 20], [0, 0, 493]]]}


def test_parse_lengths() -> None:
    assert parse_lengths(" 1, 2,3 \n 4,") == [1, 2, 3, 4]
    with pytest.raises(FathomError, match="number 2"):
        parse_lengths("3,zero")


@pytest.mark.parametrize("module", ["fathom.data.packing", "fathom.data.batches", "fathom.tokenizer_commands"])
def test_no_torch_is_needed(module: str) -> None:
    code = f"import sys, {module}; sys.exit('torch' in sys.modules or 'pyarrow' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_rows_come_one_by_one() -> None:
    rows = best_fit([10] * 5, 10)
    assert isinstance(rows, Iterator) and next(rows) == [(0, 0, 10)]
