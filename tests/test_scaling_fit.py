"""Scaling laws: recovered from synthetic ones with noise, the reference's table, and no fit through too few points."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fathom import cli
from fathom.report.history import history_of
from fathom.report.isoflop import bottom, budgets
from fathom.report.miniseries import Point, analyse, predictions
from fathom.report.scaling import Scaling, nearest_depth, points_of
from fathom.report.scaling_fit import NoFit, power_law, saturating, surface
from fathom.train.settings import resolve
from tests.oracles.measured_runs import write_run

# REFERENCE section 13, "Scaling optimum": FLOPs, parameters, tokens, bpb.
REFERENCE = np.array(
    [
        [1e18, 110.7e6, 1.242e9, 0.8972],
        [2e18, 167.8e6, 1.785e9, 0.8616],
        [5e18, 250.7e6, 2.642e9, 0.8293],
        [1e19, 381.8e6, 3.807e9, 0.7999],
    ]
)


def test_the_exponents_of_the_references_table() -> None:
    flops, n, d, _ = REFERENCE.T
    assert power_law(flops, n).exponent == pytest.approx(0.54, abs=0.02)
    assert power_law(flops, d).exponent == pytest.approx(0.49, abs=0.02)
    interval = power_law(flops, n).exponent_interval
    assert interval.low < 0.54 < interval.high


def test_a_law_through_the_references_bpb_passes_near_its_points_and_is_unsure_of_the_floor() -> None:
    flops, _, _, bpb = REFERENCE.T
    law = saturating(flops, bpb)
    assert np.abs(law.at(flops) - bpb).max() < 0.005
    assert law.floor_interval.high - law.floor_interval.low > 0.1, "four points cannot tell a floor"
    assert 0.7 < float(law.at(1e20)) < 0.8


def test_a_saturating_law_with_noise_is_recovered() -> None:
    flops = np.geomspace(1e15, 1e19, 12)
    dice = np.random.default_rng(3)
    law = saturating(flops, 0.6 + 0.5 * (flops / 1e17) ** -0.2 + dice.normal(0, 0.002, 12))
    assert law.exponent == pytest.approx(0.2, abs=0.02)
    assert law.floor == pytest.approx(0.6, abs=0.04)
    assert law.floor_interval.low < 0.6 < law.floor_interval.high
    assert law.exponent_interval.low < 0.2 < law.exponent_interval.high
    ahead = law.interval_at(1e20)
    assert ahead.low < 0.6 + 0.5 * 1000**-0.2 < ahead.high


def test_a_law_without_noise_is_found_to_the_grid() -> None:
    x = np.geomspace(1, 1000, 6)
    law = saturating(x, 1 + x**-0.5)
    assert (law.floor, law.exponent) == (pytest.approx(1, abs=1e-3), pytest.approx(0.5, rel=3e-3))
    assert law.rms < 1e-3


def test_intervals_hold_the_truth_about_as_often_as_they_say() -> None:
    x = np.geomspace(1, 100, 6)
    held = 0
    for seed in range(60):
        dice = np.random.default_rng(seed)
        interval = power_law(x, 3 * x**0.5 * np.exp(dice.normal(0, 0.05, 6)), seed=seed).exponent_interval
        held += interval.low <= 0.5 <= interval.high
    assert 52 <= held <= 60


def grid(noise: float = 0.0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Five sizes at five numbers of tokens under a law of Hoffmann's kind."""
    n, d = (v.ravel() for v in np.meshgrid(np.geomspace(1e6, 1e8, 5), np.geomspace(1e8, 1e10, 5)))
    bpb = 0.5 + 0.3 * (n / 1e7) ** -0.34 + 0.25 * (d / 1e9) ** -0.28
    return n, d, bpb + np.random.default_rng(1).normal(0, noise, len(n))


