"""Passes of said tokens whose shapes are always the same: what compilers, CUDA graphs and a CPU's kernel ask for.

A pass has a row for each token, and for every kind of layer a table of the pages that each row attends to. Both are
padded to one of a few sizes, so all that differs between two passes of a size is a matrix of whole numbers. A row that
pads writes to a page of nobody's; a table is padded with the row's own last page. A row's numbers do not depend on the
size of its pass (`paged.py`). Shape letters as in `model/gpt.py`; W rows.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from typing import Any, Literal

import torch
from torch import Tensor

from fathom.generate import paged
from fathom.generate.cache import PagedCache, Table, first_page, n_pages
from fathom.generate.pages import PAGE
from fathom.generate.steady import fitting
from fathom.hardware import can_compile
from fathom.kernels import build
from fathom.model import fused
from fathom.model.gpt import GPT, Block, Half
from fathom.screen import say

Compile = Literal["auto", "on", "off"]
Decode = Literal["pages", "static", "compiled"]
"""How said tokens go through the network: with shapes that fit each pass, with static ones, or with these compiled."""
Piece = tuple[Table, Sequence[int]]
Run = Callable[[Sequence[Piece], int], Tensor]
"""Some tables' next tokens, in a pass of so many rows -> hidden (W, C), the pieces one after another."""

MOST_KERNELS = 512  # of a region, one for each size of a pass and kind of layer


def choose_decode(asked: Compile, device: str) -> Decode | None:
    """How said tokens go through a network on this device, None for `usual`; "on" is said where nothing compiles."""
    possible = can_compile(device)
    if asked == "on" and possible.value == "no":
        say(f"decode is not compiled: {possible.reason}", style="yellow")
    wanted = asked == "on" or (asked == "auto" and device == "cuda")
    if wanted and possible.value == "yes":
        return "compiled"
    return "pages" if asked == "off" else None


def usual(model: GPT) -> Decode:
    """Static shapes where kernels of our own read the pages: a crowd is then nearly twice as fast
    (docs/results/serving.md).
    """
    own = fused.has_kernels_for(model.device, model.dtype) and not model.is_split and build.load()
    return "static" if own else "pages"


class Decoder:
    """Makes such passes; each size is prepared when it is first needed."""

    def __init__(
        self, network: GPT, cache: PagedCache, widths: Sequence[int], max_batch: int, compiled: bool, otherwise: Run
    ) -> None:
        """`otherwise` makes a pass in another way, from then on where this one cannot be prepared."""
        self._network, self._cache, self._otherwise, self._failed = network, cache, otherwise, False
        self._regions = regions() if compiled else None
        if network.device.type == "cpu" and not compiled:
            build.load()
        self.widths = _few(widths, max_batch, network.device.type) if compiled else tuple(widths)
        most = n_pages(cache.shape.seq_len)
        self._page_counts = [*(2**i for i in range(most.bit_length()) if 2**i < most), most]
        self._prepared: dict[tuple[int, int], Callable[[Tensor], Tensor]] = {}
        self._pool: Any = None

    def __call__(self, pieces: Sequence[Piece], width: int) -> Tensor:
        if self._failed:
            return self._otherwise(pieces, width)
        most = max(n_pages(len(table) + len(tokens)) for table, tokens in pieces)
        size = width, fitting(self._page_counts, most)
        if size not in self._prepared:
            try:
                self._prepared[size] = self._prepare(*size)
            except Exception as error:  # of a compiler or a driver, which may be any
                first = (str(error).strip().splitlines() or [""])[0][:200]
                say(f"decode could not be compiled and goes on without ({type(error).__name__}: {first})", "yellow")
                self._failed = True
                return self._otherwise(pieces, width)
        return self._prepared[size](torch.tensor(self.rows(pieces, *size)))

    def rows(self, pieces: Sequence[Piece], width: int, n_page: int) -> list[list[int]]:
        """What differs from pass to pass, (numbers, W): token, the one before it, its position; then for every kind of
        layer the slot of its key and the pages it attends to.
        """
        found = [
            self._row(table, position, (before, token), n_page)
            for table, tokens in pieces
            for position, before, token in zip(
                range(len(table), len(table) + len(tokens)), (table.tokens[-1], *tokens), tokens, strict=False
            )
        ]
        nobody = [0, 0, 0]
        for window in self._cache.windows:
            page = self._cache.nobodys_page(window)
            nobody += [page * PAGE] + [page] * _n_seen(window, n_page)
        return [list(numbers) for numbers in zip(*found, *[nobody] * (width - len(found)), strict=True)]

    @staticmethod
    def _row(table: Table, position: int, tokens: tuple[int, int], n_page: int) -> list[int]:
        before, token = tokens
        row = [token, before, position]
        for window, held in table.pages.items():
            pages = held[first_page(position, window) : position // PAGE + 1]
            row.append(pages[-1] * PAGE + position % PAGE)
            row += pages + pages[-1:] * (_n_seen(window, n_page) - len(pages))
        return row

    def _prepare(self, width: int, n_page: int) -> Callable[[Tensor], Tensor]:
        """A function of the rows of such a pass."""
        device, compiled = self._network.device, self._regions
        attend, halves = (compiled.attend, compiled.halves) if compiled else (paged.attend, None)

        def run(rows: Tensor) -> Tensor:
            context = RowsContext(self._cache, rows.to(device), n_page, self._network, attend)
            return self._network(context.ids, context, halves)[0]

        if not compiled:
            return run
        nobodys = torch.tensor(self.rows([], width, n_page), device=device)
        with torch._dynamo.config.patch(recompile_limit=MOST_KERNELS):
            run(nobodys)
        if device.type != "cuda":
            return run
        self._pool = self._pool or torch.cuda.graph_pool_handle()
        return _Recorded(run, nobodys, self._pool)


class _Recorded:
    """A pass as a CUDA graph: all its kernels are started by one call."""

    def __init__(self, run: Callable[[Tensor], Tensor], rows: Tensor, pool: Any) -> None:
        self._rows = rows
        aside = torch.cuda.Stream()
        aside.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(aside):  # libraries set themselves up, which cannot be recorded
            run(rows)
        torch.cuda.current_stream().wait_stream(aside)
        self._graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self._graph, pool=pool, capture_error_mode="thread_local"):
            self._hidden = run(rows)

    def __call__(self, rows: Tensor) -> Tensor:
        """What it returns is overwritten by the next pass of this size."""
        self._rows.copy_(rows)
        self._graph.replay()
        return self._hidden


