"""The lines that reports tell a person to type: each is taken by the command that it names."""

from __future__ import annotations

import shlex
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest

from fathom.arguments import parse
from fathom.errors import FathomError
from fathom.home import run_dir
from fathom.pipeline import words_for
from fathom.record import Record, read_config
from fathom.report import commands
from fathom.report.findings.budget import longer_ratio, longer_words, tokens_per_parameter
from fathom.report.findings.course import at_the_end
from fathom.report.history import History, history_of
from fathom.speedrun import Speedrun
from fathom.train.extend import extension
from fathom.train.pretrain import Pretrain
from fathom.train.settings import resolve
from fathom.train.sft import Sft
from tests.oracles.measured_runs import falling, write_run

pytestmark = pytest.mark.usefixtures("fathom_home")
GIVEN = {"depth": 2, "head_dim": 64, "seq_len": 256, "window": "L", "batch_tokens": 4096, "matrix_lr": 0.03}


def trained(ratio: float, kept: tuple[int, ...] = (), name: str = "mine", **others: Any) -> History:
    """A finished run whose settings are the rules', with checkpoints of these steps; its text was read once."""
    settings = resolve(GIVEN | {"ratio": ratio}, {}, 1024)
    made = {"model": asdict(settings.shape), "origin": settings.origin, **settings.flat()} | others
    write_run(name, falling(settings.steps, 0.9, points=24), **made)
    for step in kept:
        place = run_dir(name) / "checkpoints" / f"{step:06d}"
        place.mkdir(parents=True)
        (place / "COMPLETE").touch()
    Record(run_dir(name)).metric(
        step=settings.steps - 1, loss=3.0, loss_smooth=3.0, lr=0.05, epoch=1.0, train_s=0.5 * settings.steps
    )
    return history_of(name)


def taken(line: str) -> Any:
    """What the command that a quoted line names makes of its words."""
    assert line[0] == line[-1] == "`"
    program, command, *words = shlex.split(line[1:-1])
    assert program == "fathom"
    return parse({"pretrain": Pretrain, "sft": Sft, "speedrun": Speedrun}[command], command, words)


def test_a_run_is_resumed_by_its_name_alone() -> None:
    config = taken(commands.resume(trained(1.0)))
    assert (config.name, config.resume, config.depth) == ("mine", True, None)


def test_a_fine_tuning_is_resumed_with_its_base() -> None:
    history = write_run("chat", falling(40, 0.9), run={"stage": "sft", "base": "a base"})
    config = taken(commands.resume(history))
    assert (config.base, config.name, config.resume) == ("a base", "chat", True)
    assert commands.resume(replace(history, config={"run": {"stage": "sft"}})) == ""


def test_a_stage_of_a_pipeline_is_resumed_by_what_was_typed_for_that() -> None:
    words = ("speedrun", "--corpus", "books", "--chat", "a b.jsonl", "c.jsonl", "--depth", "2", "--run", "mine")
    trained(1.0)
    tables = read_config("mine")
    Record(run_dir("mine")).config(tables | {"run": tables["run"] | {"made_by": words}})
    history = history_of("mine")
    config = taken(commands.resume(history))
    assert (config.corpus, config.chat, config.depth, config.name) == ("books", ("a b.jsonl", "c.jsonl"), 2, "mine")
    assert words_for("speedrun", config) == words
    for odd in ("speedrun", ["rm", "-r"], ["speedrun", 7], ["speedrun", "\x1b[2J"], []):
        about = history.config["run"] | {"made_by": odd}
        assert "pretrain" in commands.resume(replace(history, config=dict(history.config) | {"run": about})), odd


def test_a_pipeline_whose_first_training_is_finished_waits_for_its_second() -> None:
    history = trained(1.0)
    assert commands.awaited_stage(history) == "", "no pipeline made it"
    about = history.config["run"] | {"made_by": ["quickstart", "--run", "mine"]}
    history = replace(history, config=dict(history.config) | {"run": about})
    assert commands.awaited_stage(history) == "`fathom quickstart --run mine`"
    assert commands.awaited_stage(replace(history, is_running=True)) == ""
    Record(run_dir("mine-sft")).config({"run": {"stage": "sft", "base": "mine"}})
    assert commands.awaited_stage(history) == ""