def test_a_law_in_size_and_tokens_is_recovered() -> None:
    law = surface(*grid(noise=0.001))
    for index, truth in ((3, 0.34), (4, 0.28), (0, 0.5)):
        interval = law.interval_of(index)
        assert interval.low < truth < interval.high
        assert interval.mid == pytest.approx(truth, abs=0.05)
    assert law.rms < 0.002


def test_the_optimum_of_the_law_is_where_a_search_finds_it() -> None:
    law = surface(*grid())
    n, d, bpb = law.optimum(1e17, 7.0)
    sizes = np.geomspace(1e5, 1e9, 4001)
    searched = law.at(sizes, 1e17 / 7 / sizes)
    assert n.mid == pytest.approx(sizes[int(np.argmin(searched))], rel=0.01)
    assert bpb.mid == pytest.approx(searched.min(), abs=1e-6)
    assert n.mid * d.mid * 7 == pytest.approx(1e17)


def test_the_bottom_of_a_budget_and_how_bottoms_grow() -> None:
    """Sizes about the best one of each budget, under a law whose best size grows with the root of the FLOPs."""
    dice = np.random.default_rng(5)
    found = []
    for flops in (1e15, 1e16, 1e17):
        n = np.sqrt(flops / 60) * np.array([0.4, 0.7, 1.0, 1.5, 2.4])
        bpb = 0.9 + 0.03 * np.log(n / np.sqrt(flops / 60)) ** 2 + dice.normal(0, 2e-4, 5)
        found.append(bottom(np.full(5, flops), n, flops / 6 / n, bpb))
    assert [b.n for b in found] == pytest.approx([np.sqrt(f / 60) for f in (1e15, 1e16, 1e17)], rel=0.05)
    assert found[0].d / found[0].n == pytest.approx(10, rel=0.1)
    for b in found:
        assert b.n_interval is not None and b.n_interval.low < b.n < b.n_interval.high
        assert np.polyval(b.parabola, np.log(b.n)) == pytest.approx(b.bpb)
    law = power_law(np.array([b.flops for b in found]), np.array([b.n for b in found]))
    assert law.exponent == pytest.approx(0.5, abs=0.02)


def test_budgets_are_found_by_their_gaps() -> None:
    flops = np.array([1.00e18, 2.1e18, 1.02e18, 0.97e18, 2.15e18, 9e18])
    assert [sorted(part.tolist()) for part in budgets(flops)] == [[0, 2, 3], [1, 4]]


# Never a fit through too few.


@pytest.mark.parametrize("count", [1, 2])
def test_no_power_law_through_two_points(count: int) -> None:
    with pytest.raises(NoFit, match="at least 3 different ones"):
        power_law(np.arange(1.0, count + 1), np.arange(1.0, count + 1))
    with pytest.raises(NoFit, match="at least 3 different ones, and there are 2"):
        power_law(np.array([1.0, 2.0, 2.0, 2.0]), np.array([1.0, 2.0, 2.1, 1.9]))


def test_no_floor_through_three_points_and_none_where_nothing_falls() -> None:
    with pytest.raises(NoFit, match="at least 4"):
        saturating(np.array([1.0, 2.0, 4.0]), np.array([3.0, 2.0, 1.5]))
    with pytest.raises(NoFit, match="do not fall"):
        saturating(np.array([1.0, 2.0, 4.0, 8.0]), np.array([1.0, 1.1, 1.2, 1.4]))


def test_no_law_in_size_and_tokens_where_all_have_one_ratio() -> None:
    n = np.geomspace(1e6, 1e8, 8)
    with pytest.raises(NoFit, match="cannot be told apart"):
        surface(n, 12 * n, 1 + (n / 1e6) ** -0.3)
    with pytest.raises(NoFit, match="at least seven"):
        surface(n[:6], n[:6] ** 1.5, 1 + (n[:6] / 1e6) ** -0.3)


