"""The sets of the chat tasks: in a folder as JSON lines or Parquet, or from the hub, once; what is broken is named."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hub_server import FakeHub, fake_hub
from huggingface_hub import constants
from huggingface_hub.utils import close_session

from fathom.data.hub import repo
from fathom.errors import FathomError
from fathom.evaluate.chat import KNOWN, open_task
from fathom.evaluate.chat.rows import Source, rows_of

SOURCE = Source("mine_test", "someone/mine", "all/test-*.parquet")
ROWS = [{"question": f"{n}?", "choices": ["x", "y"], "answer": n % 2} for n in range(5)]


@pytest.fixture
def hub(fathom_home: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[FakeHub]:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    close_session()
    with fake_hub() as hub:
        monkeypatch.setattr(repo, "Repository", partial(repo.Repository, endpoint=hub.url))
        yield hub
    close_session()


def parquet(some: list[dict[str, object]]) -> bytes:
    file = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(some), file)
    return file.getvalue()


def numbers(source: Source, folder: Path | None) -> list[str]:
    return sorted(str(row["question"]) for _, row in rows_of(source, folder))


def test_json_lines_and_parquet_are_the_same(tmp_path: Path) -> None:
    lines = "".join(json.dumps(row) + "\n" for row in ROWS)
    folders = {name: tmp_path / name for name in ("lines", "named", "hub")}
    for folder in folders.values():
        (folder / "all").mkdir(parents=True)
    (folders["lines"] / "mine_test.jsonl").write_text(lines)
    (folders["named"] / "mine_test.parquet").write_bytes(parquet(ROWS))
    (folders["hub"] / "all" / "test-00000-of-00002.parquet").write_bytes(parquet(ROWS[:3]))
    (folders["hub"] / "all" / "test-00001-of-00002.parquet").write_bytes(parquet(ROWS[3:]))
    (folders["hub"] / "all" / "train-00000-of-00001.parquet").write_bytes(parquet(ROWS))
    found = [[row for _, row in rows_of(SOURCE, folder)] for folder in folders.values()]
    assert found[0] == found[1] == found[2]
    assert len(found[0]) == 5


def test_a_set_is_fetched_from_the_hub_once(hub: FakeHub) -> None:
    hub.repos["someone/mine"] = {
        "all/test-00000-of-00001.parquet": parquet(ROWS),
        "all/train-00000-of-00001.parquet": parquet(ROWS * 9),
        "README.md": b"#",
    }
    assert numbers(SOURCE, None) == [f"{n}?" for n in range(5)]
    assert len(hub.seen) == 1
    asked = len(hub.api_seen)
    assert numbers(SOURCE, None) == [f"{n}?" for n in range(5)]
    assert (len(hub.seen), len(hub.api_seen)) == (1, asked)


def test_a_hub_without_the_set_is_refused_with_the_way_out(hub: FakeHub) -> None:
    with pytest.raises(FathomError, match="knows no dataset someone/mine.*--data"):
        rows_of(SOURCE, None)
    hub.repos["someone/mine"] = {"all/train-00000.parquet": b""}
    with pytest.raises(FathomError, match="no files all/test.*--data"):
        rows_of(SOURCE, None)


def test_a_folder_without_the_set_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FathomError, match="there is no folder"):
        rows_of(SOURCE, tmp_path / "none")
    with pytest.raises(FathomError, match=r"mine_test.jsonl"):
        rows_of(SOURCE, tmp_path)
    (tmp_path / "mine_test.jsonl").write_text("\n")
    with pytest.raises(FathomError, match="holds no rows"):
        rows_of(SOURCE, tmp_path)


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ('{"question": "?"', "line 2 of .*mmlu_test.jsonl.*not JSON"),
        ("[1]", "line 2 of .*mmlu_test.jsonl is no object"),
        ('{"question": "?", "choices": ["x"], "answer": 0}', "line 2 of .*mmlu_test.jsonl.*2 to 26"),
        ('{"question": 5, "choices": ["x", "y"], "answer": 0}', "line 2 of .*mmlu_test.jsonl.*question is not a text"),
    ],
)
def test_a_broken_line_is_named(tmp_path: Path, line: str, words: str) -> None:
    good = json.dumps(ROWS[0])
    (tmp_path / "mmlu_test.jsonl").write_text(f"{good}\n{line}\n{good}\n")
    with pytest.raises(FathomError, match=words):
        open_task("mmlu", tmp_path)


@pytest.mark.parametrize(
    ("name", "row"),
    [
        ("gsm8k", {"question": "?", "answer": "no number"}),
        ("gsm8k", {"question": "?"}),
        ("humaneval", {"prompt": "def f():", "test": "", "entry_point": None}),
        ("humaneval", {"test": "", "entry_point": "f"}),
    ],
)
def test_rows_that_lack_what_a_task_needs_are_named(tmp_path: Path, name: str, row: dict[str, object]) -> None:
    (tmp_path / f"{KNOWN[name].source.name}.jsonl").write_text(json.dumps(row) + "\n")
    with pytest.raises(FathomError, match=f"line 1 of .*{name}_test.jsonl"):
        open_task(name, tmp_path)


def test_a_torn_parquet_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "mine_test.parquet").write_bytes(parquet(ROWS)[:-9])
    with pytest.raises(FathomError, match="mine_test.parquet cannot be read"):
        list(rows_of(SOURCE, tmp_path))
