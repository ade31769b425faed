"""The evaluation bundle from the web, for a machine that has none: fetched aside, checked, then put in place."""

from __future__ import annotations

import threading
from pathlib import Path
from urllib.parse import urlsplit

import fathom
from fathom.data.corpus.aside import disk_errors, gigabytes
from fathom.data.hub.fetching import IMPATIENT, Fetcher, Patience, RemoteFile
from fathom.errors import FathomError
from fathom.evaluate.core.bundle import Bundle, read_bundle
from fathom.home import fsync_folder, home
from fathom.screen import bar, say

ADDRESS = "https://karpathy-public.s3.us-west-2.amazonaws.com/eval_bundle.zip"
_WHAT = "the evaluation bundle"
_REMEDY = "give --bundle a zip or folder that you have"


def open_bundle(path: Path | None = None) -> Bundle:
    """The bundle at `path` (zip or unpacked folder), else the one under $FATHOM_HOME, which is fetched if need be.

    Raises FathomError where it is missing or broken, or cannot be fetched.
    """
    if path is not None:
        return read_bundle(path.expanduser())
    here = _own()
    return read_bundle(here if here is not None else _fetched())


def _own() -> Path | None:
    places = (home() / "eval_bundle", home() / "eval_bundle.zip")
    return next((place for place in places if place.exists()), None)


def _fetched() -> Path:
    """Fetch it, one process at a time; whoever waited finds it there."""
    from filelock import FileLock

    with disk_errors(home() / "eval_bundle.zip"):
        home().mkdir(parents=True, exist_ok=True)
        with FileLock(home() / ".eval_bundle.lock"):
            return _own() or fetch_bundle(home() / "eval_bundle.zip", ADDRESS, IMPATIENT)


def fetch_bundle(target: Path, address: str, patience: Patience) -> Path:
    """Bring the zip at `address` to `target`, which appears only when every file in it was read whole.

    What a stopped fetch left is gone on with. Raises FathomError.
    """
    from huggingface_hub import constants
    from huggingface_hub.errors import HfHubHTTPError

    if constants.is_offline_mode():
        raise FathomError(f"{_WHAT} is not here, and HF_HUB_OFFLINE forbids fetching it", _REMEDY)
    agent = {"User-Agent": f"fathom/{fathom.__version__}"}
    fetcher = Fetcher(agent, patience, threading.Event(), lambda sentence: say(sentence, style="yellow"))
    part = target.with_name(f".{target.name}.part")
    say(f"{_WHAT} is not in {target.parent} yet; asking {urlsplit(address).netloc} for it", style="dim")
    try:
        remote = RemoteFile(_WHAT, address, fetcher.size_of(_WHAT, address))
        say(f"Fetching {_WHAT} ({gigabytes(remote.size)}) from {address}.")
        with bar("  fetching", remote.size) as progress:
            fetcher.moved = progress.advance
            fetcher.fetch(remote, part)
    except HfHubHTTPError as error:
        raise FathomError(f"{_WHAT} is not at {address} ({error.response.status_code})", _REMEDY) from None
    except FathomError as error:
        again = "check the network and run the command again, it goes on where it was"
        raise FathomError(error.problem, f"{again}, or {_REMEDY}") from None
    _check(part, address)
    part.replace(target)
    fsync_folder(target.parent)
    return target


def _check(part: Path, address: str) -> None:
    """Read every item of every task; a zip of which that fails goes away."""
    try:
        for task in read_bundle(part).tasks:
            task.items()
    except FathomError as error:
        part.unlink()
        raise FathomError(f"{address} sent no whole evaluation bundle: {error.problem}", _REMEDY) from None
