"""`fathom leaderboard`: time to target by training alone, what makes an entry reproducible, entries from elsewhere."""

from __future__ import annotations

import json
import math
import shlex
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from fathom import cli
from fathom.arguments import parse
from fathom.errors import FathomError
from fathom.record import to_toml
from fathom.report.entry import entry_from, entry_of
from fathom.report.history import history_of
from fathom.report.leaderboard import Leaderboard, boards_of, core_board, entries_here
from fathom.report.reproduce import rebuilt_command
from fathom.screen import typed
from fathom.train.settings import read_recipe, resolve
from tests.oracles.measured_runs import falling, write_run

pytestmark = pytest.mark.usefixtures("fathom_home")


def ranked(**options: Any) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = Leaderboard(json=True, **options).run()["boards"][0]["rows"]
    return found


def honest_run(name: str, bpb: list[tuple[int, float]], flags: dict[str, Any] | None = None, **more: Any) -> Any:
    """A run whose settings are those that the rules make of its flags."""
    given = {"depth": 4, "head_dim": 64, "seq_len": 256, "window": "L", "batch_tokens": 4096, "steps": bpb[-1][0]}
    given |= flags or {}
    settings = resolve(given, {}, 1024)
    made = {"model": asdict(settings.shape), "origin": settings.origin, **settings.flat()}
    return write_run(name, bpb, **(made | more))


def test_ranked_by_training_time_to_the_target_interpolated_and_evaluations_apart() -> None:
    honest_run("slow", [(100, 1.0), (200, 0.8)], step_s=2.0)
    honest_run("fast", [(100, 1.0), (200, 0.6)], step_s=1.0)
    honest_run("never", [(100, 1.0), (200, 0.95)], step_s=0.5)
    rows = ranked(target=0.9)
    assert [(row["run"], row["rank"], row["seconds"]) for row in rows] == [
        ("fast", 1, pytest.approx(125)),
        ("slow", 2, pytest.approx(300)),
        ("never", None, None),
    ]
    assert [row["best"] for row in rows] == [0.6, 0.8, 0.95]


def test_without_a_target_the_worst_of_the_finals_so_that_all_reach_it() -> None:
    honest_run("a", [(100, 1.0), (200, 0.8)])
    honest_run("b", [(100, 1.0), (200, 0.6)])
    board = Leaderboard(json=True).run()["boards"][0]
    assert (board["target"], board["target_is"]) == (0.8, "the worst of the finals")
    assert all(row["seconds"] is not None for row in board["rows"])


def test_other_validation_rows_have_a_board_of_their_own() -> None:
    honest_run("a", [(200, 0.8)])
    honest_run("b", [(200, 0.8)])
    honest_run("c", [(200, 0.8)], validation={"rows": 7})
    boards = boards_of(entries_here()[0], None)
    assert [[row["run"] for row in board["rows"]] for board in boards] == [["a", "b"], ["c"]]


def test_by_core() -> None:
    for name, core in (("a", 0.20), ("b", 0.30)):
        run = honest_run(name, [(100, 1.0), (200, 0.8)], step_s=1.0)
        for step, value in ((100, 0.1), (200, core)):
            (run.folder / "evals" / f"core-{step:06d}.json").write_text(json.dumps({"step": step, "core": value}))
    rows = core_board(entries_here()[0], 0.25)["rows"]
    assert [(row["run"], row["seconds"]) for row in rows] == [("b", pytest.approx(175, abs=1)), ("a", None)]


# What makes an entry reproducible.


def test_the_command_gives_the_same_settings_again() -> None:
    run = honest_run("mine", falling(400, 0.9), {"seed": 7, "lr_scale": 1.5})
    command, problems = rebuilt_command(run)
    assert problems == []
    words = shlex.split(command)
    assert words[:2] == ["fathom", "pretrain"]
    from fathom.train.pretrain import Pretrain

    config = parse(Pretrain, "pretrain", words[2:])
    again = resolve(asdict(config), read_recipe(None), 1024)
    assert again.shape == run.shape
    assert again.flat() == {key: run.config["config"].get(key) for key in again.flat()}
    assert (config.eval_tokens, config.eval_every, config.validation_rows) == (150 * 256, 50, "lossless")
    assert (config.device_batch, config.compile, config.dtype) == (16, "off", "fp32")
    assert "--matrix-lr" not in command, "what the rules make is not written down"


