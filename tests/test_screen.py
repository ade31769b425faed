"""Words for a person: on standard error, as they are, and a plain line now and then where there is no terminal."""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console

from fathom import screen


@pytest.fixture
def said(monkeypatch: pytest.MonkeyPatch) -> Iterator[io.StringIO]:
    """What is said, to a file that is no terminal."""
    file = io.StringIO()
    monkeypatch.setattr(screen, "console", lambda: Console(file=file, highlight=False, soft_wrap=True, width=80))
    yield file


@pytest.fixture
def shown(monkeypatch: pytest.MonkeyPatch) -> Iterator[io.StringIO]:
    """What is said, to a terminal of 40 columns."""
    file = io.StringIO()
    terminal = Console(file=file, highlight=False, soft_wrap=True, width=40, force_terminal=True, color_system=None)
    monkeypatch.setattr(screen, "console", lambda: terminal)
    yield file


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[float]]:
    """A clock that stands where its only element says."""
    now = [100.0]
    monkeypatch.setattr(screen.time, "monotonic", lambda: now[0])
    yield now


def test_words_go_to_standard_error(capfd: pytest.CaptureFixture[str]) -> None:
    screen.console.cache_clear()
    screen.say("hello")
    assert capfd.readouterr() == ("", "hello\n")
    screen.console.cache_clear()


def test_commands_are_written_as_they_are_typed_here(
    said: io.StringIO, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def says(started: str) -> str:
        monkeypatch.setenv("FATHOM_COMMAND", started)
        said.truncate(said.seek(0))
        screen.say("make one with `fathom quickstart`, says fathom of `fathoms`")
        return said.getvalue()

    assert says("./fathom") == "make one with `./fathom quickstart`, says fathom of `fathoms`\n"
    assert "`'/my tools/fathom' quickstart`" in says("/my tools/fathom")
    assert screen.typed("`torchrun -m fathom`") == "`'/my tools/.venv/bin/torchrun' -m fathom`"
    installed = tmp_path / "fathom"
    installed.touch(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert "`fathom quickstart`" in says(str(installed))
    monkeypatch.delenv("FATHOM_COMMAND")
    assert screen.command_name() == "fathom"


def test_in_a_terminal_a_long_line_is_broken_between_words_behind_its_label(shown: io.StringIO) -> None:
    screen.say("  note  none of the samples of step 1,000 runs in a loop")
    screen.say("    nothing is wrong with this one: 100 % of it [x]")
    screen.say("short")
    assert shown.getvalue().splitlines() == [
        "  note  none of the samples of step",
        "        1,000 runs in a loop",
        "    nothing is wrong with this one:",
        "    100 % of it [x]",
        "short",
    ]


def test_a_command_to_copy_and_a_path_stay_in_one_piece(shown: io.StringIO) -> None:
    screen.say("it goes on there: `fathom pretrain --run mine --resume`, says the record")
    screen.say(f"  kept in /{'x' * 50}")
    assert shown.getvalue().splitlines() == [
        "it goes on there:",
        "`fathom pretrain --run mine --resume`,",
        "says the record",
        "  kept in",
        f"  /{'x' * 50}",
    ]


@settings(max_examples=100, deadline=None)
@given(st.text(st.sampled_from("ab `\n-é  "), max_size=120), st.integers(10, 60))
def test_breaking_lines_loses_no_word(text: str, width: int) -> None:
    assert screen.wrapped(text, width).split() == text.split()


@pytest.mark.parametrize("text", ["loss [bold]3[/bold]", "a [/] b", "x" * 300, "日本 √ ½ 🙂", ":smile:", ""])
def test_text_is_printed_as_it_is_on_one_line(said: io.StringIO, text: str) -> None:
    screen.say(text, style="bold")
    assert said.getvalue() == text + "\n"


def test_a_plain_bar_speaks_every_two_seconds(said: io.StringIO, clock: list[float]) -> None:
    with screen.bar("fetching", total=200) as bar:
        bar.advance(50)
        clock[0] += 1.9
        bar.advance(50, "a.txt")
        assert said.getvalue() == ""
        clock[0] += 0.2
        bar.advance(20, "b.txt")
        clock[0] += 1
        bar.advance(20)
        clock[0] += 1.5
        bar.advance(20)
    assert said.getvalue() == "fetching  60 % b.txt\nfetching  80 %\n"


def test_a_plain_bar_of_a_long_work_says_how_much_time_is_left(said: io.StringIO, clock: list[float]) -> None:
    with screen.bar("mmlu", total=1000) as bar:
        clock[0] += 30
        bar.advance(250, "25.1 %")
        clock[0] += 60
        bar.advance(720)
    assert said.getvalue() == "mmlu  25 %, 1:30 left 25.1 %\nmmlu  97 %\n"


def test_a_plain_bar_of_unknown_length_has_no_share(said: io.StringIO, clock: list[float]) -> None:
    with screen.bar("reading") as bar:
        clock[0] += 3
        bar.advance(1, "7 files")
    assert said.getvalue() == "reading 7 files\n"


def test_on_a_terminal_the_bar_is_drawn_and_disappears(monkeypatch: pytest.MonkeyPatch) -> None:
    file = io.StringIO()
    console = Console(file=file, force_terminal=True, width=80, _environ={"TERM": "xterm-256color"})
    monkeypatch.setattr(screen, "console", lambda: console)
    with screen.bar("fetching", total=2) as bar:
        bar.advance(1, "a [half]")
    drawn = file.getvalue()
    assert "fetching" in drawn
    assert "50%" in drawn
    assert "[half]" in drawn
    assert drawn.endswith("\x1b[2K")
