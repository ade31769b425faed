"""What requests have behind them: keys and values, in pages that requests share.

A request holds a `Table`: its tokens and, for every kind of layer, the pages they are in. A pass feeds some tokens of
some requests, one after another in a single flat row, through a `PagedContext`, which is what the network asks;
`commit` then makes the tables longer. Layers with the same window are one kind: those with a short window let go of
the pages that lie outside it. Shape letters as in `model/gpt.py`; R queries of one page, S keys.

A query attends to whole pages: those from the start of its window to its own, with a mask. How many they are depends on
its position only, and how many queries are computed together on whether it is a prompt's: those of a page, else one. So
neither the pieces in which a text came nor the company it is in changes what is computed; and only pages of prompts
are shared.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate

import torch
import torch.nn.functional as F
from torch import Tensor

from fathom.generate.pages import PAGE, Pages
from fathom.model.shape import Shape

GATHER_BYTES = 4 * 2**20  # of keys and values copied together on a CPU: what stays in its caches
VIEW_PAGES = 2  # as many pages in a row are read where they lie; fewer are copied to those of others
SPARE_PAGES = 2  # of a request's windowed layers: the window may begin and end within a page


def n_pages(n_token: int) -> int:
    """Pages for so many tokens."""
    return -(-n_token // PAGE)


class Table:
    """What one request holds. Of its tokens the first `n_prompt` are its prompt, whose whole pages have `digests`."""

    def __init__(self, windows: Sequence[int], n_prompt: int, digests: Sequence[bytes]) -> None:
        self.n_prompt, self.digests = n_prompt, digests
        self.tokens: list[int] = []
        self.pages: dict[int, list[int]] = {window: [] for window in windows}  # -1 where a page was let go

    def __len__(self) -> int:
        return len(self.tokens)


class PagedCache:
    """Storage for `cache_tokens` tokens; layers with a short window have room for what `max_batch` requests keep."""

    def __init__(
        self,
        shape: Shape,
        dtype: torch.dtype,
        device: torch.device,
        cache_tokens: int,
        max_batch: int,
        pass_tokens: int,
    ) -> None:
        """`pass_tokens`: the most that a step feeds to one request."""
        self.shape, self.device = shape, device
        self._place: dict[int, tuple[int, int]] = {}  # layer -> (window, which of its layers)
        layers: dict[int, int] = {}
        for layer, window in enumerate(shape.windows):
            self._place[layer] = window, layers.get(window, 0)
            layers[window] = layers.get(window, 0) + 1
        self.windows = tuple(sorted(layers))
        most = n_pages(cache_tokens)
        self.pages: dict[int, Pages] = {}
        self._storage: dict[int, Tensor] = {}
        for window, n_layer in layers.items():
            kept = 2 * max_batch * (n_pages(window) + SPARE_PAGES) + n_pages(pass_tokens)
            pages = self.pages[window] = Pages(most if window >= shape.seq_len else min(most, kept))
            sizes = (n_layer, 2, pages.n_page + 1, PAGE, shape.n_kv_head, shape.head_dim)
            self._storage[window] = torch.empty(sizes, dtype=dtype, device=device)
            self._storage[window][:, :, self.nobodys_page(window)] = 0

    def layer(self, layer: int) -> Tensor:
        """Keys and values of a layer: (2, pages, PAGE, K, D)."""
        window, place = self._place[layer]
        return self._storage[window][place]

    def nobodys_page(self, window: int) -> int:
        """Where tokens may go that only fill a pass up."""
        return self.pages[window].n_page

    def find(self, n_prompt: int, digests: Sequence[bytes]) -> int:
        """How many first pages of a prompt are here, so that at least one token is left to feed."""
        most = min(len(digests), (n_prompt - 1) // PAGE)
        for n in range(most, 0, -1):
            if all(
                self.pages[window].find(digests[page]) is not None
                for window in self.windows
                for page in range(first_page(n * PAGE, window), n)
            ):
                return n
        return 0

    def open(self, prompt: Sequence[int], digests: Sequence[bytes], n: int) -> Table:
        """A table for a request with this prompt; it holds already its first `n` pages, which `find` found."""
        table = Table(self.windows, len(prompt), digests)
        table.tokens = list(prompt[: n * PAGE])
        for window, pages in self.pages.items():
            first = first_page(n * PAGE, window)
            table.pages[window] = [-1] * first
            for digest in digests[first:n]:
                page = pages.find(digest)
                assert page is not None
                pages.hold(page)
                table.pages[window].append(page)
        return table

    @torch.inference_mode()
    def reserve(self, table: Table, count: int) -> bool:
        """Take the pages that `count` more tokens need; False, and nothing taken, where there are not enough."""
        wanted = n_pages(len(table) + count)
        if any(wanted - len(table.pages[window]) > self.pages[window].n_available for window in self.windows):
            return False
        for window in self.windows:
            held = table.pages[window]
            while len(held) < wanted:
                page = self.pages[window].take(held[-1] if held and held[-1] >= 0 else None)
                # A hidden key weighs 0, but 0 times a NaN that was left there would still be NaN.
                self._storage[window][:, :, page] = 0
                held.append(page)
        return True

    def close(self, table: Table) -> None:
        """Let go of all that the request holds."""
        for window, held in table.pages.items():
            for page in reversed(held):  # of a prefix that nobody holds, the end goes first
                if page >= 0:
                    self.pages[window].release(page)
            held.clear()

    def begin(
        self, feeds: Sequence[tuple[Table, Sequence[int]]], width: int, embed: Callable[[Tensor], Tensor]
    ) -> PagedContext:
        """A pass that feeds tokens to tables, each of which has reserved room, padded at the end to `width` tokens.

        `embed` gives the embeddings (n, C) of tokens (n,), as `previous` is asked for them.
        """
        for table, tokens in feeds:
            if len(table) < table.n_prompt < len(table) + len(tokens):
                raise ValueError("a piece is of the prompt or of what was said")
            if not tokens or n_pages(len(table) + len(tokens)) > len(table.pages[self.windows[0]]):
                raise ValueError(f"a table of {len(table)} tokens has no room reserved for {len(tokens)} more")
        return PagedContext(self, feeds, width, embed)

    def commit(self, feeds: Sequence[tuple[Table, Sequence[int]]]) -> None:
        """After the network's last layer: the tokens of this pass now belong to the tables."""
        for table, tokens in feeds:
            self._extend(table, tokens)

    def _extend(self, table: Table, tokens: Sequence[int]) -> None:
        before = len(table) // PAGE
        table.tokens.extend(tokens)
        whole = min(len(table) // PAGE, len(table.digests))
        for window, held in table.pages.items():
            for page in range(before, whole):
                if held[page] >= 0:
                    self.pages[window].name(held[page], table.digests[page])
            for page in range(first_page(len(table), window) - 1, -1, -1):
                if held[page] < 0:
                    break
                self.pages[window].release(held[page])
                held[page] = -1


def first_page(position: int, window: int) -> int:
    """The first page that a query in the page of `position` attends to."""
    return max(0, position // PAGE * PAGE - window) // PAGE


@dataclass(frozen=True, slots=True)
class _Unit:
    """Queries of one request that lie in one page."""

    table: Table
    row: int  # of the first query in the flat row
    count: int
    position: int  # of the first query


@dataclass(frozen=True, slots=True)
class _Group:
    """Units that attend to the same number of pages, computed together."""

    rows: Tensor  # (n·R,) where each query stands in the flat row; short units repeat their last
    kept: Tensor | None  # which of these are queries, None for all
    into: Tensor  # where the answers go
    pages: Tensor | slice  # (n·pages,), or the places of keys that lie in a row
    size: tuple[int, int]  # n, R
    mask: Tensor  # (n, 1, R, S)
    row: int | None  # of the query, where it is a single one


class PagedContext:
    """One pass, as the network's context: (1, T) with the tokens of all requests in a row."""

    wanted: Tensor | None = None

    def __init__(
        self,
        cache: PagedCache,
        feeds: Sequence[tuple[Table, Sequence[int]]],
        width: int,
        embed: Callable[[Tensor], Tensor],
    ) -> None:
        self._cache, self._feeds, self._embed = cache, feeds, embed
        self.counts = [len(tokens) for _, tokens in feeds]
        self._n = sum(self.counts)
        device = cache.device
        flat = [token for _, tokens in feeds for token in tokens]
        places = [place for table, tokens in feeds for place in range(len(table), len(table) + len(tokens))]
        padding = [0] * (width - self._n)
        self.ids = torch.tensor([flat + padding], device=device)  # (1, T)
        self.positions = torch.tensor([places + padding], device=device)
        self._starts = [0, *accumulate(self.counts)][:-1]
        self._units = list(self._cut())
        self._slots: dict[int, Tensor] = {}
        self._groups: dict[int, list[_Group]] = {}

    def _cut(self) -> Iterator[_Unit]:
        for (table, tokens), row in zip(self._feeds, self._starts, strict=True):
            position, end = len(table), len(table) + len(tokens)
            while position < end:
                count = min(end, (position // PAGE + 1) * PAGE) - position if position < table.n_prompt else 1
                yield _Unit(table, row, count, position)
                row, position = row + count, position + count

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor, window: int) -> Tensor:
        """q (1, T, H, D), k and v (1, T, K, D) of the new tokens -> (1, T, H, D), over all that the requests hold."""
        stored = self._cache.layer(layer)
        places = stored.flatten(1, 2)  # (2, tokens, K, D)
        slots = self._slots_of(window)
        places[0].index_copy_(0, slots, k[0, : self._n])
        places[1].index_copy_(0, slots, v[0, : self._n])
        shared = q.shape[2] != k.shape[2]
        y = torch.zeros_like(q)
        for group in self._groups_of(window, q.dtype):
            n, _ = group.size
            if group.row is not None and isinstance(group.pages, slice):
                keys, values = places[:, None, group.pages].transpose(2, 3).unbind()
                query = q[:, group.row : group.row + 1].transpose(1, 2)
                answer = F.scaled_dot_product_attention(query, keys, values, attn_mask=group.mask, enable_gqa=shared)
                y[:, group.row : group.row + 1] = answer.transpose(1, 2)
                continue
            if isinstance(group.pages, slice):
                keys, values = places[:, None, group.pages].transpose(2, 3)
            else:
                gathered = stored.index_select(1, group.pages)  # (2, n·pages, PAGE, K, D)
                keys, values = gathered.view(2, n, -1, *gathered.shape[3:]).transpose(2, 3)
            queries = q[0, group.rows].unflatten(0, group.size).transpose(1, 2)
            answers = F.scaled_dot_product_attention(queries, keys, values, attn_mask=group.mask, enable_gqa=shared)
            answers = answers.transpose(1, 2).flatten(0, 1)
            y[0, group.into] = answers if group.kept is None else answers[group.kept]
        return y

    def previous(self, x: Tensor) -> Tensor:
        """The embedding of the token before each, zeros before a request's first. (1, T, C) -> (1, T, C)"""
        before = F.pad(x[:, :-1], (0, 0, 1, 0))
        begun = list(zip(self._starts, (table for table, _ in self._feeds), strict=True))
        later = [(row, table.tokens[-1]) for row, table in begun if table.tokens]
        first = [row for row, table in begun if not table.tokens]
        if later:
            rows, tokens = torch.tensor(later, device=x.device).T
            before[0, rows] = self._embed(tokens)
        if first:
            before[0, first] = 0
        return before

    def _slots_of(self, window: int) -> Tensor:
        """Where the keys of the new tokens go, (n,)."""
        if window not in self._slots:
            slots: list[int] = []
            for unit in self._units:
                first = unit.table.pages[window][unit.position // PAGE] * PAGE + unit.position % PAGE
                slots.extend(range(first, first + unit.count))
            self._slots[window] = torch.tensor(slots, device=self._cache.device)
        return self._slots[window]

    def _groups_of(self, window: int, dtype: torch.dtype) -> list[_Group]:
        if window not in self._groups:
            alike: dict[tuple[int, int], list[_Unit]] = {}
            groups: list[_Group] = []
            for unit in self._units:
                rows = PAGE if unit.position < unit.table.n_prompt else 1
                pages = self._pages(unit, window)
                in_a_row = pages == list(range(pages[0], pages[0] + len(pages)))
                if in_a_row and (len(pages) >= VIEW_PAGES or len(self._units) == 1):
                    run = slice(pages[0] * PAGE, (pages[-1] + 1) * PAGE)
                    groups.append(self._group([unit], rows, window, dtype, run))
                else:
                    alike.setdefault((rows, len(pages)), []).append(unit)
            for (rows, n_page), units in alike.items():
                most = max(1, self._gather_bytes() // self._bytes(n_page, dtype))
                for first in range(0, len(units), most):
                    groups.append(self._group(units[first : first + most], rows, window, dtype))
            self._groups[window] = groups
        return self._groups[window]

    def _group(
        self, units: list[_Unit], rows: int, window: int, dtype: torch.dtype, run: slice | None = None
    ) -> _Group:
        device = self._cache.device
        pages = [self._pages(unit, window) for unit in units]
        at = [[unit.row + min(i, unit.count - 1) for i in range(rows)] for unit in units]
        kept = [i * rows + j for i, unit in enumerate(units) for j in range(unit.count)]
        into = [unit.row + j for unit in units for j in range(unit.count)]
        query = torch.tensor([[unit.position + min(i, unit.count - 1) for i in range(rows)] for unit in units])
        first = torch.tensor([first_page(unit.position, window) * PAGE for unit in units])
        key = first[:, None] + torch.arange(len(pages[0]) * PAGE)
        distance = (query[:, :, None] - key[:, None, :]).to(device)  # (n, R, S)
        mask = torch.zeros(distance.shape, dtype=dtype, device=device)
        mask = mask.masked_fill_((distance < 0) | (distance > window), -torch.inf)[:, None]
        flat = [page for row in pages for page in row]
        return _Group(
            rows=torch.tensor(at, device=device).flatten(),
            kept=None if len(kept) == len(units) * rows else torch.tensor(kept, device=device),
            into=torch.tensor(into, device=device),
            pages=run if run is not None else torch.tensor(flat, device=device),
            size=(len(units), rows),
            mask=mask,
            row=units[0].row if len(units) == rows == 1 else None,
        )

    def _pages(self, unit: _Unit, window: int) -> list[int]:
        return unit.table.pages[window][first_page(unit.position, window) : unit.position // PAGE + 1]

    def _bytes(self, n_page: int, dtype: torch.dtype) -> int:
        return 2 * n_page * PAGE * self._cache.shape.d_kv * dtype.itemsize

    def _gather_bytes(self) -> int:
        return GATHER_BYTES if self._cache.device.type == "cpu" else 256 * GATHER_BYTES
