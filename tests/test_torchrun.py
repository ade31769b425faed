"""The launcher that people use: it starts ranks again after one died, and joins two machines."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from fathom.home import run_dir
from tests.oracles import tiny_runs
from tests.oracles.tiny_runs import events_of, pretraining

ROOT = Path(__file__).resolve().parents[1]
TORCHRUN = (sys.executable, "-m", "torch.distributed.run")
SETTINGS = {"depth": 1, "steps": 4, "batch_tokens": 128, "eval_every": 0}
COMMAND = (
    *("pretrain", "--corpus", "tiny", "--tokenizer", "tiny", "--depth", "1", "--head-dim", "32", "--seq-len", "32"),
    *("--steps", "4", "--batch-tokens", "128", "--eval-every", "0", "--eval-tokens", "256", "--compile", "off"),
    *("--dtype", "fp32", "--no-sample", "--resume", "--json"),
)
SURROUNDINGS = {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join([str(ROOT / "src"), str(ROOT)])}


@pytest.fixture
def furnished(fathom_home: Path) -> Path:
    tiny_runs.furnish()
    return fathom_home


def two_ranks(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """What torchrun says and ends with, of two processes on this machine."""
    return subprocess.run(
        [*TORCHRUN, "--nproc-per-node", "2", *words],
        cwd=folder,
        env=os.environ | SURROUNDINGS,
        capture_output=True,
        text=True,
        timeout=90,
        check=False,
    )


def test_a_rank_dies_and_torchrun_starts_all_again_and_they_go_on(furnished: Path) -> None:
    done = two_ranks(
        *(furnished, "--max-restarts", "1", "-m", "tests.oracles.dying_rank", "--"),
        *(*COMMAND, "--run", "dying", "--save-every", "2"),
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stderr.count("rank 0 has lost another of the 2 ranks") <= 1  # torchrun may have ended it by then
    result = json.loads(done.stdout)  # once, from the main rank alone
    assert result["steps"] == 4
    resumed = events_of(run_dir("dying"), "resumed")
    assert len(resumed) == 1 and resumed[0]["step"] in (1, 2), "the save of step 2 may have died with the rank"


def test_a_run_that_exists_is_refused_once_and_no_rank_misses_another(furnished: Path) -> None:
    from fathom.train.pretrain import pretrain

    pretrain(pretraining(name="there", **SETTINGS))
    command = [word for word in COMMAND if word != "--resume"]
    done = two_ranks(furnished, "-m", "fathom", "--", *command, "--run", "there")
    assert done.returncode and done.stdout == ""
    assert done.stderr.count("the run 'there' exists already") == 1, done.stderr[-3000:]
    assert "has lost another" not in done.stderr
    assert done.stderr.count("Traceback") == 1, "torchrun's own, of a child that ended with 2"


@pytest.fixture
def two_machines() -> Iterator[tuple[str, str]]:
    """Two network namespaces, joined by a cable: machines that share nothing but the disk."""
    if not shutil.which("ip") or os.geteuid():
        pytest.skip("network namespaces need root and the ip command")
    tag = f"fathom{os.getpid()}"
    names = (f"{tag}a", f"{tag}b")
    ends = (f"fa{os.getpid()}", f"fb{os.getpid()}")

    def ip(*words: str) -> int:
        return subprocess.run(["ip", *words], capture_output=True, check=False).returncode

    try:
        made = [ip("netns", "add", name) for name in names]
        made.append(ip("link", "add", ends[0], "type", "veth", "peer", "name", ends[1]))
        for host, (name, end) in enumerate(zip(names, ends, strict=True), start=1):
            made += [
                ip("link", "set", end, "netns", name),
                ip("-n", name, "link", "set", end, "name", "cable"),
                ip("-n", name, "addr", "add", f"10.213.7.{host}/24", "dev", "cable"),
                ip("-n", name, "link", "set", "cable", "up"),
                ip("-n", name, "link", "set", "lo", "up"),
            ]
        if any(made):
            pytest.skip("this system lets no network namespace be made")
        yield names
    finally:
        ip("link", "del", ends[0])
        for name in names:
            ip("netns", "del", name)


def test_two_machines_end_with_the_weights_of_one_process(furnished: Path, two_machines: tuple[str, str]) -> None:
    from fathom.train.pretrain import pretrain
    from tests.test_ranks import MOST, difference

    port = "29511"  # nobody else's: the namespace has just been made
    nodes = [
        subprocess.Popen(
            [
                *("ip", "netns", "exec", name, *TORCHRUN, "--nnodes", "2", "--nproc-per-node", "1"),
                *("--node-rank", str(node), "--master-addr", "10.213.7.1", "--master-port", port),
                *("-m", "fathom", "--", *COMMAND, "--run", "two", "--device-batch", "2"),
            ],
            cwd=furnished,
            env=os.environ | SURROUNDINGS | {"GLOO_SOCKET_IFNAME": "cable"},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for node, name in enumerate(two_machines)
    ]
    try:
        said = [node.communicate(timeout=90) for node in nodes]
    finally:
        for node in nodes:
            node.kill()
    assert [node.returncode for node in nodes] == [0, 0], said[0][1][-2000:] + said[1][1][-2000:]
    assert said[1][0] == "", "the second machine prints nothing"
    assert json.loads(said[0][0])["steps"] == 4
    pretrain(pretraining(name="one", device_batch=2, **SETTINGS))
    assert difference("one", "two") < MOST
