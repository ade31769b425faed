"""What lies under FATHOM_HOME: room, sizes, locks, and what is broken or left over."""

from __future__ import annotations

import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from fathom.errors import FathomError
from fathom.home import home, names, run_dir
from fathom.record import read_config
from fathom.report.commands import resume
from fathom.report.history import History, is_locked, salvaged
from fathom.report.probes import Line
from fathom.report.words import gb
from fathom.screen import plural

NETWORK_FILE_SYSTEMS = ("nfs", "cifs", "smb", "9p", "sshfs", "glusterfs", "ceph", "lustre", "afs", "beegfs", "davfs")
LITTLE_GB = 5.0
LISTED = 8


def place() -> Iterator[Line]:
    """The folder itself: is it there, on what disk, may one write and lock in it?"""
    folder = home()
    chosen = " (FATHOM_HOME)" if os.environ.get("FATHOM_HOME") else ""
    nearest = next((path for path in (folder, *folder.absolute().parents) if path.exists()), Path("/"))
    if nearest != folder:
        yield Line("home", "good", f"{folder}{chosen} is not there yet", "it is made when something is kept")
    if not nearest.is_dir():
        yield Line("home", "broken", f"{nearest} is a file", "nothing can be kept", "choose another FATHOM_HOME")
        return
    if not os.access(nearest, os.W_OK | os.X_OK):
        found = f"{nearest} may not be written"
        yield Line(
            "home", "broken", found, "nothing can be kept", "mend its permissions, or choose another FATHOM_HOME"
        )
        return
    free = shutil.disk_usage(nearest).free / 1e9
    kind = file_system(nearest)
    on = f" on {kind}" if kind else ""
    if nearest == folder:
        yield from _writes_and_locks(folder, f"{folder}{chosen}{on}")
    if free < LITTLE_GB:
        yield Line("disk", "lack", f"{gb(free)} left", "checkpoints and corpora soon find no room", "make room")
    else:
        yield Line("disk", "good", f"{gb(free)} left")
    if any(word in kind for word in NETWORK_FILE_SYSTEMS):
        yield Line(
            "disk",
            "note",
            f"{kind} is a file system over the network",
            "reading batches and saving may be slow, and locks may not be seen by other machines",
            "keep FATHOM_HOME on a disk of this machine, above all while training",
        )
    elif kind == "tmpfs":
        yield Line(
            "disk", "note", "it is in memory (tmpfs)", "what is kept there is gone after a restart", "a real disk"
        )


def _writes_and_locks(folder: Path, found: str) -> Iterator[Line]:
    with tempfile.TemporaryFile(dir=folder) as file:
        file.write(b"x")
        file.flush()
        os.fsync(file.fileno())
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            no = "two processes could train the same run at once"
            yield Line("home", "lack", f"{found}; it takes no locks ({error.strerror})", no, "a disk of this machine")
            return
    yield Line("home", "good", f"{found}; it can be written, and takes locks")


def file_system(folder: Path, table: Path = Path("/proc/mounts")) -> str:
    """The type of the file system that holds it, as the kernel names it; empty where that is not known."""
    try:
        rows = [line.split() for line in table.read_text(errors="replace").splitlines()]
    except OSError:
        return ""
    real = folder.resolve()
    best, kind = -1, ""
    for row in (row for row in rows if len(row) >= 3):
        point = Path(row[1].replace("\\040", " "))
        if (point == real or point in real.parents) and len(point.parts) >= best:
            best, kind = len(point.parts), row[2]
    return kind


def kept() -> Iterator[Line]:
    """Corpora, tokenizers and runs with their sizes."""
    for kind in ("corpora", "tokenizers", "runs"):
        there = names(kind)
        sizes = {name: folder_bytes(home() / kind / name) / 1e9 for name in there}
        largest = sorted(there, key=lambda name: -sizes[name])
        listed = ", ".join(f"{name} {gb(sizes[name])}" for name in largest[:LISTED])
        more = f" and {len(there) - LISTED} more" if len(there) > LISTED else ""
        found = f"{len(there)}, {gb(sum(sizes.values()))}: {listed}{more}" if there else "none"
        yield Line(kind, "good", found)


