"""What is wrong with a checkpoint's files is told without loading them, and without running what they hold."""

from __future__ import annotations

import pickle
from pathlib import Path

import pytest
import torch

from fathom.report.wholeness import trouble_with
from fathom.train import checkpoint


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    """A checkpoint as training writes one."""
    return checkpoint.save(tmp_path, 7, {"a": torch.ones(1000), "b": {"c": torch.zeros(3, 5)}, "step": 7}, {})


def data_of(folder: Path) -> Path:
    return max(folder.glob("*.distcp"), key=lambda path: path.stat().st_size)


def test_a_whole_checkpoint_has_no_trouble(saved: Path) -> None:
    assert trouble_with(saved) == ""


@pytest.mark.parametrize("share", [0.0, 0.1, 0.999])
def test_a_file_that_was_cut_off_is_named_with_its_bytes(saved: Path, share: float) -> None:
    path = data_of(saved)
    kept = int(path.stat().st_size * share)
    path.write_bytes(path.read_bytes()[:kept])
    assert trouble_with(saved).startswith(f"{path.name} is cut off ({kept:,} of ")


def test_a_file_that_is_gone(saved: Path) -> None:
    data_of(saved).unlink()
    assert trouble_with(saved).endswith(".distcp is missing")
    (saved / ".metadata").unlink()
    assert trouble_with(saved).startswith(".metadata cannot be read")


@pytest.mark.parametrize("kept", [b"", b"\x80", b"\x80\x05N.", pickle.dumps({"storage_data": 3}), b"x" * 100])
def test_metadata_that_are_none(saved: Path, kept: bytes) -> None:
    (saved / ".metadata").write_bytes(kept)
    assert trouble_with(saved) == ".metadata is no checkpoint's"


def test_nothing_that_metadata_name_is_run(saved: Path, tmp_path: Path) -> None:
    class Bad:
        def __reduce__(self) -> tuple[object, ...]:
            return (Path.touch, (tmp_path / "was run",))

    (saved / ".metadata").write_bytes(pickle.dumps(Bad()))
    assert trouble_with(saved)
    assert not (tmp_path / "was run").exists()
