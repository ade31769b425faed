from __future__ import annotations

import hashlib
import random
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from hub_server import (
    IGNORES_RANGE,
    REDIRECT_EXPIRED,
    SENDS_MORE,
    WRONG_BYTES,
    WRONG_RANGE,
    FakeHub,
    Fault,
    answers,
    drops,
    fake_hub,
    stalls,
    truncates,
)

from fathom.data.hub.fetching import Fetcher, Patience, RemoteFile, Stopped, in_parallel, retry_after_s
from fathom.errors import FathomError

CONTENT = random.Random(5).randbytes(300_000)
QUICK = Patience(timeout_s=0.3, attempts=4, first_wait_s=0.01, longest_wait_s=0.05)


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeHub]:
    from huggingface_hub.utils import close_session

    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    close_session()
    with fake_hub() as server:
        server.repos["owner/data"] = {"a.bin": CONTENT}
        yield server
    close_session()


class Client:
    """A fetcher that remembers what it said and how many bytes it reported."""

    def __init__(self, patience: Patience = QUICK) -> None:
        self.said: list[str] = []
        self.moved = 0
        self.stop = threading.Event()
        self.fetcher = Fetcher({}, patience, self.stop, self.said.append, self._count)

    def _count(self, n_bytes: int) -> None:
        self.moved += n_bytes

    def fetch(self, hub: FakeHub, part: Path, **changed: object) -> None:
        known = {"size": len(CONTENT), "sha256": hashlib.sha256(CONTENT).hexdigest()} | changed
        url = f"{hub.url}/datasets/owner/data/resolve/c0ffee{'0' * 34}/a.bin"
        self.fetcher.fetch(RemoteFile("a.bin", url, **known), part)  # type: ignore[arg-type]


def test_a_file_arrives_whole_from_a_sound_server(hub: FakeHub, tmp_path: Path) -> None:
    client = Client()
    client.fetch(hub, tmp_path / "a")
    assert (tmp_path / "a").read_bytes() == CONTENT
    assert client.moved == len(CONTENT)
    assert client.said == []


