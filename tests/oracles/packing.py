"""Packing, slow and obvious: one list in order of arrival, searched from front to back for every choice."""

from __future__ import annotations


def best_fit(lengths: list[int], row_tokens: int, buffer: int) -> list[list[tuple[int, int, int]]]:
    coming = list(enumerate(lengths))
    waiting: list[tuple[int, int]] = []
    rows = []
    while True:
        row, room = [], row_tokens
        while room:
            while coming and len(waiting) < buffer:
                waiting.append(coming.pop(0))
            if not waiting:
                return rows
            fitting = [item for item in waiting if item[1] <= room]
            if fitting:
                longest = max(length for _, length in fitting)
                chosen = next(item for item in fitting if item[1] == longest)
            else:
                shortest = min(length for _, length in waiting)
                chosen = next(item for item in waiting if item[1] == shortest)
            waiting.remove(chosen)
            document, length = chosen
            row.append((document, 0, min(length, room)))
            room -= min(length, room)
        rows.append(row)


def lossless(lengths: list[int], row_tokens: int, buffer: int) -> list[list[tuple[int, int, int]]]:
    coming = list(enumerate(lengths))
    waiting: list[tuple[int, int, int]] = []  # document, start, length; by document, so by arrival
    rows: list[list[tuple[int, int, int]]] = []
    while True:
        row, room = [], row_tokens
        while room:
            while coming and len(waiting) < buffer:
                document, length = coming.pop(0)
                start = 0
                while length - start >= row_tokens:
                    rows.append([(document, start, row_tokens)])
                    start += row_tokens
                if start < length:
                    waiting.append((document, start, length - start))
            if not waiting:
                return rows
            fitting = [item for item in waiting if item[2] <= room]
            if fitting:
                longest = max(length for _, _, length in fitting)
                chosen = next(item for item in fitting if item[2] == longest)
            else:
                shortest = min(length for _, _, length in waiting)
                chosen = next(item for item in waiting if item[2] == shortest)
            waiting.remove(chosen)
            document, start, length = chosen
            taken = min(length, room)
            row.append((document, start, taken))
            room -= taken
            if taken < length:
                waiting.append((document, start + taken, length - taken))
                waiting.sort()
        rows.append(row)