def test_a_ratio_and_flops_come_back() -> None:
    given = {"depth": 2, "head_dim": 64, "seq_len": 256, "window": "L"}
    for flag in ({"ratio": 3.7}, {"flops": 2e12}):
        settings = resolve(given | flag, {}, 1024)
        run = write_run(
            f"by-{next(iter(flag))}",
            [(settings.steps, 0.9)],
            model=asdict(settings.shape),
            origin=settings.origin,
            **settings.flat(),
        )
        assert rebuilt_command(run)[1] == []


def test_rules_that_have_changed_since_are_written_out() -> None:
    run = honest_run("old", falling(400, 0.9), {"matrix_lr": 0.02})
    path = run.folder / "run.toml"
    config = {**run.config, "config": {**run.config["config"], "weight_decay": 0.123, "warmup_steps": 11}}
    path.write_text(to_toml(config))
    command, problems = rebuilt_command(history_of("old"))
    assert problems == []
    assert "--weight-decay 0.123" in command and "--warmup-steps 11" in command


BROKEN = {
    "corpus": ({"run": {"corpus_digest": ""}}, "no digest of its corpus"),
    "tokenizer": ({"run": {"tokenizer_digest": ""}}, "no digest of its tokenizer"),
    "unfinished": ({"finished": False}, "it is broken off"),
    "lost steps": ({"lost_steps": (3, 4)}, "its log lacks 2 of 200 steps"),
    "width": ({"width_scale": 9.0}, "this version would train it with another width_scale"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_what_cannot_be_reproduced_has_no_rank_and_says_why(name: str) -> None:
    broken, problem = BROKEN[name]
    honest_run("broken", [(200, 0.8)], **broken)
    honest_run("whole", [(200, 0.8)], step_s=0.6)
    rows = ranked()
    assert [(row["run"], row["rank"]) for row in rows] == [("broken", None), ("whole", 1)]
    assert problem in rows[0]["problems"]


def test_a_run_on_two_machines_and_one_of_unknown_make() -> None:
    from fathom.record import Record

    run = honest_run("moved", falling(400, 0.9))
    Record(run.folder).event("resumed", step=200)
    Record(run.folder).event("training", step=200, device_name="another", dtype="fp32", device_batch=16)
    Record(run.folder).event("finished", result=dict(run.result or {}))
    old = honest_run("old", falling(400, 0.9))
    path = old.folder / "events.jsonl"
    path.write_text("".join(line for line in path.read_text().splitlines(True) if '"training"' not in line))
    problems = {row["run"]: row["problems"] for row in ranked()}
    assert problems["moved"] == ["it was computed in 2 ways, one after another"]
    assert problems["old"] == ["its record, of an older version, does not say what it was computed on"]


def test_a_run_of_several_ranks_is_trained_again_by_as_many(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from fathom.train.pretrain import Pretrain

    facts = {"ranks": 16, "weights": "split", "shard_within": 8}
    command, problems = rebuilt_command(honest_run("mine", falling(400, 0.9), training=facts))
    start = "torchrun --nnodes 2 --nproc-per-node 8 -m fathom -- "
    assert problems == [] and command.startswith(start)
    config = parse(Pretrain, "pretrain", shlex.split(command.removeprefix(start))[1:])
    assert (config.shard_model, config.shard_within) == (True, 8)
    monkeypatch.setenv("FATHOM_COMMAND", "/a b/fathom")
    here = typed(f"`{command}`")
    assert here.startswith("`'/a b/.venv/bin/torchrun' --nnodes 2 ")
    with pytest.raises(SystemExit):
        cli.main(["leaderboard"])
    assert " ".join(here.split()) in " ".join(capsys.readouterr().err.split())


def test_a_real_run_is_rebuilt_in_the_ways_it_was_trained_in(monkeypatch: pytest.MonkeyPatch) -> None:
    from fathom.train.pretrain import pretrain
    from tests.oracles.tiny_runs import furnish, hurry, pretraining

    hurry(monkeypatch)
    furnish()
    pretrain(pretraining(skip_spikes=False))
    command, problems = rebuilt_command(history_of("base"))
    assert problems == [] and command.endswith(" --no-skip-spikes")


@pytest.mark.parametrize("way", [{"ranks": 2}, {"weights": "split"}, {"shard_within": 2}, {"skip_spikes": False}])
def test_a_run_that_went_on_in_another_way_has_no_rank(way: dict[str, Any]) -> None:
    from fathom.record import Record

    run = honest_run("moved", falling(400, 0.9))
    for facts, problems in (
        ({"ranks": 1, "weights": "whole", "skip_spikes": True}, []),
        (way, ["it was computed in 2 ways, one after another"]),
    ):
        Record(run.folder).event("resumed", step=200)
        Record(run.folder).event("training", step=200, **{**run.circumstances, **facts})
        Record(run.folder).event("finished", result=dict(run.result or {}))
        assert ranked()[0]["problems"] == problems


def test_an_extended_run_says_that_and_nothing_else() -> None:
    run = honest_run("longer", falling(400, 0.9), planned_steps=200, lost_steps=range(150))
    path = run.folder / "events.jsonl"
    path.write_text(
        path.read_text().replace('"event": "started"', '"event": "extended", "from": "gone", "step": 150', 1)
    )
    assert ranked()[0]["problems"] == ["it goes on from another run"]


# Entries from elsewhere.


def test_an_entry_goes_out_and_comes_in_unchanged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fathom_home: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    run = honest_run("mine", falling(400, 0.9), weights="a" * 64)
    sent = Leaderboard(export="mine").run()
    assert sent["entry"]["weights_sha256"] == "a" * 64
    monkeypatch.setenv("FATHOM_HOME", str(tmp_path / "elsewhere"))
    result = Leaderboard(add="mine.entry.json", json=True).run()
    (row,) = result["boards"][0]["rows"]
    assert (row["run"], row["from"], row["rank"], row["command"]) == ("mine", "added", 1, entry_of(run).command)
    assert Leaderboard(add="mine.entry.json", json=True).run()["added"] == "mine"


def test_a_run_that_is_here_and_was_added_is_there_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    honest_run("mine", falling(400, 0.9))
    Leaderboard(export="mine").run()
    assert len(ranked(add="mine.entry.json")) == 1


def mended(entry: dict[str, Any], **changes: Any) -> str:
    return json.dumps({**entry, **changes})


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"format": 2}, "does not say format 1"),
        ({"name": "../../etc"}, "cannot be the name of a leaderboard entry"),
        ({"command": "\x1b[2J"}, "command is no plain text"),
        ({"seconds": math.nan}, "seconds is no number"),
        ({"tokens": -5}, "tokens is no number"),
        ({"bpb": [{"points": [[1, 1, 1]]}]}, "does not say what it was measured on"),
        ({"core": [[2, 2, 0.1], [1, 1, 0.2]]}, "not in order"),
        ({"core": [[1, 2]]}, "not [step, seconds, value]"),
    ],
)
def test_a_strange_file_is_refused_in_a_sentence(changes: dict[str, Any], said: str) -> None:
    entry = entry_of(honest_run("mine", falling(400, 0.9))).as_json()
    with pytest.raises(FathomError) as refused:
        entry_from(mended(entry, **changes), "a file")
    assert said in str(refused.value)


