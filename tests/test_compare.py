"""`fathom compare`: three axes, intervals over seeds, verdicts, and everything that cannot be compared."""

from __future__ import annotations

import io
import json
import math
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from fathom import cli, screen
from fathom.errors import FathomError
from fathom.report import measured
from fathom.report.compare import Compare, compare, groups_of
from fathom.report.compare_screen import show
from fathom.report.history import History, history_of
from fathom.report.measured import common_set, grouped, loss_reasons
from tests.oracles.measured_runs import CONFIG, falling, write_run

pytestmark = pytest.mark.usefixtures("fathom_home")

NOISE = (-0.001, 0.0, 0.0012)


def three_seeds(name: str, final: float, *, step_s: float = 0.5, steps: int = 400, **config: Any) -> list[str]:
    names = [f"{name}-s{seed}" for seed in (1, 2, 3)]
    for seed, (run, noise) in enumerate(zip(names, NOISE, strict=True), start=1):
        write_run(run, falling(steps, final + noise), step_s=step_s * (1 + noise), seed=seed, **config)
    return names


def compared(*runs: str, target: float | None = None, group: tuple[str, ...] = ()) -> dict[str, Any]:
    return compare(groups_of(runs, group), target)


def test_seeds_find_together_and_the_better_setting_is_better_on_every_axis() -> None:
    found = compared(*three_seeds("plain", 0.95), *three_seeds("bold", 0.90, lr_scale=1.4))
    plain, bold = found["groups"]
    assert (plain["name"], bold["name"]) == ("plain", "bold")
    assert bold["seeds"] == [1, 2, 3]
    (pair,) = found["pairs"]
    assert (pair["run"], pair["against"], pair["verdict"]) == ("bold", "plain", "better")
    assert pair["final_bpb"]["interval"]["mid"] == pytest.approx(-0.05)
    assert all(pair[axis]["verdict"] == "better" for axis in ("steps", "flops", "seconds"))
    assert all(-1 < pair[axis]["interval"]["high"] < 0 for axis in ("steps", "flops", "seconds"))
    assert found["target_bpb"] == pytest.approx(0.9512), "the worst of the six finals"
    assert found["differences"] == {"lr_scale": {"plain": CONFIG["lr_scale"], "bold": 1.4}}
    assert found["loss_comparable"]


def test_what_gains_by_step_and_loses_by_the_clock_is_not_better() -> None:
    """The notes' mixture of experts: better per step, slower, no gain."""
    found = compared(*three_seeds("dense", 0.95), *three_seeds("experts", 0.90, step_s=0.8, head_lr=0.01))
    (pair,) = found["pairs"]
    assert pair["verdict"] == "not shown"
    assert pair["reason"] == "better in steps, better in FLOPs, worse in training time"


def test_a_difference_within_the_noise_is_not_shown_and_the_interval_says_so() -> None:
    found = compared(*three_seeds("plain", 0.95), *three_seeds("same", 0.9502, head_lr=0.009))
    (pair,) = found["pairs"]
    assert pair["verdict"] == "not shown"
    interval = pair["final_bpb"]["interval"]
    assert interval["low"] < 0 < interval["high"]


def test_time_to_target_is_interpolated_and_counts_training_alone() -> None:
    write_run("a", [(100, 1.0), (200, 0.8)], step_s=2.0)
    write_run("b", [(100, 0.9), (200, 0.7)], step_s=2.0, head_lr=0.01)
    found = compared("a", "b", target=0.85)
    assert found["target_is"] == "given"
    reached = [group["to_target"] for group in found["groups"]]
    assert [r["steps"]["value"] for r in reached] == pytest.approx([175, 125])
    assert [r["seconds"]["value"] for r in reached] == pytest.approx([350, 250])
    run = history_of("a")
    assert run.shape is not None
    assert reached[0]["flops"]["value"] == pytest.approx(175 * 4096 * run.shape.flops_per_token)


