"""One file from a web server onto the disk: gone on with where it stopped, checked, tried again with patience.

huggingface_hub 2 removes a half-fetched file when it fails and does not check what plain HTTP brought, so files are
fetched here, with its addresses, its token and its connections. (Files in the hub's newer storage come over plain
HTTP too.)
"""

from __future__ import annotations

import hashlib
import random
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Any, TypeVar

from fathom.data.corpus.aside import gigabytes
from fathom.errors import FathomError

RETRIED_STATUS = frozenset({408, 425, 429, 500, 502, 503, 504})
SPOILED_LIMIT = 3

Result = TypeVar("Result")


@dataclass(frozen=True)
class Patience:
    """How long to wait for a server that does not answer, and how often to come back."""

    timeout_s: float = 30.0
    connect_s: float = 10.0
    attempts: int = 6
    attempts_to_reach: int = 6
    """Of a server that has not answered at all yet: without a network nothing is gained by coming back."""
    first_wait_s: float = 1.0
    longest_wait_s: float = 60.0
    longest_asked_wait_s: float = 900.0

    @property
    def timeout(self) -> Any:
        import httpx2

        return httpx2.Timeout(self.timeout_s, connect=min(self.timeout_s, self.connect_s))

    def wait_s(self, failures: int) -> float:
        """Doubling, and spread out so that many workers do not come back at the same moment."""
        wait = min(self.first_wait_s * 2 ** (failures - 1), self.longest_wait_s)
        return wait * random.uniform(0.75, 1.25)


@dataclass(frozen=True)
class RemoteFile:
    """A file on a server. `sha256`, or `git_sha1` of what git itself stores, is its checksum where one is known."""

    path: str
    url: str
    size: int
    sha256: str = ""
    git_sha1: str = ""

    def is_held_by(self, path: Path) -> bool:
        if path.stat().st_size != self.size:
            return False
        with path.open("rb") as file:
            if self.sha256:
                return hashlib.file_digest(file, "sha256").hexdigest() == self.sha256
            if not self.git_sha1:
                return True
            digest = hashlib.sha1(f"blob {self.size}\0".encode(), usedforsecurity=False)
            return hashlib.file_digest(file, lambda: digest).hexdigest() == self.git_sha1


class Stopped(Exception):
    """The other end of `stop`: somebody else failed, or the person has had enough."""


class Trouble(Exception):
    """A failure that may be gone at the next attempt."""

    def __init__(self, reason: str, asked_wait_s: float | None = None, reached: bool = True) -> None:
        super().__init__(reason)
        self.reason, self.asked_wait_s, self.reached, self.got_further = reason, asked_wait_s, reached, False


@dataclass
class Fetcher:
    """What all fetches of a run share. `tell` says a sentence to a person, `moved` hears of bytes gained (or lost)."""

    headers: dict[str, str]
    patience: Patience
    stop: threading.Event
    tell: Callable[[str], None]
    moved: Callable[[int], None] = lambda n_bytes: None
    was_reached: bool = False
    """Whether any server has answered anything."""

    def patiently(self, what: str, attempt: Callable[[], Result]) -> Result:
        """`attempt` until it succeeds; an attempt that got further than the last one begins the count anew."""
        failures = 0
        while True:
            try:
                result = attempt()
                self.was_reached = True
                return result
            except Trouble as trouble:
                failures = 1 if trouble.got_further else failures + 1
                self.was_reached |= trouble.reached
                most = self.patience.attempts if self.was_reached else self.patience.attempts_to_reach
                if failures >= most:
                    raise FathomError(
                        f"{what} could not be fetched: {trouble.reason} ({failures} attempts)", remedy_for_network()
                    ) from None
                self._pause(what, trouble, failures, most)

    def _pause(self, what: str, trouble: Trouble, failures: int, most: int) -> None:
        wait_s = self.patience.wait_s(failures)
        if trouble.asked_wait_s is not None:
            if trouble.asked_wait_s > self.patience.longest_asked_wait_s:
                raise FathomError(
                    f"{what} could not be fetched: {trouble.reason}, and asks to wait {trouble.asked_wait_s:.0f} s",
                    "run the command again later, it goes on where it was",
                )
            wait_s = max(wait_s, trouble.asked_wait_s)
        self.tell(f"{what}: {trouble.reason}; trying again in {wait_s:.0f} s ({failures} of {most}).")
        if self.stop.wait(wait_s):
            raise Stopped

    def get_json(self, what: str, url: str) -> tuple[Any, str | None]:
        """The JSON at `url` and the address of the next page, if there is one. Hub errors are raised as its own.

        `what` is how a person hears of it.
        """
        from huggingface_hub.utils import get_session, hf_raise_for_status

        def attempt() -> tuple[Any, str | None]:
            with _as_trouble():
                response = get_session().get(url, headers=self.headers, timeout=self.patience.timeout)
                _raise_trouble(response)
                hf_raise_for_status(response)
                try:
                    return response.json(), response.links.get("next", {}).get("url")
                except ValueError:
                    raise Trouble("the server answered with something that is not JSON") from None

        return self.patiently(what, attempt)

    def size_of(self, what: str, url: str) -> int:
        """Bytes of the file at `url`, as its server announces them. Hub errors are raised as its own."""
        from huggingface_hub.utils import get_session

        def attempt() -> int:
            with _as_trouble():
                headers = self.headers | {"Accept-Encoding": "identity"}
                response = get_session().head(url, headers=headers, timeout=self.patience.timeout)
                _raise_trouble(response)
                if "Content-Length" not in response.headers:
                    raise Trouble("the server does not say how large it is")
                return int(response.headers["Content-Length"])

        return self.patiently(what, attempt)

    def fetch(self, remote: RemoteFile, part: Path) -> None:
        """Bring `remote` whole and checked to `part`; what is there already is its beginning.

        Raises FathomError when the server keeps failing or keeps sending something else, Stopped when told to.
        """
        spoiled = 0
        while True:
            self.patiently(remote.path, lambda: self._go_on(remote, part))
            if remote.is_held_by(part):
                return
            self.moved(-part.stat().st_size)
            part.unlink()
            spoiled += 1
            if spoiled == SPOILED_LIMIT:
                raise FathomError(
                    f"{remote.path} arrived {spoiled} times with other content than its checksum says",
                    "run the command again later, or use another mirror (HF_ENDPOINT)",
                )
            self.tell(f"{remote.path} arrived damaged; fetching it again.")

    def _go_on(self, remote: RemoteFile, part: Path) -> None:
        """One request for what is missing of `part`."""
        part.touch()
        have = part.stat().st_size
        if have > remote.size:
            self._drop(part, have)
            have = 0
        if have == remote.size:
            return
        start, gained = have, 0
        try:
            with _as_trouble(), self._stream(remote.url, have) as response:
                _raise_trouble(response)
                start = _start_of(response, have, remote)
                if start < have:
                    self._drop(part, have)
                with part.open("ab") as file:
                    for chunk in response.iter_bytes():
                        if self.stop.is_set():
                            raise Stopped
                        if start + gained + len(chunk) > remote.size:
                            raise Trouble(f"the server sends more than the {gigabytes(remote.size)} it announced")
                        file.write(chunk)
                        file.flush()  # What a killed process had received is there to go on from.
                        gained += len(chunk)
                        self.moved(len(chunk))
                if start + gained < remote.size:
                    raise Trouble("the connection ended early")
        except Trouble as trouble:
            trouble.got_further = start + gained > have
            raise

    def _drop(self, part: Path, have: int) -> None:
        with part.open("wb"):
            self.moved(-have)

    def _stream(self, url: str, have: int) -> Any:
        from huggingface_hub.utils import get_session

        # A compressed answer would make offsets in it and offsets in the file two things.
        headers = self.headers | {"Accept-Encoding": "identity"} | ({"Range": f"bytes={have}-"} if have else {})
        return get_session().stream("GET", url, headers=headers, timeout=self.patience.timeout)


