from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections import namedtuple
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hub_server import NOT_JSON, FakeHub, Fault, answers, drops, fake_hub, stalls

from fathom.data.corpus import Corpus, aside, open_corpus, write_corpus
from fathom.data.hub import fetch_corpus, request
from fathom.data.hub.fetching import Patience
from fathom.errors import FathomError

QUICK = Patience(timeout_s=0.5, attempts=3, first_wait_s=0.01, longest_wait_s=0.05)
CALM = Patience(timeout_s=20)
REPO = "owner/data"


def parquet(*texts: str, column: str = "text", **settings: object) -> bytes:
    sink = BytesIO()
    pq.write_table(pa.table({column: list(texts), "id": list(range(len(texts)))}), sink, **settings)
    return sink.getvalue()


def shard(number: int, rows: int = 40) -> bytes:
    return parquet(*[f"shard {number} document {row} " + "word " * 50 for row in range(rows)])


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, fathom_home: Path) -> Iterator[FakeHub]:
    from huggingface_hub import constants
    from huggingface_hub.utils import close_session

    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    close_session()
    with fake_hub() as server:
        server.repos[REPO] = {f"shard_{i:05d}.parquet": shard(i) for i in range(6)} | {"README.md": b"# data"}
        server.in_git.add("README.md")
        yield server
    close_session()


def get(hub: FakeHub, shards: object = 2, what: str = REPO, patience: Patience = QUICK, **settings: object) -> Corpus:
    return fetch_corpus(request(what, shards, **settings), patience=patience, endpoint=hub.url)  # type: ignore[arg-type]


def fetched(hub: FakeHub) -> list[str]:
    return sorted({seen.path for seen in hub.seen})


def origins(corpus: Corpus, split: str) -> list[str]:
    return [file.origin for file in corpus.described_files(split)]  # type: ignore[arg-type]


def test_shards_become_corpus_files_byte_for_byte(hub: FakeHub) -> None:
    corpus = get(hub, 2)
    assert corpus.name == "data"
    assert [path.name for path in corpus.files("train")] == ["train-00000.parquet", "train-00001.parquet"]
    assert [path.read_bytes() for path in corpus.files("train")] == [shard(0), shard(1)]
    assert [path.read_bytes() for path in corpus.files("validation")] == [shard(5)]
    assert fetched(hub) == ["shard_00000.parquet", "shard_00001.parquet", "shard_00005.parquet"]
    assert corpus.n_documents("train") == 80 and corpus.n_documents("validation") == 40
    texts = list(corpus.documents("train"))
    assert corpus.n_bytes("train") == sum(len(text.encode()) for text in texts)
    assert texts[0].startswith("shard 0 document 0 ") and texts[79].startswith("shard 1 document 39 ")
    assert not list(corpus.folder.parent.glob(".*.fetching")) and not list(corpus.folder.parent.glob(".*.making"))


def test_more_shards_later_fetch_only_the_missing_ones(hub: FakeHub) -> None:
    before = get(hub, 2)
    hub.seen.clear()
    after = get(hub, 4)
    assert fetched(hub) == ["shard_00002.parquet", "shard_00003.parquet"]
    assert origins(after, "train") == [f"shard_{i:05d}.parquet" for i in range(4)]
    assert [path.read_bytes() for path in after.files("train")] == [shard(i) for i in range(4)]
    assert after.described_files("validation") == before.described_files("validation")
    assert after.digest != before.digest
    assert open_corpus("data").n_documents("train") == 160


def test_what_is_here_already_asks_the_hub_nothing(hub: FakeHub) -> None:
    get(hub, "all")
    hub.seen.clear()
    hub.api_seen.clear()
    assert len(get(hub, 2).files("train")) == 5
    assert len(get(hub, "all").files("train")) == 5
    assert len(get(hub, 99).files("train")) == 5
    assert hub.seen == [] and hub.api_seen == []