def test_a_best_size_beyond_those_tried_is_no_best_size() -> None:
    n = np.array([1.0, 2.0, 4.0, 8.0])
    flops = np.ones(4)
    with pytest.raises(NoFit, match="add larger ones"):
        bottom(flops, n, 1 / n, (np.log(n) - 3) ** 2)
    with pytest.raises(NoFit, match="add smaller ones"):
        bottom(flops, n, 1 / n, (np.log(n) + 1) ** 2)
    with pytest.raises(NoFit, match="no least"):
        bottom(flops, n, 1 / n, -((np.log(n) - 1) ** 2))
    with pytest.raises(NoFit, match="at least 4 sizes, and there are 3"):
        bottom(flops[:3], n[:3], 1 / n[:3], np.array([2.0, 1, 2]))


# A miniseries as a whole.


def isoflop_points() -> list[Point]:
    """Three budgets of five sizes, the best growing with the root of the FLOPs."""
    dice = np.random.default_rng(2)
    points = []
    for flops in (1e15, 1e16, 1e17):
        best = np.sqrt(flops / 60)
        for i, share in enumerate((0.4, 0.7, 1.0, 1.5, 2.4)):
            n = best * share
            bpb = 0.6 + 0.4 * (flops / 1e16) ** -0.15 + 0.03 * np.log(share) ** 2 + dice.normal(0, 2e-4)
            points.append(Point(f"f{flops:.0e}-{i}", 2 + 2 * i, round(n), flops / 6 / n, flops, float(bpb)))
    return points


def test_budgets_give_best_sizes_their_growth_and_a_prediction_beyond() -> None:
    found = analyse(isoflop_points())
    assert [b.n for b in found.bottoms] == pytest.approx([np.sqrt(f / 60) for f in (1e15, 1e16, 1e17)], rel=0.05)
    assert found.n_law is not None and found.n_law.exponent == pytest.approx(0.5, abs=0.02)
    assert found.d_law is not None and found.d_law.exponent == pytest.approx(0.5, abs=0.02)
    assert found.flops_per_pair == pytest.approx(6, rel=1e-3)
    (row,) = predictions(found, [1e19])
    assert row["beyond"] and row["best_by"] == "budgets"
    assert row["parameters"]["value"] == pytest.approx(np.sqrt(1e19 / 60), rel=0.1)
    assert row["parameters"]["low"] < row["parameters"]["value"] < row["parameters"]["high"]
    assert "bits per byte against FLOPs" in " ".join(found.notes), "three budgets are too few for a floor"


def test_one_ratio_for_each_depth_gives_a_law_and_says_what_it_cannot_give() -> None:
    points = [
        Point(f"d{depth}", depth, 1000 * depth**3, 12_000.0 * depth**3, 72e6 * depth**6, 0.7 + 0.8 * depth**-0.9)
        for depth in (2, 4, 6, 8, 12)
    ]
    found = analyse(points)
    assert found.frontier is not None
    assert found.frontier.exponent == pytest.approx(0.15, abs=0.005), "depth^-0.9 where FLOPs go with depth^6"
    assert found.surface is None and found.n_law is None
    assert any("cannot be told apart" in note or "at least seven" in note for note in found.notes)
    assert any("no best size and tokens for given FLOPs" in note for note in found.notes)
    (row,) = predictions(found, [1e13])
    assert row["parameters"] is None
    assert row["bpb"]["value"] == pytest.approx(0.7 + 0.8 * (1e13 / 72e6) ** -0.15, abs=0.003)


def test_two_runs_determine_nothing_and_that_is_said() -> None:
    found = analyse([Point("a", 2, 1000, 1e4, 6e7, 1.2), Point("b", 4, 8000, 8e4, 4e9, 1.0)])
    assert (found.frontier, found.surface, found.bottoms, predictions(found)) == (None, None, [], [])
    assert any("at least 4 different ones, and there are 2" in note for note in found.notes)


