"""Where things are kept, and that a file is there whole or as it was."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fathom import home
from fathom.errors import FathomError


def test_home_is_where_the_variable_says(fathom_home: Path) -> None:
    assert home.home() == fathom_home
    assert home.corpus_dir("a") == fathom_home / "corpora" / "a"
    assert home.tokenizer_dir("a") == fathom_home / "tokenizers" / "a"
    assert home.run_dir("a") == fathom_home / "runs" / "a"
    assert not fathom_home.exists()


@pytest.mark.parametrize("value", [None, ""])
def test_home_is_a_hidden_folder_of_the_user_otherwise(monkeypatch: pytest.MonkeyPatch, value: str | None) -> None:
    monkeypatch.delenv("FATHOM_HOME", raising=False)
    if value is not None:
        monkeypatch.setenv("FATHOM_HOME", value)
    monkeypatch.setenv("HOME", "/somewhere")
    assert home.home() == Path("/somewhere/.fathom")


@given(st.text(max_size=120))
def test_a_name_is_one_visible_folder_or_is_refused(name: str) -> None:
    try:
        home.check_name(name, "run")
    except FathomError as error:
        assert "cannot be the name of a run" in str(error)
        return
    parts = Path("/base", name).parts
    assert parts == ("/", "base", name)
    assert not name.startswith((".", "-"))
    assert len(name) <= 100


@pytest.mark.parametrize(
    "name", ["", ".", "..", "../x", "a/b", "/etc", ".hidden", "-rf", "a b", "a\n", "ü", "a\0", "a" * 101]
)
def test_dangerous_names_are_refused(name: str) -> None:
    for folder_of in (home.corpus_dir, home.tokenizer_dir, home.run_dir):
        with pytest.raises(FathomError):
            folder_of(name)


@pytest.mark.parametrize("name", ["a", "d12", "d12-sft", "0.1_x", "a" * 100])
def test_ordinary_names_are_taken(name: str) -> None:
    assert home.check_name(name, "run") == name


def test_names_are_the_visible_folders_in_order(fathom_home: Path) -> None:
    assert home.names("runs") == []
    for name in ("b", "a", ".b.making"):
        (fathom_home / "runs" / name).mkdir(parents=True)
    (fathom_home / "runs" / "notes.txt").write_text("not a run")
    assert home.names("runs") == ["a", "b"]


@pytest.mark.parametrize("content", ["héllo\n", b"\x00\xff", ""])
def test_write_atomic_writes_what_it_was_given(tmp_path: Path, content: str | bytes) -> None:
    path = tmp_path / "new" / "folder" / "file.txt"
    home.write_atomic(path, content)
    assert path.read_bytes() == (content.encode() if isinstance(content, str) else content)
    assert path.stat().st_mode & 0o777 == 0o644
    home.write_atomic(path, b"again")
    assert path.read_bytes() == b"again"
    assert [p.name for p in path.parent.iterdir()] == ["file.txt"]


@pytest.mark.parametrize("step", ["fsync", "replace"])
def test_a_failed_write_leaves_the_old_file_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    path = tmp_path / "file.txt"
    home.write_atomic(path, "old")

    def fails(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, step, fails)
    with pytest.raises(OSError, match="No space") as failed:
        home.write_atomic(path, "new")
    assert failed.value.filename == str(path), "the file that was meant"
    assert path.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["file.txt"]


def test_the_file_is_synced_before_it_gets_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []
    sync, rename = os.fsync, os.replace
    monkeypatch.setattr(os, "fsync", lambda handle: (calls.append("sync"), sync(handle)))
    monkeypatch.setattr(os, "replace", lambda old, new: (calls.append("rename"), rename(old, new)))
    home.write_atomic(tmp_path / "file", "x")
    assert calls == ["sync", "rename", "sync"]


WRITER = """
import sys
from pathlib import Path
from fathom.home import write_atomic
print("ready", flush=True)
n = 0
while True:
    n += 1
    write_atomic(Path(sys.argv[1]), f"{n % 10}" * 200_000)
"""


def test_a_killed_writer_never_leaves_a_torn_file(tmp_path: Path) -> None:
    path = tmp_path / "file"
    for _ in range(3):
        writer = subprocess.Popen([sys.executable, "-c", WRITER, str(path)], stdout=subprocess.PIPE, env=environment())
        assert writer.stdout is not None
        assert writer.stdout.readline() == b"ready\n"
        while not path.exists():
            assert writer.poll() is None
        writer.kill()
        writer.wait()
        writer.stdout.close()
        text = path.read_text()
        assert len(text) == 200_000
        assert len(set(text)) == 1


def environment() -> dict[str, str]:
    return os.environ | {"PYTHONPATH": str(Path(home.__file__).parents[1])}


def test_syncing_a_folder_that_is_not_there_is_nothing(tmp_path: Path) -> None:
    home.fsync_folder(tmp_path / "gone")
