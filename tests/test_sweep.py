"""`fathom sweep`: its runs and their names, a queue that can be killed anywhere, and what is called a winner."""

from __future__ import annotations

import io
import json
import math
import os
import signal
import subprocess
import sys
import tomllib
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from fathom import cli
from fathom.arguments import parse
from fathom.errors import FathomError
from fathom.home import run_dir
from fathom.record import events
from fathom.sweep import queue as queues
from fathom.sweep.command import Sweep, sweep
from fathom.sweep.display import SweepDisplay, last_metric
from fathom.sweep.grid import Point, candidates, parse_grid, parse_seeds
from fathom.sweep.outcome import standings, winner
from fathom.sweep.queue import Queue, Slot, slots_of
from fathom.sweep.show import show
from tests.oracles.tiny_runs import events_of, furnish, hurry

# What the runs are.


def test_every_combination_with_every_seed_and_a_name_that_says_which() -> None:
    grid = parse_grid(["lr-scale=0.5,1", "packing=lossless,best-fit"])
    assert grid == {"lr_scale": [0.5, 1], "packing": ["lossless", "best-fit"]}
    found = candidates("S", {"depth": 4, "seed": 9}, grid, [1, 2])
    assert [c.label for c in found][:2] == ["lr scale 0.5, packing lossless", "lr scale 0.5, packing best-fit"]
    assert [p.run for p in found[0].points] == [
        "S-lr-scale-0.5-packing-lossless-s1",
        "S-lr-scale-0.5-packing-lossless-s2",
    ]
    assert found[3].points[1].settings == {"depth": 4, "seed": 2, "lr_scale": 1, "packing": "best-fit"}


def test_a_name_that_would_be_too_long_is_a_digest_that_more_values_do_not_change() -> None:
    grid = {f"key{i}" * 4: [1, 2] for i in range(6)}
    names = [c.points[0].run for c in candidates("S" * 60, {}, grid, [1])]
    assert len(set(names)) == 64 and max(map(len, names)) <= 100
    wider = {key: [3, *values] for key, values in grid.items()}
    assert set(names) < {c.points[0].run for c in candidates("S" * 60, {}, wider, [1])}


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("lr_scal=1,2", "did you mean lr_scale?"),
        ("lr_scale", "write --grid lr_scale=0.5,1,2"),
        ("lr_scale=1,,2", "lists no values"),
        ("lr_scale=fast,slow", "--lr-scale is 'fast'; it must be a number"),
        ("packing=lossles", "did you mean lossless?"),
        ("depth=4,4", "a value of depth twice"),
        ("seed=1,2", "use --seeds"),
        ("seq_len=128,256", "other rows"),
    ],
)
def test_a_grid_of_nonsense_is_refused(text: str, said: str) -> None:
    with pytest.raises(FathomError) as refused:
        parse_grid([text])
    assert said in str(refused.value)


def test_a_setting_twice_and_seeds_that_are_none() -> None:
    with pytest.raises(FathomError, match="sets depth twice"):
        parse_grid(["depth=4", "depth=6"])
    assert parse_seeds("1, 2,30") == [1, 2, 30]
    for text in ("", "1,1", "1,-2", "one"):
        with pytest.raises(FathomError, match="--seeds is"):
            parse_seeds(text)


# The queue, with processes that only pretend to train.

PRETENDER = """
import fcntl, json, os, signal, sys, time
folder, what = sys.argv[1:]
os.makedirs(folder, exist_ok=True)
lock = open(folder + "/.lock", "w")
fcntl.flock(lock, fcntl.LOCK_EX)
def note(event):
    with open(folder + "/events.jsonl", "a") as file:
        file.write(json.dumps({"event": event, "result": {}}) + "\\n")
if what == "linger":
    signal.signal(signal.SIGTERM, lambda *_: (note("stopped"), os._exit(130)))
    note("lingering")
    time.sleep(60)
note("tried")
if what == "refused":
    sys.stderr.write("fathom: the loss went astray; lower the rate.\\n"); sys.exit(2)
if what == "crash":
    sys.stderr.write("Traceback\\nMemoryError: no more\\n"); sys.exit(1)
if what == "killed":
    os.kill(os.getpid(), signal.SIGKILL)
if what == "once" and not os.path.exists(folder + "/before"):
    open(folder + "/before", "w"); sys.exit(1)
note("finished")
"""


