"""Save, find, load, keep: torch.distributed.checkpoint folders that count only when COMPLETE is in them.

    checkpoints/000500/   __0_0.distcp …, .metadata, meta.json (step, elapsed time, health), COMPLETE

A checkpoint is written aside, synced and renamed.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Container, Mapping
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fathom import tokenizer as tokenizers
from fathom.errors import FathomError
from fathom.hardware import choose_dtype, device_type, torch_dtype
from fathom.home import fsync_folder, run_dir, write_atomic
from fathom.model.shape import Shape
from fathom.ranks import ALONE, Ranks
from fathom.record import read_config

if TYPE_CHECKING:
    import torch

    from fathom.model.gpt import GPT

COMPLETE = "COMPLETE"
TORN = (None, errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.EINVAL)
"""Errors of the system that a checkpoint brings about itself, where a file of it is missing or ends too early."""


class Damaged(FathomError):
    """A checkpoint's files are not those that were saved. One that could only not be read this time is not damaged."""


def folder_of(run_folder: Path, step: int) -> Path:
    return run_folder / "checkpoints" / f"{step:06d}"


def save(run_folder: Path, step: int, state: Mapping[str, Any], meta: Mapping[str, Any], here: Ranks = ALONE) -> Path:
    """Write `state` (nested dicts of tensors) and `meta` as the checkpoint of `step`; returns its folder.

    A crash at any instant leaves either the whole checkpoint or none. Raises OSError when the disk refuses (and
    RuntimeError where torch's own writer was the first to notice). All ranks have to call it; what fails on one fails
    on all.
    """
    from fathom.train import tensor_files

    target = folder_of(run_folder, step)
    aside = target.with_name(f".{target.name}.partial")

    def begin() -> None:
        shutil.rmtree(aside, ignore_errors=True)
        aside.mkdir(parents=True)

    def end() -> None:
        write_atomic(aside / "meta.json", json.dumps({"step": step, **meta}, indent=1) + "\n")
        write_atomic(aside / COMPLETE, "")
        _remove(target)
        os.replace(aside, target)
        fsync_folder(target.parent)

    _on_main(here, begin)
    try:
        tensor_files.write(aside, state, here.savers)
        _on_main(here, end)
    except BaseException:
        if here.is_main:
            shutil.rmtree(aside, ignore_errors=True)
        raise
    return target


def _on_main(here: Ranks, work: Callable[[], None]) -> None:
    """What the main rank does while the others wait; what fails there fails on all."""
    failed: Exception | None = None
    if here.is_main:
        try:
            work()
        except Exception as error:
            failed = error
    fail_together(failed, here)


def fail_together(failed: Exception | None, here: Ranks) -> None:
    """What failed on one rank, or on several, is raised on all. For the threads that save; all have to call it."""
    why = "" if failed is None else str(getattr(failed, "strerror", None) or failed) or type(failed).__name__
    told = here.gather_beside(why)
    if failed is not None:
        raise failed
    if others := next(filter(None, told), ""):
        raise OSError(others)


def steps(run_folder: Path) -> list[int]:
    """Steps that have a whole checkpoint, ascending."""
    named = [path.parent for path in run_folder.glob(f"checkpoints/[0-9]*/{COMPLETE}") if path.parent.name.isdecimal()]
    return sorted(step for folder in named if folder_of(run_folder, step := int(folder.name)) == folder)


def keep(run_folder: Path, newest: int, also: Container[int] = ()) -> None:
    """Remove all checkpoints but the newest and those `also` named, and what an interrupted save left."""
    for step in steps(run_folder)[:-newest]:
        if step not in also:
            _remove(folder_of(run_folder, step))
    for partial in run_folder.glob("checkpoints/.*.partial"):
        shutil.rmtree(partial, ignore_errors=True)


def put_aside(run_folder: Path, step: int) -> None:
    """Keep a damaged checkpoint for whoever wants to look at it, where it no longer counts as one."""
    folder = folder_of(run_folder, step)
    aside = folder.with_name(f"{folder.name}.damaged")
    shutil.rmtree(aside, ignore_errors=True)
    os.replace(folder, aside)


def _remove(folder: Path) -> None:
    """Rename first: a crash in the middle must not leave half a checkpoint that looks whole."""
    doomed = folder.with_name(f".{folder.name}.old.partial")
    shutil.rmtree(doomed, ignore_errors=True)
    with suppress(OSError):
        os.replace(folder, doomed)
        shutil.rmtree(doomed, ignore_errors=True)