def test_an_imported_run_needs_to_be_told_its_texts() -> None:
    history = trained(1.0)
    about = {key: value for key, value in history.config["config"].items() if key not in ("corpus", "tokenizer")}
    line = commands.resume(replace(history, config=dict(history.config) | {"config": about}))
    assert "--corpus CORPUS --tokenizer TOKENIZER" in line
    line = commands.resume(replace(history, config=dict(history.config) | {"config": about | {"tokenizer": "theirs"}}))
    assert "--corpus CORPUS --tokenizer theirs" in line
    assert commands.resume(replace(history, config={})) == ""


def test_where_a_checkpoint_of_before_the_fall_is_kept_the_advice_goes_on_from_there() -> None:
    history = trained(4.0, kept=(100, 150, 450))
    assert history.steps_planned is not None and commands.extendable_step(history) == 150
    ratio = longer_ratio(history)
    assert ratio == 12
    config = taken(commands.longer(history, ratio))
    assert (config.extend, config.ratio, config.name) == ("mine", 12, "mine-longer")
    found = extension("mine", {"ratio": config.ratio}, None, False)
    assert (found.step, found.settings.steps) == (150, pytest.approx(3 * history.steps_planned, abs=1))
    assert "on from step 150" in longer_words(history, ratio)
    trend = at_the_end(history)
    assert trend is not None and commands.longer(history, 12) in trend.advice


def test_where_none_is_kept_the_advice_begins_anew_with_the_same_settings_and_says_why() -> None:
    history = trained(4.0, kept=(450,))
    assert commands.extendable_step(history) is None
    with pytest.raises(FathomError, match="no checkpoint from before its rate fell"):
        extension("mine", {"ratio": 12.0}, None, False)
    config = taken(commands.longer(history, 12))
    assert config.extend is None and (config.steps, config.ratio, config.name) == (None, 12, "mine-longer")
    assert {key: getattr(config, key) for key in GIVEN} == GIVEN
    trend = at_the_end(history)
    assert trend is not None and "No checkpoint of before step" in trend.advice and "trains it anew" in trend.advice


def test_no_advice_goes_through_a_text_more_than_four_times() -> None:
    history = trained(1.0)  # once in one token per parameter
    finding = tokens_per_parameter(history)
    assert finding is not None and "12 times" in finding.advice and "--ratio 4 " in finding.advice
    read = history.columns["epoch"] * 3.9
    assert longer_ratio(replace(history, columns=dict(history.columns) | {"epoch": read})) is None


def test_another_seed_is_the_same_run_but_for_the_seed() -> None:
    config = taken(commands.again(trained(1.0, seed=1), "mine-s2", seed=2))
    assert (config.seed, config.name) == (2, "mine-s2")
    assert {key: getattr(config, key) for key in (*GIVEN, "ratio")} == GIVEN | {"ratio": 1.0}


def test_a_run_trained_in_its_own_ways_is_trained_again_in_them() -> None:
    config = taken(commands.again(trained(1.0, fp8=True, document_mask=True), "mine-2"))
    assert (config.fp8, config.document_mask) == (True, True)
    assert (
        config.skip_spikes
        and not taken(commands.again(trained(1.0, training={"skip_spikes": False}), "mine-2")).skip_spikes
    )
    config = taken(commands.again(trained(1.0, fp8=False, document_mask=True), "mine-2"))
    assert (config.fp8, config.document_mask) == (False, True)


def test_an_extended_run_is_trained_again_by_no_line() -> None:
    from fathom.report.history import history_of

    trained(1.0)
    Record(run_dir("mine")).event("extended", **{"from": "other", "step": 100, "steps": 200})
    assert commands.again(history_of("mine"), "mine-s2", seed=2) == ""


def test_gentler_is_at_half_the_rates() -> None:
    config = taken(commands.gentler(trained(1.0, lr_scale=0.5)))
    assert (config.lr_scale, config.ratio, config.name) == (0.25, 1.0, "mine-gentler")
    run = {"stage": "sft", "base": "base"}
    history = write_run("chat", falling(40, 0.9), run=run, data=["x.jsonl"], lr_share=0.1)
    assert taken(commands.gentler(history)).lr_share == 0.05
    assert commands.gentler(replace(history, config={"run": run})) == ""


