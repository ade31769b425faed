"""`fathom pretrain --extend`: a run goes on for longer, from before its rate fell.

A finished run stands at the end of a warm-down. To train on from there its rate has to rise again, and it gets worse
before it gets better (REFERENCE section 16: 0.935 became 1.016). So the new run begins with the checkpoint from the
start of the warm-down, which every run keeps, and does the steps after it anew at the full rate.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from fathom import scaling
from fathom.errors import FathomError
from fathom.home import fsync_folder, run_dir, write_atomic
from fathom.record import Record, metrics, read_config
from fathom.screen import say
from fathom.train import checkpoint
from fathom.train.settings import KNOBS, Settings, longer, settings_of

LENGTHS = ("steps", "ratio")


@dataclass(frozen=True)
class Extension:
    """A run that goes on from another one's checkpoint."""

    base: str
    step: int
    settings: Settings
    base_steps: int
    tables: Mapping[str, Mapping[str, Any]]
    """run.toml of the run that it goes on from."""


def extension(base: str, flags: Mapping[str, Any], hours: float | None, from_end: bool) -> Extension:
    """What `--extend BASE` with `--steps`, `--ratio` or `--hours` means. FathomError where it cannot be."""
    tables = read_config(base)
    if tables["run"].get("stage") != "pretrain":
        raise FathomError(f"the run {base!r} is no pretraining run", "extend the run that it was fine-tuned from")
    changed = [name for name in KNOBS if flags.get(name) is not None and name not in LENGTHS]
    if changed:
        raise FathomError(
            f"--{changed[0].replace('_', '-')} was given, but an extended run keeps the settings of {base!r}",
            "leave it out, or start a new run",
        )
    settings, folder = settings_of(tables), run_dir(base)
    step = _starting_step(base, folder, settings, from_end)
    steps = _steps(base, flags, hours, settings, step)
    if steps <= settings.steps:
        raise FathomError(
            f"{steps:,} steps are no more than the {settings.steps:,} of {base!r}",
            f"ask for more than {settings.steps:,} with --steps, or for a larger --ratio or --hours",
        )
    return Extension(base, step, longer(settings, steps, f"extends {base} from step {step}"), settings.steps, tables)


def _starting_step(base: str, folder: Path, settings: Settings, from_end: bool) -> int:
    saved, falls_from = checkpoint.steps(folder), settings.schedule.warmdown_from
    if not saved:
        raise FathomError(f"the run {base!r} has no checkpoint", "train it first")
    if from_end:
        return saved[-1]
    before = [step for step in saved if step <= falls_from]
    if not before:
        raise FathomError(
            f"{base!r} has no checkpoint from before its rate fell, at step {falls_from:,} "
            f"(it has {', '.join(f'{step:,}' for step in saved)})",
            f"--from-end goes on from step {saved[-1]:,}, which makes a finished model worse before it gets better",
        )
    return before[-1]


def _steps(base: str, flags: Mapping[str, Any], hours: float | None, settings: Settings, step: int) -> int:
    asked = {name: flags.get(name) for name in LENGTHS} | {"hours": hours}
    given = [name for name, value in asked.items() if value is not None]
    if len(given) != 1:
        found = " and ".join(f"--{name}" for name in given) or "no length"
        raise FathomError(f"{found} given with --extend", "say how long with one of --steps, --ratio or --hours")
    for name in LENGTHS:
        if asked[name] is not None:
            KNOBS[name].check(name, asked[name], "flag")
    if asked["steps"] is not None:
        return int(asked["steps"])
    if asked["ratio"] is not None:
        tokens = scaling.horizon(asked["ratio"], settings.shape.scaling_parameters)
        return scaling.steps_for(settings.batch_tokens, tokens)
    if not 0 < (hours or 0) < 1e6:
        raise FathomError(f"--hours is {hours}", "give the hours that it may train on, above 0")
    step_s = [line["step_s"] for line in metrics(run_dir(base)) if line.get("step_s", 0) > 0]
    if not step_s:
        raise FathomError(f"the record of {base!r} does not say what a step takes", "say how long with --steps")
    return step + int((hours or 0) * 3600 / float(np.median(step_s)))


def same_texts(found: Extension, tables: Mapping[str, Mapping[str, Any]]) -> None:
    """FathomError where corpus or tokenizer are other than those of the run that is extended."""
    for table, word in (("run", "corpus_digest"), ("run", "tokenizer_digest"), ("config", "data_digest")):
        if found.tables[table].get(word) != tables[table].get(word):
            raise FathomError(
                f"the {word.removesuffix('_digest')} is not what {found.base!r} was trained on",
                "put the old one back, or start a new run",
            )


def say_extension(found: Extension) -> None:
    """What is used again, and what is done anew."""
    again = found.base_steps - found.step
    say(f"  extends {found.base} from its checkpoint of step {found.step:,} to {found.settings.steps:,} steps")
    if again > 0:
        say(f"  again   steps {found.step:,} to {found.base_steps:,} at the full rate, which was falling there before")
    else:
        say(
            "  from the end of a warm-down: the rate rises again, and bpb gets worse before it gets better",
            style="yellow",
        )
    falls = found.settings.schedule.warmdown_from
    say(f"  rate    full up to step {falls:,}, then down to the end; momentum and decay follow the new length")


def bring_checkpoint(found: Extension, folder: Path) -> None:
    """Copy the checkpoint to begin with into the new run's folder; whole, or not there."""
    source, target = (checkpoint.folder_of(at, found.step) for at in (run_dir(found.base), folder))
    if (target / checkpoint.COMPLETE).exists():
        return
    aside = target.with_name(f".{target.name}.partial")
    shutil.rmtree(aside, ignore_errors=True)
    shutil.copytree(source, aside, ignore=shutil.ignore_patterns(checkpoint.COMPLETE))
    for file in aside.iterdir():
        with open(file, "rb") as copy:
            os.fsync(copy.fileno())
    write_atomic(aside / checkpoint.COMPLETE, "")
    os.replace(aside, target)
    fsync_folder(target.parent)


def record_extension(found: Extension, name: str, record: Record) -> None:
    """In both runs."""
    record.event("extended", **{"from": found.base, "step": found.step, "steps": found.settings.steps})
    Record(run_dir(found.base)).event("extended_in", run=name, step=found.step)