def read_meta(folder: Path) -> dict[str, Any]:
    """What was saved beside the tensors. Raises FathomError where it cannot be read."""
    try:
        meta = json.loads((folder / "meta.json").read_text())
        if not isinstance(meta, dict):
            raise ValueError("it holds no object")
    except (OSError, ValueError, MemoryError) as error:
        raise _unreadable(f"{folder / 'meta.json'} cannot be read", error, "use another checkpoint") from None
    return meta


def has_moments(folder: Path) -> bool:
    """Whether the optimizer's state is in it: an import may have come without."""
    return bool(read_meta(folder).get("moments", True))


def load(folder: Path, state: dict[str, Any]) -> dict[str, Any]:
    """Fill the tensors of `state` (nested dicts, as given to `save`) in place; returns the checkpoint's meta.

    Raises FathomError: `Damaged` where another try would do no better.
    """
    from fathom.train import tensor_files

    try:
        tensor_files.read(folder, state)
    except FathomError:
        raise
    except Exception as error:  # a damaged file makes torch stumble in many ways
        remedy = "use another, or remove that folder"
        raise _unreadable(f"the checkpoint {folder} cannot be loaded", error, remedy) from None
    return read_meta(folder)


def _unreadable(what: str, error: Exception, remedy: str) -> FathomError:
    reason = (str(error).strip().splitlines() or [type(error).__name__])[-1]
    if _may_pass(error):
        return FathomError(f"{what} ({reason})", "that need not be its fault: see to disk and memory, and try again")
    return Damaged(f"{what} ({reason})", remedy)


def _may_pass(error: Exception) -> bool:
    """Whether it says something of this moment (a disk that does not answer, a full memory), not of the files."""
    if isinstance(error, RuntimeError):
        from fathom.train.step import is_out_of_memory

        return is_out_of_memory(error)
    return isinstance(error, MemoryError) or (isinstance(error, OSError) and error.errno not in TORN)


def find(run: str, step: int | None = None) -> Path:
    """The folder of a run's checkpoint, the newest unless `step` says which. Raises FathomError where there is none."""
    read_config(run)
    there = steps(run_dir(run))
    if not there:
        raise FathomError(f"the run {run!r} has no checkpoint yet", "train it first, or go on with --resume")
    if step is not None and step not in there:
        raise FathomError(f"the run {run!r} has no checkpoint of step {step}", f"it has {', '.join(map(str, there))}")
    return folder_of(run_dir(run), there[-1] if step is None else step)


def tokenizer_of(run: str) -> tokenizers.Tokenizer:
    """The tokenizer that a run was trained with. Raises FathomError where another one has its name now."""
    config = read_config(run)
    tokenizer = tokenizers.load(config["config"]["tokenizer"])
    if tokenizer.digest != config["run"]["tokenizer_digest"]:
        raise FathomError(
            f"the tokenizer {config['config']['tokenizer']!r} is not the one that {run!r} was trained with",
            "put the old tokenizer back",
        )
    return tokenizer


def look_up(run: str, step: int | None = None) -> None:
    """FathomError where `load_model` would find no checkpoint, or not the tokenizer. Torch is not needed for that."""
    find(run, step)
    tokenizer_of(run)


def load_model(
    run: str, step: int | None = None, dtype: str = "auto"
) -> tuple[GPT, tokenizers.Tokenizer, dict[str, Any]]:
    """A trained network on this machine's device, its tokenizer, and {run, step, stage, dtype}."""
    config = read_config(run)
    folder = find(run, step)
    from fathom.model.gpt import GPT

    device = device_type().value
    chosen = choose_dtype(dtype, device)
    tokenizer = tokenizer_of(run)
    model = GPT(Shape(**config["model"]), torch_dtype(chosen.value)).to(device)
    load(folder, {"model": model.state_dict()})
    model.to(model.dtype).eval()  # cast once what training casts at each use: the same results, half the memory
    info = {"run": run, "step": int(folder.name), "stage": config["run"]["stage"], "dtype": chosen.value}
    return model, tokenizer, info


def weights_sha256(model: torch.nn.Module) -> str:
    """One digest of every weight's name and bytes. Of weights that are split over ranks, all ranks have to ask."""
    import torch

    digest = hashlib.sha256()
    for name, weight in sorted(model.state_dict().items()):
        digest.update(name.encode())
        whole = weight.full_tensor() if hasattr(weight, "full_tensor") else weight
        digest.update(whole.detach().cpu().contiguous().view(torch.uint8).numpy().data)
    return digest.hexdigest()
