"""`fathom report`: the seeds' runs give the findings and tables that the seeds have; broken folders are told of."""

from __future__ import annotations

import errno
import fcntl
import json
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import seed_runs
from run_folders import BATCH, BEGAN, append, write_run

from fathom.cli import main
from fathom.errors import FathomError
from fathom.report.document import Assessment, Bullets, Document, Plot, Section, Table, Text
from fathom.report.findings import Finding
from fathom.report.history import history_of
from fathom.report.hypertext import to_html
from fathom.report.lineage import with_ancestors
from fathom.report.markdown import plain, to_markdown
from fathom.report.measures import overall_tokens_per_s
from fathom.report.report import Report, _print
from fathom.report.sections import course
from fathom.report.surroundings import earlier_attempts
from tests.oracles import measured_runs


@contextmanager
def at_work(folder: Path) -> Iterator[None]:
    """A process that trains holds the run's lock."""
    with open(folder / ".lock", "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def report(name: str, **more: Any) -> tuple[dict[str, Any], str]:
    """What --json prints, and report.md."""
    result = Report(name, json=True, **more).run()
    return result, Path(result["files"][0]).read_text()


def finding(result: dict[str, Any], kind: str) -> dict[str, Any]:
    return next(found for found in result["findings"] if found["kind"] == kind)


def spoken(text: str) -> str:
    """Text as its reader takes it in: blanks are blanks, backslashes are not there."""
    return re.sub(r"[\s|]+", " ", text.replace("\\", ""))


@pytest.fixture
def first(fathom_home: Path) -> tuple[dict[str, Any], str]:
    """The report of the 10,000-step run, with its earlier attempt and the recipe it was meant to be."""
    seed_runs.broken_fine_tuning(fathom_home)
    seed_runs.first_run(fathom_home)
    return report(seed_runs.FIRST, recipe=str(seed_runs.recipe(fathom_home)))


def test_the_first_run_is_found_as_its_summary_has_it(first: tuple[dict[str, Any], str]) -> None:
    """ "5.95, well below optimal", "still improving at end", "no NaN", "loss curve smooth", "VRAM comfortable"."""
    result, _ = first
    tokens = finding(result, "tokens")
    assert tokens["severity"] == "warn" and tokens["sentence"].startswith("Under-trained for its size: 5.95 tokens")
    assert "20,160 steps" in tokens["advice"] and "about depth 10" in tokens["advice"]
    trend = finding(result, "trend")
    assert trend["sentence"].startswith("Still improving at the end") and "3,500" in trend["advice"]
    assert finding(result, "stability")["severity"] == "good"
    memory = finding(result, "memory")
    assert memory["severity"] == "good" and "77 %" in memory["sentence"]
    assert finding(result, "drift")["severity"] == "good" and "55.7K tokens/s" in finding(result, "drift")["sentence"]
    loops = finding(result, "loops")
    assert "2 of the 7" in loops["sentence"] and any("gold atom" in line for line in loops["evidence"])
    assert "2 of 6 standard prompts" in finding(result, "answers")["sentence"]
    assert finding(result, "mfu")["severity"] == "good"  # 49.4 of the data sheet's 58.3 TFLOP/s, not their 0 %


def test_the_first_report_holds_all_of_its_summary(first: tuple[dict[str, Any], str]) -> None:
    _, text = first
    said = spoken(text)
    for part in (
        *("layers 12", "width 768", "heads 6 of 128", "context 2,048 tokens", "vocabulary 32,768", "286,261,730"),
        *("25,165,824", "150,994,944", "84,935,088", "scalars 50", "887,098,032"),
        *("depth 12", "batch tokens 65,536", "steps 10,000", "655,360,000", "matrix lr 0.02", "embedding lr 0.3"),
        *("head lr 0.008", "weight decay 0.0989949", "warmup steps 40", "begins at step 3,500", "final lr 0.05"),
        *(
            "scalar lr 0.5",
            "lr scale 0.353553",
            "0.007071",
            "rule: √batch",
            "8 rows of 2,048 = 16,384 tokens, 4 for each",
        ),
        *("NVIDIA GeForce RTX 4070", "bf16", "1,177 ms", "9,448 MiB", "76.9 %", "3 h 16 min", "compiled"),
        *("5.952", "2.289", "10.5 to 12", "20 (Chinchilla)", "depth = 8", "batch_tokens = 32,768", "steps = 5,000"),
        *("ln 32,768 = 10.40", "10.40", "8.71", "7.43", "6.80", "6.51"),
        *("fineweb-edu-sft-d8", "loss not a number from step 124", "GPT-1's class"),
    ):
        assert part in said, part
    for step, bpb in seed_runs.PROGRESSION:
        assert re.search(rf"\b{step:,} \S+ {bpb:.4f} ", said), step
    for prompt, _ in seed_runs.SAMPLES:
        assert prompt in said.replace("\\", ""), prompt
    for note in ("random weights", "warm-down began at 3,500", "crosses below 1.0", "largest drop", "best, last"):
        assert note in said, note
    row = next(line for line in text.splitlines() if "crosses below 1.0" in line)
    assert "6,000" in row and "0.9950" in row


def test_the_extended_run_got_worse_for_rates_that_rose_again(fathom_home: Path) -> None:
    """0.935 → 1.016 → 1.002, ratio 20 by all parameters; joined to the run that it goes on from."""
    seed_runs.first_run(fathom_home)
    with at_work(seed_runs.extended_run(fathom_home)):
        result, text = report(seed_runs.CHINCHILLA)
    worse = finding(result, "resume")
    assert worse["severity"] == "warn"
    assert "0.9350 → 1.0160 at step 20,000" in worse["sentence"] and "1.0020 at step 30,000" in worse["sentence"]
    assert any("rose again from 5 % to 100 %" in line for line in worse["evidence"])
    assert "step 30,450" in worse["advice"]
    tokens = finding(result, "tokens")
    assert (
        "Chinchilla's ratio as planned by all parameters (19.9" in tokens["sentence"] and "51.8" in tokens["sentence"]
    )
    assert finding(result, "trend")["sentence"].startswith("Plateaued so far")
    assert finding(result, "drift")["severity"] == "good"
    said = spoken(text)
    for part in (
        *("35,729 of 87,000 (41.07 %)", "about 16 h 46 min", "fineweb-edu-d12 at step 10,000", "5,701,632,000"),
        *("2,341,535,744", "extended at step 10,000", "worse than before", "0 → 10,000", "10,000 → 35,729", "0.911"),
        *("142.6B", "2 (steps 20,000, 30,000)", "55.7K", "95 times as fast", "19.92", "51.79"),
    ):
        assert part in said, part


def test_the_long_run_and_its_extension(fathom_home: Path) -> None:
    """45.8 tokens per parameter, 0.780 → 0.810 for the same weights at the point of resuming."""
    seed_runs.long_run(fathom_home)
    result, text = report(seed_runs.LONG)
    said = spoken(text)
    for part in (
        *("0 → 87,000", "87,000 → 130,000", "8,519,680,000", "0.7800", "CORE 0.1916", "42 h 30 min", "SIGTERM"),
        *("hellaswag (10-shot) 43.0", "winograd (0-shot) 62.0", "piqa (10-shot) 67.0", "boolq (10-shot) 58.5"),
        *("copa (0-shot) 63.0", "2026-06-07 03:21", "finished"),
    ):
        assert part in said, part
    assert re.search(r"started 0 → 87,000 .* 9 SIGTERM", said) and re.search(r"130,000 .* 5 finished", said)
    assert finding(result, "lost")["severity"] == "good"
    assert finding(result, "scaling")["severity"] == "good"
    with at_work(seed_runs.longer_run(fathom_home)):
        result, text = report(seed_runs.LONGER)
    tokens = finding(result, "tokens")
    assert (
        tokens["sentence"].startswith("Over-trained as planned") and "45.8 per parameter of all" in tokens["sentence"]
    )
    remeasured = finding(result, "validation")
    assert "0.7800 before the extension, 0.8102 after it" in remeasured["sentence"]
    said = spoken(text)
    for part in (
        *("130,000 → 131,000", "13,107,200,000", "45.79", "119.0", "1.163e+19", "2026-06-07 18:08", "CORE 0.1932"),
        *("14 h 47 min after the phase before", "22 h 34 min", "warm-down began at 70,000", "GPT-1's and GPT-2's"),
    ):
        assert part in said, part
    assert "4,521,984,000" in said  # the 69,000 steps still to go, of 70,000


def test_the_broken_fine_tuning(fathom_home: Path) -> None:
    """NaN at step 124, tasks at chance level afterwards."""
    seed_runs.broken_fine_tuning(fathom_home)
    result, text = report(seed_runs.BROKEN)
    assert result["findings"][0]["kind"] == "nan" and result["findings"][0]["severity"] == "bad"
    assert "from step 124 to" in result["findings"][0]["sentence"]
    assert "5 of 5 known tasks are at chance level" in finding(result, "tasks")["sentence"]
    assert "ARC-Easy" in text and "NaN" not in text
    json.dumps(result, allow_nan=False)


def test_a_run_joined_to_its_ancestors_is_one_course(fathom_home: Path) -> None:
    seed_runs.first_run(fathom_home)
    seed_runs.extended_run(fathom_home)
    history, ancestors = with_ancestors(history_of(seed_runs.CHINCHILLA))
    assert [(one.name, one.step) for one in ancestors] == [(seed_runs.FIRST, 10_000)]
    assert (history.step[1:] > history.step[:-1]).all() and history.step[0] == 1 and history.steps_done == 35_729
    assert [phase.kind for phase in history.phases] == ["started", "extended"]
    assert [one.step for one in history.evaluations][-3:] == [10_000, 20_000, 30_000]


def test_an_ancestor_that_is_gone_is_said(fathom_home: Path) -> None:
    seed_runs.extended_run(fathom_home)
    result, text = report(seed_runs.CHINCHILLA)
    assert any(seed_runs.FIRST in trouble for trouble in result["troubles"])
    assert "before this record" in text and "655,360,000" in text


def test_two_runs_that_name_each_other_end(fathom_home: Path) -> None:
    for name, other in (("here", "there"), ("there", "here")):
        events = [{"event": "extended", "from": other, "step": 5, "time": 1.0}]
        metrics = [{"step": step, "loss": 3.0} for step in range(9)]
        seed_runs.write_run(fathom_home, name, run={}, model={}, config={}, events=events, metrics=metrics)
    _, ancestors = with_ancestors(history_of("here"))
    assert [one.name for one in ancestors] == ["there"]


def test_what_to_do_stands_at_the_top(first: tuple[dict[str, Any], str]) -> None:
    top = spoken(first[1].split("## Model")[0])
    assert "Under-trained for its size" in top and "20,160 steps of this batch, 6 h" in top
    assert top.index("What to do:") < top.index("state finished")
    command = next(line for line in first[1].splitlines() if "`fathom pretrain " in line)
    assert command.count("`") == 2, "a command stays on one line, to be copied"


def test_where_a_run_goes_on_is_told_and_of_its_own_ancestors_nothing(fathom_home: Path) -> None:
    folder = seed_runs.first_run(fathom_home)
    seed_runs.extended_run(fathom_home)
    for run in (seed_runs.CHINCHILLA, "another"):
        append(folder, "events.jsonl", {"event": "extended_in", "run": run, "step": 9000, "time": 9e9})
    said = spoken(report(seed_runs.FIRST)[1])
    assert f"extended in {seed_runs.CHINCHILLA} from step 9000, another from step 9000" in said
    assert "2255" not in said, "what another run noted, and when, is no part of this one's course"
    said = spoken(report(seed_runs.CHINCHILLA)[1])
    assert "extended in another from step 9000" in said and "went on for longer at step 10,000" in said


def test_what_befell_a_run_is_told_in_plain_words_with_its_time(fathom_home: Path) -> None:
    folder = write_run(fathom_home, "mine", 200)
    for at, line in enumerate((
        {"event": "skipped", "step": 20, "why": "spike", "loss": 9.0},
        {"event": "rolled_back", "from": 24, "to": 10, "why": "four steps in a row", "data_shift": 14},
        {"event": "out_of_memory", "step": 30, "device_batch": 4},
        {"event": "evaluation_failed", "step": 40, "what": "CORE", "why": "no file"},
        {"event": "finished", "result": {}},
    )):  # fmt: skip
        append(folder, "events.jsonl", line | {"time": BEGAN + 20 + at})
    result, text = report("mine")
    said = spoken(text)
    for words in (
        "step 20 left out: spike",
        "went back from step 24 to 10, and on with the data after them: four steps in a row",
        "out of memory at step 30: micro-batches of 4 rows from then on",
        "CORE after step 40 failed: no file",
    ):
        assert words in said, words
    assert finding(result, "oom")["advice"].startswith("Begin with --device-batch 4")


def test_tokens_say_whether_they_are_the_rules_or_the_steps(fathom_home: Path) -> None:
    table = {"tokens": 40_895_616, "steps": 430, "batch_tokens": 4096}
    measured_runs.write_run("mine", measured_runs.falling(430, 0.9), origin={"ratio": "rule: 12"}, **table)
    said = spoken(report("mine")[1])
    assert "tokens 1,761,280 steps × batch" in said and "horizon 40,895,616 ratio × parameters" in said
    assert "ratio 12 rule: 12" in said


def test_speed_over_all_is_tokens_by_training_time(fathom_home: Path) -> None:
    folder = write_run(fathom_home, "mine", 100)
    text = (folder / "metrics.jsonl").read_text().splitlines()
    slow = [json.loads(line) for line in text]
    for i, line in enumerate(slow):
        line["train_s"] += 50.0 * (i >= 90)  # one step took long
    slow[90]["step_s"] += 50.0
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in slow))
    append(folder, "events.jsonl", {"event": "finished", "result": {}, "time": BEGAN + 200})
    assert overall_tokens_per_s(history_of("mine")) == pytest.approx(100 * BATCH / 100)
    said = spoken(report("mine")[1])
    assert "4,096 tokens/s over all" in said and "8,192 tokens/s (median)" in said


