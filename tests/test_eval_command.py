"""`fathom eval` on tiny runs: what it measures and keeps, that it goes on where it was, ranks, and bad input."""

from __future__ import annotations

import json
import os
import re
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from oracles import small_bundle
from oracles.tiny_runs import fine_tuning, furnish, hurry, pretraining, texts, write_conversations

from fathom import cli
from fathom.data.batches import ValidationRows
from fathom.data.corpus import open_corpus, write_corpus
from fathom.data.shards import tokenize
from fathom.errors import FathomError
from fathom.evaluate.bpb import bits_per_byte
from fathom.evaluate.core import score_bundle
from fathom.evaluate.core.bundle import read_bundle
from fathom.evaluate.results import read_results
from fathom.evaluate.scorer import ModelScorer
from fathom.evaluate_command import Eval, chosen
from fathom.evaluate_command import chat as chat_module
from fathom.evaluate_command import core as core_module
from fathom.evaluate_command.display import show_core
from fathom.evaluate_command.session import unless_missing
from fathom.home import run_dir
from fathom.ranks import Ranks, joined
from fathom.record import read_lines
from fathom.report.document import Table
from fathom.report.entry import core_points
from fathom.report.history import history_of
from fathom.report.sections.evaluated import evaluations
from fathom.train.checkpoint import load_model
from fathom.train.pretrain import pretrain
from fathom.train.sft import sft

