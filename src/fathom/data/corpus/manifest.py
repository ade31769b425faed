"""corpus.json: what a corpus is, where it came from, and the digest by which everything made of it knows it."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import fathom
from fathom.data.corpus.files import CorpusFile
from fathom.home import write_atomic

Split = Literal["train", "validation"]
MANIFEST = "corpus.json"
SPLITS: tuple[Split, ...] = ("train", "validation")


def write_manifest(
    folder: Path,
    files: Mapping[str, Sequence[CorpusFile]],
    *,
    source: Sequence[str],
    options: Mapping[str, Any] | None = None,
    dropped: Mapping[str, Any] | None = None,
    hub: Mapping[str, Any] | None = None,
) -> None:
    """Write corpus.json into `folder`, whose files (already there) are given by split, in order."""
    content = {
        "format": 1,
        "source": list(source),
        "made_by": f"fathom {fathom.__version__}",
        "made_at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "digest": digest_of(files),
        "splits": {split: _summary(files[split]) for split in SPLITS},
        "options": dict(options or {}),
        "dropped": dict(dropped or {}),
    }
    if hub is not None:
        content["hub"] = dict(hub)
    write_atomic(folder / MANIFEST, json.dumps(content, ensure_ascii=False, indent=1) + "\n")


def digest_of(files: Mapping[str, Sequence[CorpusFile]]) -> str:
    """sha256 over the files' digests, train before validation, in order; the split is part of it."""
    digest = hashlib.sha256()
    for split in SPLITS:
        digest.update(split.encode())
        for file in files[split]:
            digest.update(bytes.fromhex(file.sha256))
    return digest.hexdigest()


def _summary(files: Sequence[CorpusFile]) -> dict[str, Any]:
    return {
        "documents": sum(file.documents for file in files),
        "characters": sum(file.characters for file in files),
        "bytes": sum(file.bytes for file in files),
        "files": [file.as_json() for file in files],
    }