def test_a_fine_tuning_without_samples_says_how_to_get_some_and_its_base_is_no_attempt(fathom_home: Path) -> None:
    measured_runs.write_run("mine", [(9, 1.0)])
    table = {"data": ["a [b].jsonl", "c.jsonl"]}
    run = {"stage": "sft", "base": "mine"}
    history = measured_runs.write_run("mine-sft", [(20, 1.0)], run=run, **table)
    (history.folder / "checkpoints" / "000020").mkdir(parents=True)
    (history.folder / "checkpoints" / "000020" / "COMPLETE").touch()
    said = spoken(report("mine-sft")[1])
    assert "None was taken. `fathom eval mine-sft --tasks samples` keeps some here" in said
    assert "Earlier attempts" not in said and "files a [b].jsonl, c.jsonl" in said


def test_attempts_are_the_earlier_runs_of_the_name(fathom_home: Path) -> None:
    for name, created in (
        ("mine", "2026-01-01"),
        ("mine-2", "2026-01-02"),
        ("mine3", "2026-01-04"),
        ("other", "2026-01-01"),
    ):
        seed_runs.write_run(fathom_home, name, run={"created": created}, model={}, config={})
    (fathom_home / "runs" / "mine-torn").mkdir()
    found = [attempt.name for attempt in earlier_attempts(history_of("mine-2"))]
    assert found == ["mine"]


