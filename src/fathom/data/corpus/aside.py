"""Corpora are built in a hidden folder beside their place and renamed when whole, by one process at a time.

corpora/
  NAME/             whole; nothing else ever bears a corpus's name
  .NAME.making/     being built; what a crash left here is removed by the next build of NAME
  .NAME.fetching/   being fetched; what is left here is where the next fetch of NAME goes on
  .NAME.replaced/   the former NAME, between two renames
  .NAME.lock        held while one of the above is written
  .NAME.owner       who holds it, for those who wait
"""

from __future__ import annotations

import errno
import json
import os
import shutil
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from fathom.errors import FathomError
from fathom.home import corpus_dir, fsync_folder, write_atomic
from fathom.screen import say

SAY_WAITING_AFTER_S = 0.5
SAY_STILL_WAITING_EVERY_S = 10.0


def aside_dir(name: str, suffix: str) -> Path:
    """The hidden neighbour of corpus `name`: "making", "fetching", "replaced", "lock" or "owner"."""
    place = corpus_dir(name)
    return place.with_name(f".{place.name}.{suffix}")


@contextmanager
def only_one(name: str, doing: str, poll_s: float = 0.2) -> Iterator[bool]:
    """Hold the lock on corpus `name`, waiting for whoever holds it. Yields whether it had to wait.

    The system drops the lock of a process that dies, so nobody waits for a dead one.
    """
    from filelock import FileLock, Timeout

    lock_path, owner_path = aside_dir(name, "lock"), aside_dir(name, "owner")
    _make_folder(lock_path.parent)
    lock = FileLock(lock_path)
    waited, said = False, time.monotonic() - SAY_STILL_WAITING_EVERY_S + SAY_WAITING_AFTER_S
    while True:
        try:
            with disk_errors(lock_path):
                lock.acquire(timeout=0)
            break
        except Timeout:
            waited = True
            if time.monotonic() - said >= SAY_STILL_WAITING_EVERY_S:
                said = time.monotonic()
                say(f"Corpus {name}: waiting for {_owner(owner_path)}.")
            time.sleep(poll_s)
    try:
        who = {"pid": os.getpid(), "host": socket.gethostname(), "doing": doing}
        with disk_errors(owner_path):
            write_atomic(owner_path, json.dumps(who))
        _mend_replacement(name)
        yield waited
    finally:
        owner_path.unlink(missing_ok=True)
        lock.release()


@contextmanager
def making(name: str, *, replace: bool = False) -> Iterator[Path]:
    """An empty folder to build corpus `name` in; it becomes the corpus at the end, or vanishes with the failure.

    A body that removes the folder again leaves everything as it was. Call under `only_one`. Raises FathomError when
    `name` exists and is not to be replaced, or when the disk fills.
    """
    place, folder = corpus_dir(name), aside_dir(name, "making")
    if not replace:
        refuse_existing(name)
    shutil.rmtree(folder, ignore_errors=True)
    _make_folder(folder)
    try:
        with disk_errors(folder):
            yield folder
            if folder.exists():
                put_in_place(folder, place)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def put_in_place(folder: Path, place: Path) -> None:
    """Rename a whole `folder` to `place`; a former `place` is removed only once the new one stands."""
    fsync_folder(folder)
    former = place.with_name(f".{place.name}.replaced")
    shutil.rmtree(former, ignore_errors=True)
    if place.exists():
        os.replace(place, former)
    os.replace(folder, place)
    fsync_folder(place.parent)
    shutil.rmtree(former, ignore_errors=True)


def refuse_existing(name: str) -> None:
    if corpus_dir(name).exists():
        raise FathomError(
            f"corpus {name!r} exists already, and what exists is never overwritten",
            "choose another name, or pass --replace to put the new one in its place",
        )


def require_space(needed_bytes: float, what: str) -> None:
    """Raise FathomError when the disk of the home folder has not `needed_bytes` free for `what`."""
    folder = corpus_dir("x").parent
    there = next(p for p in (folder, *folder.parents) if p.exists())
    free = shutil.disk_usage(there).free
    if free < needed_bytes:
        raise FathomError(
            f"{what} needs about {gigabytes(needed_bytes)} of disk, and {there} has {gigabytes(free)} free",
            "make room there, or set FATHOM_HOME to a folder on a bigger disk",
        )


@contextmanager
def disk_errors(folder: Path) -> Iterator[None]:
    """Turn a full or read-only disk into a sentence."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise FathomError(f"the disk of {folder.parent} is full", "make room, then run the command again") from None
        if error.errno in (errno.EROFS, errno.EACCES, errno.ENOTDIR, errno.EEXIST):
            raise FathomError(
                f"{folder.parent} cannot be written ({error.strerror})", "set FATHOM_HOME to a folder of yours"
            ) from None
        raise


def gigabytes(n_bytes: float) -> str:
    """A size for a person: "512 bytes", "38.1 MB", "2.4 GB" (powers of ten)."""
    if n_bytes < 1000:
        return f"{n_bytes:.0f} bytes"
    for unit in ("KB", "MB", "GB"):
        n_bytes /= 1000
        if n_bytes < 999.95 or unit == "GB":
            break
    return f"{n_bytes:.1f} {unit}"


def _make_folder(folder: Path) -> None:
    with disk_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)


def _mend_replacement(name: str) -> None:
    """A crash between the two renames of a replacement leaves the former corpus hidden: bring it back."""
    place, former = corpus_dir(name), aside_dir(name, "replaced")
    if former.exists() and not place.exists():
        os.replace(former, place)


def _owner(path: Path) -> str:
    try:
        who = json.loads(path.read_text())
        return f"process {who['pid']} on {who['host']}, which is {who['doing']} it"
    except (OSError, ValueError, KeyError, TypeError):
        return "another process, which is working on it"
