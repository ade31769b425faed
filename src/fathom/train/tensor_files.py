"""Tensors in torch.distributed.checkpoint's files, read without trusting them.

Torch's metadata file is a pickle; it is read by a reader that accepts nothing but the few types that belong there, so
a stranger's run folder cannot run code. A module of its own because torch's takes a second to import, which a run
spends when it first saves.
"""

from __future__ import annotations

import io
import pickle
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.metadata import Metadata, StorageMeta, TensorStorageMetadata

from fathom.train.checkpoint import Damaged

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
        content = path.read_bytes()
        try:
            metadata: Metadata = _MetadataUnpickler(io.BytesIO(content)).load()
            stored = metadata.state_dict_metadata.values()
            # Torch unpickles what is no tensor without any limit.
            safe = isinstance(metadata, Metadata) and all(isinstance(one, TensorStorageMetadata) for one in stored)
        except Exception as error:  # bytes that are no pickle make it stumble in many ways
            raise Damaged(f"{path} is not a checkpoint's metadata ({error})", "use another checkpoint") from None
        if not safe:
            raise Damaged(f"{path} speaks of other things than tensors", "use another checkpoint")
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


def write(folder: Path, state: Mapping[str, Any], group: Any = None) -> None:
    """Nested dicts of tensors into an empty folder, synced. Raises OSError, or what torch's writer noticed first.

    With a process group its ranks write together, each what it has; what fails on one fails on all.
    """
    writer = dcp.FileSystemWriter(folder, sync_files=True)
    with _plain_torch():
        dcp.save(dict(state), storage_writer=writer, process_group=group, no_dist=group is None)


def read(folder: Path, state: dict[str, Any]) -> None:
    """Fill the tensors of `state` in place. Raises Damaged for metadata that do not belong in a checkpoint."""
    reader = _SafeReader(folder)
    reader.read_metadata()  # torch would wrap what it says about a bad one
    with _plain_torch():
        dcp.load(state, storage_reader=reader, no_dist=True)
