"""Checkpoints: whole or not there, kept when the disk is full, and unable to run anybody's code."""

from __future__ import annotations

import errno
import io
import json
import os
import pickle
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed.checkpoint as dcp
from torch import Tensor, nn

from fathom.errors import FathomError
from fathom.home import run_dir
from fathom.record import Record
from fathom.train import checkpoint

State = dict[str, Any]


def state(value: float = 1.0) -> State:
    return {
        "model": {
            "matrix": torch.full((3, 4), value),
            "table": torch.full((5,), value, dtype=torch.bfloat16),
            "nothing": torch.empty(0),
        },
        "optimizer": {"adam": {"0": {"step": torch.tensor(value), "count": torch.tensor([7], dtype=torch.int64)}}},
    }


def flat(nested: State, prefix: str = "") -> dict[str, Tensor]:
    found: dict[str, Tensor] = {}
    for key, value in nested.items():
        found |= flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value}
    return found


def assert_same(one: State, other: State) -> None:
    one, other = flat(one), flat(other)
    assert one.keys() == other.keys()
    for key in one:
        assert one[key].dtype == other[key].dtype
        assert torch.equal(one[key], other[key]), key


def saved(folder: Path, *steps: int) -> None:
    for step in steps:
        checkpoint.save(folder, step, state(step), {"seconds": 0.5 * step})


def listed(folder: Path) -> list[str]:
    return sorted(path.name for path in (folder / "checkpoints").iterdir())


def test_what_was_saved_is_loaded_in_place(tmp_path: Path) -> None:
    saved(tmp_path, 7)
    here = state(0)
    matrix = here["model"]["matrix"]
    meta = checkpoint.load(checkpoint.folder_of(tmp_path, 7), here)
    assert_same(here, state(7))
    assert here["model"]["matrix"] is matrix
    assert meta == {"step": 7, "seconds": 3.5}


def test_a_part_of_it_can_be_loaded_and_in_another_precision(tmp_path: Path) -> None:
    saved(tmp_path, 7)
    part = {"model": {"table": torch.zeros(5)}}
    checkpoint.load(checkpoint.folder_of(tmp_path, 7), part)
    assert part["model"]["table"].tolist() == [7.0] * 5
    assert part["model"]["table"].dtype == torch.float32


def test_only_whole_checkpoints_count(tmp_path: Path) -> None:
    saved(tmp_path, 4, 12, 1_000_000, 999_999)
    shutil.copytree(tmp_path / "checkpoints" / "000012", tmp_path / "checkpoints" / "000016")
    (tmp_path / "checkpoints" / "000016" / checkpoint.COMPLETE).unlink()  # torn
    for name in (".000020.partial", "000012.bak", "000012 copy", "12", "²"):
        shutil.copytree(tmp_path / "checkpoints" / "000012", tmp_path / "checkpoints" / name)
    assert checkpoint.steps(tmp_path) == [4, 12, 999_999, 1_000_000]
    checkpoint.keep(tmp_path, 2)
    assert checkpoint.steps(tmp_path) == [999_999, 1_000_000]
    assert {"000012.bak", "000012 copy"} < set(listed(tmp_path))
    assert not any(name.endswith(".partial") for name in listed(tmp_path))


def test_the_newest_are_kept(tmp_path: Path) -> None:
    saved(tmp_path, 1, 2, 3)
    checkpoint.keep(tmp_path, 5)
    assert checkpoint.steps(tmp_path) == [1, 2, 3]
    checkpoint.keep(tmp_path, 2)
    assert listed(tmp_path) == ["000002", "000003"]


def test_a_step_is_saved_again_whole(tmp_path: Path) -> None:
    saved(tmp_path, 4)
    checkpoint.save(tmp_path, 4, {"model": {"other": torch.ones(2)}}, {})
    assert listed(tmp_path) == ["000004"]
    here = {"model": {"other": torch.zeros(2)}}
    checkpoint.load(checkpoint.folder_of(tmp_path, 4), here)
    assert here["model"]["other"].tolist() == [1, 1]
    with pytest.raises(FathomError, match="cannot be loaded"):
        checkpoint.load(checkpoint.folder_of(tmp_path, 4), state())


def test_a_crash_while_removing_leaves_nothing_that_looks_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    saved(tmp_path, 4, 8)

    def crash(folder: Path, **_: Any) -> None:
        if folder.exists():
            next(folder.glob("*.distcp")).unlink()
            raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(shutil, "rmtree", crash)
        checkpoint.keep(tmp_path, 1)
    assert checkpoint.steps(tmp_path) == [8]
    saved(tmp_path, 12)
    checkpoint.keep(tmp_path, 2)
    assert listed(tmp_path) == ["000008", "000012"]


