"""A conversation as it is typed and read in a terminal: lines, commands, answers that stream, Ctrl-C."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from difflib import get_close_matches
from pathlib import Path
from types import FrameType

from fathom.errors import FathomError
from fathom.generate.running import Event, Finish, PartType
from fathom.generate.sampling import Sampling
from fathom.home import write_atomic
from fathom.screen import say
from fathom.serve.talk import Talk
from fathom.serve.wrapping import Wrapping

DIM, PLAIN = "\x1b[2m", "\x1b[0m"

HELP = """\
/reset          begin a new conversation
/temp 0.8       temperature: 0 always takes the most likely token, more is more varied
/system TEXT    what the model is told at the beginning of the conversation (/system - for nothing)
/save FILE      append the conversation to a .jsonl file, as `fathom sft --data` reads it
/quit           end, as Ctrl-D does; Ctrl-C stops an answer, and twice in a row ends"""


class Dialogue:
    """Reads lines until Ctrl-D, /quit, or two Ctrl-C in a row while nothing is being said."""

    def __init__(self, talk: Talk, sampling: Sampling, max_tokens: int, seed: Callable[[int], int]) -> None:
        """`seed` gives each answer its own, by its number from 0."""
        self._talk, self._sampling, self._max_tokens, self._seed = talk, sampling, max_tokens, seed
        self._n_answer = 0
        self._said_forgetting = self._said_tools = False
        self._commands: dict[str, Callable[[str], None]] = {
            "/help": lambda rest: say(HELP),
            "/reset": self._reset,
            "/temp": self._set_temperature,
            "/system": self._set_system,
            "/save": self._save,
        }

    def run(self) -> int:
        """Talk; returns how many answers were given."""
        with contextlib.suppress(ImportError):
            import readline  # noqa: F401  (where it is imported, input() edits lines)
        say("/help lists commands, Ctrl-C stops an answer, Ctrl-D ends", style="dim")
        while (line := _typed_line()) is not None:
            words = clean(line).strip()
            if words in ("/quit", "/exit"):
                break
            try:
                if words.startswith("/"):
                    self._command(words)
                elif words:
                    self._answer(words)
            except FathomError as error:
                say(str(error), style="yellow")
        return self._n_answer

    def _answer(self, words: str) -> None:
        events = self._talk.ask(words, self._sampling, self._max_tokens, self._seed(self._n_answer))
        self._n_answer += 1
        if self._talk.n_forgotten and not self._said_forgetting:
            self._said_forgetting = True
            say("(the context is full: from here on the oldest turns are forgotten)", style="dim")
        printer, finish = Printer(), None
        with stop_on_interrupt() as stopped:
            for event in events:
                printer.print(event)
                finish = event.finished
                if stopped.is_set():
                    break
        events.close()
        printer.end()
        if printer.had_call and not self._said_tools:
            self._said_tools = True
            say("(in « » stands what the model asked the calculator, and its result)", style="dim")
        if stopped.is_set() and not finish:
            say("(stopped)", style="dim")
        explain(finish, self._talk, self._max_tokens)

    def _command(self, words: str) -> None:
        name, _, rest = words.partition(" ")
        if name not in self._commands:
            near = get_close_matches(name, [*self._commands, "/quit"], n=1)
            raise FathomError(f"there is no command {name}", f"did you mean {near[0]}?" if near else "/help lists them")
        self._commands[name](rest.strip())

    def _reset(self, rest: str) -> None:
        self._talk.reset()
        say("(a new conversation)", style="dim")

    def _set_temperature(self, rest: str) -> None:
        if rest:
            try:
                value = float(rest)
            except ValueError:
                raise FathomError(f"{rest!r} is no temperature", "give a number, as in /temp 0.8") from None
            self._sampling = replace(self._sampling, temperature=value)
        say(f"(temperature {self._sampling.temperature:g})", style="dim")

    def _set_system(self, rest: str) -> None:
        if not rest:
            told = f"the model is told: {self._talk.system}" if self._talk.system else "the model is told nothing"
            say(f"({told}; /system TEXT sets it, /system - takes it away)", style="dim")
            return
        self._talk.system = "" if rest == "-" else rest
        told = self._talk.system or "nothing"
        place = "at the beginning of this conversation" if self._talk.turns else "before your first words"
        say(f"(from the next answer on the model is told {place}: {told})", style="dim")

    def _save(self, rest: str) -> None:
        if not rest:
            raise FathomError("/save needs the name of a file", "write /save talk.jsonl")
        if not self._talk.turns:
            raise FathomError("there is nothing to save yet", "say something first")
        path = Path(rest).expanduser()
        if path.suffix != ".jsonl":
            raise FathomError(f"{rest!r} does not end in .jsonl", "write /save talk.jsonl")
        try:
            before = path.read_bytes() if path.exists() else b""
            line = json.dumps({"messages": self._talk.messages()}, ensure_ascii=False)
            write_atomic(
                path, before + (b"\n" if before and not before.endswith(b"\n") else b"") + f"{line}\n".encode()
            )
        except OSError as error:
            raise FathomError(f"{path} cannot be written ({error.strerror})", "choose another place") from None
        turns, lines = len(self._talk.turns), len(before.splitlines()) + 1
        what = "1 message and its answer" if turns == 1 else f"{turns:,} messages and their answers"
        say(f"(saved: {what}, as line {lines:,} of {path})", style="dim")


class Printer:
    """Writes an answer to standard output as it comes; a call and its result stand dimmed in it, as «12*3=36»."""

    def __init__(self) -> None:
        self._part: PartType = "text"
        self.had_call = False
        self._text = wrapping()
        self._dims = sys.stdout.isatty() and not os.environ.get("NO_COLOR")

    def print(self, event: Event) -> None:
        if event.text:
            self._enter(event.part)
            self._text.write(shown(event.text))

    def end(self) -> None:
        self._enter("text")
        self._text.flush()
        write("\n")

    def _enter(self, part: PartType) -> None:
        if part == self._part:
            return
        dim, plain = (DIM, PLAIN) if self._dims else ("", "")
        if part == "text":
            self._text.mark("»" + plain, 1)
        elif self._part == "text":
            self.had_call = True
            sign = "«" if part == "python" else "«="
            self._text.mark(dim + sign, len(sign))
        else:
            sign = "=" if part == "python_output" else "»«"
            self._text.mark(sign, len(sign))
        self._part = part


@contextlib.contextmanager
def stop_on_interrupt() -> Iterator[threading.Event]:
    """The first Ctrl-C sets the event instead of raising, so that a step is never torn; the second raises."""
    stopped = threading.Event()

    def interrupt(number: int, frame: FrameType | None) -> None:
        if stopped.is_set():
            raise KeyboardInterrupt
        stopped.set()

    before = signal.signal(signal.SIGINT, interrupt)
    try:
        yield stopped
    finally:
        signal.signal(signal.SIGINT, before)


def explain(finish: Finish | None, talk: Talk, max_tokens: int) -> None:
    """Say why an answer ended where it did not end by itself; a broken model raises FathomError."""
    if finish == "error":
        raise FathomError("the run computes no numbers any more (NaN)", "choose an earlier checkpoint with --step")
    if finish == "length" and len(talk.turns[-1].reply) >= max_tokens:
        say(f"(cut at {max_tokens:,} tokens; --max-tokens allows more)", style="dim")
    elif finish == "length":
        say(f"(cut where the context of {talk.engine.seq_len:,} tokens ends)", style="dim")


def clean(text: str) -> str:
    """What was typed, as sound Unicode: a terminal may send bytes that are none."""
    return text.encode("utf-8", "surrogateescape").decode("utf-8", "replace")


def shown(text: str) -> str:
    """A model's words may not steer the terminal: control characters but tab and the line's end are dropped."""
    return "".join(c for c in text if c in "\n\t" or not (ord(c) < 32 or 127 <= ord(c) < 160))


def wrapping() -> Wrapping:
    """Where an answer is written to: in a terminal its lines are broken between words, elsewhere nothing is changed."""
    return Wrapping(write, shutil.get_terminal_size().columns if sys.stdout.isatty() else 0)


def write(text: str) -> None:
    """To standard output at once, with a question mark for what its encoding lacks."""
    try:
        sys.stdout.write(text)
    except UnicodeEncodeError:
        encoding = sys.stdout.encoding
        sys.stdout.write(text.encode(encoding, "replace").decode(encoding))
    sys.stdout.flush()


def _typed_line() -> str | None:
    """The next line, or None at the end: Ctrl-D, or Ctrl-C twice (the first may have come just after an answer)."""
    for is_last in (False, True):
        try:
            if sys.stdout.isatty():
                return input("> ")
            print("> ", end="", file=sys.stderr, flush=True)
            return input()
        except EOFError:
            break
        except KeyboardInterrupt:
            say("" if is_last else "\n(Ctrl-C again or Ctrl-D ends)", style="dim")
            continue
    say()
    return None