def test_what_is_there_already_is_not_fetched_again(hub: FakeHub, tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(CONTENT[:123_456])
    client = Client()
    client.fetch(hub, tmp_path / "a")
    assert hub.starts("a.bin") == [123_456]
    assert client.moved == len(CONTENT) - 123_456
    assert (tmp_path / "a").read_bytes() == CONTENT


def test_a_whole_file_on_disk_is_only_checked(hub: FakeHub, tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(CONTENT)
    Client().fetch(hub, tmp_path / "a")
    assert hub.seen == []


@pytest.mark.parametrize(
    ("faults", "starts"),
    [
        ([drops(100_000)], [0, 100_000]),
        ([drops(100_000), drops(50_000), drops(1)], [0, 100_000, 150_000, 150_001]),
        ([stalls(100_000)], [0, 100_000]),
        ([truncates(100_000)], [0, 100_000]),
        ([answers(500), answers(503)], [0, 0, 0]),
        ([drops(100_000), answers(502)], [0, 100_000, 100_000]),
        ([REDIRECT_EXPIRED], [0, 0]),
        ([drops(100_000), IGNORES_RANGE], [0, 100_000]),
        ([drops(100_000), WRONG_RANGE], [0, 100_000, 100_000]),
        ([WRONG_BYTES], [0, 0]),
        ([drops(100_000), WRONG_BYTES], [0, 100_000, 0]),
    ],
    ids=lambda value: "-".join(f.kind for f in value) if value and isinstance(value[0], Fault) else "",
)
def test_a_fault_is_survived_and_the_fetch_goes_on_where_it_was(
    hub: FakeHub, tmp_path: Path, faults: list[Fault], starts: list[int]
) -> None:
    hub.faults["a.bin"] = list(faults)
    client = Client()
    client.fetch(hub, tmp_path / "a")
    assert (tmp_path / "a").read_bytes() == CONTENT
    assert hub.starts("a.bin") == starts
    assert client.moved == len(CONTENT)
    if faults[-1] is not IGNORES_RANGE:
        assert len(client.said) == len(faults), "each failure is said once"


def test_a_server_that_gets_a_little_further_each_time_is_given_time(hub: FakeHub, tmp_path: Path) -> None:
    hub.faults["a.bin"] = [drops(10_000)] * (3 * QUICK.attempts)
    Client().fetch(hub, tmp_path / "a")
    assert (tmp_path / "a").read_bytes() == CONTENT


def test_a_server_that_starts_over_each_time_is_given_up(hub: FakeHub, tmp_path: Path) -> None:
    hub.faults["a.bin"] = [drops(20_000), *[Fault("drop, ignore range", 10_000)] * 50]
    with pytest.raises(FathomError, match="attempts"):
        Client().fetch(hub, tmp_path / "a")


@pytest.mark.parametrize(
    ("faults", "sentence"),
    [
        (
            [answers(500)] * 9,
            r"a\.bin could not be fetched: the server answers 500 \(a passing failure\) \(4 attempts\)",
        ),
        ([stalls(0)] * 9, r"a\.bin could not be fetched: the server does not answer \(4 attempts\)"),
        ([drops(0)] * 9, r"a\.bin could not be fetched: the connection broke \(4 attempts\)"),
        ([WRONG_BYTES] * 9, r"a\.bin arrived 3 times with other content than its checksum says"),
        ([SENDS_MORE] * 9, r"it has 300008 bytes on the server instead of the 300000 announced"),
    ],
)
def test_a_fault_that_does_not_pass_is_one_sentence(
    hub: FakeHub, tmp_path: Path, faults: list[Fault], sentence: str
) -> None:
    hub.faults["a.bin"] = list(faults)
    with pytest.raises(FathomError, match=sentence):
        Client().fetch(hub, tmp_path / "a")


def test_what_had_arrived_before_giving_up_stays(hub: FakeHub, tmp_path: Path) -> None:
    hub.faults["a.bin"] = [drops(200_000), *[answers(500)] * 9]
    with pytest.raises(FathomError, match="goes on where it was"):
        Client().fetch(hub, tmp_path / "a")
    assert (tmp_path / "a").read_bytes() == CONTENT[:200_000]


def test_retry_after_is_honoured(hub: FakeHub, tmp_path: Path) -> None:
    hub.faults["a.bin"] = [answers(429, Retry_After="1")]
    client = Client()
    waits: list[float | None] = []
    client.stop.wait = lambda timeout=None: waits.append(timeout) or False  # type: ignore[method-assign, func-returns-value]
    client.fetch(hub, tmp_path / "a")
    assert waits == [1.0]
    assert client.said == ["a.bin: the server answers 429 (too many requests); trying again in 1 s (1 of 4)."]


def test_a_wait_beyond_patience_is_reported_at_once(hub: FakeHub, tmp_path: Path) -> None:
    hub.faults["a.bin"] = [answers(429, Retry_After="86400")]
    with pytest.raises(FathomError, match="asks to wait 86400 s; run the command again later"):
        Client().fetch(hub, tmp_path / "a")


def test_retry_after_holds_seconds_or_a_date() -> None:
    assert retry_after_s("120", 0) == 120
    assert retry_after_s("Wed, 21 Oct 2015 07:28:00 GMT", 1445412470) == 10
    assert retry_after_s("Wed, 21 Oct 2015 07:28:00 GMT", 1445412490) == 0
    assert retry_after_s("soon", 0) is None
    assert retry_after_s(None, 0) is None


def test_waits_double_up_to_a_limit() -> None:
    patience = Patience(first_wait_s=1, longest_wait_s=10)
    for failures, wait in [(1, 1), (2, 2), (3, 4), (5, 10), (50, 10)]:
        assert 0.75 * wait <= patience.wait_s(failures) <= 1.25 * wait


def test_a_beginning_that_is_too_long_is_dropped(hub: FakeHub, tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(CONTENT + b"too long")
    Client().fetch(hub, tmp_path / "a")
    assert (tmp_path / "a").read_bytes() == CONTENT


def test_a_wrong_beginning_is_found_out_by_the_checksum(hub: FakeHub, tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"x" * 1000)
    Client().fetch(hub, tmp_path / "a")
    assert (tmp_path / "a").read_bytes() == CONTENT
    assert hub.starts("a.bin") == [1000, 0]


def test_a_file_kept_in_git_is_checked_by_its_git_digest(hub: FakeHub, tmp_path: Path) -> None:
    git = hashlib.sha1(f"blob {len(CONTENT)}\0".encode() + CONTENT).hexdigest()
    Client().fetch(hub, tmp_path / "a", sha256="", git_sha1=git)
    with pytest.raises(FathomError, match="other content than its checksum"):
        Client().fetch(hub, tmp_path / "b", sha256="", git_sha1="0" * 40)


def test_an_empty_file_is_a_file(hub: FakeHub, tmp_path: Path) -> None:
    Client().fetch(hub, tmp_path / "a", size=0, sha256=hashlib.sha256(b"").hexdigest())
    assert (tmp_path / "a").read_bytes() == b""


def test_no_server_is_one_sentence(tmp_path: Path, hub: FakeHub) -> None:
    client = Client(Patience(timeout_s=0.3, attempts=2, first_wait_s=0.01))
    with pytest.raises(FathomError, match="cannot be reached .* check the network"):
        client.fetcher.fetch(RemoteFile("a.bin", "http://127.0.0.1:9/a.bin", 10), tmp_path / "a")


@pytest.mark.parametrize("address", ["http://127.0.0.1:9/a.bin", "http://nobody.invalid/a.bin"])
def test_a_server_that_never_answered_is_soon_given_up_where_that_is_asked_for(
    address: str, hub: FakeHub, tmp_path: Path
) -> None:
    client = Client(replace(QUICK, attempts_to_reach=2))
    with pytest.raises(FathomError, match=r"cannot be reached .*\(2 attempts\)"):
        client.fetcher.fetch(RemoteFile("a.bin", address, 10), tmp_path / "a")
    assert len(client.said) == 1 and client.said[0].endswith("(1 of 2).")


def test_a_server_that_answered_once_is_asked_again_with_patience(hub: FakeHub, tmp_path: Path) -> None:
    client = Client(replace(QUICK, attempts_to_reach=1))
    client.fetch(hub, tmp_path / "a")
    with pytest.raises(FathomError, match=r"cannot be reached .*\(4 attempts\)"):
        client.fetcher.fetch(RemoteFile("b.bin", "http://127.0.0.1:9/b.bin", 10), tmp_path / "b")


def test_stop_ends_a_fetch_in_the_middle(hub: FakeHub, tmp_path: Path) -> None:
    client = Client()
    client.fetcher.moved = lambda n_bytes: client.stop.set()
    with pytest.raises(Stopped):
        client.fetch(hub, tmp_path / "a")
    assert 0 < (tmp_path / "a").stat().st_size < len(CONTENT)


def test_parallel_tasks_all_run_and_the_first_error_is_raised() -> None:
    done: list[int] = []
    for _ in in_parallel([lambda i=i: done.append(i) for i in range(20)], 4, threading.Event()):  # type: ignore[misc]
        pass
    assert sorted(done) == list(range(20))

    stop = threading.Event()

    def fail() -> None:
        raise FathomError("broken", "mend it")

    def wait() -> None:
        assert stop.wait(10)
        raise Stopped

    with pytest.raises(FathomError, match="broken"):
        for _ in in_parallel([wait, fail, wait], 3, stop):
            pass