@pytest.mark.parametrize("at", ["dcp.save", "meta.json", "COMPLETE", "rename"])
def test_a_save_that_breaks_off_leaves_what_was_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at: str) -> None:
    saved(tmp_path, 4)

    def crash(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    real = checkpoint.write_atomic
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        if at == "dcp.save":
            patch.setattr(dcp, "save", crash)
        elif at == "rename":
            patch.setattr(checkpoint.os, "replace", crash)
        else:
            patch.setattr(
                checkpoint, "write_atomic", lambda path, text: crash() if path.name == at else real(path, text)
            )
        saved(tmp_path, 8)
    assert listed(tmp_path) == ["000004"]
    saved(tmp_path, 8)
    assert checkpoint.steps(tmp_path) == [4, 8]


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "No space left on device"), KeyboardInterrupt()])
def test_an_error_inside_torch_comes_out_as_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException
) -> None:
    """Torch wraps whatever happens while it writes in an exception that is no Exception."""
    saved(tmp_path, 4)

    def refuse(_: int) -> None:
        raise error

    with monkeypatch.context() as patch, pytest.raises(type(error)) as caught:
        patch.setattr(os, "fsync", refuse)
        saved(tmp_path, 8)
    assert caught.value is error
    assert listed(tmp_path) == ["000004"]


@pytest.mark.parametrize("name", [".metadata", "__0_0.distcp"])
@pytest.mark.parametrize("left", [0, 0.5, -1])
def test_a_damaged_file_is_one_sentence(tmp_path: Path, name: str, left: float) -> None:
    saved(tmp_path, 4)
    path = checkpoint.folder_of(tmp_path, 4) / name
    whole = path.read_bytes()
    if left < 0:
        path.unlink()
    else:
        path.write_bytes(whole[: int(left * len(whole))])
    assert_refused(tmp_path)


class Unanswered(io.RawIOBase):
    """A file on a disk that opens it, and then does not answer."""

    def __init__(self, error: Exception) -> None:
        self.error = error

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = 0) -> int:
        return offset

    def tell(self) -> int:
        return 0

    def readinto(self, _: Any) -> int:
        raise self.error


PASSING = (
    OSError(errno.EIO, "Input/output error"),
    OSError(errno.ESTALE, "Stale file handle"),
    OSError(errno.EMFILE, "Too many open files"),
    PermissionError(errno.EACCES, "Permission denied"),
    MemoryError(),
)
OF_TORCH = (
    torch.OutOfMemoryError("CUDA out of memory"),
    RuntimeError("[enforce fail at alloc_cpu.cpp:124] . DefaultCPUAllocator: can't allocate memory: you tried"),
)


@pytest.mark.parametrize("late", [False, True], ids=["opening", "reading"])
@pytest.mark.parametrize(
    ("name", "error"),
    [(name, error) for name in (".metadata", "__0_0.distcp", "meta.json") for error in PASSING]
    + [("__0_0.distcp", error) for error in OF_TORCH],
)
def test_what_may_pass_is_not_called_damage(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, late: bool, error: Exception
) -> None:
    saved(tmp_path, 4)
    real = Path.open

    def opened(self: Path, *arguments: Any, **named: Any) -> Any:
        if self.name != name:
            return real(self, *arguments, **named)
        if not late:
            raise error
        raw = io.BufferedReader(Unanswered(error))  # type: ignore[arg-type]
        return io.TextIOWrapper(raw) if "b" not in (*arguments, "r")[0] + named.get("mode", "") else raw

    monkeypatch.setattr(Path, "open", opened)
    with pytest.raises(FathomError, match="that need not be its fault: see to disk and memory") as caught:
        checkpoint.load(checkpoint.folder_of(tmp_path, 4), state())
    assert not isinstance(caught.value, checkpoint.Damaged)
    assert "\n" not in str(caught.value)


def test_garbage_instead_of_metadata_is_one_sentence(tmp_path: Path) -> None:
    saved(tmp_path, 4)
    metadata = checkpoint.folder_of(tmp_path, 4) / ".metadata"
    for content in (b"\x80\x04garbage", b"not a pickle", pickle.dumps({"a": 1}), pickle.dumps(None), b"\x80\x04."):
        metadata.write_bytes(content)
        assert_refused(tmp_path)


def test_another_shape_and_a_missing_weight_are_one_sentence(tmp_path: Path) -> None:
    saved(tmp_path, 4)
    other = state()
    other["model"]["matrix"] = torch.zeros(4, 4)
    assert_refused(tmp_path, other)
    other = state()
    other["model"]["more"] = torch.zeros(1)
    assert_refused(tmp_path, other)


@pytest.mark.parametrize("content", [None, "", "{", "[]", '{"step": 4', "\xff"])
def test_damaged_meta_is_one_sentence(tmp_path: Path, content: str | None) -> None:
    saved(tmp_path, 4)
    path = checkpoint.folder_of(tmp_path, 4) / "meta.json"
    if content is None:
        path.unlink()
    else:
        path.write_bytes(content.encode("latin-1"))
    with pytest.raises(checkpoint.Damaged, match=r"meta\.json cannot be read"):
        checkpoint.load(path.parent, state())