class Watching:
    def __init__(self, at_look: Any = lambda running: None) -> None:
        self.said: list[tuple[str, ...]] = []
        self._at_look = at_look

    def started(self, run: str, slot: Slot) -> None:
        self.said.append(("started", run, slot.name))

    def ended(self, run: str, state: str, why: str) -> None:
        self.said.append((state, run))

    def held(self, run: str) -> None:
        self.said.append(("held", run))

    def look(self, running: Mapping[str, Slot], waiting: int) -> None:
        self._at_look(running)


@pytest.fixture
def pretending(fathom_home: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A queue in which the run called X-s1 does what X says."""

    def process(self: Queue, point: Point, slot: Slot) -> subprocess.Popen[bytes]:
        log = self.folder / "logs" / f"{point.run}.log"
        log.parent.mkdir(parents=True, exist_ok=True)
        command = [sys.executable, "-S", "-c", PRETENDER, str(run_dir(point.run)), point.run.partition("-")[0]]
        with log.open("ab") as said:
            return subprocess.Popen(command, stderr=said, start_new_session=True, env=os.environ | slot.surroundings)

    monkeypatch.setattr(Queue, "_process", process)
    monkeypatch.setattr(queues, "LOOK_EVERY_S", 0.02)
    return Queue(fathom_home / "sweeps" / "S", [], tries=2)


def points(*runs: str) -> list[Point]:
    return [Point(run, {"depth": 1}) for run in runs]


def tried(run: str) -> int:
    return len(events_of(run_dir(run), "tried"))


def test_finished_runs_are_kept_and_failures_are_noted_and_not_tried_for_ever(pretending: Queue) -> None:
    runs = points("good-s1", "refused-s1", "crash-s1", "killed-s1", "once-s1")
    watching = Watching()
    assert pretending.work(runs, slots_of(2, []), watching)
    assert {run.run: pretending.state(run.run) for run in runs} == {
        "good-s1": "finished",
        "refused-s1": "given up",
        "crash-s1": "given up",
        "killed-s1": "given up",
        "once-s1": "finished",
    }
    assert [tried(run.run) for run in runs] == [1, 1, 2, 2, 2]
    assert [f["why"] for f in pretending.failures("refused-s1")] == ["the loss went astray; lower the rate."]
    assert pretending.failures("crash-s1")[-1]["why"] == "MemoryError: no more"
    assert pretending.failures("killed-s1")[-1]["why"] == "killed by SIGKILL, perhaps for memory"
    assert watching.said.count(("finished", "good-s1")) == 1

    again = Watching()
    assert Queue(pretending.folder, [], tries=2).work(runs, slots_of(2, []), again)
    assert again.said == [], "nothing is done twice"
    pretending.forgive("crash-s1")
    assert pretending.state("crash-s1") == "waiting"


def test_as_many_at_a_time_as_there_are_slots_each_with_its_gpu(pretending: Queue) -> None:
    most = 0

    def look(running: Mapping[str, Slot]) -> None:
        nonlocal most
        most = max(most, len(running))
        assert len({slot.name for slot in running.values()}) == len(running)

    slots = slots_of(1, ["0", "3"])
    assert [slot.surroundings["CUDA_VISIBLE_DEVICES"] for slot in slots] == ["0", "3"]
    assert pretending.work(points("a-s1", "b-s1", "c-s1", "d-s1"), slots, Watching(look))
    assert most == 2
    assert slots_of(1, []) == [Slot("worker 1", {})]
    assert all(int(slot.surroundings["OMP_NUM_THREADS"]) >= 1 for slot in slots_of(64, []))


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_stopped_it_lets_every_run_save_and_begins_none(pretending: Queue, number: int) -> None:
    sent: list[int] = []

    def look(running: Mapping[str, Slot]) -> None:
        if not sent and any(events_of(run_dir(run), "lingering") for run in running):
            sent.append(number)
            os.kill(os.getpid(), number)

    watching = Watching(look)
    assert not pretending.work(points("linger-s1", "good-s1"), slots_of(1, []), watching)
    assert ("stopped", "linger-s1") in watching.said
    assert len(events_of(run_dir("linger-s1"), "stopped")) == 1, "asked once: a second signal would end it unsaved"
    assert (pretending.state("linger-s1"), pretending.failures("linger-s1")) == ("waiting", [])
    assert not run_dir("good-s1").exists()


def test_a_run_that_a_killed_sweep_left_at_work_is_waited_for(pretending: Queue) -> None:
    orphan = pretending._process(points("linger-s1")[0], slots_of(1, [])[0])

    def look(running: Mapping[str, Slot]) -> None:
        assert not running
        if ("held", "linger-s1") in watching.said and orphan.poll() is None:
            with (run_dir("linger-s1") / "events.jsonl").open("a") as file:
                file.write(json.dumps({"event": "finished", "result": {}}) + "\n")
            orphan.kill()
            orphan.wait()

    while not events_of(run_dir("linger-s1"), "lingering"):
        pass
    watching = Watching(look)
    assert pretending.work(points("linger-s1"), slots_of(1, []), watching)
    assert watching.said == [("held", "linger-s1"), ("finished", "linger-s1")]


def test_a_torn_note_of_failures_is_no_failure(pretending: Queue) -> None:
    path = pretending.folder / "points" / "good-s1.json"
    path.parent.mkdir(parents=True)
    path.write_text('{"failures": [')
    assert pretending.state("good-s1") == "waiting"


# When a point is called a winner.


def test_the_best_of_many_must_be_better_by_more_than_the_best_of_two() -> None:
    base, lucky = (0.900, 0.903, 0.897), (0.893, 0.896, 0.890)
    assert winner(standings({"base": base, "lucky": lucky}, {"base": 1.0, "lucky": 1.0}, 3)) is not None
    many = {"base": base, "lucky": lucky} | {f"point {i}": (0.91, 0.92, 0.90) for i in range(8)}
    found = standings(many, dict.fromkeys(many, 1.0), 3)
    assert winner(found) is None
    assert found[1].verdict is not None and found[1].verdict.word == "not shown"


def test_the_baseline_does_not_win_and_a_point_with_a_lost_seed_neither() -> None:
    good, bad = (0.80, 0.801, 0.802), (0.9, 0.901, 0.902)
    assert winner(standings({"base": good, "other": bad}, {"base": 1.0, "other": 1.0}, 3)) is None
    found = standings({"base": bad, "other": good[:2]}, {"base": 1.0, "other": 1.0}, 3)
    assert winner(found) is None
    assert found[1].as_json()["against_baseline"]["reason"] == "not all of its seeds finished"  # type: ignore[index]
    assert winner(standings({"base": bad, "other": (*good[:2], float("nan"))}, {"base": 1.0, "other": 1.0}, 3)) is None
    assert winner([]) is None


# The command, with runs that really train, in this process.


class InThisProcess:
    """In the place of subprocess.Popen: trains at once."""

    commands: list[list[str]] = []

    def __init__(self, command: list[str], **_: Any) -> None:
        from fathom.train.pretrain import Pretrain, pretrain

        self.commands.append(command)
        config = replace(parse(Pretrain, "pretrain", command[4:]), sample=False)
        try:
            self.returncode = 0 if pretrain(config)[1] else 130
        except FathomError:
            self.returncode = 2

    def poll(self) -> int:
        return self.returncode

    def send_signal(self, number: int) -> None:
        raise AssertionError("it has ended")


@pytest.fixture
def recipe(fathom_home: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    hurry(monkeypatch)
    furnish()
    InThisProcess.commands = []
    monkeypatch.setattr(queues.subprocess, "Popen", InThisProcess)
    monkeypatch.setattr(queues, "LOOK_EVERY_S", 0.0)
    path = fathom_home / "recipe.toml"
    path.write_text('depth = 1\nhead-dim = 32\nseq-len = 32\nsteps = 6\nbatch-tokens = 128\nwindow = "L"\n')
    return str(path)


def swept(recipe: str, **changes: Any) -> dict[str, Any]:
    given: dict[str, Any] = {"grid": ("lr_scale=0.0001,0.5",), "seeds": "1,2,3", "compile": "off", "dtype": "fp32"}
    return sweep(Sweep(recipe, "S", "tiny", "tiny", json=True, **(given | changes)))


def test_a_winner_is_confirmed_at_a_larger_depth_before_it_is_called_one(
    recipe: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Rates of next to nothing against rates that learn."""
    found = swept(recipe)
    assert (found["baseline"], found["best"]) == ("lr scale 0.0001", "lr scale 0.5")
    assert (found["winner"], found["confirmed"]) == (None, False)
    assert "not confirmed at a larger depth" in found["verdict"]
    assert [row["finished"] for row in found["standings"]] == [3, 3]
    assert len(InThisProcess.commands) == 6

    found = swept(recipe, confirm_depth=2)
    assert len(InThisProcess.commands) == 12, "the first six are kept"
    assert (found["winner"], found["confirmed"]) == ("lr scale 0.5", True)
    assert found["verdict"] == "lr scale 0.5 wins: better than the baseline, and again at depth 2"
    assert [row["label"] for row in found["confirmation"]] == ["lr scale 0.0001", "lr scale 0.5"]
    assert run_dir("S-confirm-d2-lr-scale-0.5-s3").exists()
    show(found)
    assert "lr scale 0.5 wins" in capsys.readouterr().err


def test_more_values_are_taken_in_and_anything_else_is_refused(
    recipe: str, fathom_home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    swept(recipe, seeds="1", grid=("lr_scale=1.0,2.0",))
    found = swept(recipe, seeds="1", grid=("lr_scale=1.0,2.0,3.0",))
    assert len(InThisProcess.commands) == 3
    assert found["best"] is None
    judged = found["standings"][1]["against_baseline"]
    assert judged["verdict"] == "not shown" and judged["reason"].startswith("one seed has no interval")
    show(found)
    said = capsys.readouterr().err
    assert "undecided: one seed" in said and "not shown" not in said
    kept = tomllib.loads((fathom_home / "sweeps" / "S" / "sweep.toml").read_text())
    assert kept["grid"] == {"lr_scale": "1.0,2.0,3.0"}
    with pytest.raises(FathomError, match="the sweep 'S' began with --dtype fp32, not bf16"):
        swept(recipe, dtype="bf16")
    Path(recipe).write_text(Path(recipe).read_text().replace("steps = 6", "steps = 7"))
    with pytest.raises(FathomError, match="began with the recipe's steps 6, not 7"):
        swept(recipe)


def test_all_runs_are_measured_on_the_same_rows(recipe: str) -> None:
    found = swept(recipe, seeds="1", grid=("batch_tokens=128,64",), eval_every=3)
    assert not any("cannot be compared" in note for note in found["notes"])
    assert any("differ in FLOPs by up to 2.00 times" in note for note in found["notes"])
    assert [row["finished"] for row in found["standings"]] == [1, 1]


def test_a_failed_run_is_in_the_result(recipe: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(InThisProcess, "__init__", lambda self, command, **_: setattr(self, "returncode", 2))
    found = swept(recipe, seeds="1")
    assert found["standings"] == []
    assert set(found["failures"]) == {"S-lr-scale-0.0001-s1", "S-lr-scale-0.5-s1"}
    assert found["verdict"] == "no point is shown to be better than the baseline"


REFUSALS = [
    (["--grid", "lr_scal=1"], "did you mean lr_scale?"),
    (["--workers", "0"], "at least 1"),
    (["--gpus", "0,x"], "--gpus is '0,x'"),
    (["--confirm-depth", "1"], "choose a larger one"),
    (["--grid", "depth=1,2", "--confirm-depth", "4"], "sets the depth"),
    (["--grid", "batch_tokens=100"], "not a whole number of rows"),
    (["--grid", "lr_scale=1,2,3", "--seeds", "0,0"], "each once"),
]


@pytest.mark.parametrize(("argv", "said"), REFUSALS)
def test_nonsense_is_refused_before_anything_runs(
    recipe: str, fathom_home: Path, argv: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stop:
        cli.main(["sweep", recipe, "--name", "S", "--corpus", "tiny", "--tokenizer", "tiny", *argv])
    assert stop.value.code == 2
    assert said in capsys.readouterr().err
    assert not (fathom_home / "runs").exists()


def test_a_recipe_with_a_slip_is_refused_with_the_nearest_name(recipe: str) -> None:
    Path(recipe).write_text("dept = 4\n")
    with pytest.raises(FathomError, match="'dept', which is no setting; did you mean depth?"):
        swept(recipe)


def test_the_table_has_counted_the_run_whose_end_is_said(fathom_home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = io.StringIO()
    screen = Console(file=file, force_terminal=True, width=100, _environ={"TERM": "xterm"})
    monkeypatch.setattr("fathom.sweep.display.console", lambda: screen)
    monkeypatch.setattr("fathom.sweep.display.say", lambda text, **_: screen.print(text))
    with SweepDisplay(4, 0, {"S-s1": 10, "S-s2": 10}, 1) as display:
        slot = Slot("this machine", {})
        display.started("S-s1", slot)
        display._drawn = -math.inf
        display.look({"S-s1": slot}, 3)
        assert "0 of 4 finished, 1 at work, 3 waiting" in file.getvalue()
        display.ended("S-s1", "finished", "")
    after = file.getvalue().partition("S-s1 finished in")[2]
    assert "1 of 4 finished, 0 at work, 3 waiting" in after
    assert "0 of 4" not in after


def test_the_newest_metric_is_read_from_the_end_past_a_torn_line(fathom_home: Path) -> None:
    assert last_metric("none") is None
    run_dir("a").mkdir(parents=True)
    lines = [json.dumps({"step": i, "loss_smooth": 1.0}) for i in range(500)]
    (run_dir("a") / "metrics.jsonl").write_text("\n".join(lines) + '\n{"step": 500, "lo')
    found = last_metric("a")
    assert found is not None and found["step"] == 499


@pytest.mark.long
def test_a_sweep_killed_anywhere_and_begun_again_keeps_what_was_done(fathom_home: Path) -> None:
    """Real processes: the sweep is killed after its first run, and again a little later."""
    furnish()
    path = fathom_home / "recipe.toml"
    path.write_text('depth = 1\nhead-dim = 32\nseq-len = 32\nsteps = 40\nbatch-tokens = 128\nwindow = "L"\n')
    command = [sys.executable, "-m", "fathom", "sweep", str(path), "--name", "S", "--corpus", "tiny"]
    command += ["--tokenizer", "tiny", "--grid", "lr_scale=0.5,1", "--seeds", "1,2", "--dtype", "fp32", "--json"]
    for kills in range(3):
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        while kills < 2 and process.poll() is None:
            finished = sum(bool(events_of(folder, "finished")) for folder in (fathom_home / "runs").glob("S-*"))
            if finished > kills:
                process.kill()
        out, _ = process.communicate()
    found = json.loads(out)
    assert process.returncode == 0
    assert [row["finished"] for row in found["standings"]] == [2, 2]
    for folder in (fathom_home / "runs").iterdir():
        assert sum(line["event"] == "finished" for line in events(folder)) == 1
