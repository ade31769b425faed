"""The stages in a row: a tiny speedrun and a tiny quickstart from end to end, stopped, repeated, and with bad luck."""

from __future__ import annotations

import os
import re
import signal
import time
from pathlib import Path
from typing import Any

import pytest

from fathom import hardware, pipeline, quickstart
from fathom.data import primer
from fathom.data.corpus import write_corpus
from fathom.errors import FathomError
from fathom.evaluate.quiz import Graded, accuracy, by_kind
from fathom.home import names, run_dir
from fathom.pipeline import Stages, words_for
from fathom.quickstart import Quickstart
from fathom.record import Record, read_config, read_lines
from fathom.report import status
from fathom.speedrun import Speedrun
from fathom.train import session
from fathom.train.session import Machine
from tests.oracles.tiny_runs import hurry, texts, write_conversations


@pytest.fixture(autouse=True)
def hurried(fathom_home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hurry(monkeypatch)


@pytest.fixture
def small_world(monkeypatch: pytest.MonkeyPatch) -> None:
    """The embedded corpus, its network and its quiz, at a hundredth of their size."""
    monkeypatch.setattr(quickstart, "BYTES", 30_000)
    monkeypatch.setattr(quickstart, "CONVERSATIONS", 40)
    monkeypatch.setattr(quickstart, "SHAPE", {"depth": 1, "head_dim": 32, "seq_len": 256, "window": "L"})
    monkeypatch.setattr(quickstart, "VOCAB", 300)
    monkeypatch.setattr(quickstart, "BATCH", 512)
    monkeypatch.setattr(quickstart, "MOST_TOKENS", 4096)
    monkeypatch.setattr(primer, "QUESTIONS_PER_KIND", 1)
    every = primer.quiz
    monkeypatch.setattr(primer, "quiz", lambda seed: every(seed)[:6])


def speedrun_of(**changes: Any) -> Speedrun:
    given: dict[str, Any] = {
        "corpus": "tiny",
        "chat": (write_conversations(60),),
        "depth": 1,
        "vocab": 300,
        "head_dim": 32,
        "seq_len": 64,
        "steps": 5,
        "batch_tokens": 128,
        "dtype": "fp32",
        "name": "tiny",
    }
    return Speedrun(**(given | changes))


def furnish() -> None:
    write_corpus("tiny", texts(60), texts(8, seed=1), source="made for a test")


def never(*_: Any, **__: Any) -> None:
    raise AssertionError("a finished run was trained")


def stop_at(monkeypatch: pytest.MonkeyPatch, run: str, step: int) -> None:
    """A SIGTERM while this step of this run is logged."""
    real = Record.metric

    def metric(self: Record, **values: Any) -> None:
        real(self, **values)
        if self.folder.name == run and values["step"] == step:
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(Record, "metric", metric)


# speedrun


def test_a_speedrun_from_text_to_chat(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    furnish()
    result = speedrun_of().run()
    assert result["seconds"].keys() == {"tokenizer", "pretrain", "sft", "samples"}
    assert (result["pretrain"]["run"], result["sft"]["run"]) == ("tiny", "tiny-sft")
    assert result["pretrain"]["steps"] == 5
    said = {sample["prompt"] for sample in result["samples"]}
    assert "Hello!" in said
    assert read_config("tiny-sft")["run"]["base"] == "tiny"
    captured = capsys.readouterr()
    assert captured.out == ""
    for words in ("[1/4] tokenizer", "[4/4]", "bits per byte", "held-out answers", "fathom chat tiny-sft"):
        assert words in captured.err

    monkeypatch.setattr(session, "train", never)
    kept = read_lines(run_dir(result["sft"]["run"]) / "samples.jsonl")
    assert [{"prompt": k["prompt"], "text": k["text"]} for k in kept] == result["samples"]
    again = speedrun_of().run()
    assert read_lines(run_dir(result["sft"]["run"]) / "samples.jsonl") == kept
    assert (again["pretrain"], again["sft"]) == (result["pretrain"], result["sft"])
    assert again["samples"] == result["samples"]


def test_a_speedrun_stopped_in_any_stage_goes_on_where_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    furnish()
    whole = speedrun_of().run()
    for run, step in (("other", 2), ("other-sft", 1)):
        with monkeypatch.context() as patch, pytest.raises(SystemExit) as left:
            stop_at(patch, run, step)
            speedrun_of(name="other").run()
        assert left.value.code == 130
    result = speedrun_of(name="other").run()
    for stage in ("pretrain", "sft"):
        assert result[stage]["weights_sha256"] == whole[stage]["weights_sha256"]
        assert result[stage]["val_bpb"] == whole[stage]["val_bpb"]


def test_a_speedrun_that_was_stopped_says_how_it_goes_on(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    furnish()
    config = speedrun_of(name="tiny-run")
    again = "`fathom " + " ".join(words_for("speedrun", config)) + "`"
    assert "--run tiny-run" in again and "--steps 5" in again
    for run, step in (("tiny-run", 2), ("tiny-run-sft", 1)):
        with monkeypatch.context() as patch, pytest.raises(SystemExit):
            stop_at(patch, run, step)
            config.run()
        assert f"{again} goes on there" in " ".join(capsys.readouterr().err.split())
        assert f"{again} goes on from step" in status.as_object(*status.look_at(run, 0.0))["next"]


def test_what_is_missing_is_said_before_anything_is_made(fathom_home: Path) -> None:
    fathom_home.mkdir()
    with pytest.raises(FathomError, match="no corpus 'tiny'"):
        speedrun_of().run()
    furnish()
    with pytest.raises(FathomError, match=r"gone\.jsonl is no file"):
        speedrun_of(chat=("gone.jsonl",)).run()
    with pytest.raises(FathomError, match="is no file"):
        speedrun_of(chat=(str(fathom_home),)).run()
    assert names("tokenizers") == names("runs") == []


def test_a_speedrun_refuses_before_it_trains_what_a_later_stage_would(fathom_home: Path, tmp_path: Path) -> None:
    fathom_home.mkdir(exist_ok=True)
    furnish()
    before = names("tokenizers")
    broken = tmp_path / "broken.jsonl"
    broken.write_text('{"messages": "hi"}\n')
    with pytest.raises(FathomError, match="broken.jsonl has lines that are no conversations: line 1"):
        speedrun_of(chat=(str(broken),)).run()
    with pytest.raises(FathomError, match="a batch of 33 tokens is not a whole number of rows"):
        speedrun_of(batch_tokens=33).run()
    assert names("runs") == [] and names("tokenizers") == before


def test_a_speedrun_whose_evaluations_fail_still_ends_with_its_summary(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    furnish()

    def broken(*_: Any) -> float:
        raise MemoryError

    monkeypatch.setattr(session, "bits_per_byte", broken)
    result = speedrun_of(steps=2).run()
    assert result["pretrain"]["val_bpb"] is None
    assert len(re.findall(r"bits per byte +not measured", capsys.readouterr().err)) == 2


def test_a_speedrun_in_a_tiny_context_says_what_does_not_fit(capsys: pytest.CaptureFixture[str]) -> None:
    furnish()
    result = speedrun_of(steps=1, seq_len=16, batch_tokens=32).run()
    assert "too long for a context of 16 tokens" in capsys.readouterr().err
    assert all(sample["prompt"] != "What is the capital of France?" for sample in result["samples"])


# quickstart


def test_a_quickstart_from_nothing(
    small_world: None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    result = Quickstart(dtype="fp32").run()
    assert list(result["seconds"]) == [
        "corpus",
        "tokenizer",
        "pretrain",
        "eval_base",
        "sft",
        "eval_sft",
        "samples",
        "conversation",
    ]
    assert 0 <= result["quiz_accuracy"] <= 1
    assert result["quiz_by_kind"].keys() == {kind.name for kind in primer.KINDS[:6]}
    assert result["val_bpb"] == result["pretrain"]["val_bpb"]
    prompts = [sample["prompt"] for sample in result["samples"]]
    assert prompts == [*primer.samples(), *primer.short_conversation()]
    assert (result["pretrain"]["steps"], result["sft"]["steps"]) == (8, 2)
    captured = capsys.readouterr()
    assert captured.out == ""
    for words in ("[8/8]", "quiz after", "Now talk to it: fathom chat\n"):
        assert words in captured.err
    assert len(list((run_dir("quickstart-sft") / "evals").glob("quiz-*.json"))) == 1

    monkeypatch.setattr(session, "train", never)
    monkeypatch.setattr("fathom.evaluate.quiz.take_quiz", never)
    monkeypatch.setattr("fathom.evaluate.quiz.take_quiz_as_text", never)
    again = Quickstart(dtype="fp32").run()
    for key in ("pretrain", "sft", "quiz_accuracy", "quiz_accuracy_base", "samples"):
        assert again[key] == result[key]
    assert list(again["quiz_by_kind"].items()) == list(result["quiz_by_kind"].items())
    assert capsys.readouterr().err.count("(it was finished before)") == 2


def test_a_quickstart_stopped_between_its_trainings_says_how_it_goes_on(
    small_world: None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    seen = []

    def stopped(model: Any, tokenizer: Any, questions: list[Any], on_finished: Any) -> None:
        seen.extend([len(questions), status.look_at("quickstart", time.time())[0].activity])
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(SystemExit) as left:
        patch.setattr("fathom.evaluate.quiz.take_quiz_as_text", stopped)
        Quickstart(dtype="fp32").run()
    assert left.value.code == 130 and seen == [2, "evaluating"], (
        "a fourth of the questions, rounded up, and status knows"
    )
    assert "stopped; `fathom quickstart --dtype fp32` goes on" in capsys.readouterr().err
    following = status.as_object(*status.look_at("quickstart", 0.0))["next"]
    assert following.startswith("`fathom quickstart --dtype fp32` goes on with the next stage; ")
    Quickstart(dtype="fp32").run()
    assert "quickstart --dtype" not in status.as_object(*status.look_at("quickstart", 0.0))["next"]


def test_a_quiz_of_another_checkpoint_or_precision_is_not_this_one(
    small_world: None, fathom_home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    taken = {"seed": 1, "dtype": "fp32", "accuracy": 0.25, "questions": 6, "by_kind": {"add": 0.25}}
    monkeypatch.setattr(quickstart, "_taken_quiz", lambda *_: taken | {"accuracy": 0.5})
    Record(run_dir("quickstart")).config({"run": {"stage": "pretrain"}})
    for step in (8, 16):
        saved = run_dir("quickstart") / "checkpoints" / f"{step:06d}"
        saved.mkdir(parents=True)
        (saved / "COMPLETE").touch()
    Record(run_dir("quickstart")).evaluation("quiz-000008", taken | {"step": 8})
    assert quickstart._quiz("quickstart", Quickstart(dtype="fp32"), False)[0] == 0.5
    Record(run_dir("quickstart")).evaluation("quiz-000016", taken | {"step": 16})
    assert quickstart._quiz("quickstart", Quickstart(dtype="fp32"), False) == (0.25, {"add": 0.25})
    assert quickstart._quiz("quickstart", Quickstart(dtype="bf16"), False)[0] == 0.5
    assert quickstart._quiz("quickstart", Quickstart(dtype="fp32", seed=2), False)[0] == 0.5


@pytest.mark.parametrize("minutes", [0.0, -1.0, float("inf"), float("nan")])
def test_no_time_is_one_sentence(minutes: float) -> None:
    with pytest.raises(FathomError, match="--minutes is"):
        Quickstart(minutes=minutes).run()


def steps_at(monkeypatch: pytest.MonkeyPatch, tokens_per_s: float, dtype: str, **changes: Any) -> tuple[int, int]:
    monkeypatch.setattr(session, "look_at_machine", lambda *_, **__: Machine("cpu", dtype, 1e12))
    monkeypatch.setattr(session, "measured_pace", lambda *_: tokens_per_s)
    steps = quickstart._base_steps(Quickstart(**changes))
    seconds = steps * quickstart.BATCH / tokens_per_s
    return steps, quickstart._sft_steps(Quickstart(**changes), {"steps": steps, "seconds": seconds})


def test_quickstart_takes_the_time_there_is(monkeypatch: pytest.MonkeyPatch) -> None:
    few, many = quickstart.FEW_MINUTES, quickstart.MINUTES
    for feature, pace, minutes in (("", 1e3, many), ("AVX512-BF16", 7e3, many), ("AMX", 1e3, few)):
        monkeypatch.setattr(hardware, "bf16_instructions", lambda feature=feature: feature)
        base, tuned = steps_at(monkeypatch, pace, "bf16")
        tokens = min(pace * 60 * minutes, quickstart.MOST_TOKENS / (1 - quickstart.SFT_SHARE))
        assert (base + tuned) * quickstart.BATCH == pytest.approx(tokens, rel=0.02)
        assert tuned / (base + tuned) == pytest.approx(quickstart.SFT_SHARE, abs=0.01)
    base, tuned = steps_at(monkeypatch, 1000.0, "fp32", minutes=2.0)
    assert (base + tuned) * quickstart.BATCH == pytest.approx(1000 * 60 * 2, rel=0.05)
    assert steps_at(monkeypatch, 1e-3, "fp32") == (1, 1)


def test_quickstart_takes_no_more_than_it_needs_on_a_fast_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    base, _ = steps_at(monkeypatch, 1e9, "bf16")
    assert base * quickstart.BATCH == pytest.approx(quickstart.MOST_TOKENS, rel=0.01)


def test_a_pretraining_slower_than_measured_leaves_fine_tuning_less(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hardware, "bf16_instructions", lambda: "")
    minutes = quickstart.MINUTES
    for slower, tuned in ((0.8, 100), (1.0, 100), (1.1, pytest.approx(400 * (1 / 0.88 - 1), abs=1)), (1.5, 50)):
        base = {"steps": 400, "seconds": 60 * minutes * (1 - quickstart.SFT_SHARE) * slower}
        assert quickstart._sft_steps(Quickstart(), base) == tuned


@pytest.mark.parametrize("minutes", [None, 3.0])
def test_a_quickstart_that_has_begun_keeps_its_steps(
    fathom_home: Path, monkeypatch: pytest.MonkeyPatch, minutes: float | None
) -> None:
    """Measuring again would give another number, and the run would be refused."""
    Record(run_dir("quickstart")).config({"config": {"steps": 80}})
    assert steps_at(monkeypatch, 1e9, "bf16", minutes=minutes) == (80, 20)
    Record(run_dir("quickstart-sft")).config({"config": {"steps": 33}})
    assert steps_at(monkeypatch, 1e9, "bf16", minutes=minutes) == (80, 33)


# Their parts


def test_a_stage_is_counted_and_timed(capsys: pytest.CaptureFixture[str]) -> None:
    stages = Stages(2, ("quickstart",))
    with stages.stage("one", "the first"):
        pass
    with pytest.raises(ValueError, match="a reason"), stages.stage("two", "the second"):
        raise ValueError("a reason")
    assert list(stages.seconds) == ["one", "two"]
    said = capsys.readouterr().err
    assert "[1/2] the first" in said and "[2/2] the second" in said


def test_the_tokenizer_of_a_corpus_is_trained_once(monkeypatch: pytest.MonkeyPatch) -> None:
    furnish()
    assert pipeline.tokenizer_of("tiny", 300) == "tiny-300"
    with monkeypatch.context() as patch:
        patch.setattr("fathom.tokenizer.train", never)
        assert pipeline.tokenizer_of("tiny", 300) == "tiny-300"
    assert pipeline.tokenizer_of("tiny", 280) == "tiny-280"
    assert names("tokenizers") == ["tiny-280", "tiny-300"]


def test_the_quiz_is_graded_by_kind() -> None:
    question = primer.Question("add", [{"role": "user", "content": "1 + 1?"}], "2", "It is 2.")
    other = primer.Question("spell", [{"role": "user", "content": "Spell cat."}], "c-a-t", "c-a-t")
    graded = [Graded(question, "2", True), Graded(question, "3", False), Graded(other, "c-a-t", True)]
    assert accuracy(graded) == pytest.approx(2 / 3)
    assert list(by_kind(graded).items()) == [("add", 0.5), ("spell", 1.0)]
