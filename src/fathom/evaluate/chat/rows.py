"""Rows of published sets: from a folder, from what was fetched before, or from the hub; in the order of evaluation."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np

from fathom.data.conversations import numbered_lines, parsed_line
from fathom.errors import FathomError
from fathom.home import home

ENDINGS = (".jsonl.zst", ".jsonl.gz", ".jsonl", ".parquet")
SEED = 42
Row = tuple[str, dict[str, Any]]  # where it stands, what it holds


@dataclass(frozen=True)
class Source:
    """Where a set is: by name in a folder, by path in a dataset of the hub."""

    name: str
    repo: str
    pattern: str


def rows_of(source: Source, folder: Path | None) -> list[Row]:
    """Every row in the order of evaluation: permuted by NumPy's default_rng(42). REFERENCE 6.2

    Looked for in `folder` where one is given, else in $FATHOM_HOME/evaluation, else fetched there. FathomError names
    what is missing, or the file and line that cannot be read.
    """
    kept = home() / "evaluation" / source.repo.replace("/", "--")
    if folder is not None and not folder.is_dir():
        raise FathomError(f"there is no folder {folder}", "name one with --data, or leave it out to fetch from the hub")
    paths = _found(source, folder or kept)
    if not paths and folder is not None:
        raise FathomError(
            f"{folder} holds neither {source.name}.jsonl (also .gz, .zst), {source.name}.parquet nor {source.pattern}",
            "copy the set there, or leave --data out to fetch it from the hub",
        )
    rows = [row for path in paths or _from_hub(source, kept) for row in _read(path)]
    if not rows:
        raise FathomError(f"{source.name} in {folder or kept} holds no rows", "copy or fetch the set again")
    return [rows[i] for i in np.random.default_rng(SEED).permutation(len(rows))]


def _found(source: Source, folder: Path) -> list[Path]:
    named = [path for ending in ENDINGS if (path := folder / (source.name + ending)).is_file()]
    return named[:1] or sorted(path for path in folder.rglob(source.pattern) if path.is_file())


def _from_hub(source: Source, folder: Path) -> list[Path]:
    try:
        return _fetched(source, folder)
    except FathomError as error:
        raise FathomError(error.problem, f"{error.remedy}, or name a folder that holds the set with --data") from None


def _fetched(source: Source, folder: Path) -> list[Path]:
    """The set's files on the hub, now in `folder`, as they lie there."""
    from fnmatch import fnmatchcase

    from fathom.data.hub.fetching import IMPATIENT
    from fathom.data.hub.repo import Repository, hub_errors
    from fathom.screen import bar, say

    hub = Repository(source.repo, IMPATIENT)
    if not hub.offline:
        say(f"{source.name} is not in {folder.parent} yet; asking {urlsplit(hub.endpoint).netloc} for it", style="dim")
    commit, listed = hub.listing("main")
    files = sorted((file for file in listed if fnmatchcase(file.path, source.pattern)), key=lambda file: file.path)
    if not files:
        raise FathomError(f"{source.repo} has no files {source.pattern}", "fetch another revision by hand")
    places = []
    with bar(f"fetching {source.repo}", sum(file.size for file in files)) as progress, hub_errors(source.repo):
        hub.fetcher.moved = progress.advance
        for file in files:
            place = folder / file.path
            place.parent.mkdir(parents=True, exist_ok=True)
            if (cached := hub.cached(file, commit)) is not None:
                places.append(cached)
                continue
            if hub.offline:
                raise FathomError(f"{file.path} is not whole in the hub's cache, and HF_HUB_OFFLINE is set", "unset it")
            part = place.with_name(f".{place.name}.part")
            hub.fetcher.fetch(file, part)
            os.replace(part, place)
            places.append(place)
    return places


def _read(path: Path) -> Iterator[Row]:
    if path.suffix == ".parquet":
        yield from _read_parquet(path)
        return
    for number, line in numbered_lines(path):
        where = f"line {number} of {path}"
        try:
            row = parsed_line(line)
        except FathomError as error:
            raise FathomError(f"{where}: {error.problem}", error.remedy) from None
        if not isinstance(row, dict):
            raise FathomError(f"{where} is no object", "every line is one JSON object")
        yield where, row


def _read_parquet(path: Path) -> Iterator[Row]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        rows = pq.read_table(path).to_pylist()
    except (OSError, pa.ArrowException) as error:
        raise FathomError(f"{path} cannot be read ({str(error).splitlines()[0]})", "copy or fetch it again") from None
    for number, row in enumerate(rows, 1):
        yield f"row {number} of {path}", json.loads(json.dumps(row, default=str))