def test_a_later_fetch_stays_at_the_commit_of_the_first(hub: FakeHub) -> None:
    get(hub, 1)
    hub.api_seen.clear()
    get(hub, 2)
    assert hub.api_seen[0].endswith("/revision/c0ffee" + "0" * 34)


def test_another_revision_is_another_corpus(hub: FakeHub) -> None:
    get(hub, 1, revision="v1")
    for shards in (1, 2):
        with pytest.raises(
            FathomError, match="corpus 'data' was fetched with --revision 'v1'; give the same, or choose"
        ):
            get(hub, shards)
    for shards, revision in ((2, "v1"), (3, "c0ffee" + "0" * 34)):
        assert get(hub, shards, revision=revision).manifest["hub"]["asked"] == "v1"
    assert get(hub, 1, name="other").manifest["hub"]["asked"] == "main"


def test_a_corpus_that_does_not_say_which_revision_it_is_of_is_added_to(hub: FakeHub) -> None:
    path = get(hub, 1, revision="v1").folder / "corpus.json"
    manifest = json.loads(path.read_text())
    del manifest["hub"]["asked"]
    path.write_text(json.dumps(manifest))
    assert "asked" not in get(hub, 2, revision="v1").manifest["hub"]


def test_a_fetch_that_was_given_up_goes_on_where_it_was(hub: FakeHub, fathom_home: Path) -> None:
    half = len(shard(1)) // 2
    hub.faults["shard_00001.parquet"] = [drops(half), *[answers(500)] * 5]
    with pytest.raises(FathomError, match=r"shard_00001\.parquet could not be fetched"):
        get(hub, 2, workers=1)
    assert not (fathom_home / "corpora" / "data").exists()
    hub.seen.clear()
    hub.faults.clear()
    corpus = get(hub, 2)
    assert [(seen.path, seen.start) for seen in hub.seen] == [("shard_00001.parquet", half)]
    assert [path.read_bytes() for path in corpus.files("train")] == [shard(0), shard(1)]