def test_seeds_of_one_size_are_points_of_one_law_and_no_budget() -> None:
    points = [
        Point(f"d{depth}-s{seed}", depth, 1000 * depth**3, 12_000.0 * depth**3, 72e6 * depth**6, bpb + 0.001 * seed)
        for depth, bpb in ((2, 1.2), (4, 1.0), (6, 0.92), (8, 0.88))
        for seed in (-1, 0, 1)
    ]
    found = analyse(points)
    assert found.bottoms == []
    assert found.frontier is not None and 0.0005 < found.frontier.rms < 0.01


# The command.


def depth_run(depth: int, bpb: float, **more: Any) -> None:
    given = {"depth": depth, "head_dim": 64, "seq_len": 256, "window": "L", "ratio": 2}
    settings = resolve(given, {}, 1024)
    made = {"model": asdict(settings.shape), "origin": settings.origin, **settings.flat()}
    write_run(f"mini-d{depth}", [(settings.steps // 2, bpb + 0.1), (settings.steps, bpb)], **(made | more))


def test_the_command_prints_json_and_writes_a_page_with_plots(
    fathom_home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    for depth in (1, 2, 3, 4, 6):
        depth_run(depth, 0.8 + 0.6 * depth**-0.9)
    with pytest.raises(SystemExit) as stop:
        cli.main(["scaling", "--prefix", "mini-", "--flops", "1e16", "--json"])
    assert stop.value.code == 0
    found = json.loads(capsys.readouterr().out)
    assert [point["depth"] for point in found["points"]] == [1, 2, 3, 4, 6]
    assert (
        found["frontier"]["floor"]["low"] <= found["frontier"]["floor"]["value"] <= found["frontier"]["floor"]["high"]
    )
    page = (tmp_path / "scaling.html").read_text()
    assert "Bits per byte against FLOPs" in page and 'data-chart="0"' in page and "mini-d6" in page
    with pytest.raises(SystemExit):
        cli.main(["scaling", "--prefix", "mini-", "--out", "other.html"])
    assert "bpb = " in capsys.readouterr().err
    assert (tmp_path / "other.html").exists()


def test_without_a_law_no_page_is_written_unless_it_was_asked_for(
    fathom_home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    depth_run(1, 1.4)
    depth_run(2, 1.2)
    assert Scaling(prefix="mini-").run()["html"] is None
    assert "no law was found, so no page was written" in capsys.readouterr().err
    assert not list(tmp_path.glob("*.html"))
    assert Scaling(prefix="mini-", out="asked.html", json=True).run()["html"] == str(tmp_path / "asked.html")
    assert (tmp_path / "asked.html").exists()


def test_what_is_no_point_is_left_out_with_the_reason(fathom_home: Path) -> None:
    depth_run(1, 1.4)
    depth_run(2, float("nan"))
    depth_run(3, 1.2, finished=False)
    depth_run(4, 1.1, run={"stage": "sft"})
    points, notes = points_of([history_of(f"mini-d{depth}") for depth in (1, 2, 3, 4)])
    assert [point.run for point in points] == ["mini-d1"]
    assert ["no number" in notes[0], "broken off" in notes[1], "it is sft" in notes[2]] == [True] * 3
    shape = history_of("mini-d1").shape
    assert shape is not None
    assert nearest_depth({"value": shape.scaling_parameters * 1.01}, [history_of("mini-d1")]) == 1


def test_runs_that_no_law_can_join(fathom_home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    depth_run(1, 1.4)
    depth_run(2, 1.2, data_digest="f" * 64)
    depth_run(3, float("nan"))
    for argv, said in (
        (["mini-d1", "mini-d2"], "one law cannot hold for these runs: data differ"),
        (["mini-d3"], "none of the 1 runs can be used"),
        (["--prefix", "maxi"], "no run begins with 'maxi'"),
        ([], "no run was named"),
        (["mini-d1", "--flops", "0"], "give numbers above zero"),
    ):
        with pytest.raises(SystemExit) as stop:
            cli.main(["scaling", *argv])
        assert stop.value.code == 2
        assert said in capsys.readouterr().err
