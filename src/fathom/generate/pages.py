"""Which pages of a cache are free, held, or kept because their contents may be asked for again.

A page is known by what it holds *and all that stands before it*: the digest of its tokens chained to the digest of the
page before. So two requests that begin alike hold the same pages, and a later turn finds those of the turns before.
Only whole pages are shared, so nobody ever writes to a page that another reads.
"""

from __future__ import annotations

import hashlib
from array import array
from collections import OrderedDict
from collections.abc import Sequence

PAGE = 64  # tokens


def chain(tokens: Sequence[int]) -> list[bytes]:
    """The digests of all whole pages of `tokens`."""
    digests: list[bytes] = []
    before = b""
    for first in range(0, len(tokens) - PAGE + 1, PAGE):
        content = array("q", tokens[first : first + PAGE]).tobytes()
        before = hashlib.blake2b(before + content, digest_size=16).digest()
        digests.append(before)
    return digests


class Pages:
    """Reference counts and digests of `n_page` numbered pages. A page is free, held (by one or more), or idle: held
    by nobody and known by its digest, until it is the longest idle and its place is needed.
    """

    def __init__(self, n_page: int) -> None:
        self.n_page = n_page
        self._holders = [0] * n_page
        self._digest: list[bytes | None] = [None] * n_page
        self._page: dict[bytes, int] = {}
        self._free = dict.fromkeys(range(n_page))
        self._idle: OrderedDict[int, None] = OrderedDict()  # the longest idle first

    @property
    def n_available(self) -> int:
        """Pages that can be taken."""
        return len(self._free) + len(self._idle)

    @property
    def n_held(self) -> int:
        return self.n_page - self.n_available

    @property
    def n_idle(self) -> int:
        return len(self._idle)

    def find(self, digest: bytes) -> int | None:
        """The page with these contents, held or idle."""
        return self._page.get(digest)

    def take(self, near: int | None = None) -> int:
        """A page for new contents; the one after `near` where that is free: pages in a row are read without a copy.

        Raises IndexError where all are held.
        """
        if near is not None and near + 1 in self._free:
            page = near + 1
            del self._free[page]
        elif self._free:
            page = self._roomiest() if near is None else next(iter(self._free))
            del self._free[page]
        elif self._idle:
            page, _ = self._idle.popitem(last=False)
            self._forget(page)
        else:
            raise IndexError("every page is held")
        self._holders[page] = 1
        return page

    def hold(self, page: int) -> None:
        """One holder more of a page that `find` gave."""
        self._idle.pop(page, None)
        self._holders[page] += 1

    def release(self, page: int) -> None:
        """One holder less."""
        self._holders[page] -= 1
        assert self._holders[page] >= 0, "released more often than held"
        if not self._holders[page]:
            if self._digest[page] is None:
                self._free[page] = None
            else:
                self._idle[page] = None

    def name(self, page: int, digest: bytes) -> None:
        """The page is whole now and has these contents; where another has them already, it stays without a name."""
        if digest not in self._page:
            self._page[digest], self._digest[page] = page, digest

    def _forget(self, page: int) -> None:
        digest, self._digest[page] = self._digest[page], None
        if digest is not None:
            del self._page[digest]

    def _roomiest(self) -> int:
        """Where a new row of pages may grow: the middle of the longest row of free ones, or its start at page 0."""
        best, start, before = (0, 0), -1, -2
        for page in sorted(self._free):
            if page != before + 1:
                start = page
            best, before = max(best, (page - start + 1, -start)), page
        length, first = best[0], -best[1]
        return first if first == 0 else first + length // 2