def test_a_recipe_that_was_followed_says_so(fathom_home: Path, tmp_path: Path) -> None:
    seed_runs.first_run(fathom_home)
    path = tmp_path / "d12.toml"
    path.write_text('depth = 12\nseq-len = 2048\nwindow = "L"\nsteps = 10000\nmatrix-lr = 0.02\n')
    text = " ".join(report(seed_runs.FIRST, recipe=str(path))[1].split())  # its lines are broken by their length
    assert "in every setting" in text


def test_the_recipe_that_the_record_names_is_taken_or_missed(fathom_home: Path) -> None:
    seed_runs.first_run(fathom_home)
    path = fathom_home / "runs" / seed_runs.FIRST / "run.toml"
    recipe = seed_runs.recipe(fathom_home)
    path.write_text(path.read_text().replace("[run]", f'[run]\nrecipe = "{recipe}"'))
    assert "depth = 8" in report(seed_runs.FIRST)[1].replace("\\", "")
    recipe.unlink()
    assert "no longer there" in report(seed_runs.FIRST)[1]


def test_the_page_is_whole_and_takes_nothing_from_elsewhere(first: tuple[dict[str, Any], str]) -> None:
    result, _ = first
    page = Path(result["files"][1]).read_text()
    assert page.startswith("<!doctype html>") and page.rstrip().endswith("</html>")
    assert not re.search(r"""(src|href)\s*=\s*["']?(https?:)?//""", page)
    charts = json.loads(re.search(r'<script type="application/json" id="charts">(.*?)</script>', page)[1])  # type: ignore[index]
    assert [chart["title"] for chart in charts] == ["Bits per byte", "Training loss", "Learning rate", "Speed"]
    assert len(charts[0]["curves"][0]["x"]) == len(seed_runs.PROGRESSION) - 1  # but random weights
    for part in ("Under-trained for its size", "9,448 MiB", "crosses below 1.0", "286,261,730"):
        assert part in page, part


