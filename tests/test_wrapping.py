"""Answers in a terminal: lines end between words, whatever pieces the words come in."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from rich.cells import cell_len

from fathom.serve.wrapping import LONGEST_HELD, Wrapping

WORDS = st.lists(st.text("abcé日—.", min_size=1, max_size=12), min_size=1, max_size=40)


def wrapped(pieces: list[str], width: int) -> str:
    written: list[str] = []
    lines = Wrapping(written.append, width)
    for piece in pieces:
        lines.write(piece)
    lines.flush()
    return "".join(written)


@given(WORDS, st.integers(min_value=24, max_value=60), st.data())
def test_no_word_is_broken_and_no_line_too_wide(words: list[str], width: int, data: st.DataObject) -> None:
    text = " ".join(words)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(text)), max_size=10)))
    pieces = [text[a:b] for a, b in zip([0, *cuts], [*cuts, len(text)], strict=True)]
    found = wrapped(pieces, width)
    assert found.split() == words
    assert all(cell_len(line) <= width for line in found.split("\n"))
    assert found == wrapped([text], width), "the pieces do not matter"


@given(st.text("ab \n\t", max_size=80), st.integers(0, len("ab \n\t") * 16))
def test_elsewhere_nothing_is_changed(text: str, cut: int) -> None:
    assert wrapped([text[:cut], text[cut:]], 0) == text


@given(st.text("ab \n", max_size=80), st.integers(0, 80))
def test_blanks_and_lines_of_the_answer_stay_where_all_fits(text: str, cut: int) -> None:
    found = wrapped([text[:cut], text[cut:]], 200)
    assert [line.rstrip() for line in found.split("\n")] == [line.rstrip() for line in text.split("\n")]


def test_the_line_is_full_and_the_next_word_begins_another() -> None:
    assert wrapped(["the sea is", " deep and cold"], 10) == "the sea is\ndeep and\ncold"


def test_what_has_no_blanks_comes_as_it_is_written() -> None:
    written: list[str] = []
    lines = Wrapping(written.append, 20)
    lines.write("a" * (LONGEST_HELD + 1))
    assert written == ["a" * (LONGEST_HELD + 1)]


def test_a_sign_stands_right_behind_its_word_and_counts() -> None:
    written: list[str] = []
    lines = Wrapping(written.append, 12)
    lines.write("It is ")
    lines.mark("\x1b[2m«", 1)
    lines.write("12*3 and more")
    lines.flush()
    assert "".join(written) == "It is \x1b[2m«12*3\nand more"