def test_one_seed_says_that_there_is_no_interval() -> None:
    write_run("a", falling(400, 0.95))
    write_run("b", falling(400, 0.80), head_lr=0.01)
    found = compared("a", "b")
    (pair,) = found["pairs"]
    assert (pair["verdict"], pair["final_bpb"]["interval"]) == ("not shown", None)
    assert "one seed has no interval" in pair["reason"]
    assert found["groups"][0]["final_bpb"]["low"] is None
    assert any("one seed only, so no interval: a, b" in note for note in found["notes"])


def test_a_target_that_is_never_reached_is_said() -> None:
    found = compared(*three_seeds("a", 0.95), *three_seeds("b", 0.90, head_lr=0.01), target=0.92)
    assert found["groups"][0]["to_target"]["steps"] == {"value": None, "low": None, "high": None, "never": 3}
    assert found["pairs"][0]["steps"]["reason"] == "a seed never reached the target"
    assert "a-s1 never reached 0.9200; its best is 0.9490" in found["notes"]


def test_a_seed_that_diverged_is_no_win_and_is_named() -> None:
    names = three_seeds("a", 0.95) + three_seeds("b", 0.90, head_lr=0.01)
    write_run("b-s3", [*falling(400, 0.9)[:-1], (400, math.nan)], seed=3, head_lr=0.01)
    found = compared(*names)
    assert found["pairs"][0]["final_bpb"]["verdict"] == "not shown"
    assert found["groups"][1]["final_bpb"]["low"] is None
    assert any("b-s3 ended with nan bits per byte" in note for note in found["notes"])


def test_unequal_lengths_and_unequal_machines_are_said() -> None:
    write_run("short", falling(200, 0.95))
    write_run("long", falling(400, 0.90), training={"device_name": "another processor"})
    notes = " ".join(compared("short", "long")["notes"])
    assert "unequal length (steps: short 200, long 400)" in notes
    assert "a processor, another processor" in notes


def test_an_unfinished_run_is_compared_as_far_as_it_was_measured() -> None:
    write_run("a", falling(400, 0.95))
    write_run("b", falling(200, 0.99), finished=False, steps=400, head_lr=0.01)
    found = compared("a", "b")
    assert any("b is broken off; what it had at step 200 is compared" in note for note in found["notes"])


# What cannot be compared.


def refusal(*runs: str, **options: Any) -> str:
    with pytest.raises(FathomError) as refused:
        compared(*runs, **options)
    return str(refused.value)


def test_one_run_only() -> None:
    write_run("a", falling(400, 0.95))
    assert "'a' alone to compare; name at least two" in refusal("a")
    assert "there is no other run here" in refusal("a")
    write_run("b", falling(400, 0.95))
    assert "; here is b." in refusal("a")
    told = refusal()
    assert "no runs were named" in told and "; here are " in told and "a" in told.split("here are")[1]
    assert "'a' is there twice" in refusal("a", group=("x=a",))


def test_a_run_without_evaluations() -> None:
    write_run("a", falling(400, 0.95))
    run = write_run("b", falling(400, 0.95))
    for path in (run.folder / "evals").iterdir():
        path.unlink()
    assert "'b' has no evaluation" in refusal("a", "b")


def test_other_validation_rows_are_refused_with_what_differs() -> None:
    write_run("a", falling(400, 0.95))
    write_run("b", falling(400, 0.95), validation={"rows": 64})
    assert "150 lossless rows of 256 tokens of data dddddddd" in refusal("a", "b")
    said = refusal("a", "b")
    assert "(other rows)" in said
    assert "eval a --tasks bpb`" in said and "eval b --tasks bpb`" in said


def test_rows_that_no_evaluation_makes_alike_are_said_to_need_training() -> None:
    write_run("a", falling(400, 0.95))
    write_run("short", falling(400, 0.95), model={"seq_len": 64})
    write_run("other", falling(400, 0.95), data_digest="f" * 64, run={"tokenizer_digest": "1" * 64})
    write_run("masked", falling(400, 0.95), validation={"rows_of": "lossless, documents apart"})
    assert "train them with one --seq-len" in refusal("a", "short")
    assert "with the same --corpus and --tokenizer" in refusal("a", "other")
    assert "--document-mask" in refusal("a", "masked")


