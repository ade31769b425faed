"""`fathom sweep`: a grid of pretraining runs, their queue, their table, and the trial of a winner at a larger depth."""

from __future__ import annotations

import fcntl
import sys
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from fathom.errors import FathomError
from fathom.home import check_name, home, write_atomic
from fathom.record import to_toml
from fathom.screen import say
from fathom.sweep.display import SweepDisplay
from fathom.sweep.grid import Candidate, candidates, parse_grid, parse_seeds
from fathom.sweep.outcome import measure, winner
from fathom.sweep.queue import Queue, slots_of
from fathom.sweep.show import confirmed, show, summary_of
from fathom.train.sameness import difference
from fathom.train.settings import Settings, read_recipe, resolve

FIXED = ("corpus", "tokenizer", "eval_every", "device_batch", "dtype", "compile")


@dataclass(frozen=True)
class Sweep:
    """Pretrain every point of a grid over a recipe, one after another or side by side, and say which is better.

    The first value of every --grid is the baseline. Stopped or killed anywhere, the same command goes on: finished runs
    are kept, half ones resumed, failed ones not tried for ever. More values or seeds may be given later.
    """

    recipe: tyro.conf.Positional[str]
    """TOML file with settings, as `fathom pretrain --recipe` takes it."""
    name: str
    """Name of the sweep; its runs are called NAME-…"""
    corpus: str
    """Corpus to read."""
    tokenizer: str
    """Tokenizer to use."""
    grid: Annotated[tuple[str, ...], tyro.conf.UseAppendAction] = ()
    """KEY=A,B,C: values of one setting, the baseline's first. May be given several times."""
    seeds: str = "1,2,3"
    """Seeds of every point; one seed shows nothing."""
    workers: int = 1
    """Runs side by side on this machine's processor."""
    gpus: str | None = None
    """GPUs to use, one run on each, such as 0,1."""
    confirm_depth: int | None = None
    """Depth at which a winner must beat the baseline again before it is called one."""
    eval_every: int | None = None
    """Measure validation bpb every so many steps, and at the end."""
    eval_tokens: int | None = None
    """Validation tokens each time, the same for all. Default the least that a run would take by itself."""
    device_batch: int | None = None
    """Rows of a micro-batch."""
    dtype: Literal["auto", "bf16", "fp16", "fp32"] = "auto"
    """What flows through the network."""
    compile: Literal["auto", "on", "off"] = "auto"
    """Compiled kernels."""
    tries: int = 2
    """How often a run that crashes is tried in all."""
    retry: bool = False
    """Try runs again that were given up."""
    json: bool = False
    """Print one JSON object on standard output at the end."""

    def run(self) -> dict[str, Any]:
        return sweep(self)


def sweep(config: Sweep) -> dict[str, Any]:
    """Check everything, bring all runs to their end, and say what they show."""
    folder = home() / "sweeps" / check_name(config.name, "sweep")
    if config.workers < 1 or config.tries < 1:
        raise FathomError("--workers and --tries must be at least 1", "leave them out for the defaults")
    gpus = [] if config.gpus is None else [gpu.strip() for gpu in config.gpus.split(",")]
    if not all(gpu.isdecimal() for gpu in gpus) or len(set(gpus)) < len(gpus):
        raise FathomError(f"--gpus is {config.gpus!r}", "list numbers of GPUs, each once, such as 0,1")
    recipe, grid = read_recipe(config.recipe), parse_grid(config.grid)
    points = candidates(config.name, recipe, grid, parse_seeds(config.seeds))
    plans = _plans(config, points)
    confirming = _confirming(config, grid, plans)
    with _alone(folder, config.name):
        measuring = _settled(folder, config, recipe, _measuring(config, plans))
        queue = Queue(folder, _arguments(config, measuring), config.tries)
        found, notes = measure(points, _work(config, queue, points, plans, gpus))
        if config.workers > 1 and not gpus:
            notes.append(f"{config.workers} runs shared the processor, so their times are not those of a run alone")
        summary = summary_of(config.name, folder, points, found, _failures(queue, points), notes)
        best = winner(found)
        if best and confirming:
            trial = [_deeper(config, recipe, point, confirming) for point in (points[0], _of(points, best.label))]
            plans = _plans(config, trial)
            say(f"\n{best.label} against the baseline at depth {confirming}", style="bold cyan")
            alike = _measuring(config, {point.run: plans[point.run] for point in trial[0].points})
            more = Queue(folder, _arguments(config, {**measuring, "eval_tokens": alike["eval_tokens"]}), config.tries)
            measured, more_notes = measure(trial, _work(config, more, trial, plans, gpus))
            summary |= confirmed(best, measured, confirming)
            summary["notes"] += more_notes
            summary["failures"] |= _failures(more, trial)
    if not config.json:
        show(summary)
    return summary


def _plans(config: Sweep, points: Sequence[Candidate]) -> dict[str, Settings]:
    """The settings of every run: what cannot be is refused here, before anything runs."""
    from fathom import tokenizer as tokenizers
    from fathom.data.corpus import open_corpus

    open_corpus(config.corpus)
    vocab = tokenizers.load(config.tokenizer).vocab_size
    return {point.run: resolve({}, point.settings, vocab) for candidate in points for point in candidate.points}