def test_a_fine_tuning_again_with_several_files_of_odd_names() -> None:
    files = ["/a b/c.jsonl", "d'e.jsonl"]
    history = write_run("chat", falling(40, 0.9), run={"stage": "sft", "base": "base"}, data=files)
    config = taken(commands.fine_tuned_again(history, "chat-s2", seed=2))
    assert (list(config.data), config.steps, config.seed, config.base) == (files, 40, 2, "base")
    assert taken(commands.fine_tuned_again(history, "x", epochs="2")).epochs == 2


def test_a_fine_tuning_again_is_the_same_but_for_what_is_changed() -> None:
    given = {"data": ["x.jsonl"], "base_step": 300, "batch_tokens": 2048, "lr_share": 0.1}
    ways = {"fp8": True, "document_mask": True}
    run, facts = {"stage": "sft", "base": "base"}, {"skip_spikes": False}
    history = write_run("chat", falling(40, 0.9), run=run, training=facts, seed=3, **given, **ways)
    settings = dict(history.config["config"]) | {"validation": ["y z.jsonl"]}
    history = replace(history, config=dict(history.config) | {"config": settings})
    config = taken(commands.fine_tuned_again(history, "chat-s4", seed=4))
    assert config == Sft(
        "base",
        data=("x.jsonl",),
        validation=("y z.jsonl",),
        step=300,
        steps=40,
        batch_tokens=2048,
        lr_share=0.1,
        seed=4,
        fp8=True,
        document_mask=True,
        skip_spikes=False,
        name="chat-s4",
    )
    assert taken(commands.gentler(history)) == replace(config, lr_share=0.05, seed=3, name="chat-gentler")


def test_without_a_record_of_the_settings_there_is_no_line(tmp_path: Path) -> None:
    history = replace(trained(1.0), config={"run": {"stage": "pretrain"}})
    assert commands.again(history, "x") == commands.longer(history, 12) == commands.fine_tuned_again(history, "x") == ""
    assert longer_words(history, 12) == "12.0 tokens per parameter (--ratio)"


@pytest.mark.parametrize("ranks", [2, 16])
def test_a_run_of_several_ranks_goes_on_and_begins_again_by_as_many(ranks: int) -> None:
    trained(1.0)
    Record(run_dir("mine")).event("training", step=0, ranks=ranks, device="cuda")
    history = history_of("mine")
    nodes = "--nnodes 2 " if ranks == 16 else ""
    begin = f"`torchrun {nodes}--nproc-per-node {ranks if ranks < 8 else 8} -m fathom -- "
    for line in (commands.resume(history), commands.again(history, "mine-2"), commands.longer(history, 4.0)):
        assert line.startswith(begin)
        assert isinstance(taken(f"`fathom {line.removeprefix(begin)}"), Pretrain)


def test_a_healthy_run_of_minutes_is_told_what_makes_it_better(monkeypatch: pytest.MonkeyPatch) -> None:
    from fathom.report import standing
    from fathom.report.findings import Finding
    from fathom.report.sections.overview import verdict, worth_doing
    from fathom.report.status_screen import next_steps

    history = trained(1.0, kept=(60,))
    short, trend = (Finding(kind, "note", "a sentence", (), "advice") for kind in ("short", "trend"))
    good = Finding("epochs", "good", "a sentence")
    assert verdict([short, good]) == "A healthy run, if a short one: 1 check passed, none failed."
    assert verdict([trend, good]) == "A healthy run: 1 check passed, none failed."
    assert (worth_doing([short, good]), worth_doing([short, trend]), worth_doing([good])) == ((short,), (trend,), ())
    assert worth_doing([short, Finding("stability", "warn", "a sentence", (), "advice")]) == ()
    for found, longer in (([short], commands.longer(history, longer_ratio(history) or 0.0)), ([good], "")):
        monkeypatch.setattr(standing, "assess", lambda history, found=found: found)
        stand = standing.standing_of(history)
        assert stand.longer == longer and stand.checkpoint is not None
        stand = replace(stand, checkpoint=replace(stand.checkpoint, trouble=""))
        assert [line for line in next_steps(stand) if "for longer" in line] == (
            [f"{longer} trains it for longer: it was short"] if longer else []
        )


def test_no_line_names_a_run_that_is_there(fathom_home: Path) -> None:
    history = trained(1.0)
    for name in ("mine-longer", "mine-longer-2"):
        trained(1.0, name=name)
    assert taken(commands.longer(history, 4.0)).name == "mine-longer-3"
    assert taken(commands.again(history, "mine-by-rule")).name == "mine-by-rule"