def test_other_data_is_refused() -> None:
    write_run("a", falling(400, 0.95))
    write_run("b", falling(400, 0.95), data_digest="f" * 64)
    assert "(other data or tokenizer)" in refusal("a", "b")
    assert "eval a --tasks bpb --corpus" in refusal("a", "b")


def test_other_packing_is_compared_in_bpb_on_common_rows_and_not_in_loss() -> None:
    write_run("a", falling(400, 0.95))
    write_run("b", falling(400, 0.90), packing="best-fit")
    found = compared("a", "b")
    assert not found["loss_comparable"]
    assert found["loss_reasons"] == ["packing differs (lossless: a; best-fit: b)"]
    assert found["groups"][0]["train_loss"] is None


def test_other_data_is_compared_where_both_were_measured_on_one_set() -> None:
    common = {"data_digest": "7" * 64, "rows": 80, "seq_len": 256}
    runs = [write_run("a", falling(400, 0.95)), write_run("b", falling(400, 0.95), data_digest="f" * 64)]
    for run, value in zip(runs, (0.97, 0.91), strict=True):
        tags = {"step": 400, "train_s": 200.0, "val_bpb": value, "rows_of": "lossless"}
        (run.folder / "evals" / "bpb-000400-common.json").write_text(json.dumps(tags | common))
    found = compared("a", "b")
    assert found["validation"]["data_digest"] == "7" * 64
    assert [group["final_bpb"]["value"] for group in found["groups"]] == [0.97, 0.91]
    assert found["loss_reasons"] == ["data differ (dddddddd: a; ffffffff: b)"]


def test_stages_are_not_mixed() -> None:
    write_run("a", falling(400, 0.95))
    write_run("b", falling(400, 0.95), run={"stage": "sft"})
    assert "different stages (a is pretrain, b is sft)" in refusal("a", "b")


def test_a_run_that_diverged_alone_and_a_target_that_is_none() -> None:
    write_run("a", [(100, math.nan)])
    write_run("b", [(100, math.nan)], head_lr=0.01)
    assert "no run ended with a bpb that is a number" in refusal("a", "b")
    assert "--target is -1" in refusal("a", "b", target=-1)


# Groups.


def test_groups_that_are_asked_for_may_differ_in_the_seed_alone() -> None:
    three_seeds("a", 0.95)
    write_run("odd", falling(400, 0.9), seed=9, head_lr=0.01)
    write_run("again", falling(400, 0.9), seed=1)
    groups = groups_of(["odd"], ["mine=a-s1,a-s3"])
    assert [(g.name, g.seeds) for g in groups] == [("mine", [1, 3]), ("odd", [9])]
    for members, said in (("a-s1,odd", "head_lr = 0.008 in 'a-s1'"), ("a-s1,again", "a seed twice"), ("", "no runs")):
        with pytest.raises(FathomError, match=said):
            groups_of([], [f"mine={members}"])


def test_the_same_settings_and_seed_twice_are_not_taken_for_two_seeds() -> None:
    """Old code against new: nothing in run.toml tells them apart, so only --group can."""
    runs = [write_run(name, falling(400, 0.9), seed=1) for name in ("old", "new")]
    assert [g.name for g in grouped(runs)] == ["old", "new"]


@pytest.mark.parametrize(
    ("names", "group"),
    [
        (("lossless-1", "lossless-2"), "lossless"),
        (("old-s1", "old-s2"), "old"),
        (("old_seed1", "old_seed2"), "old"),
        (("runseed1", "runseed2"), "run"),
        (("a", "b"), "a, b"),
        (("a", "b", "c"), "a, b, c"),
        (("a", "b", "c", "d", "e"), "a, b, c and 2 more"),
    ],
)
def test_a_group_is_called_what_its_runs_share(names: tuple[str, ...], group: str) -> None:
    assert measured._name(names, set()) == group