def test_an_added_entry_without_a_digest_is_marked(tmp_path: Path) -> None:
    entry = entry_of(honest_run("mine", falling(400, 0.9))).as_json()
    path = tmp_path / "other.json"
    path.write_text(mended(entry, name="other", weights_sha256=""))
    rows = {row["run"]: row for row in ranked(add=str(path))}
    assert rows["other"]["problems"] == ["its file has no weights_sha256"]
    assert rows["other"]["rank"] is None


def test_bad_input(tmp_path: Path, fathom_home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for argv, said in (
        ([], "no pretraining run in"),
        (["--add", "nowhere.json"], "cannot be read (No such file"),
        (["--export", "nothing"], "no run 'nothing'"),
        (["--core", "0.25", "--target", "1"], "choose one"),
        (["--target", "nan"], "--target is nan"),
    ):
        with pytest.raises(SystemExit) as stop:
            cli.main(["leaderboard", *argv])
        assert stop.value.code == 2
        assert said in capsys.readouterr().err
    honest_run("a", falling(400, 0.9))
    (fathom_home / "runs" / "b").mkdir()
    (fathom_home / "runs" / "b" / "run.toml").write_text("[[[")
    assert "cannot be read" in Leaderboard(json=True).run()["notes"][0]
    with pytest.raises(FathomError, match="no run here has CORE of all items"):
        Leaderboard(core=0.2565).run()


def test_the_board_in_a_window_of_100_columns(capsys: pytest.CaptureFixture[str]) -> None:
    honest_run("mine", falling(400, 0.9), weights="a" * 64)
    with pytest.raises(SystemExit):
        cli.main(["leaderboard"])
    said = capsys.readouterr().err
    assert "training time to bits per byte 0.9000" in said
    assert f"ends with weights {'a' * 64}" in said