OWN = """
def examples():
    for n in range(4):
        yield {"prompt": f"Say {n}.", "answer": str(n)}

def grade(reply, example):
    return example["answer"] in "02"
"""


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A home with a base run and a fine-tuned one, and sets of chat tasks."""
    folder = tmp_path_factory.mktemp("trained")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FATHOM_HOME", str(folder))
        hurry(patch)
        furnish()
        pretrain(pretraining(seq_len=128, batch_tokens=256, steps=3, eval_tokens=256, packing="best-fit"))
        sft(fine_tuning(write_conversations(), steps=2, batch_tokens=256))
        sets = folder / "sets"
        sets.mkdir()
        choices = [{"question": f"{n} suns?", "choices": ["cat", "mat"], "answer": "AB"[n % 2]} for n in range(9)]
        worked = [{"question": f"{n} cats?", "answer": f"#### {n}"} for n in range(3)]
        code = [{"prompt": "def f():\n", "test": "def check(f): pass", "entry_point": "f"}]
        for name, rows in (
            ("arc_easy_test", choices),
            ("arc_challenge_test", choices),
            ("mmlu_test", choices),
            ("gsm8k_test", worked),
            ("humaneval_test", code),
        ):
            (sets / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        yield folder


@pytest.fixture
def place(trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of that home, for one test."""
    shutil.copytree(trained, tmp_path / "home")
    monkeypatch.setenv("FATHOM_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


def measured(name: str = "base", **changes: Any) -> dict[str, Any]:
    return Eval(name, **({"dtype": "fp32"} | changes)).run()


def plain(result: Any) -> Any:
    """Without the times, which differ."""
    if isinstance(result, dict):
        return {key: plain(value) for key, value in result.items() if key not in ("time", "seconds")}
    return [plain(value) for value in result] if isinstance(result, list) else result


# Bits per byte and samples


def test_bits_per_byte_of_both_splits_and_both_kinds_of_rows(place: Path) -> None:
    found = measured(tasks="bpb")["bpb"]
    sets = {(one["split"], one["rows_of"]): one for one in found["sets"]}
    assert set(sets) == {(split, kind) for split in ("train", "validation") for kind in ("lossless", "best-fit")}
    model, tokenizer, _ = load_model("base", dtype="fp32")
    store = tokenize(open_corpus("tiny"), tokenizer)
    for (split, kind), one in sets.items():
        rows = ValidationRows(store, kind, 128, split)
        expected = bits_per_byte(model, [rows.rows(0, one["rows"])], tokenizer.token_bytes())
        assert one["bpb"] == pytest.approx(expected, abs=1e-5)
        assert one["tokens"] == one["rows"] * 128
        assert one["tokens"] <= store.n_tokens(split)
    assert sets["train", "lossless"]["rows"] == store.n_tokens("train") // 129
    assert sets["train", "lossless"]["standard_error"] > 0
    assert found["value"] == found["val_bpb"] == sets["validation", "lossless"]["bpb"]
    assert (found["data"]["digest"], found["n"]) == (store.digest, sets["validation", "lossless"]["tokens"])


def test_by_default_a_fixed_sample_is_measured_and_kept_apart_from_all(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("fathom.evaluate_command.text.SAMPLE_TOKENS", 256)
    sample, whole = measured(tasks="bpb")["bpb"], measured(tasks="bpb", limit=0)["bpb"]
    shown = capsys.readouterr().err
    assert "the first 256 tokens of each set; --limit 0 measures all" in shown
    assert {one["rows"] for one in sample["sets"]} == {2}
    for part, every in zip(sample["sets"], whole["sets"], strict=True):
        assert part["share"] == pytest.approx(2 / every["rows"], abs=1e-6) and every["share"] == 1
    assert plain(measured(tasks="bpb", limit=2)["bpb"]["sets"]) == plain(sample["sets"])  # the first rows, by one rule
    assert measured(tasks="bpb")["bpb"] == sample and measured(tasks="bpb", limit=0)["bpb"] == whole
    assert len(list(run_dir("base").glob("evals/bpb-*-*.json"))) == 3


def test_the_report_reads_what_is_kept(place: Path) -> None:
    from fathom.report.measured import bpb_curves

    before = set(bpb_curves(history_of("base")))
    found = measured(tasks="bpb,samples,arc-easy", data=str(place / "sets"))
    curves = bpb_curves(history_of("base"))
    (new,) = set(curves) - before
    assert (new.rows_of, new.rows) == ("lossless", found["bpb"]["rows"])
    assert curves[new].final == found["bpb"]["value"]
    assert {one["prompt"] for one in read_lines(run_dir("base") / "samples.jsonl")} == {
        one["prompt"] for one in found["samples"]["samples"]
    }
    section = evaluations(history_of("base"))
    assert section is not None
    shown = {row[0]: row for table in section.blocks if isinstance(table, Table) for row in table.rows}
    score = found["chat"]["tasks"]["arc-easy"]
    assert shown["arc-easy"][1:3] == (f"{score['n']}", f"{100 * score['accuracy']:.1f}")
    measured(tasks="samples", again=True)
    lines = read_lines(run_dir("base") / "samples.jsonl")
    assert len(lines) == len({one["prompt"] for one in lines})


def test_runs_of_other_length_compare_once_the_refusals_advice_was_followed(place: Path) -> None:
    from fathom.report.compare import compare, groups_of

    pretrain(pretraining(name="longer", seq_len=128, batch_tokens=256, steps=5, eval_tokens=384, packing="best-fit"))
    with pytest.raises(FathomError) as refused:
        compare(groups_of(["base", "longer"], []))
    advised = re.findall(r"eval (\S+) --tasks (\S+)`", str(refused.value))
    assert [name for name, _ in advised] == ["base", "longer"]
    finals = [measured(name, tasks=tasks)["bpb"]["value"] for name, tasks in advised]
    found = compare(groups_of(["base", "longer"], []))
    assert [group["final_bpb"]["value"] for group in found["groups"]] == finals


def test_a_fine_tuned_run_is_measured_on_its_bases_corpus_or_another(place: Path) -> None:
    found = measured("base-sft", tasks="bpb", limit=2)["bpb"]
    assert found["data"]["corpus"] == "tiny"
    assert all(one["rows"] <= 2 for one in found["sets"])
    write_corpus("other", texts(20, seed=7), texts(8, seed=8), source="made for a test")
    other = measured("base-sft", tasks="bpb", limit=2, corpus="other")["bpb"]
    assert other["data"]["corpus"] == "other"
    assert other["value"] != found["value"]


# CORE


@pytest.fixture
def bundle(tmp_path: Path) -> str:
    return str(small_bundle.write_folder(tmp_path / "bundle", small_bundle.contents()))


def test_core_is_what_a_whole_bundle_scores(place: Path, bundle: str, tmp_path: Path) -> None:
    found = measured(tasks="core", bundle=bundle)["core"]
    model, tokenizer, _ = load_model("base", dtype="fp32")
    expected = score_bundle(ModelScorer(model, tokenizer.bos_id), tokenizer, read_bundle(Path(bundle)), None)
    assert found["core"] == found["value"] == pytest.approx(expected["value"])
    assert found["standard_error"] == pytest.approx(expected["standard_error"])
    for label, one in expected["tasks"].items():
        assert {key: found["tasks"][label][key] for key in one} == pytest.approx(one)
    limited = measured(tasks="core", bundle=bundle, limit=5, dump=str(tmp_path / "dump.jsonl"))["core"]
    assert "core" not in limited
    assert {one["n"] for one in limited["tasks"].values()} == {5}
    lines = [json.loads(line) for line in (tmp_path / "dump.jsonl").read_text().splitlines()]
    assert [(line["task"], line["index"]) for line in lines] == [
        (label, index) for label in limited["tasks"] for index in range(5)
    ]
    assert len(core_points(history_of("base"))) == 1


def test_core_goes_on_at_the_next_task(place: Path, bundle: str, monkeypatch: pytest.MonkeyPatch) -> None:
    asked, real = list[str](), core_module.score_task

    def counted(scorer: Any, tokenizer: Any, task: Any, **more: Any) -> Any:
        asked.append(task.label)
        if len(asked) == 2:
            raise KeyboardInterrupt
        return real(scorer, tokenizer, task, **more)

    monkeypatch.setattr(core_module, "score_task", counted)
    with pytest.raises(KeyboardInterrupt):
        measured(tasks="core", bundle=bundle)
    assert [one["task"] for one in read_results("base") if one["task"] != "bpb"] == ["core/choosing"]
    measured(tasks="core", bundle=bundle)
    assert asked == ["choosing", "twins", "twins", "going_on"]


def test_a_broken_line_of_the_bundle_is_named_before_the_work_begins(
    place: Path, bundle: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = Path(bundle) / "eval_data" / "some" / "going_on.jsonl"
    file.write_text(file.read_text() + "{broken\n")
    monkeypatch.setattr("fathom.train.checkpoint.load", lambda *ignored: pytest.fail("the model was loaded"))
    with pytest.raises(FathomError, match="line 25 of .*going_on.jsonl"):
        measured(tasks="core", bundle=bundle)
    with pytest.raises(FathomError, match="there is no evaluation bundle at /nowhere"):
        measured(tasks="core", bundle="/nowhere")


def test_a_hugging_face_folder_is_measured_on_core_and_nothing_else(
    place: Path, bundle: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "gpt-tiny"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    model, tokenizer, _ = load_model("base", dtype="fp32")
    opened = []

    def stand_in(where: Path, device: str) -> Any:
        opened.append(where)
        return ModelScorer(model, tokenizer.bos_id), tokenizer

    monkeypatch.setattr("fathom.evaluate_command.foreign.open_foreign", stand_in)
    found = measured(str(folder), bundle=bundle)
    assert found["core"]["core"] == measured(tasks="core", bundle=bundle)["core"]["core"]
    assert opened == [folder]
    show_core(found["core"], crops=True)
    assert "of which the last tokens were scored" in " ".join(capsys.readouterr().err.split())
    (kept,) = (place / "foreign").iterdir()
    assert {one["task"] for one in read_results(kept)} == {"core", *(f"core/{task}" for task in found["core"]["tasks"])}
    for wrong in ({"tasks": "core,bpb"}, {"tasks": "mmlu"}, {"step": 3}, {"dtype": "bf16"}, {"harness": "copa"}):
        with pytest.raises(FathomError, match="Hugging Face model"):
            measured(str(folder), **wrong)


# lm-eval


def test_tasks_of_lm_eval_are_kept_one_by_one(place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[list[str], int | None]] = []

    def stand_in(model: Any, tokenizer: Any, tasks: list[str], *, limit: int | None, on_done: Any, **more: Any) -> Any:
        asked.append((tasks, limit))
        on_done("log-likelihoods", 3, 4)
        one = {"acc": 0.25, "acc_stderr": 0.1, "acc_norm": 0.5, "acc_norm_stderr": 0.2, "n": 4, "n_shot": 0}
        return {Path(tasks[0]).stem: one, "a part": {"bleu": 1.5}}

    monkeypatch.setattr("fathom.evaluate.harness.library", lambda: None)
    monkeypatch.setattr("fathom.evaluate.harness.measure", stand_in)
    own = tmp_path / "mine.yaml"
    own.write_text("task: mine")
    found = measured(harness=f"copa, {own}", limit=4)
    assert set(found) == {"run", "step", "stage", "dtype", "limit", "harness"}
    for result in found["harness"].values():
        assert (result["value"], result["metric"], result["standard_error"], result["n"]) == (0.5, "acc_norm", 0.2, 4)
    assert asked == [(["copa"], 4), ([str(own)], 4)]
    assert plain(measured(harness=f"copa,{own}", limit=4)) == plain(found)
    assert len(asked) == 2
    own.write_text("task: another")
    measured(harness=f"copa,{own}", limit=4)
    assert len(asked) == 3
    assert {one["task"] for one in read_results("base")} >= {"harness-copa", "harness-mine"}
    with pytest.raises(FathomError, match="there is no file none.yaml"):
        measured(harness="none.yaml")


# Chat tasks


def test_chat_tasks_give_chatcore_and_land_in_the_run(place: Path) -> None:
    tasks = "arc-easy,arc-challenge,mmlu,gsm8k,spelling"
    found = measured("base-sft", tasks=tasks, data=str(place / "sets"), limit=9)["chat"]
    assert set(found["tasks"]) == {"arc-easy", "arc-challenge", "mmlu", "gsm8k", "spelling"}
    assert "chatcore" not in found
    centred = [found["tasks"][name]["centered"] for name in ("arc-easy", "arc-challenge", "mmlu")]
    assert found["value"] == found["chatcore_cat"] == pytest.approx(sum(centred) / 3)
    assert found["tasks"]["mmlu"]["accuracy"] == pytest.approx(found["tasks"]["mmlu"]["centered"] * 0.75 + 0.25)
    kept = {one["task"]: one for one in read_results("base-sft") if one["task"].startswith("chat")}
    assert set(kept) == {"chat", *(f"chat/{name}" for name in found["tasks"])}
    assert kept["chat/gsm8k"]["n"] == 3
    assert history_of("base-sft").evals.keys() >= {path.stem for path in run_dir("base-sft").glob("evals/chat-*.json")}


def test_ones_own_task(place: Path, tmp_path: Path) -> None:
    file = tmp_path / "mine.py"
    file.write_text(OWN)
    found = measured("base-sft", task=(str(file),), dump=str(tmp_path / "dump.jsonl"))
    assert set(found) == {"run", "step", "stage", "dtype", "limit", "own"}
    assert (found["own"]["mine"]["value"], found["own"]["mine"]["n"]) == (0.5, 4)
    lines = [json.loads(line) for line in (tmp_path / "dump.jsonl").read_text().splitlines()]
    assert [line["correct"] for line in sorted(lines, key=lambda line: line["index"])] == [True, False, True, False]


def test_a_base_model_is_asked_to_chat_only_when_that_is_said(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "chat" not in chosen(Eval("base"), "pretrain") and "mmlu" not in chosen(Eval("base"), "pretrain")
    assert "has not learnt to answer" not in capsys.readouterr().err
    assert "mmlu" in chosen(Eval("base", tasks="chat"), "pretrain")
    assert "base is a base model, which has not learnt to answer" in capsys.readouterr().err
    assert "mmlu" in measured(tasks="mmlu", data=str(place / "sets"))["chat"]["tasks"]


# Going on


def test_what_is_finished_is_read_back_and_only_the_rest_is_measured(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked, interrupted_at = list[str](), [2]
    real = chat_module.score_task

    def counted(model: Any, tokenizer: Any, task: Any, **more: Any) -> Any:
        asked.append(task.name)
        if len(asked) in interrupted_at:
            interrupted_at.clear()
            raise KeyboardInterrupt
        return real(model, tokenizer, task, **more)

    monkeypatch.setattr(chat_module, "score_task", counted)
    command: dict[str, Any] = {"tasks": "arc-easy,mmlu,arc-challenge", "data": str(place / "sets")}
    with pytest.raises(KeyboardInterrupt):
        measured("base-sft", **command)
    assert "goes on with the next" in capsys.readouterr().err
    assert [one["task"] for one in read_results("base-sft") if one["task"][:4] == "chat"] == ["chat/arc-easy"]
    first = measured("base-sft", **command)
    assert asked == ["arc-easy", "arc-challenge", "arc-challenge", "mmlu"]
    assert "arc-easy: read back" in capsys.readouterr().err
    asked.clear()
    assert plain(measured("base-sft", **command)) == plain(first)
    assert asked == []
    measured("base-sft", **command, limit=3)
    measured("base-sft", **command, again=True)
    assert len(asked) == 6
    (place / "sets" / "mmlu_test.jsonl").write_text('{"question": "?", "choices": ["x", "y"], "answer": "A"}\n')
    asked.clear()
    measured("base-sft", **command)
    assert asked == ["mmlu"]


# Ranks


def free_port() -> int:
    with socket.socket() as made:
        made.bind(("127.0.0.1", 0))
        return int(made.getsockname()[1])


def test_two_ranks_find_what_one_finds(place: Path, bundle: str) -> None:
    tasks, data = "bpb,core,mmlu,gsm8k,samples", str(place / "sets")
    alone = measured("base-sft", tasks=tasks, data=data, bundle=bundle)
    shutil.rmtree(run_dir("base-sft") / "evals")
    words = ["eval", "base-sft", "--tasks", tasks, "--data", data, "--bundle", bundle]
    port = str(free_port())
    ranks = [
        subprocess.Popen(
            [sys.executable, "-m", "fathom", *words, "--dtype", "fp32", "--json"],
            env=os.environ
            | {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2", "OMP_NUM_THREADS": "1"}
            | {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    said = [process.communicate(timeout=120) for process in ranks]
    assert [process.returncode for process in ranks] == [0, 0], said[1][1] or said[0][1]
    assert plain(json.loads(said[0][0])) == plain(json.loads(json.dumps(alone)))
    assert said[1] == ("", "")
    assert "2 ranks share the items" in said[0][1]


def test_without_torchrun_there_is_one_rank() -> None:
    with joined() as here:
        assert (here, here.is_main, here.gather("x"), here.main_first(lambda: 3)) == (Ranks(0, 1), True, ["x"], 3)


@pytest.mark.parametrize(
    ("variables", "words"),
    [
        ({"WORLD_SIZE": "two"}, "WORLD_SIZE is 'two'"),
        ({"WORLD_SIZE": "0"}, "WORLD_SIZE is '0'"),
        ({"WORLD_SIZE": "2"}, "RANK is not set"),
        ({"WORLD_SIZE": "2", "RANK": "2"}, "RANK is 2"),
        ({"WORLD_SIZE": "2", "RANK": "0"}, "cannot find each other"),
    ],
)
def test_ranks_that_make_no_sense_are_refused(
    variables: dict[str, str], words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("WORLD_SIZE", "RANK", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(FathomError, match=words), joined():
        pass


# Bad input


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"tasks": "gms8k"}, "there is no task 'gms8k'; did you mean 'gsm8k'?"),
        ({"tasks": "bpb,zzz"}, "there is no task 'zzz'; choose among bpb, core, chat"),
        ({"tasks": ","}, "names none"),
        ({"limit": -3}, "--limit is -3"),
        ({"step": 99}, "no checkpoint of step 99"),
        ({"name": "bace"}, "there is no run 'bace'"),
        ({"tasks": "mmlu", "data": "/nowhere/at/all"}, "there is no folder /nowhere/at/all"),
        ({"tasks": "mmlu", "data": "runs"}, "mmlu_test.jsonl"),
        ({"tasks": "bpb", "corpus": "tinny"}, "did you mean 'tiny'?"),
        ({"task": ("none.py",)}, "none.py cannot be read"),
        ({"task": ("gsm8k.py",)}, "two tasks would be called 'gsm8k'"),
        ({"tasks": "mmlu", "dump": "no/such/folder.jsonl"}, "--dump no/such/folder.jsonl cannot be written"),
        ({"tasks": "mmlu", "dump": "."}, "--dump . cannot be written"),
    ],
)
def test_what_cannot_be_done_is_said_before_the_work_begins(
    changes: dict[str, Any], words: str, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(place)
    (place / "gsm8k.py").write_text(OWN)
    monkeypatch.setattr("fathom.train.checkpoint.load", lambda *ignored: pytest.fail("the model was loaded"))
    command = Eval(**({"name": "base", "dtype": "fp32"} | changes))
    with pytest.raises(FathomError) as caught:
        command.run()
    assert words in str(caught.value)
    assert not list(run_dir("base").glob("evals/*[!0-9].json"))


def test_a_run_without_a_checkpoint_is_refused_in_one_sentence(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.rmtree(run_dir("base") / "checkpoints")
    with pytest.raises(SystemExit) as caught:
        cli.main(["eval", "base", "--tasks", "samples"])
    assert caught.value.code == 2
    assert capsys.readouterr().err.splitlines()[-1].startswith("fathom: the run 'base' has no checkpoint yet")


def test_a_run_of_no_corpus_is_measured_without_bpb_unless_it_is_asked_for(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = run_dir("base") / "run.toml"
    path.write_text("".join(line for line in path.read_text().splitlines(True) if not line.startswith("corpus =")))
    with pytest.raises(FathomError, match="--corpus"):
        measured(tasks="bpb")
    assert measured(tasks="bpb", corpus="tiny", limit=1)["bpb"]["data"]["corpus"] == "tiny"


def test_what_nobody_asked_for_by_name_and_cannot_be_had_is_left_out(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A machine without network measures the rest."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.is_offline_mode", lambda: True)
    assert {"bpb", "samples"} < set(measured(limit=1)) and "core" not in measured(limit=1)
    assert "core is left out: the evaluation bundle is not here, and HF_HUB_OFFLINE" in capsys.readouterr().err
    found = measured("base-sft", limit=1)
    assert list(found["chat"]["tasks"]) == ["spelling"] and {"bpb", "samples"} < set(found)
    assert "gsm8k" in next(line for line in capsys.readouterr().err.splitlines() if "is left out" in line)
    for refused in ({"tasks": "core"}, {"tasks": "bpb,chat"}, {"bundle": "none.zip"}):
        with pytest.raises(FathomError):
            measured(**refused, limit=1)


def test_ranks_leave_out_what_the_main_one_cannot_have(capsys: pytest.CaptureFixture[str]) -> None:
    class Second(Ranks):
        def gather(self, value: Any) -> list[Any]:
            return ["core is left out: no network.", value]

    def unheard() -> None:
        raise AssertionError("a rank looks although the main one was refused")

    assert unless_missing("core", False, Second(1, 2), unheard) is None
    assert "no network" in capsys.readouterr().err