class RowsContext:
    """A pass as the network's context, from the numbers of its rows."""

    wanted: Tensor | None = None

    def __init__(self, cache: PagedCache, rows: Tensor, n_page: int, network: GPT, attend: Half) -> None:
        self._cache, self._network, self._attend = cache, network, attend
        self.ids, self._before, self.positions = rows[:3, None]  # each (1, W)
        self._slots: dict[int, Tensor] = {}
        self._tables: dict[int, Tensor] = {}
        at = 3
        for window in cache.windows:
            end = at + 1 + _n_seen(window, n_page)
            self._slots[window], self._tables[window] = rows[at], rows[at + 1 : end]
            at = end

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor, window: int) -> Tensor:
        stored = self._cache.layer(layer)
        places = stored.flatten(1, 2)  # (2, tokens, K, D)
        places[0].index_copy_(0, self._slots[window], k[0])
        places[1].index_copy_(0, self._slots[window], v[0])
        y: Tensor = self._attend(q[0], stored, self._tables[window], self.positions[0], window)
        return y[None]

    def previous(self, x: Tensor) -> Tensor:
        return self._network.embed(self._before)


def _few(widths: Sequence[int], max_batch: int, device: str) -> tuple[int, ...]:
    """Those of which it is worth to compile kernels."""
    most = fitting(widths, max_batch)
    if device == "cpu":  # a compiler has other sums for one row than for many
        return (most,)
    few = [widths[0]]
    for width in widths:
        if width == most or 2 * few[-1] <= width < most:
            few.append(width)
    return tuple(dict.fromkeys(few))


def _n_seen(window: int, n_page: int) -> int:
    """Pages that a row attends to at most, of the `n_page` of the whole text."""
    return min(n_page, n_pages(window) + 1)


def _before(block: Block, *given: Any) -> Any:
    return block.before_attention(*given)


def _after(block: Block, *given: Any) -> Any:
    return block.after_attention(*given)


class Regions:
    """What a pass consists of between the network's own few lines: each is compiled once for all layers."""

    def __init__(self, compiled: Callable[[Half], Half]) -> None:
        self.halves = compiled(_before), compiled(_after)
        self.attend = compiled(paged.plain)


@cache
def regions(backend: str = "inductor") -> Regions:
    """Compiled once in a process: engines of the same shapes share the kernels."""
    return Regions(lambda region: torch.compile(region, dynamic=False, fullgraph=True, backend=backend))
