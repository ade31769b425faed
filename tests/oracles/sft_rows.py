"""Packing of conversations as the rule reads: look through the whole buffer for every choice."""

from __future__ import annotations


def pack(lengths: list[int], row_tokens: int, buffer: int) -> list[list[int]]:
    todo, held, rows = list(range(len(lengths))), list[int](), list[list[int]]()
    while todo or held:
        row, room = list[int](), row_tokens
        while True:
            while todo and len(held) < buffer:
                held.append(todo.pop(0))
            fitting = [index for index in held if lengths[index] <= room]
            if not fitting:
                break
            best = max(fitting, key=lambda index: (lengths[index], -index))
            held.remove(best)
            row.append(best)
            room -= lengths[best]
        rows.append(row)
    return rows