def assert_refused(run_folder: Path, into: State | None = None) -> None:
    with pytest.raises(checkpoint.Damaged) as caught:
        checkpoint.load(checkpoint.folder_of(run_folder, 4), state() if into is None else into)
    sentence = str(caught.value)
    assert "\n" not in sentence
    assert "Traceback" not in sentence


class Runs:
    """Unpickling this calls something."""

    def __init__(self, call: Any, *arguments: Any) -> None:
        self._reduced = call, arguments

    def __reduce__(self) -> Any:
        return self._reduced


CANARY = "ran"


@pytest.mark.parametrize("protocol", [0, 2, 4, 5])
def test_metadata_that_would_run_code_is_refused(tmp_path: Path, protocol: int) -> None:
    saved(tmp_path, 4)
    canary = tmp_path / CANARY
    for evil in (
        Runs(os.system, f"touch {canary}"),
        Runs(eval, f"open({str(canary)!r}, 'w')"),
        Runs(exec, f"open({str(canary)!r}, 'w')"),
        Runs(Path.touch, canary),
        Runs(torch.load, str(canary)),
        Runs(torch.storage._load_from_bytes, b"x"),
        Runs(nn.Linear, 1, 1),
    ):
        content = pickle.dumps(evil, protocol=protocol)
        (checkpoint.folder_of(tmp_path, 4) / ".metadata").write_bytes(content)
        assert_refused(tmp_path)
        assert not canary.exists()


def test_evil_hidden_in_real_metadata_is_refused(tmp_path: Path) -> None:
    saved(tmp_path, 4)
    path = checkpoint.folder_of(tmp_path, 4) / ".metadata"
    metadata = pickle.loads(path.read_bytes())
    metadata.planner_data = Runs(os.system, f"touch {tmp_path / CANARY}")
    path.write_bytes(pickle.dumps(metadata))
    assert_refused(tmp_path)
    assert not (tmp_path / CANARY).exists()


def test_a_weight_that_is_an_object_is_not_unpickled(tmp_path: Path) -> None:
    """Torch loads what the metadata calls bytes with an unpickler of its own, without any limit."""
    evil = {"model": {"matrix": Runs(os.system, f"touch {tmp_path / CANARY}")}}
    checkpoint.save(tmp_path, 4, evil, {})
    assert not (tmp_path / CANARY).exists()
    assert_refused(tmp_path, {"model": {"matrix": torch.zeros(3, 4)}})
    assert not (tmp_path / CANARY).exists()


def test_a_weights_file_with_a_pickle_in_it_is_refused(tmp_path: Path) -> None:
    saved(tmp_path, 4)
    folder = checkpoint.folder_of(tmp_path, 4)
    metadata = pickle.loads((folder / ".metadata").read_bytes())
    evil = tmp_path / "evil"
    torch.save(Runs(os.system, f"touch {tmp_path / CANARY}"), evil)
    for index in metadata.storage_data:
        metadata.storage_data[index].offset, metadata.storage_data[index].length = 0, evil.stat().st_size
    (folder / ".metadata").write_bytes(pickle.dumps(metadata))
    shutil.copy(evil, folder / "__0_0.distcp")
    assert_refused(tmp_path)
    assert not (tmp_path / CANARY).exists()


def test_finding_names_what_is_there(fathom_home: Path) -> None:
    with pytest.raises(FathomError, match="no run 'gone'"):
        checkpoint.find("gone")
    folder = run_dir("here")
    Record(folder).config({"run": {"stage": "pretrain"}})
    (folder / "checkpoints" / "000008").mkdir(parents=True)
    with pytest.raises(FathomError, match="has no checkpoint yet"):
        checkpoint.find("here")
    saved(folder, 4, 6)
    assert checkpoint.find("here").name == "000006"
    assert checkpoint.find("here", 4).name == "000004"
    with pytest.raises(FathomError, match="no checkpoint of step 8; it has 4, 6"):
        checkpoint.find("here", 8)


def test_the_digest_is_of_every_name_and_bit() -> None:
    torch.manual_seed(0)
    model = nn.ModuleDict({"one": nn.Linear(3, 2), "two": nn.Linear(2, 2)})
    digest = checkpoint.weights_sha256(model)
    assert len(digest) == 64 and int(digest, 16) >= 0
    again = nn.ModuleDict({"one": nn.Linear(3, 2), "two": nn.Linear(2, 2)})
    again.load_state_dict(model.state_dict())
    assert checkpoint.weights_sha256(again) == digest
    renamed = nn.ModuleDict({"three": model["one"], "two": model["two"]})
    assert checkpoint.weights_sha256(renamed) != digest
    with torch.no_grad():
        again["two"].bias[1] = 0.0
        zero = checkpoint.weights_sha256(again)
        again["two"].bias[1] = -0.0
    assert len({digest, zero, checkpoint.weights_sha256(again)}) == 3
    assert json.dumps(digest)  # a plain text