def _confirming(config: Sweep, grid: Mapping[str, Any], plans: Mapping[str, Settings]) -> int | None:
    depth = config.confirm_depth
    if depth is None:
        return None
    if "depth" in grid:
        raise FathomError("--grid sets the depth and --confirm-depth another", "confirm a sweep over something else")
    most = max(plan.depth for plan in plans.values())
    if depth <= most:
        raise FathomError(f"--confirm-depth is {depth} and the sweep's own depth {most}", "choose a larger one")
    return depth


def _deeper(config: Sweep, recipe: Mapping[str, Any], point: Candidate, depth: int) -> Candidate:
    """The same point, same seeds, at another depth."""
    values = {key: [value] for key, value in point.values.items()}
    name = f"{config.name}-confirm-d{depth}"
    return candidates(name, {**recipe, "depth": depth}, values, parse_seeds(config.seeds))[0]


def _of(points: Sequence[Candidate], label: str) -> Candidate:
    return next(point for point in points if point.label == label)


def _measuring(config: Sweep, plans: Mapping[str, Settings]) -> dict[str, Any]:
    """How many validation tokens and which rows, one choice for all, so that all are measured on the same."""
    from fathom.train.intervals import evaluation_plan

    rows_of = "best-fit" if next(iter(plans.values())).rules == "reference" else "lossless"
    least = config.eval_tokens or min(
        evaluation_plan(config.eval_every, None, p.steps, p.batch_tokens, p.shape.seq_len, None)[1] * p.shape.seq_len
        for p in plans.values()
    )
    return {"eval_tokens": least, "validation_rows": rows_of}


def _arguments(config: Sweep, measuring: Mapping[str, Any]) -> list[str]:
    given = {key: getattr(config, key) for key in FIXED} | dict(measuring)
    words = [(f"--{key.replace('_', '-')}", str(value)) for key, value in given.items() if value is not None]
    return [part for pair in words for part in pair]


def _settled(folder: Path, config: Sweep, recipe: Mapping[str, Any], measuring: Mapping[str, Any]) -> dict[str, Any]:
    """Write sweep.toml, or see that it says the same but for grid and seeds. Returns what it says of measuring.

    How it measures is chosen when a sweep begins and stays, or values that are added later could not be compared.
    """
    path = folder / "sweep.toml"
    now = {
        "sweep": {key: value for key in FIXED if (value := getattr(config, key)) is not None},
        "recipe": dict(recipe),
    }
    settled = dict(measuring)
    if path.exists():
        try:
            before = tomllib.loads(path.read_text(encoding="utf-8"))
            settled = dict(before["measuring"])
            words = {"sweep": "--{}", "recipe": "the recipe's {}"}
            tables = [(before[table], now[table], word) for table, word in words.items()]
        except (tomllib.TOMLDecodeError, UnicodeDecodeError, KeyError, TypeError, ValueError) as error:
            raise FathomError(f"{path} cannot be read ({error})", "mend or remove that sweep's folder") from None
        if config.eval_tokens is not None:
            tables.append(({"eval_tokens": settled.get("eval_tokens")}, {"eval_tokens": config.eval_tokens}, "--{}"))
        for was, is_now, word in tables:
            for key in sorted(was.keys() | is_now.keys()):
                if was.get(key) != is_now.get(key):
                    differs = difference(word.format(key.replace("_", "-")), was.get(key), is_now.get(key))
                    raise FathomError(
                        f"the sweep {config.name!r} began {differs}",
                        "go on with what it began with, or choose another --name",
                    )
    asked = {text.partition("=")[0].strip(): text.partition("=")[2] for text in config.grid}
    write_atomic(path, to_toml({**now, "measuring": settled, "grid": asked, "seeds": {"seeds": config.seeds}}))
    return settled


@contextmanager
def _alone(folder: Path, name: str) -> Iterator[None]:
    """The sweep's folder, held by this process alone."""
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / ".lock", "w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise FathomError(f"the sweep {name!r} is at work in another process", "wait for it or stop it") from None
        yield


def _work(
    config: Sweep, queue: Queue, found: Sequence[Candidate], plans: Mapping[str, Settings], gpus: Sequence[str]
) -> set[str]:
    """Bring all to their end. Returns the runs that finished. Exits with 130 where it was stopped."""
    points = [point for candidate in found for point in candidate.points]
    if config.retry:
        for point in points:
            if queue.state(point.run) == "given up":
                queue.forgive(point.run)
    slots = slots_of(config.workers, gpus)
    done = sum(queue.state(point.run) == "finished" for point in points)
    say(f"{config.name}: {len(points)} runs, {done} of them finished, {len(slots)} at a time", style="bold")
    with SweepDisplay(len(points), done, {run: plan.steps for run, plan in plans.items()}, len(slots)) as display:
        is_done = queue.work(points, slots, display)
    if not is_done:
        say("stopped; the same command goes on")
        sys.exit(130)
    return {point.run for point in points if queue.state(point.run) == "finished"}


def _failures(queue: Queue, found: Sequence[Candidate]) -> dict[str, str]:
    runs = [point.run for candidate in found for point in candidate.points]
    return {run: queue.failures(run)[-1]["why"] for run in runs if queue.state(run) == "given up"}
