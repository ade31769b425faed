"""One call of `fathom eval`: the model, what it is, who shares the work, and where results are kept."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from fathom.errors import FathomError
from fathom.evaluate.results import Result, find_result, write_result
from fathom.model.gpt import GPT
from fathom.ranks import Ranks
from fathom.screen import bar, say
from fathom.tokenizer import Tokenizer

if TYPE_CHECKING:
    from fathom.evaluate_command import Eval

T = TypeVar("T")
OnItems = Callable[[int, int], None]


@dataclass(frozen=True)
class Session:
    """Of any model: what it is, who shares the work, and where results are kept."""

    place: str | Path
    """The run, or a folder for the results of something else."""
    about: dict[str, Any]
    """run, step, stage, dtype, limit."""
    ranks: Ranks
    again: bool
    dump_file: Path | None

    @property
    def limit(self) -> int | None:
        limit: int | None = self.about["limit"]
        return limit

    @property
    def share(self) -> tuple[int, int]:
        """Which items are this rank's."""
        return self.ranks.rank, self.ranks.world

    def kept(
        self,
        task: str,
        data: Mapping[str, Any],
        measure: Callable[[], dict[str, Any]],
        settings: Mapping[str, Any] | None = None,
        *,
        dumped: bool = False,
    ) -> Result:
        """The result of a task: read back where it was measured before, else measured, written, and the same on every
        rank. `measure` is called by all ranks and returns the values; a task that is `dumped` is measured anew for it.
        """
        step, how = self.about["step"], self._how(settings)
        found = None
        if not self.again and not (dumped and self.dump_file):
            found = self._from_main(lambda: find_result(self.place, step, task, how, data))
        if found is not None:
            when = time.strftime("%Y-%m-%d %H:%M", time.localtime(found.get("time", 0)))
            say(f"  {task.rpartition('/')[2]}: read back, measured {when}", style="dim")
            return found
        began = time.perf_counter()
        values = measure()
        return self.write(task, data, values | {"seconds": round(time.perf_counter() - began, 3)}, settings)

    def write(
        self, task: str, data: Mapping[str, Any], values: Mapping[str, Any], settings: Mapping[str, Any] | None = None
    ) -> Result:
        """Keep what came out; the result, the same on every rank."""
        step, how = self.about["step"], self._how(settings)
        return self._from_main(lambda: write_result(self.place, step, task, how, values, data))

    def _how(self, settings: Mapping[str, Any] | None) -> dict[str, Any]:
        return {"limit": self.limit, "dtype": self.about["dtype"]} | dict(settings or {})

    def _from_main(self, work: Callable[[], T]) -> T:
        """What the main rank's `work` gives, on every rank."""
        done: T = self.ranks.gather(work() if self.ranks.is_main else None)[0]  # type: ignore[assignment]
        return done

    @property
    def dump(self) -> Callable[[dict[str, Any]], None] | None:
        """Appends an object to the dump as one line, in one write: ranks share the file."""
        path = self.dump_file
        if path is None:
            return None

        def append(item: dict[str, Any]) -> None:
            with path.open("ab", buffering=0) as file:
                file.write(json.dumps(item, ensure_ascii=False).encode() + b"\n")

        return append


@dataclass(frozen=True)
class RunSession(Session):
    """Of one of our runs."""

    model: GPT
    tokenizer: Tokenizer


def unless_missing(what: str, asked: bool, here: Ranks, work: Callable[[], T]) -> T | None:
    """What `work` opens, on every rank, on the main one first. Where it is refused and nobody `asked` for it: None, and
    a word about it.
    """
    if asked:
        return here.main_first(work)
    found, refusal = None, None
    if here.is_main:
        try:
            found = work()
        except FathomError as error:
            refusal = f"{what} is left out: {error}"
    if refusal := here.gather(refusal)[0]:
        say(refusal, style="yellow")
        return None
    return found if here.is_main else work()


def open_session(config: Eval, here: Ranks) -> RunSession:
    """Load the model and say which it is; empty the file of the dump."""
    from fathom.train.checkpoint import load_model

    say(f"loading {config.name} …", style="dim")
    model, tokenizer, info = load_model(config.name, config.step, config.dtype)
    introduce(
        f"{info['run']}: step {info['step']:,}, {info['stage']}, {info['dtype']} on {model.device.type}", config, here
    )
    about = info | {"limit": config.limit or None}
    return RunSession(config.name, about, here, config.again, emptied(config.dump, here), model, tokenizer)


def introduce(what: str, config: Eval, here: Ranks) -> None:
    """Say what is measured, and how much of it."""
    ranks = f", {here.world} ranks share the items" if here.world > 1 else ""
    limit = f", at most {config.limit:,} items a task" if config.limit else ""
    say(f"{what}{limit}{ranks}", style="bold")


def emptied(dump: str | None, here: Ranks) -> Path | None:
    """The file of the dump, with nothing in it yet."""
    path = Path(dump) if dump else None
    if path is not None:
        here.main_first(lambda: path.write_bytes(b"") if here.is_main else None)
    return path


def tell(label: str, right: int, n: int) -> None:
    """A line for a task that is done."""
    say(f"  {label}: {100 * right / n:.1f} % of {n:,} right", style="dim")


def number(value: float | None) -> float:
    """A number of a result; what is none there is nan."""
    return math.nan if value is None else value


@contextmanager
def counting(label: str, n_items: int) -> Iterator[OnItems]:
    """A bar for a task's items; what it yields is told (items done, of them right)."""
    with bar(f"  {label}", n_items) as progress:
        told = 0

        def on_items(done: int, right: int) -> None:
            nonlocal told
            progress.advance(done - told, f"{100 * right / done:.1f} % right" if done else "")
            told = done

        yield on_items