def folder_bytes(folder: Path) -> int:
    """Of all files below; what cannot be looked at counts nothing, links are not followed."""
    total = 0
    for place_, _, files in os.walk(folder):
        for file in files:
            try:
                total += os.lstat(os.path.join(place_, file)).st_size
            except OSError:
                continue
    return total


def locks() -> Iterator[Line]:
    """What processes work on at this moment."""
    held = [f"the run {name}" for name in names("runs") if is_locked(run_dir(name) / ".lock")]
    corpora = home() / "corpora"
    held += [f"the corpus {path.name[1:-5]}" for path in sorted(corpora.glob(".*.lock")) if is_locked(path)]
    yield Line("at work", "good", ", ".join(held) if held else "no process trains or makes a corpus here")


def remains() -> Iterator[Line]:
    """What interrupted work left behind."""
    for path in sorted((home() / "corpora").glob(".*.fetching")):
        name = path.name[1:].removesuffix(".fetching")
        found = f"the corpus {name} is half fetched ({gb(folder_bytes(path) / 1e9)})"
        yield Line("remains", "note", found, "it cannot be used yet", "`fathom data get` goes on with it, or delete it")
    left = [*(home() / "corpora").glob(".*.making"), *(home() / "corpora").glob(".*.replaced")]
    left += [path for path in (home() / "runs").glob("*/checkpoints/.*.partial") if not _in_use(path)]
    for path in sorted(left):
        found = f"{path} ({gb(folder_bytes(path) / 1e9)}) is what an interrupted process left"
        yield Line("remains", "note", found, "it takes room", "nothing reads it: delete it")


def _in_use(partial: Path) -> bool:
    return is_locked(partial.parents[1] / ".lock")


def runs() -> Iterator[Line]:
    """Runs that did not end as they should."""
    for name in names("runs"):
        try:
            run = salvaged(name)
        except FathomError as error:
            if is_locked(run_dir(name) / ".lock"):
                continue
            empty = not any(path.name != ".lock" for path in run_dir(name).iterdir())
            if empty:
                yield Line("run", "note", f"{name} never began", "nothing is lost", "delete its folder, or train it")
            else:
                yield Line("run", "broken", f"{name}: {error.problem}", "it cannot be resumed", error.remedy)
            continue
        yield from _run(name, run)


def _run(name: str, run: History) -> Iterator[Line]:
    try:
        read_config(name)
    except FathomError as error:
        yield Line(
            "run", "broken", f"{name}: {error.problem}", "it cannot be resumed or talked to", "delete its folder"
        )
        return
    if run.state == "broken off":
        saved = run.checkpoints
        at = f"it goes on from step {saved[-1][0]:,}" if saved else "it begins anew"
        how = f"ended ({run.refusal.rstrip('.')})" if run.refusal else "was killed or crashed"
        found = f"{name} {how} after step {run.steps_done:,}"
        yield Line("run", "note", found, "it is not finished", f"{resume(run) or 'its command with --resume'}: {at}")
    for trouble in run.troubles:
        yield Line("run", "note", f"{name}: {trouble}", "the rest of the record is read", "")
    if run.state == "finished" and not run.checkpoints:
        yield Line(
            "run", "note", f"{name} is finished and has no checkpoint", "one cannot talk to it", "train it again"
        )


def tokens(most: int = 4) -> Iterator[Line]:
    """Tokens of corpora that no tokenizer here can read any more: they take room for nothing."""
    known = {digest[:16] for name in names("tokenizers") if (digest := _tokenizer_digest(name))}
    stale = [
        path
        for path in sorted((home() / "corpora").glob("*/tokens/*"))
        if path.is_dir() and len(path.name) == 16 and path.name not in known
    ]
    if stale and known:
        size = gb(sum(map(folder_bytes, stale)) / 1e9)
        shown = ", ".join(str(path) for path in stale[:most])
        found = f"{plural(len(stale), 'folder')} of tokens of tokenizers that are not here ({size}): {shown}"
        yield Line("remains", "note", found, "they take room", "delete them, if their tokenizer will not come back")


def _tokenizer_digest(name: str) -> str:
    from fathom import tokenizer

    try:
        return tokenizer.load(name).digest
    except FathomError:
        return ""