def test_nothing_that_a_run_holds_becomes_markup() -> None:
    nasty = "<script>alert(1)</script> | `x` *y* [a](b)\nnext & \x1b[31m"
    found = Finding("kind", "warn", nasty, (nasty,), nasty)
    blocks = (Text(nasty), Table((nasty, "b"), ((nasty, nasty),)), Bullets((nasty,)), Assessment((found,)))
    document = Document(nasty, (Section(nasty, blocks),))
    assert "<script>alert" not in to_html(document) and "\x1b" not in to_markdown(document)
    text = to_markdown(document)
    rows = [line for line in text.splitlines() if line.startswith("|")]
    assert len(rows) == 3 and all(len(re.findall(r"(?<!\\)\|", row)) == 3 for row in rows)
    assert "\\<script\\>" in text and "\\`x\\`" in text


def test_a_home_that_cannot_be_written_names_the_file_and_the_way_out(
    fathom_home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = write_run(fathom_home, "r", 4)

    def closed(dir: Path, prefix: str) -> None:
        raise OSError(errno.EROFS, "Read-only file system", f"{dir}/{prefix}x1y2")

    monkeypatch.setattr(tempfile, "mkstemp", closed)
    with pytest.raises(FathomError, match="--out, or set FATHOM_HOME") as refused:
        Report("r").run()
    assert str(refused.value).startswith(f"{folder / 'report.md'} cannot be written (Read-only file system)")


def test_a_single_validation_is_no_curve(fathom_home: Path) -> None:
    folder = write_run(fathom_home, "r", 40)
    append(folder, "events.jsonl", {"event": "evaluated", "step": 20, "val_bpb": 2.0, "train_s": 10.0})
    once = course.progression(history_of("r"))
    assert once is not None and not any(isinstance(block, Plot) for block in once.blocks)
    append(folder, "events.jsonl", {"event": "evaluated", "step": 40, "val_bpb": 1.9, "train_s": 20.0})
    twice = course.progression(history_of("r"))
    assert twice is not None and any(isinstance(block, Plot) for block in twice.blocks)


def test_flags_of_a_command_are_in_one_piece() -> None:
    html = to_html(Document("x", (Section("y", (Text("`fathom pretrain --run a-b --resume` goes on"),)),)))
    assert "<code>fathom pretrain <span>--run</span> a-b <span>--resume</span></code> goes on" in html


def test_names_stay_as_they_are_written() -> None:
    assert plain("batch_tokens = 4 * 8") == "batch_tokens = 4 * 8"
    assert plain("_a_ *b*") == "\\_a\\_ \\*b\\*"


def test_tables_are_tables_to_the_eye(first: tuple[dict[str, Any], str]) -> None:
    """Every row of a table has its bars where the others have them."""
    tables = re.findall(r"(?:^\|.*\n)+", first[1], re.MULTILINE)
    assert len(tables) > 10
    for table in tables:
        bars = [[at.start() for at in re.finditer(r"(?<!\\)\|", line)] for line in table.splitlines()]
        assert all(row == bars[0] for row in bars), table


def test_it_goes_where_it_is_told(fathom_home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = seed_runs.first_run(fathom_home)
    with pytest.raises(SystemExit) as ended:
        main(["report", seed_runs.FIRST, "--out", str(tmp_path / "new" / "place"), "--json"])
    assert ended.value.code == 0
    result = json.loads(capsys.readouterr().out)
    assert result["files"] == [str(tmp_path / "new" / "place" / name) for name in ("report.md", "report.html")]
    assert all(Path(path).is_file() for path in result["files"]) and not (folder / "report.md").exists()


def test_without_json_a_person_reads_it_and_standard_output_is_empty(
    fathom_home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    seed_runs.first_run(fathom_home)
    with pytest.raises(SystemExit):
        main(["report", seed_runs.FIRST])
    out, err = capsys.readouterr()
    assert out == "" and "Under-trained" in err and "report.html" in err


def test_a_healthy_run_is_told_what_to_do_next_too(fathom_home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    seed_runs.first_run(fathom_home)
    trend = Finding("trend", "note", "Still improving.", (), "Train longer.")
    _print(history_of(seed_runs.FIRST), [trend, Finding("loops", "note", "A loop.", (), "Common.")], [])
    said = capsys.readouterr().err
    assert "Train longer." in said and "A loop." in said and "Common." not in said


def test_what_cannot_be_reported_is_refused_in_one_sentence(
    fathom_home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    seed_runs.first_run(fathom_home)
    for arguments in (["nosuch"], [seed_runs.FIRST, "--recipe", "/nowhere.toml"]):
        with pytest.raises(SystemExit) as ended:
            main(["report", *arguments])
        out, err = capsys.readouterr()
        assert ended.value.code == 2 and out == "" and err.startswith("fathom: ") and err.count("\n") == 1


@pytest.mark.parametrize("missing", ["metrics.jsonl", "events.jsonl", "samples.jsonl", "all"])
def test_a_record_with_parts_missing(fathom_home: Path, missing: str) -> None:
    folder = seed_runs.first_run(fathom_home)
    for path in folder.glob("*.jsonl") if missing == "all" else [folder / missing]:
        path.unlink()
    result, text = report(seed_runs.FIRST)
    assert result["run"] == seed_runs.FIRST and "286,261,730" in text and "nan" not in text.lower().split()


def test_a_torn_record_is_reported_with_what_was_torn(fathom_home: Path) -> None:
    folder = seed_runs.first_run(fathom_home)
    whole = (folder / "metrics.jsonl").read_bytes()
    (folder / "metrics.jsonl").write_bytes(whole[: len(whole) // 2] + b'\n{"step": 7, "lo')
    (folder / "evals").mkdir()
    (folder / "evals" / "quiz-1.json").write_text("{")
    result, text = report(seed_runs.FIRST)
    assert len(result["troubles"]) >= 2 and "quiz-1.json" in text


@pytest.mark.parametrize(
    "table", ["", "[model]\nn_layer = 4", '[config]\nsteps = "many"\nbatch_tokens = -5\nlr_scale = nan']
)
def test_a_run_toml_of_which_little_is_left(fathom_home: Path, table: str) -> None:
    folder = seed_runs.first_run(fathom_home)
    (folder / "run.toml").write_text(f"{table}\n")
    result, _ = report(seed_runs.FIRST)
    assert result["steps"] == 10_000


def test_it_answers_without_torch(fathom_home: Path) -> None:
    seed_runs.first_run(fathom_home)
    run = f"from fathom.report.report import Report; Report({seed_runs.FIRST!r}).run()"
    code = f"import sys; {run}; assert 'torch' not in sys.modules"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True).returncode == 0


def lines_of_a_long_run(count: int) -> str:
    return "".join(
        f'{{"step": {i}, "loss": {3 + (i * 7919 % 1000) / 1e4:.6f}, "loss_smooth": 3.05, "lr": 1.0, "step_s": 0.2, '
        f'"train_s": {(i + 1) / 5:.3f}, "mfu": 0.5, "epoch": {i / count:.4f}, "loader_wait_s": 0.1, "memory_gb": 9.5, '
        f'"time": {1.8e9 + i / 5:.3f}}}\n'
        for i in range(count)
    )


@pytest.mark.parametrize("count", [100_000, pytest.param(1_000_000, marks=pytest.mark.long)])
def test_a_long_record_is_reported_in_seconds(fathom_home: Path, count: int) -> None:
    """A million lines take a few seconds of this process; ten are allowed. What others do does not count."""
    folder = seed_runs.first_run(fathom_home)
    (folder / "metrics.jsonl").write_text(lines_of_a_long_run(count))
    began = time.process_time()
    result, _ = report(seed_runs.FIRST)
    assert result["steps"] == count
    assert time.process_time() - began < 10
    assert Path(result["files"][1]).stat().st_size < 1_000_000
