"""Save, find, load, keep: torch.distributed.checkpoint folders that count only when COMPLETE is in them.

    checkpoints/000500/   __0_0.distcp …, .metadata, meta.json (step, elapsed time, health), COMPLETE

A checkpoint is written aside, synced and renamed. Torch's metadata file is a pickle; it is read by a reader that
accepts nothing but the few types that belong there, so a stranger's run folder cannot run code.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import pickle
import shutil
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.metadata import Metadata, StorageMeta, TensorStorageMetadata

from fathom import tokenizer as tokenizers
from fathom.errors import FathomError
from fathom.hardware import choose_dtype, device_type, torch_dtype
from fathom.home import fsync_folder, run_dir, write_atomic
from fathom.model.gpt import GPT
from fathom.model.shape import Shape
from fathom.record import read_config

COMPLETE = "COMPLETE"

_METADATA_TYPES = {
    ("torch.distributed.checkpoint.metadata", name)
    for name in (
        "Metadata",
        "MetadataIndex",
        "TensorStorageMetadata",
        "BytesStorageMetadata",
        "ChunkStorageMetadata",
        "TensorProperties",
        "StorageMeta",
        "_MEM_FORMAT_ENCODING",
    )
} | {
    ("torch.distributed.checkpoint.filesystem", "_StorageInfo"),
    ("torch", "Size"),
    ("torch.serialization", "_get_layout"),
    ("collections", "OrderedDict"),
    ("pathlib", "PosixPath"),
    ("pathlib", "Path"),
}


class _MetadataUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) in _METADATA_TYPES or (module == "torch" and isinstance(getattr(torch, name), torch.dtype)):
            return super().find_class(module, name)
        raise pickle.UnpicklingError(f"{module}.{name} does not belong in a checkpoint")


class _SafeReader(dcp.FileSystemReader):
    def read_metadata(self, *args: Any, **kwargs: Any) -> Metadata:
        path = Path(self.path) / ".metadata"
        try:
            metadata: Metadata = _MetadataUnpickler(io.BytesIO(path.read_bytes())).load()
            stored = metadata.state_dict_metadata.values()
            # Torch unpickles what is no tensor without any limit.
            safe = isinstance(metadata, Metadata) and all(isinstance(one, TensorStorageMetadata) for one in stored)
        except Exception as error:  # bytes that are no pickle make it stumble in many ways
            raise FathomError(f"{path} is not a checkpoint's metadata ({error})", "use another checkpoint") from None
        if not safe:
            raise FathomError(f"{path} speaks of other things than tensors", "use another checkpoint")
        metadata.storage_meta = getattr(metadata, "storage_meta", None) or StorageMeta()
        metadata.storage_meta.load_id = self.load_id
        return metadata


@contextmanager
def _plain_torch() -> Iterator[None]:
    """Within, errors come out as they were raised (torch wraps them, Ctrl-C too), and no warnings.

    What torch warns of is that a single process needs no process group.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            yield
        except dcp.CheckpointException as error:
            cause, _ = next(iter(error.failures.values()))
            raise cause from None


def folder_of(run_folder: Path, step: int) -> Path:
    return run_folder / "checkpoints" / f"{step:06d}"


def save(run_folder: Path, step: int, state: Mapping[str, Any], meta: Mapping[str, Any]) -> Path:
    """Write `state` (nested dicts of tensors) and `meta` as the checkpoint of `step`; returns its folder.

    A crash at any instant leaves either the whole checkpoint or none. Raises OSError when the disk refuses (and
    RuntimeError where torch's own writer was the first to notice).
    """
    target = folder_of(run_folder, step)
    aside = target.with_name(f".{target.name}.partial")
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir(parents=True)
    try:
        with _plain_torch():
            dcp.save(dict(state), storage_writer=dcp.FileSystemWriter(aside, sync_files=True), no_dist=True)
        write_atomic(aside / "meta.json", json.dumps({"step": step, **meta}, indent=1) + "\n")
        write_atomic(aside / COMPLETE, "")
        _remove(target)
        os.replace(aside, target)
        fsync_folder(target.parent)
    except BaseException:
        shutil.rmtree(aside, ignore_errors=True)
        raise
    return target


def steps(run_folder: Path) -> list[int]:
    """Steps that have a whole checkpoint, ascending."""
    named = [path.parent for path in run_folder.glob(f"checkpoints/[0-9]*/{COMPLETE}") if path.parent.name.isdecimal()]
    return sorted(step for folder in named if folder_of(run_folder, step := int(folder.name)) == folder)


def keep_newest(run_folder: Path, count: int) -> None:
    """Remove all but the newest `count` checkpoints, and what an interrupted save left."""
    for step in steps(run_folder)[:-count]:
        _remove(folder_of(run_folder, step))
    for partial in run_folder.glob("checkpoints/.*.partial"):
        shutil.rmtree(partial, ignore_errors=True)


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
        meta: dict[str, Any] = json.loads((folder / "meta.json").read_text())
    except (OSError, ValueError) as error:
        raise FathomError(f"{folder / 'meta.json'} cannot be read ({error})", "use another checkpoint") from None
    return meta


def has_moments(folder: Path) -> bool:
    """Whether the optimizer's state is in it: an import may have come without."""
    return bool(read_meta(folder).get("moments", True))


def load(folder: Path, state: dict[str, Any]) -> dict[str, Any]:
    """Fill the tensors of `state` (nested dicts, as given to `save`) in place; returns the checkpoint's meta."""
    reader = _SafeReader(folder)
    reader.read_metadata()  # torch would wrap what it says about a bad one
    try:
        with _plain_torch():
            dcp.load(state, storage_reader=reader, no_dist=True)
    except Exception as error:  # a damaged file makes torch stumble in many ways
        reason = (str(error).strip().splitlines() or [type(error).__name__])[-1]
        raise FathomError(
            f"the checkpoint {folder} cannot be loaded ({reason})", "use another, or remove that folder"
        ) from None
    return read_meta(folder)


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


def load_model(
    run: str, step: int | None = None, dtype: str = "auto"
) -> tuple[GPT, tokenizers.Tokenizer, dict[str, Any]]:
    """A trained network on this machine's device, its tokenizer, and {run, step, stage, dtype}."""
    config = read_config(run)
    folder = find(run, step)
    device = device_type().value
    chosen = choose_dtype(dtype, device)
    tokenizer = tokenizer_of(run)
    model = GPT(Shape(**config["model"]), torch_dtype(chosen.value)).to(device)
    load(folder, {"model": model.state_dict()})
    model.to(model.dtype).eval()  # cast once what training casts at each use: the same results, half the memory
    info = {"run": run, "step": int(folder.name), "stage": config["run"]["stage"], "dtype": chosen.value}
    return model, tokenizer, info


def weights_sha256(model: torch.nn.Module) -> str:
    """One digest of every weight's name and bytes."""
    digest = hashlib.sha256()
    for name, weight in sorted(model.state_dict().items()):
        digest.update(name.encode())
        digest.update(weight.detach().cpu().contiguous().view(torch.uint8).numpy().data)
    return digest.hexdigest()
