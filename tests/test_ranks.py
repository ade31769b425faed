"""Several ranks do what one process does: same weights, same steps left out, and together they stop and go on."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from torch import Tensor

from fathom.errors import FathomError
from fathom.home import run_dir
from fathom.model.gpt import GPT
from fathom.model.shape import Shape
from fathom.ranks import ALONE, Ranks
from fathom.record import metrics, read_config
from fathom.train import checkpoint
from fathom.train.sharing import Sharing, in_turns, share_of
from tests.oracles import ranked_runs, tiny_runs
from tests.oracles.tiny_runs import events_of

ROOT = Path(__file__).resolve().parents[1]
BEFORE, STEPS = 8, 20
MOST = 1e-4
"""How far any weight may be off after 20 steps in float32, by its norm."""
EXACT = 1e-6
"""Likewise in float64, where only Muon's matrix products are float32."""

# Three layers: with fewer the middle one is the last, what it feeds back is scaled away, and AdamW divides a gradient
# that is rounding alone by its own size.
SIZE: dict[str, Any] = {"depth": 3, "batch_tokens": 256, "steps": STEPS, "eval_every": 0, "save_every": "100"}
SHORT = SIZE | {"depth": 1, "steps": 6}
HALVES = SIZE | {"device_batch": 4}  # of the step's eight rows
THIN = SIZE | {"steps": 3, "device_batch": 2}
ODD = SHORT | {"batch_tokens": 96}
GO_ON = SIZE | {"steps": BEFORE + STEPS, "resume": True}
FINE_TUNED = {"base": "double1", "steps": 6, "batch_tokens": 128}
SPLIT: dict[str, Any] = {"shard_model": True}
AGAIN: dict[str, Any] = {"resume": True}

TOGETHER: list[ranked_runs.Trial] = [
    ("sft2", FINE_TUNED, "double"),
    ("sft-split2", FINE_TUNED | SPLIT, "double"),
    ("mask2", SHORT, "double,mask 4 3"),
    ("nan2", SHORT, "nan 1 3"),
    ("nan-split2", SHORT | SPLIT, "nan 1 3"),
    ("oom2", SHORT | {"device_batch": 2}, "double,oom 1 3"),
    ("burst2", SHORT | {"device_batch": 2}, "double,burst 1 3"),
    ("early2", THIN, "early"),
    ("late2", THIN, ""),
    ("halves2", HALVES, ""),
    ("copy2", SHORT | {"save_every": "2", "keep": 9}, "copy 1 1"),
    ("blind-split2", SHORT | SPLIT | {"eval_every": 3, "device_batch": 1}, "blind 1 3"),
    ("whole2", SHORT, ""),
    ("stopped2", SHORT, "stop 1 2"),
    ("stopped2#again", SHORT | AGAIN, ""),
    ("whole-split2", SHORT | SPLIT | {"sample": True}, "count"),
    ("stopped-split2", SHORT | SPLIT, "stop 0 2"),
    ("stopped-split2#again", SHORT | SPLIT | AGAIN, ""),
    ("moved2", SHORT | SPLIT, "double,stop 0 2"),
]


def launched(n_ranks: int, *trials: ranked_runs.Trial) -> dict[str, Any]:
    done = launch(n_ranks, *trials)
    assert done.returncode == 0, done.stderr[-3000:]
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def launch(n_ranks: int, *trials: ranked_runs.Trial) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "tests.oracles.ranked_runs", str(n_ranks), json.dumps(trials)],
        cwd=ROOT,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


def copied(run: str, *names: str) -> None:
    for name in names:
        shutil.copytree(run_dir(run), run_dir(name))


def on_ranks(n_ranks: int) -> list[ranked_runs.Trial]:
    """What is compared with one process, each by whole and by split weights."""
    n = str(n_ranks)
    return [
        ("double" + n, SHORT, "double"),
        ("double-split" + n, SHORT | SPLIT, "double"),
        ("float" + n, GO_ON, ""),
        ("odd" + n, ODD, "double"),
        ("odd-split" + n, ODD | SPLIT, "double"),
    ]


