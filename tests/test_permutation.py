from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from fathom.data.permutation import permuted


@pytest.mark.parametrize("n", [1, 2, 3, 5, 8, 63, 64, 65, 1000, 4097])
def test_everything_goes_somewhere_and_nothing_twice(n: int) -> None:
    places = permuted(np.arange(n), n, "a key")
    assert places.dtype == np.int64 and sorted(places.tolist()) == list(range(n))


def test_some_are_placed_as_among_all() -> None:
    everywhere = permuted(np.arange(10_000), 10_000, "k")
    asked = np.array([[7, 9_999], [0, 7]])
    assert permuted(asked, 10_000, "k").tolist() == everywhere[asked].tolist()


def test_the_order_never_changes() -> None:
    """Golden: a resumed run must find the order that it began with, on any machine and with any numpy."""
    assert permuted(np.arange(8), 8, "documents 1 1").tolist() == [3, 4, 1, 7, 0, 5, 6, 2]
    assert permuted(np.arange(5), 1_000_000_000, "documents 1 1").tolist() == [
        75641577,
        729831568,
        816209282,
        204204885,
        589871684,
    ]


def test_every_order_of_four_is_about_as_frequent() -> None:
    seen = Counter(tuple(permuted(np.arange(4), 4, str(key)).tolist()) for key in range(1200))
    assert len(seen) == 24 and min(seen.values()) >= 25 and max(seen.values()) <= 80


def test_neighbours_are_torn_apart() -> None:
    distances = np.abs(np.diff(permuted(np.arange(8192), 8192, "k")))
    assert abs(distances.mean() - 8192 / 3) < 150 and (distances == 1).sum() < 12


def test_a_range_of_many_millions_takes_no_list() -> None:
    n = 3_000_000_000
    places = permuted(np.array([0, 1, n - 1]), n, "k")
    assert len(set(places.tolist())) == 3 and (places < n).all() and (places >= 0).all()


def test_no_indices() -> None:
    assert permuted(np.empty(0, dtype=np.int64), 10, "k").shape == (0,)
