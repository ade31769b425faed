"""Conversations as a person checks them before any training: every token, and which of them are trained."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from itertools import groupby
from typing import TYPE_CHECKING, TextIO

if TYPE_CHECKING:
    from fathom.tokenizer import Tokenizer


def show(rendered: Sequence[tuple[list[int], list[int]]], tokenizer: Tokenizer, file: TextIO | None = None) -> None:
    """Print conversations (ids and mask of each): trained tokens green on a terminal, between ⟦ and ⟧ elsewhere."""
    from rich.console import Console
    from rich.text import Text

    console = Console(file=file or sys.stdout, highlight=False, soft_wrap=True)
    coloured = console.is_terminal and not console.no_color
    for number, (ids, mask) in enumerate(rendered, 1):
        title = f"conversation {number}: {len(ids):,} tokens, {sum(mask):,} of them trained"
        console.print(Text(title, style="bold"))
        line = Text()
        for text, trained, special in spans(ids, mask, tokenizer):
            shown = text if coloured or not trained else f"⟦{text}⟧"
            line.append(shown, style=("bold green" if special else "green") if trained else "dim" if special else "")
        console.print(line)
        console.print()


def spans(ids: Sequence[int], mask: Sequence[int], tokenizer: Tokenizer) -> Iterator[tuple[str, bool, bool]]:
    """(text, trained, special) of each run of tokens of one kind; a special token shows its name, an escape a sign."""
    names = {id: name for name, id in tokenizer.specials.items()}
    for (trained, special), run in groupby(
        zip(ids, mask, strict=True), key=lambda pair: (bool(pair[1]), pair[0] in names)
    ):
        tokens = [token for token, _ in run]
        text = "".join(names[token] for token in tokens) if special else tokenizer.decode(tokens)
        yield text.replace("\x1b", "␛"), trained, special
