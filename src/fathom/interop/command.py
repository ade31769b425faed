"""`fathom import`: a checkpoint of the reference system becomes a run."""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from fathom.errors import FathomError
from fathom.home import run_dir, tokenizer_dir
from fathom.screen import command_name, say

if TYPE_CHECKING:
    from fathom.interop.folder import Found
    from fathom.tokenizer import Tokenizer
    from fathom.train.settings import Settings


@dataclass(frozen=True)
class Import:
    """Make a run of a checkpoint of nanochat: to measure, talk to, fine-tune and train further."""

    path: tyro.conf.Positional[str]
    """The folder with model_NNNNNN.pt, meta_NNNNNN.json and, to train further, optim_NNNNNN_rankR.pt."""
    name: Annotated[str, tyro.conf.arg(name="run")]
    """Name of the new run, and of its tokenizer."""
    tokenizer: str | None = None
    """The folder with tokenizer.pkl. Default where nanochat keeps it, ../../tokenizer from the checkpoint."""
    step: int | None = None
    """Which checkpoint of the folder. Default the newest."""
    json: bool = False
    """Print one JSON object on standard output at the end."""

    def run(self) -> dict[str, Any]:
        return import_checkpoint(self.path, self.name, self.tokenizer, self.step)


def import_checkpoint(path: str, name: str, tokenizer_path: str | None, step: int | None) -> dict[str, Any]:
    """Write the run `name` and the tokenizer `name`, whole or not at all; returns what --json prints."""
    if run_dir(name).exists():
        raise FathomError(f"the run {name!r} exists already", "choose another --run")

    from fathom.interop.folder import find_checkpoint
    from fathom.interop.moments import read_moments
    from fathom.interop.settings import settings_of
    from fathom.interop.vocabulary import read_vocabulary
    from fathom.interop.weights import read_weights, shape_of

    began = time.monotonic()
    found = find_checkpoint(path, step)
    shape = shape_of(found)
    settings = settings_of(found, shape)
    say(f"{name}: {found.folder}, step {found.step:,}", style="bold")
    tokenizer = read_vocabulary(found, tokenizer_path, shape.vocab_size)
    state: dict[str, Any] = {"model": read_weights(found.model, shape)}
    say(f"  network   depth {shape.n_layer}, {shape.parameters['total']:,} parameters, windows {shape.window_pattern}")
    if found.optimizer:
        state["optimizer"] = read_moments(found.optimizer, shape)
        n_ranks = len(found.optimizer)
        say(f"  optimizer its state, of {n_ranks} rank{'s' * (n_ranks > 1)}")
    else:
        say("  optimizer no state is there: the run can be measured, talked to and fine-tuned, not trained further")
    say(f"  writing   {_size_gb(state):.2g} GB")
    with _made_whole(name, tokenizer, found) as folder:
        _write_run(folder, name, found, settings, tokenizer, state)
    say(f"  done      runs/{name} and tokenizers/{name}")
    say(f"  next      {command_name()} {_next(name, found, settings)}")
    return {
        "run": name,
        "tokenizer": name,
        "stage": found.stage,
        "step": found.step,
        "steps": settings.steps,
        "parameters": shape.parameters["total"],
        "vocab_size": shape.vocab_size,
        "optimizer_ranks": len(found.optimizer),
        "seconds": round(time.monotonic() - began, 3),
    }


def _next(name: str, found: Found, settings: Settings) -> str:
    """The command that goes on with it."""
    if found.stage != "pretrain":
        return f"chat {name}"
    if found.optimizer and found.step < settings.steps:
        return f"pretrain --resume --run {name} --tokenizer {name} --corpus CORPUS"
    return f"sft {name} --data FILE"


@contextmanager
def _made_whole(name: str, tokenizer: Tokenizer, found: Found) -> Iterator[Path]:
    """A folder to fill, which becomes the run's at the end; what fails takes the tokenizer back, if it made it."""
    target, vocabulary = run_dir(name), tokenizer_dir(name)
    aside = target.with_name(f".{name}.partial")
    shutil.rmtree(aside, ignore_errors=True)
    was_there = vocabulary.exists()
    try:
        tokenizer.save(vocabulary, {"imported_with": str(found.folder)})
        aside.mkdir(parents=True)
        yield aside
        try:
            aside.rename(target)
        except OSError:
            raise FathomError(f"the run {name!r} was begun by another process", "choose another --run") from None
    except BaseException:
        shutil.rmtree(aside, ignore_errors=True)
        if not was_there:
            shutil.rmtree(vocabulary, ignore_errors=True)
        raise


def _write_run(
    folder: Path, name: str, found: Found, settings: Settings, tokenizer: Tokenizer, state: dict[str, Any]
) -> None:
    import torch

    from fathom import __version__
    from fathom.record import Record
    from fathom.train import checkpoint

    record, source = Record(folder), str(found.folder)
    seconds = _number(found.meta, "loop_state", "total_training_time") or 0.0
    progress = {
        "seconds": seconds,
        "loss_average": _number(found.meta, "loop_state", "smooth_train_loss") or 0.0,
        "loader_wait_s": 0.0,
        "moments": "optimizer" in state,
    }
    try:
        checkpoint.save(folder, found.step, state, progress)
    except RuntimeError:  # torch's own word for a disk that takes no more
        left = f"{shutil.disk_usage(folder).free / 1e9:.2g} GB left"
        raise FathomError(
            f"the {_size_gb(state):.2g} GB of the run could not be written to a disk with {left}", "make room there"
        ) from None
    record.event("started", step=found.step, imported=source, reference_val_bpb=_number(found.meta, "val_bpb"))
    record.event("saved", step=found.step)
    if found.stage == "pretrain" and found.step < settings.steps:
        record.event("stopped", step=found.step, why="import")
    else:
        tokens = found.step * settings.batch_tokens
        result = {"run": name, "steps": found.step, "tokens": tokens, "seconds": seconds, "val_bpb": None}
        record.event("finished", result=result)
    head = {
        "name": name,
        "fathom": __version__,
        "torch": torch.__version__,
        "created": time.strftime("%Y-%m-%d %H:%M:%S"),
        "stage": found.stage,
        "tokenizer_digest": tokenizer.digest,
        "imported": source,
    }
    config = {key: value for key, value in settings.flat().items() if key not in ("packing", "seed")}
    tables = {
        "run": head,
        "model": asdict(settings.shape),
        "config": {"tokenizer": name, **config},
        "origin": {"run": f"imported from {source}, step {found.step}", **settings.origin},
    }
    record.config(tables)


def _number(table: Any, *keys: str) -> float | None:
    """A finite number of the metadata, None for anything else."""
    for key in keys:
        table = table.get(key) if isinstance(table, dict) else None
    is_number = isinstance(table, (int, float)) and not isinstance(table, bool) and abs(table) < 1e15
    return float(table) if is_number else None


def _size_gb(state: Any) -> float:
    if isinstance(state, dict):
        return sum(_size_gb(value) for value in state.values())
    return float(state.nbytes) / 1e9