def test_an_interrupted_process_goes_on_where_it_was(hub: FakeHub, fathom_home: Path, tmp_path: Path) -> None:
    hub.repos[REPO] = {"a.parquet": parquet(*[os.urandom(3000).hex() for _ in range(200)]), "b.parquet": shard(1)}
    size = len(hub.repos[REPO]["a.parquet"])
    hub.faults["a.parquet"] = [stalls(size // 2)]
    environment = os.environ | {
        "HF_ENDPOINT": hub.url,
        "HF_HUB_CACHE": str(tmp_path / "cache"),
        "NO_PROXY": "127.0.0.1",
    }
    command = [sys.executable, "-m", "fathom", "data", "get", REPO, "--shards", "1"]
    part = fathom_home / "corpora" / ".data.fetching"
    with subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True) as first:
        try:
            deadline = time.monotonic() + 60
            while sum(path.stat().st_size for path in part.glob("*-a.parquet.part")) < size // 2:
                assert time.monotonic() < deadline and first.poll() is None
                time.sleep(0.02)
            first.send_signal(signal.SIGINT)
            _, said = first.communicate(timeout=30)
        finally:
            first.kill()
    assert first.returncode == 130 and "Traceback" not in said
    second = subprocess.run([*command, "--json"], env=environment, capture_output=True, text=True, timeout=60)
    assert second.returncode == 0, second.stderr
    result = json.loads(second.stdout)
    assert result["corpus"] == "data" and result["source"] == ["owner/data on the hub"]
    assert result["train"]["documents"] == 200 and result["train"]["files"] == 1
    assert hub.starts("a.parquet") == [0, size // 2]


@pytest.mark.parametrize(
    "fault", [answers(429, Retry_After="0"), answers(500), stalls(0), NOT_JSON], ids=["429", "500", "stall", "not json"]
)
def test_a_listing_that_fails_once_is_asked_again(hub: FakeHub, fault: Fault) -> None:
    hub.faults["api"] = [fault]
    assert get(hub, 1).n_documents("train") == 40


def test_a_listing_of_several_pages_is_read_to_its_end(hub: FakeHub) -> None:
    hub.page_size = 2
    assert len(get(hub, "all").files("train")) == 5


def test_wrong_bytes_never_become_a_corpus(hub: FakeHub, fathom_home: Path) -> None:
    hub.faults["shard_00000.parquet"] = [Fault("wrong")] * 9
    with pytest.raises(FathomError, match=r"shard_00000\.parquet arrived 3 times with other content"):
        get(hub, 1)
    assert not (fathom_home / "corpora" / "data").exists()


def test_files_are_fetched_side_by_side(hub: FakeHub) -> None:
    hub.gate = threading.Event()
    opener = threading.Thread(target=_open_when, args=(hub, 3))
    opener.start()
    get(hub, 4, workers=3, patience=CALM)
    opener.join()
    assert hub.most_at_once == 3


def _open_when(hub: FakeHub, requests: int) -> None:
    deadline = time.monotonic() + 5
    while hub.at_once < requests and time.monotonic() < deadline:
        time.sleep(0.01)
    assert hub.gate is not None
    hub.gate.set()


def test_one_fetches_and_the_others_wait(hub: FakeHub, capfd: pytest.CaptureFixture[str]) -> None:
    corpora: list[Corpus] = []
    threads = [threading.Thread(target=lambda: corpora.append(get(hub, 2, patience=CALM))) for _ in range(3)]
    hub.gate = threading.Event()
    for thread in threads:
        thread.start()
    time.sleep(1.5)
    hub.gate.set()
    for thread in threads:
        thread.join()
    assert len({corpus.digest for corpus in corpora}) == 1 and len(corpora) == 3
    assert len(hub.seen) == 3
    assert f"waiting for process {os.getpid()} on" in capfd.readouterr().err


def test_a_disk_too_small_is_said_before_anything_is_fetched(hub: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(aside.shutil, "disk_usage", lambda path: usage(10**12, 10**12, 1000))
    with pytest.raises(FathomError, match=r"fetching 3 files of owner/data needs about .* has 1\.0 KB free"):
        get(hub, 2)
    assert hub.seen == []


def test_a_column_that_is_not_there_is_named(hub: FakeHub) -> None:
    hub.repos[REPO] = {f"{i}.parquet": parquet("a", "b", column="content") for i in range(3)}
    with pytest.raises(FathomError, match=r"has no column 'text', only 'content', 'id'; give the name"):
        get(hub, 1)
    corpus = get(hub, 1, column="content")
    assert list(corpus.documents("train")) == ["a", "b"]
    assert [path.name for path in corpus.files("validation")] == ["validation-00000.parquet"]
    with pytest.raises(FathomError, match="was fetched with --files '\\*' and --column 'content'"):
        get(hub, 2)


def test_lines_and_text_are_rewritten(hub: FakeHub) -> None:
    rows = [json.dumps({"text": text}) for text in ("one", "", "two")]
    hub.repos[REPO] = {"a.jsonl": "\n".join(rows).encode(), "b.jsonl": b"\n", "c.jsonl": rows[2].encode()}
    corpus = get(hub, "all")
    assert list(corpus.documents("train")) == ["one", "two"]
    assert list(corpus.documents("validation")) == ["two"]
    assert corpus.manifest["hub"]["train"] == ["a.jsonl", "b.jsonl"]
    hub.repos["owner/texts"] = {"a.txt": b"alpha", "b.txt": b"beta", "README.md": b"# x"}
    corpus = get(hub, "all", "owner/texts")
    assert list(corpus.documents("train")) == ["alpha"] and list(corpus.documents("validation")) == ["beta"]


def test_broken_lines_are_left_out_when_asked(hub: FakeHub) -> None:
    hub.repos[REPO] = {"a.jsonl": b'{"text": "one"}\n{"text": \n', "b.jsonl": b'{"text": "two"}\n'}
    with pytest.raises(FathomError, match=r"line 2 of .*a\.jsonl is not JSON"):
        get(hub, 1)
    corpus = get(hub, 1, skip_broken=True)
    assert list(corpus.documents("train")) == ["one"]
    assert corpus.manifest["dropped"]["broken"] == 1


def test_parquet_with_enormous_row_groups_is_rewritten(hub: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    from fathom.data.corpus import files as corpus_files

    monkeypatch.setattr(corpus_files, "LARGEST_GROUP_BYTES", 10_000)
    monkeypatch.setattr(corpus_files, "GROUP_BYTES", 5_000)
    big = parquet(*[f"{i} " + os.urandom(300).hex() for i in range(50)], row_group_size=50)
    hub.repos[REPO] = {"a.parquet": big, "b.parquet": shard(0, rows=3)}
    corpus = get(hub, 1)
    assert pq.read_metadata(corpus.files("train")[0]).num_row_groups > 3
    assert [text.split()[0] for text in corpus.documents("train")] == [str(i) for i in range(50)]


def test_a_dataset_of_one_file_is_divided(hub: FakeHub) -> None:
    hub.repos[REPO] = {"all.parquet": parquet(*[f"document {i}" for i in range(500)])}
    corpus = get(hub, 1)
    both = [*corpus.documents("train"), *corpus.documents("validation")]
    assert sorted(both) == sorted(f"document {i}" for i in range(500))
    assert 0 < corpus.n_documents("validation") < 120
    hub.seen.clear()
    assert get(hub, "all").digest == corpus.digest
    assert hub.seen == []


def test_refusals_of_the_hub_are_one_sentence(hub: FakeHub) -> None:
    with pytest.raises(FathomError, match="the hub knows no dataset owner/other, or it is private; check the name"):
        get(hub, 1, "owner/other")
    hub.faults["api"] = [answers(403, X_Error_Code="GatedRepo")]
    with pytest.raises(FathomError, match="open only to those who accepted its terms"):
        get(hub, 1)
    hub.faults["api"] = [answers(404, X_Error_Code="RevisionNotFound")]
    with pytest.raises(FathomError, match="no such revision"):
        get(hub, 1, revision="nope")
    hub.faults["api"] = [answers(400)]
    with pytest.raises(FathomError, match=r"the hub refuses owner/data \(400 answer 400\)"):
        get(hub, 1)


def test_a_name_that_is_taken_is_not_touched(hub: FakeHub) -> None:
    mine = write_corpus("data", ["a"], ["b"], "me")
    with pytest.raises(FathomError, match="exists already and is not of owner/data; choose another name with --name"):
        get(hub, 1)
    assert open_corpus("data").digest == mine.digest
    assert get(hub, 1, name="other").name == "other"


def test_offline_needs_what_is_here(hub: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    here = get(hub, 2)
    hub.api_seen.clear()
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert get(hub, 2).digest == here.digest
    with pytest.raises(FathomError, match="not in the hub's cache on this machine, and HF_HUB_OFFLINE forbids"):
        get(hub, 3)
    assert hub.api_seen == []


def test_files_in_the_hub_librarys_cache_are_not_fetched(
    hub: FakeHub, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    store = tmp_path / "cache" / "datasets--owner--data"
    (store / "blobs").mkdir(parents=True)
    snapshot = store / "snapshots" / ("c0ffee" + "0" * 34)
    snapshot.mkdir(parents=True)
    (store / "refs").mkdir()
    (store / "refs" / "main").write_text("c0ffee" + "0" * 34)
    for number in (0, 1):
        content = shard(number)
        blob = store / "blobs" / hashlib.sha256(content).hexdigest()
        blob.write_bytes(content)
        (snapshot / f"shard_{number:05d}.parquet").symlink_to(blob)
    offline = get(hub, 1, name="offline")
    assert [path.read_bytes() for path in offline.files("train")] == [shard(0)]
    assert hub.api_seen == []
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    online = get(hub, 2, name="online")
    assert [path.read_bytes() for path in online.files("train")] == [shard(0), shard(1)]
    assert fetched(hub) == ["shard_00005.parquet"]