def test_loss_is_compared_only_on_the_same_data_rows_and_packing() -> None:
    a = write_run("a", falling(400, 0.9))
    b = write_run("b", falling(400, 0.9), data_digest="f" * 64, run={"tokenizer_digest": "1" * 64})
    c = write_run("c", falling(400, 0.9), model={"seq_len": 512})
    assert loss_reasons([a, a]) == []
    assert [reason.split()[0] for reason in loss_reasons([a, b, c])] == ["data", "tokenizer", "rows"]


def test_of_several_common_sets_the_one_measured_most_often_counts() -> None:
    runs = [write_run(name, falling(400, 0.9)) for name in ("a", "b")]
    for run in runs:
        value = {"step": 400, "val_bpb": 0.5, "rows": 9, "rows_of": "lossless", "data_digest": "0" * 64}
        (run.folder / "evals" / "bpb-other.json").write_text(json.dumps(value))
    assert common_set(runs).rows == 150


# CORE, equal weights, and what to type next.


def scored(run: History, value: float, error: float, limit: int | None = None, **settings: Any) -> None:
    """CORE at the end, as `fathom eval` keeps it."""
    tags = {"task": "core", "step": run.steps_done, "data": {"bundle": "b"}, "settings": {"limit": limit} | settings}
    found = tags | {"value": value, "standard_error": error, "n": 100 if limit else 9000}
    found |= {} if limit else {"core": value}
    (run.folder / "evals" / f"core-{run.steps_done:06d}-{limit}.json").write_text(json.dumps(found))


def test_core_is_judged_by_its_items_where_each_has_one_seed() -> None:
    a, b = (write_run(name, falling(400, 0.9), head_lr=rate) for name, rate in (("a", 0.01), ("b", 0.02)))
    scored(a, 0.10, 0.01, dtype="fp32")
    assert compared("a", "b")["core"] is None, "b has none"
    scored(b, 0.15, 0.01)
    found = compared("a", "b")
    assert [(one["name"], one["value"], one["limit"]) for one in found["core"]] == [("a", 0.1, None), ("b", 0.15, None)]
    core = found["pairs"][0]["core"]
    assert (core["verdict"], core["difference"]) == ("better", pytest.approx(0.05))
    assert core["interval"]["low"] == pytest.approx(0.05 - 1.96 * math.hypot(0.01, 0.01), abs=1e-3)
    scored(b, 0.11, 0.01)
    assert compared("a", "b")["pairs"][0]["core"]["verdict"] == "not shown"
    assert compared("b", "a")["pairs"][0]["core"]["difference"] == pytest.approx(-0.01)


def test_core_of_other_limits_is_not_compared_and_that_of_all_items_goes_first() -> None:
    a, b = (write_run(name, falling(400, 0.9), head_lr=rate) for name, rate in (("a", 0.01), ("b", 0.02)))
    scored(a, 0.10, 0.01)
    scored(b, 0.15, 0.03, limit=100)
    assert compared("a", "b")["core"] is None
    scored(a, 0.05, 0.03, limit=100)
    assert [one["limit"] for one in compared("a", "b")["core"]] == [100, 100]
    scored(b, 0.20, 0.01)
    assert [one["value"] for one in compared("a", "b")["core"]] == [0.10, 0.20]


def test_core_is_judged_by_the_seeds_where_there_are_several() -> None:
    names = [three_seeds("plain", 0.95), three_seeds("bold", 0.90, lr_scale=1.4)]
    for group, value in zip(names, (0.1, 0.2), strict=True):
        for name, off in zip(group, NOISE, strict=True):
            scored(history_of(name), value + off, 0.5)
    core = compared(*names[0], *names[1])["pairs"][0]["core"]
    assert core["verdict"] == "better" and core["interval"]["low"] > 0.09, "by the scatter of seeds, not of items"
    assert compared(*names[1], *names[0])["pairs"][0]["core"]["verdict"] == "worse"