def _start_of(response: Any, have: int, remote: RemoteFile) -> int:
    """Where in the file the answer begins: where we asked, or at 0 from a server that does not know ranges."""
    if response.status_code == 200:
        return 0
    begins, _, total = response.headers.get("Content-Range", "").removeprefix("bytes ").partition("/")
    if total not in (str(remote.size), "*"):
        raise Trouble(f"it has {total} bytes on the server instead of the {remote.size} announced")
    if begins.split("-")[0] != str(have):
        raise Trouble("the server sent another part than was asked for")
    return have


def _raise_trouble(response: Any) -> None:
    """Sort answers: worth another attempt (Trouble), final (the hub's own exceptions), or good."""
    from huggingface_hub.utils import hf_raise_for_status

    status = response.status_code
    # Signed addresses of the file store expire: a refusal there means to ask the hub for a fresh one.
    expired = status in (401, 403) and bool(response.history)
    if status in RETRIED_STATUS or expired:
        asked = retry_after_s(response.headers.get("Retry-After"), time.time())
        meaning = {429: "too many requests", 403: "the address expired"}.get(status, "a passing failure")
        raise Trouble(f"the server answers {status} ({meaning})", asked)
    if status >= 400:
        response.read()
        hf_raise_for_status(response)
    if status not in (200, 206):
        raise Trouble(f"the server answers {status}")


def retry_after_s(value: str | None, now_s: float) -> float | None:
    """Seconds that a Retry-After header asks to wait: it holds seconds, or a date (RFC 9110, 10.2.3)."""
    if not value:
        return None
    if value.strip().isdigit():
        return float(value)
    try:
        return max(0.0, parsedate_to_datetime(value).timestamp() - now_s)
    except ValueError:
        return None


class _as_trouble:
    """Network failures become Trouble with a reason in plain words."""

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        import httpx2

        if isinstance(error, httpx2.TimeoutException):
            raise Trouble("the server does not answer", reached=not isinstance(error, httpx2.ConnectTimeout)) from None
        if isinstance(error, httpx2.ConnectError):
            raise Trouble(f"the server cannot be reached ({error})", reached=False) from None
        if isinstance(error, httpx2.HTTPError) and not hasattr(error, "server_message"):
            raise Trouble("the connection broke") from None


IMPATIENT = Patience(attempts_to_reach=2)
"""Where a person waits who may have the files already."""


def remedy_for_network() -> str:
    return "check the network (HF_ENDPOINT sets a mirror) and run the command again, it goes on where it was"


def in_parallel(tasks: list[Callable[[], None]], workers: int, stop: threading.Event) -> Iterator[None]:
    """Run `tasks`, `workers` at a time, yielding every fifth of a second until all are done; the first error is raised.

    Threads are daemons: a person who stops the program does not wait for a server that does not answer.
    """
    queue, errors, lock = list(reversed(tasks)), [], threading.Lock()  # type: ignore[var-annotated]

    def work() -> None:
        while not stop.is_set():
            with lock:
                if not queue:
                    return
                task = queue.pop()
            try:
                task()
            except BaseException as error:
                errors.append(error)
                stop.set()

    threads = [threading.Thread(target=work, daemon=True) for _ in range(min(workers, len(tasks)))]
    for thread in threads:
        thread.start()
    try:
        for thread in threads:
            while thread.is_alive():
                thread.join(0.2)
                yield
    except BaseException:
        stop.set()
        raise
    real = [error for error in errors if not isinstance(error, Stopped)]
    if errors:
        raise (real or errors)[0]
