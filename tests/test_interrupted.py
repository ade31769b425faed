"""A run killed at any moment and resumed ends with the weights, bit for bit, of one that nothing interrupted."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.oracles.tiny_runs import STEPS

ROOT = Path(__file__).resolve().parents[1]
KILLED = -9
STOPPED = 130

KILLS = [
    "killed before the first checkpoint",
    "killed between two checkpoints",
    "killed in the middle of a log line",
    "killed while writing weights",
    "killed while syncing what was written",
    "killed before the mark",
    "killed before the rename",
    "killed before clearing up",
    "killed while clearing up",
    "killed in the last evaluation",
    "killed before it was finished",
    "killed at the last step",
    "sft killed before the first checkpoint",
    "sft killed between two checkpoints",
    "sft killed while writing weights",
]


@pytest.fixture(scope="module")
def trials(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    """All trials, made once, in processes with one thread."""
    if not hasattr(os, "fork"):
        pytest.skip("the trials are forked, which this system cannot")
    home = tmp_path_factory.mktemp("interrupted")
    surroundings = os.environ | {
        "FATHOM_HOME": str(home),
        "PYTHONPATH": os.pathsep.join([str(ROOT / "src"), str(ROOT)]),
        "OMP_NUM_THREADS": "1",
    }
    done = subprocess.run(
        [sys.executable, "-m", "tests.oracles.interrupted_runs"],
        cwd=home,
        env=surroundings,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    found: dict[str, dict[str, Any]] = json.loads(done.stdout)
    return found


def assert_as_if_nothing_had_happened(trials: dict[str, dict[str, Any]], name: str) -> None:
    whole = trials["sft whole" if name.startswith("sft") else "whole"]
    assert len(whole["sha256"]) == 64
    assert trials[name]["codes"][-1] == 0
    assert trials[name]["sha256"] == whole["sha256"]
    assert trials[name]["steps"] == list(range(STEPS))


@pytest.mark.parametrize("name", KILLS)
def test_killed_and_resumed(trials: dict[str, dict[str, Any]], name: str) -> None:
    *interrupted, _ = trials[name]["codes"]
    assert interrupted and set(interrupted) == {KILLED}
    assert_as_if_nothing_had_happened(trials, name)


def test_killed_at_any_moment(trials: dict[str, dict[str, Any]]) -> None:
    assert len(trials["killed again and again"]["kills"]) == 3
    assert_as_if_nothing_had_happened(trials, "killed again and again")


@pytest.mark.parametrize("name", ["SIGTERM", "Ctrl-C", "sft SIGTERM"])
def test_stopped_from_outside_and_resumed(trials: dict[str, dict[str, Any]], name: str) -> None:
    assert trials[name]["code"] == STOPPED
    assert trials[name]["saved"], "a run that is stopped saves a checkpoint"
    assert_as_if_nothing_had_happened(trials, name)


def test_a_disk_that_was_full_for_a_while(trials: dict[str, dict[str, Any]]) -> None:
    assert trials["a full disk"]["codes"][0] == 2, "nothing is finished without its last checkpoint"
    assert_as_if_nothing_had_happened(trials, "a full disk")


def test_of_two_processes_the_second_is_refused_and_a_killed_ones_lock_is_free(
    trials: dict[str, dict[str, Any]],
) -> None:
    trial = trials["two at once"]
    assert trial["second"] == 2
    assert trial["first"] == KILLED
    assert_as_if_nothing_had_happened(trials, "two at once")