def test_equal_weights_are_told_and_are_trained_again_once(capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("a", "b"):
        write_run(name, falling(400, 0.9), weights="e" * 64)
    found = compared("a", "b")
    assert found["identical"] == [["a", "b"]]
    assert found["pairs"][0]["reason"] == "they ended with the same weights"
    assert len(found["next"]) == 1 and "--seed 2 --run a-s2" in found["next"][0]
    show(found)
    said = " ".join(capsys.readouterr().err.split())
    assert "a and b ended with the same weights, bit for bit" in said
    assert "differ in code" not in said and "not shown" not in said and "undecided" in said


def test_a_second_seed_of_each_is_what_to_type_next() -> None:
    three_seeds("plain", 0.95)
    write_run("alone", falling(400, 0.9), seed=5, lr_scale=1.4, origin={"lr_scale": "flag"})
    (line,) = compared("plain-s1", "plain-s2", "alone")["next"]
    assert line.startswith("`fathom pretrain ") and "--lr-scale 1.4" in line and "--seed 6 --run alone-s6" in line
    assert compared("plain-s1", "alone")["identical"] == []


def test_runs_that_left_spikes_out_and_runs_that_did_not_are_not_seeds_of_one() -> None:
    runs = [
        write_run("a-s1", falling(400, 0.9)),
        write_run("a-s2", falling(400, 0.9), seed=2, training={"skip_spikes": True}),
    ]
    runs.append(write_run("a-s3", falling(400, 0.9), seed=3, training={"skip_spikes": False}))
    assert [group.seeds for group in grouped(runs)] == [[1, 2], [3]], "an older record does not say that it did"


# As a person and as a program see it.


def test_json_on_standard_output_and_the_table_in_a_window_of_100_columns(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    names = three_seeds("plain", 0.95) + three_seeds("bold", 0.90, lr_scale=1.4)
    with pytest.raises(SystemExit) as stop:
        cli.main(["compare", *names, "--json"])
    assert stop.value.code == 0
    found = json.loads(capsys.readouterr().out)
    paper = io.StringIO()
    monkeypatch.setattr(screen, "console", lambda: Console(file=paper, width=100, highlight=False))
    monkeypatch.setattr("fathom.report.tables.console", screen.console)
    monkeypatch.setattr("fathom.report.compare_screen.say", lambda text, style=None: screen.console().print(text))
    show(found)
    text = paper.getvalue()
    assert max(map(len, text.splitlines())) <= 100
    assert "bold against plain: better" in text
    assert "0.9001" in text and "to reach 0.9512 (the worst of the finals)" in text


def test_groups_on_the_command_line(capsys: pytest.CaptureFixture[str]) -> None:
    three_seeds("a", 0.95)
    three_seeds("b", 0.90, head_lr=0.01)
    with pytest.raises(SystemExit):
        cli.main(["compare", "--group", "x=a-s1,a-s2", "--group", "y=b-s1,b-s2", "--json"])
    assert [g["name"] for g in json.loads(capsys.readouterr().out)["groups"]] == ["x", "y"]


def test_a_real_shape_of_record_without_shape_or_batch(fathom_home: Path) -> None:
    """An old or foreign run.toml: FLOPs are unknown, the other axes judge."""
    for name, final, extra in (("a", 0.95, {}), ("b", 0.90, {"head_lr": 0.01})):
        for seed in (1, 2, 3):
            run = write_run(f"{name}-s{seed}", falling(400, final + 0.001 * seed), seed=seed, **extra)
            path = run.folder / "run.toml"
            path.write_text(path.read_text().replace("n_layer = 4", "layers = 4"))
            for found in (run.folder / "evals").iterdir():
                found.write_text(found.read_text().replace('"rows": 150', '"rows": 150, "seq_len": 256'))
    found = Compare(runs=tuple(f"{n}-s{s}" for n in "ab" for s in (1, 2, 3)), json=True).run()
    assert found["pairs"][0]["verdict"] == "better"
    assert math.isnan(found["groups"][0]["flops"])
