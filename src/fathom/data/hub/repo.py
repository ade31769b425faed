"""A dataset repository: its files and checksums, on the hub, a mirror, or in the hub library's cache on this disk."""

from __future__ import annotations

import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import quote

import fathom
from fathom.data.hub.fetching import Fetcher, Patience, RemoteFile
from fathom.errors import FathomError
from fathom.screen import say

HUB = "https://huggingface.co/"


class Repository:
    """One dataset. `fetcher` carries the user's token; `offline` is what HF_HUB_OFFLINE says."""

    def __init__(self, repo: str, patience: Patience, endpoint: str | None = None) -> None:
        from huggingface_hub import constants
        from huggingface_hub.utils import build_hf_headers

        self.repo = repo
        self.endpoint = (endpoint or constants.ENDPOINT).rstrip("/")
        self.offline = constants.is_offline_mode()
        headers = build_hf_headers(library_name="fathom", library_version=fathom.__version__)
        self.fetcher = Fetcher(headers, patience, threading.Event(), lambda sentence: say(sentence, style="yellow"))

    def listing(self, revision: str) -> tuple[str, list[RemoteFile]]:
        """The commit that `revision` (branch, tag or commit) names, and all files at it."""
        if self.offline:
            return self._cached_listing(revision)
        api = f"{self.endpoint}/api/datasets/{self.repo}"
        what = f"the file list of {self.repo} ({self.endpoint})"
        with hub_errors(self.repo):
            info, _ = self.fetcher.get_json(what, f"{api}/revision/{quote(revision, safe='')}")
            files: list[RemoteFile] = []
            page: str | None = f"{api}/tree/{info['sha']}?recursive=true&expand=false"
            while page:
                entries, page = self.fetcher.get_json(what, self._at_endpoint(page))
                files += [self._remote(entry, info["sha"]) for entry in entries if entry["type"] == "file"]
        return info["sha"], files

    def _at_endpoint(self, url: str) -> str:
        """Mirrors pass on addresses of the hub itself, which may be out of reach: stay with the mirror."""
        return f"{self.endpoint}/{url.removeprefix(HUB)}" if url.startswith(HUB) else url

    def _remote(self, entry: dict[str, Any], commit: str) -> RemoteFile:
        from huggingface_hub import hf_hub_url

        url = hf_hub_url(self.repo, entry["path"], repo_type="dataset", revision=commit, endpoint=self.endpoint)
        if stored := entry.get("lfs"):
            return RemoteFile(entry["path"], url, stored["size"], sha256=stored["oid"])
        return RemoteFile(entry["path"], url, entry["size"], git_sha1=entry["oid"])

    def _cached_listing(self, revision: str) -> tuple[str, list[RemoteFile]]:
        from huggingface_hub import constants

        folder = Path(constants.HF_HUB_CACHE) / f"datasets--{self.repo.replace('/', '--')}"
        reference = folder / "refs" / revision
        commit = reference.read_text().strip() if reference.is_file() else revision
        snapshot = folder / "snapshots" / commit
        if not snapshot.is_dir():
            raise FathomError(
                f"{self.repo} is not in the hub's cache on this machine, and HF_HUB_OFFLINE forbids to fetch it",
                "unset HF_HUB_OFFLINE, or make a corpus of files you have with `fathom data add`",
            )
        paths = [path for path in snapshot.rglob("*") if path.is_file()]
        return commit, [_cached_file(path, path.relative_to(snapshot).as_posix()) for path in paths]

    def cached(self, remote: RemoteFile, commit: str) -> Path | None:
        """The file, if the hub's library has it on this disk already and it is sound."""
        from huggingface_hub import try_to_load_from_cache

        path = try_to_load_from_cache(self.repo, remote.path, revision=commit, repo_type="dataset")
        if not isinstance(path, str) or not remote.is_held_by(Path(path)):
            return None
        return Path(path).resolve()


def _cached_file(path: Path, name: str) -> RemoteFile:
    """In the cache, the name of the stored content is its checksum."""
    checksum = path.resolve().name
    return RemoteFile(
        name,
        url="",
        size=path.stat().st_size,
        sha256=checksum if re.fullmatch("[0-9a-f]{64}", checksum) else "",
        git_sha1=checksum if re.fullmatch("[0-9a-f]{40}", checksum) else "",
    )


@contextmanager
def hub_errors(repo: str) -> Iterator[None]:
    """Turn the hub's exceptions into sentences."""
    from huggingface_hub import errors

    try:
        yield
    except errors.GatedRepoError:
        raise FathomError(
            f"{repo} is open only to those who accepted its terms",
            "accept them on its page on the hub, then set HF_TOKEN or run `hf auth login`",
        ) from None
    except errors.RevisionNotFoundError:
        raise FathomError(f"{repo} has no such revision", "check --revision") from None
    except errors.RepositoryNotFoundError:
        raise FathomError(
            f"the hub knows no dataset {repo}, or it is private",
            "check the name; for a private one set HF_TOKEN or run `hf auth login`",
        ) from None
    except errors.HfHubHTTPError as error:
        answer = f"{error.response.status_code} {error.server_message or error.response.reason_phrase}"
        raise FathomError(f"the hub refuses {repo} ({answer})", "check the name and your HF_TOKEN") from None