@pytest.fixture(scope="module")
def trials(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """All trials of one and of two ranks, made once."""
    if not hasattr(os, "fork"):
        pytest.skip("the ranks are forked, which this system cannot")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FATHOM_HOME", str(tmp_path_factory.mktemp("ranks")))
        tiny_runs.furnish()
        tiny_runs.write_conversations()
        found = ranked_runs.ran(
            [
                ("base", SIZE | {"steps": BEFORE + STEPS}, f"stop 0 {BEFORE - 1}"),
                ("double1", SHORT, "double"),
                ("odd1", ODD, "double"),
                ("mask1", SHORT, "double,mask 4 3"),
                ("sft1", FINE_TUNED, "double"),
                ("halves1", HALVES, ""),
            ]
        )
        copied("base", "float1", "float2", "float-split2", "float4", "float-split4", "float-hybrid4")
        found |= ranked_runs.ran([("float1", GO_ON, "")])
        found |= launched(2, *on_ranks(2), *TOGETHER)
        copied("moved2", "moved2-before")
        found |= ranked_runs.ran([("moved2#again", SHORT | {"resume": True}, "double")])
        yield found


def weights(run: str) -> dict[str, Tensor]:
    model = GPT(Shape(**read_config(run)["model"])).double()
    checkpoint.load(checkpoint.find(run), {"model": model.state_dict()})
    return model.state_dict()


def difference(run: str, other: str) -> float:
    """The largest over all weights, each by its norm."""
    here, there = weights(run), weights(other)
    return max(float((here[name] - there[name]).norm() / here[name].norm()) for name in here)


@pytest.mark.parametrize("how", ["double", "double-split"])
def test_two_ranks_end_with_the_weights_of_one(trials: dict[str, Any], how: str) -> None:
    assert trials[f"{how}2"]["finished"] and trials[f"{how}2"]["alike"]
    assert difference("double1", f"{how}2") < EXACT


def test_in_float32_after_twenty_steps(trials: dict[str, Any]) -> None:
    """From where others left off: a fresh network's scalars have gradients that are rounding alone."""
    assert difference("float1", "float2") < MOST
    assert difference("float1", "base") > 100 * MOST


def test_bit_for_bit_where_one_process_has_as_many_micro_batches_as_there_are_ranks(trials: dict[str, Any]) -> None:
    """In float32, after twenty steps from the start: ranks' gradients are added up as micro-batches are."""
    assert trials["halves2"]["weights_sha256"] == trials["halves1"]["weights_sha256"]
    assert trials["halves1"]["weights_sha256"] != trials["late2"]["weights_sha256"]


@pytest.mark.parametrize("how", ["sft", "sft-split"])
def test_fine_tuning_on_two_ranks(trials: dict[str, Any], how: str) -> None:
    assert trials[f"{how}2"]["finished"] and trials[f"{how}2"]["val_bpb"] == pytest.approx(trials["sft1"]["val_bpb"])
    assert difference("sft1", f"{how}2") < EXACT


@pytest.mark.parametrize("how", ["odd", "odd-split"])
def test_rows_need_not_divide_by_the_ranks(trials: dict[str, Any], how: str) -> None:
    assert difference("odd1", f"{how}2") < EXACT


def test_a_rank_without_targets_adds_nothing_and_breaks_nothing(trials: dict[str, Any]) -> None:
    assert difference("mask1", "mask2") < EXACT
    one, two = (metrics(run_dir(run))[3]["loss"] for run in ("mask1", "mask2"))
    assert one == pytest.approx(two, rel=1e-5)
    assert difference("double1", "mask1") > 1e3 * EXACT


def test_the_logged_loss_and_norm_are_those_of_the_whole_step(trials: dict[str, Any]) -> None:
    for how in ("double2", "double-split2"):
        for one, two in zip(metrics(run_dir("double1")), metrics(run_dir(how)), strict=True):
            assert one["loss"] == pytest.approx(two["loss"], rel=1e-5)
            assert one["grad_norm"] == pytest.approx(two["grad_norm"], rel=1e-4)


@pytest.mark.parametrize("how", ["nan2", "nan-split2"])
def test_no_number_on_one_rank_and_all_leave_the_step_out(trials: dict[str, Any], how: str) -> None:
    assert trials[how]["finished"] and trials[how]["alike"]
    skipped = events_of(run_dir(how), "skipped")
    assert [(line["step"], line["why"]) for line in skipped] == [(3, "non-finite gradient")]
    assert all(bool(weight.isfinite().all()) for weight in weights(how).values())


@pytest.mark.parametrize("how", ["oom2", "burst2"])
def test_a_rank_out_of_memory_and_all_split_their_rows_in_that_step(trials: dict[str, Any], how: str) -> None:
    """Also where it happens amid the last backward pass, when sums of gradients are on their way."""
    assert trials[how]["finished"] and trials[how]["alike"]
    lowered = events_of(run_dir(how), "out_of_memory")
    assert [(line["step"], line["device_batch"]) for line in lowered] == [(3, 1)]
    assert difference("double1", how) < EXACT


def test_sums_of_gradients_set_out_while_the_last_backward_pass_goes_on(trials: dict[str, Any]) -> None:
    micro_batches = trials["early2"]["early"]
    assert len(micro_batches) == 3 * 2
    assert [gone for gone, _ in micro_batches[::2]] == [0, 0, 0]
    assert all(2 * gone > all_of_them for gone, all_of_them in micro_batches[3::2])
    assert trials["early2"]["weights_sha256"] == trials["late2"]["weights_sha256"]


@pytest.mark.long
def test_ranks_that_split_the_weights_cannot_and_say_what_to_do(trials: dict[str, Any]) -> None:
    done = launch(2, ("oom-split2", SHORT | SPLIT | {"device_batch": 2}, "oom 0 3"))
    assert done.returncode
    assert "do not fit the memory of rank 0" in done.stderr and "--resume --device-batch 1" in done.stderr
    assert "Traceback" not in done.stderr and "lost" not in done.stderr


def test_a_copy_that_fails_on_one_rank_is_a_checkpoint_less_for_all(trials: dict[str, Any]) -> None:
    assert trials["copy2"]["finished"] and trials["copy2"]["alike"]
    failed = events_of(run_dir("copy2"), "save_failed")
    assert [(line["step"], line["why"]) for line in failed] == [(2, "injected")]
    assert checkpoint.steps(run_dir("copy2")) == [4, 6]
    assert trials["copy2"]["weights_sha256"] == trials["whole2"]["weights_sha256"]


def test_rows_that_one_rank_cannot_read_fail_that_evaluation_and_no_rank_waits(trials: dict[str, Any]) -> None:
    assert trials["blind-split2"]["finished"] and trials["blind-split2"]["alike"]
    failed = events_of(run_dir("blind-split2"), "evaluation_failed")
    assert [(line["step"], line["why"]) for line in failed] == [(3, "[Errno 5] injected")]
    assert [line["step"] for line in events_of(run_dir("blind-split2"), "evaluated")] == [6]


@pytest.mark.parametrize("how", ["", "-split"])
def test_a_signal_to_one_rank_stops_all_and_they_go_on_bit_for_bit(trials: dict[str, Any], how: str) -> None:
    assert trials[f"stopped{how}2"] == {"run": f"stopped{how}2", "step": 3, "finished": False, "alike": True}
    again = trials[f"stopped{how}2#again"]
    assert again["weights_sha256"] == trials[f"whole{how}2"]["weights_sha256"]
    assert [line["step"] for line in metrics(run_dir(f"stopped{how}2"))] == list(range(6))
    assert [line["step"] for line in events_of(run_dir(f"stopped{how}2"), "resumed")] == [3]


def test_of_split_weights_each_rank_holds_one_part_and_so_it_does_of_their_moments(trials: dict[str, Any]) -> None:
    """Tables and head too; scalars, of which all have the whole, are fewer than ten a layer here."""
    shape = Shape(**read_config("whole-split2")["model"])
    counts = shape.parameters
    outside = counts["total"] - counts["block_matrices"]
    held = trials["whole-split2"]["held"]
    for rank in held:
        assert counts["total"] <= 2 * rank["weights"] < counts["total"] + 100
        assert outside <= rank["moments"] < outside + 100, "two moments of one half"
    assert counts["token_embedding"] + counts["value_embeddings"] + counts["head"] > counts["total"] / 2


def test_ranks_that_split_the_weights_write_the_sample_sheet_together(trials: dict[str, Any]) -> None:
    assert trials["whole-split2"]["finished"]
    assert not events_of(run_dir("whole-split2"), "evaluation_failed")
    assert len((run_dir("whole-split2") / "samples.jsonl").read_text().splitlines()) > 1


def test_a_checkpoint_of_two_ranks_that_split_the_weights_goes_on_in_one_process(trials: dict[str, Any]) -> None:
    assert trials["moved2"]["step"] == 3 and trials["moved2#again"]["finished"]
    assert difference("double1", "moved2") < EXACT


def test_only_the_main_rank_writes(trials: dict[str, Any]) -> None:
    lines = metrics(run_dir("double2"))
    assert [line["step"] for line in lines] == list(range(6))
    assert len(events_of(run_dir("double2"), "started")) == 1
    began = events_of(run_dir("double-split2"), "training")
    assert [(line["ranks"], line["weights"], line["peak_flops"]) for line in began] == [(2, "split", 2e12)]


@pytest.mark.long
def test_four_ranks_end_with_the_weights_of_one(trials: dict[str, Any]) -> None:
    split, within = GO_ON | SPLIT, {"shard_within": 2}
    copied("moved2-before", "moved4")
    ways = [("float-split4", split, ""), ("float-hybrid4", split | within, ""), ("moved4", SHORT | AGAIN, "double")]
    found = launched(4, *on_ranks(4), *ways, ("thin4", THIN, ""))
    assert found["thin4"]["weights_sha256"] == ranked_runs.ran([("thin1", THIN, "")])["thin1"]["weights_sha256"]
    assert all(trial["finished"] and trial["alike"] for trial in found.values())
    for how in ("float4", "float-split4", "float-hybrid4"):
        assert difference("float1", how) < MOST, how
    for how in ("double4", "double-split4"):
        assert difference("double1", how) < EXACT, how
    for how in ("odd4", "odd-split4"):
        assert difference("odd1", how) < EXACT, how
    assert difference("double1", "moved4") < EXACT
    assert launched(2, ("float-split2", split, ""))["float-split2"]["finished"]
    assert difference("float1", "float-split2") < MOST


# Who takes which rows


class Numbered:
    """Rows that say their step and number."""

    def batch(self, step: int, first_row: int, last_row: int) -> tuple[np.ndarray, np.ndarray]:
        rows = np.array([[step, row] for row in range(first_row, last_row)]).reshape(-1, 2)
        return rows, rows


@pytest.mark.parametrize("world", [1, 2, 3, 4, 7])
@pytest.mark.parametrize("rows", [1, 2, 5, 8])
def test_every_row_is_taken_once_and_every_rank_has_as_many(rows: int, world: int) -> None:
    parts = [share_of(Numbered(), rows, Ranks(rank, world))(3) for rank in range(world)]
    assert len({part[0].shape for part in parts} | {part[1].shape for part in parts}) == 1
    taken = [tuple(row) for _, targets in parts for row in targets.tolist() if row[0] >= 0]
    assert taken == [(3, row) for row in range(rows)]
    assert all((inputs >= 0).all() for inputs, _ in parts)


@pytest.mark.parametrize("world", [1, 2, 3])
@pytest.mark.parametrize("count", [0, 1, 4, 6])
def test_batches_to_measure_go_round(count: int, world: int) -> None:
    batches = [Numbered().batch(i, 0, 2) for i in range(count)]
    parts = [list(in_turns(iter(batches), Ranks(rank, world))) for rank in range(world)]
    assert {len(part) for part in parts} == {-(-count // world)}
    taken = [int(targets[0, 0]) for part in parts for _, targets in part if targets[0, 0] >= 0]
    assert sorted(taken) == list(range(count))


@pytest.mark.parametrize(
    ("sharing", "words"),
    [
        (Sharing(ALONE, shard_model=True), "there is one process"),
        (Sharing(Ranks(0, 4), within=2), "goes with --shard-model"),
        (Sharing(Ranks(0, 4), shard_model=True, within=3), "does not divide the 4 ranks"),
        (Sharing(Ranks(0, 4), shard_model=True, within=0), "does not divide"),
    ],
)
def test_what_cannot_be_shared_is_refused(sharing: Sharing, words: str) -> None:
    with pytest.raises(FathomError, match=words):
        sharing.check()
