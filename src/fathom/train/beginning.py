"""How a run begins or goes on: its folder and the lock on it, its record, and what it must have begun with (no torch).

A run that exists is never overwritten: it is resumed when that was asked for, else refused.
"""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from difflib import get_close_matches
from pathlib import Path
from typing import IO, Any

from fathom import __version__
from fathom.errors import FathomError
from fathom.home import names, run_dir
from fathom.ranks import ALONE, Ranks
from fathom.record import Record, Silent, events, read_config
from fathom.screen import say
from fathom.train import checkpoint
from fathom.train.resuming import resume_line
from fathom.train.sameness import refuse_another


def say_if_new(name: str) -> None:
    """Tell whoever asked for --resume that there is nothing to resume: the name may be mistyped."""
    if not (run_dir(name) / "run.toml").exists():
        others = [run for run in names("runs") if (run_dir(run) / "run.toml").exists()]
        near = get_close_matches(name, others, n=1)
        hint = f"; did you mean {near[0]!r}? Ctrl-C stops this one" if near else ""
        say(f"there is no run {name!r} to resume, so it begins anew{hint}", style="yellow")


@contextmanager
def locked_run(name: str, here: Ranks = ALONE) -> Iterator[Path]:
    """The run's folder, held by this process (or these ranks) alone; the lock goes with it, however that ends."""
    folder = run_dir(name)
    if not here.is_main:
        yield folder
        return
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / ".lock", "a") as file:
        if not _obtained(file):
            raise FathomError(f"the run {name!r} is being trained by another process", "wait for it or stop it")
        os.utime(folder / ".lock")  # by which `status` knows since when
        try:
            yield folder
        finally:
            if [path.name for path in folder.iterdir()] == [".lock"]:  # refused before it began: no trace of it
                (folder / ".lock").unlink()
                folder.rmdir()


def _obtained(file: IO[str]) -> bool:
    """Whether the lock is ours now. Whoever looks if a run goes on holds it for an instant, so ask more than once."""
    for patience_s in (0.01, 0.05, 0.2, 0.0):
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        except OSError:
            time.sleep(patience_s)
    return False


def begin(
    name: str,
    folder: Path,
    resume: bool,
    tables: Mapping[str, Mapping[str, Any]],
    here: Ranks = ALONE,
    made_by: Sequence[str] = (),
    brought: int | None = None,
) -> tuple[Record, bool]:
    """Open the run's record. Returns it and whether the run was there before.

    `tables` is what run.toml will hold; on resuming all but the table "origin" must be what the run began with.
    `made_by` is what was typed for the pipeline that this run is a stage of, `brought` the step of the checkpoint that
    was brought for it. The main rank sees to it, and the others are told; all of them have to see the folder.
    """
    record = Record(folder) if here.is_main else Silent(folder)
    token = here.from_main(lambda: _marked(folder / ".lock") if here.world > 1 else "")
    if not all(here.gather(here.is_main or _says(folder / ".lock", token))):
        raise FathomError(
            f"not every rank sees the run's folder, {folder}",
            "put FATHOM_HOME on a disk that all machines share",
        )
    return record, here.from_main(lambda: _begin(name, record, resume, tables, made_by, brought))


def _marked(path: Path) -> str:
    token = f"{time.time_ns()}"
    path.write_text(token)
    return token


def _says(path: Path, token: str) -> bool:
    """Whether the file has this text, or gets it within a few seconds: a network's disk takes its time."""
    for _ in range(50):
        with suppress(OSError):
            if path.read_text() == token:
                return True
        time.sleep(0.1)
    return False


def _begin(
    name: str,
    record: Record,
    resume: bool,
    tables: Mapping[str, Mapping[str, Any]],
    made_by: Sequence[str],
    brought: int | None,
) -> bool:
    """Whether the run was there before."""
    known = gone_on_with(name, resume, tables)
    if known is not None:
        if known != read_config(name):  # what no import could know: corpus, precision
            record.config(known)
        return True
    if checkpoint.steps(record.folder) not in ([], [brought]):
        raise _headless(name, "checkpoints")
    import torch

    head = {
        "name": name,
        "fathom": __version__,
        "torch": torch.__version__,
        "created": time.strftime("%Y-%m-%d %H:%M:%S"),
        "made_by": list(made_by) or None,
    }
    record.config({"run": head | dict(tables["run"]), **{k: v for k, v in tables.items() if k != "run"}})
    record.event("started")
    return False


def gone_on_with(
    name: str, resume: bool, tables: Mapping[str, Mapping[str, Any]]
) -> Mapping[str, Mapping[str, Any]] | None:
    """run.toml of the run that goes on, of an imported one with what `tables` adds; None where there is no run yet.

    FathomError where a run is there and was not to be resumed, or cannot be, or began with other than `tables` says; or
    where one has lost its run.toml.
    """
    if not (run_dir(name) / "run.toml").exists():
        for file in ("events.jsonl", "metrics.jsonl"):
            if (run_dir(name) / file).exists():
                raise _headless(name, file)
        return None
    if not resume:
        further = f", train it for longer with --extend {name} as another run" if _can_be_extended(name) else ""
        raise FathomError(f"the run {name!r} exists already", f"go on with --resume{further}, or choose another --run")
    known: Mapping[str, Mapping[str, Any]] = read_config(name)
    again = resume_line(name, known)
    if imported_run(name):
        if not checkpoint.has_moments(checkpoint.find(name)):
            raise FathomError(
                f"the run {name!r} was imported without its optimizer's state",
                "import it with its optim files, or fine-tune it with `fathom sft`",
            )
        known = {table: {**tables.get(table, {}), **values} for table, values in known.items()}
    refuse_another(name, known, tables, again)
    return known


def _can_be_extended(name: str) -> bool:
    """Whether it is a finished pretraining: --resume has nothing to train there."""
    is_base = read_config(name).get("run", {}).get("stage") == "pretrain"
    return is_base and any(line.get("event") == "finished" for line in events(run_dir(name)))


def _headless(name: str, there: str) -> FathomError:
    """A new run would be written amid one whose run.toml is lost, and its older checkpoints would be taken for it."""
    return FathomError(
        f"the run {name!r} has {there} but no run.toml, which says what it is",
        f"copy it back into {run_dir(name)}, move that folder away, or choose another --run",
    )


def imported_run(name: str | None) -> dict[str, Any] | None:
    """run.toml of a run that began elsewhere and was imported; None for every other, and where there is none."""
    if name is None or not (run_dir(name) / "run.toml").exists():
        return None
    tables = read_config(name)
    return tables if "imported" in tables.get("run", {}) else None


def finished_result(folder: Path) -> dict[str, Any] | None:
    """What the run printed when it came to its end, None while it has not."""
    done = [line["result"] for line in events(folder) if line["event"] == "finished"]
    return done[-1] if done else None
