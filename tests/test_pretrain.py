"""Pretraining end to end on a corpus of a page: the same run however it is split, and refusals that leave no trace."""

from __future__ import annotations

import math
import os
import shutil
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from fathom import hardware
from fathom import tokenizer as tokenizers
from fathom.data.batches import ValidationRows
from fathom.data.corpus import open_corpus, write_corpus
from fathom.data.shards import tokenize
from fathom.errors import FathomError
from fathom.estimate import Work
from fathom.home import run_dir, tokenizer_dir
from fathom.model.gpt import GPT
from fathom.record import Record, metrics, read_config, read_lines
from fathom.train import checkpoint, pretrain, session
from fathom.train import pretraining as pretraining_module
from fathom.train.checkpoint import load_model, weights_sha256
from tests.oracles import bits
from tests.oracles.tiny_runs import PRETRAIN, STEPS, events_of, furnish, hurry, pretraining, texts


@pytest.fixture(scope="module")
def furnished_home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A home with a tokenized corpus in it."""
    home = tmp_path_factory.mktemp("pretrain") / "home"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FATHOM_HOME", str(home))
        furnish()
        tokenize(open_corpus("tiny"), tokenizers.load("tiny"))
    return home


@pytest.fixture(autouse=True)
def furnished(furnished_home: Path, fathom_home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hurry(monkeypatch)
    shutil.copytree(furnished_home, fathom_home)


def trained(**changes: Any) -> dict[str, Any]:
    result, finished = pretrain.pretrain(pretraining(**changes))
    assert finished
    return result


def weights(run: str) -> GPT:
    return load_model(run, dtype="fp32")[0]


def stop_at(monkeypatch: pytest.MonkeyPatch, step: int) -> None:
    """A SIGTERM while this step is logged."""
    real = Record.metric

    def metric(self: Record, **values: Any) -> None:
        real(self, **values)
        if values["step"] == step:
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(Record, "metric", metric)


# What a run is


def test_the_record_names_the_recipe(tmp_path: Path) -> None:
    recipe = tmp_path / "seven.toml"
    recipe.write_text("seed = 7\n")
    trained(recipe=str(recipe), seed=None)
    origin = read_config(PRETRAIN.name or "")["origin"]
    assert (origin["recipe"], origin["seed"]) == (str(recipe), "recipe")


def test_the_result_says_what_was_done_and_the_checkpoint_holds_it() -> None:
    result = trained()
    assert result.keys() == {
        "run",
        "steps",
        "tokens",
        "seconds",
        "tokens_per_s",
        "first_step_s",
        "val_bpb",
        "peak_memory_gb",
        "loader_wait_s",
        "weights_sha256",
    }
    assert (result["run"], result["steps"], result["tokens"]) == ("base", STEPS, STEPS * 128)
    assert all(result[key] > 0 for key in ("seconds", "tokens_per_s", "first_step_s", "val_bpb", "peak_memory_gb"))
    assert result["loader_wait_s"] >= 0
    assert weights_sha256(weights("base")) == result["weights_sha256"]
    assert checkpoint.steps(run_dir("base")) == [3, 5, 6, 9]  # before the rate fell, the best measured, the newest two
    assert [line["step"] for line in metrics(run_dir("base"))] == list(range(STEPS))


def test_it_learns() -> None:
    trained(steps=20, lr_scale=1.0, eval_every=0, save_every="5m")
    losses = [line["loss"] for line in metrics(run_dir("base"))]
    assert losses[0] == pytest.approx(math.log(300), rel=0.01)
    assert losses[-1] < 0.6 * losses[0]


def test_bpb_is_that_of_the_validation_rows() -> None:
    result = trained(eval_tokens=10**9)
    tokenizer = tokenizers.load("tiny")
    rows = ValidationRows(tokenize(open_corpus("tiny"), tokenizer), "lossless", 32)
    assert rows.n_rows is not None
    expected = bits.bits_per_byte(weights("base"), [rows.rows(0, rows.n_rows)], tokenizer.token_bytes())
    assert result["val_bpb"] == pytest.approx(expected, rel=1e-4)
    kept = run_dir("base") / "evals" / f"bpb-{STEPS:06d}.json"
    assert kept.is_file()


def test_the_same_seed_is_the_same_run_and_another_is_not() -> None:
    one, same, other = trained(), trained(name="same"), trained(name="other", seed=2)
    assert one["weights_sha256"] == same["weights_sha256"] != other["weights_sha256"]
    assert one["val_bpb"] == same["val_bpb"]


def test_how_rows_are_split_over_the_device_changes_rounding_only() -> None:
    runs = [trained(name=f"by{rows}", device_batch=rows) for rows in (1, 2, 4)]
    one, *others = [[line["loss"] for line in metrics(run_dir(run["run"]))] for run in runs]
    for other in others:
        assert other == pytest.approx(one, rel=1e-4)
    assert [run["val_bpb"] for run in runs] == pytest.approx([runs[0]["val_bpb"]] * 3, rel=1e-3)
    assert len({run["weights_sha256"] for run in runs}) > 1, "the rows were not split"


def test_by_default_the_micro_batch_is_what_the_device_holds(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def rows(given: int | None, whole: Work, memory_gb: float | None) -> int:
        asked.append((given, whole.micro_tokens, whole.grad_accum, whole.device, whole.dtype, memory_gb))
        return 2

    monkeypatch.setattr(pretraining_module, "micro_rows", rows)
    trained(device_batch=None)
    assert asked == [(None, PRETRAIN.batch_tokens, 1, "cpu", "fp32", hardware.memory_gb("cpu"))]
    assert [event["device_batch"] for event in events_of(run_dir("base"), "training")] == [2]


def test_every_precision_trains_and_resumes(monkeypatch: pytest.MonkeyPatch) -> None:
    for dtype in ("bf16", "fp16"):
        changes: dict[str, Any] = {"dtype": dtype, "steps": 4, "save_every": "2", "batch_tokens": 64}
        whole = trained(name=f"{dtype}-whole", **changes)
        with monkeypatch.context() as patch:
            stop_at(patch, 1)
            assert not pretrain.pretrain(pretraining(name=dtype, **changes))[1]
        assert trained(name=dtype, resume=True, **changes)["weights_sha256"] == whole["weights_sha256"]
    model, _, info = load_model("bf16", dtype="fp32")
    assert info == {"run": "bf16", "step": 4, "stage": "pretrain", "dtype": "fp32"}
    assert {weight.dtype for weight in model.parameters()} == {torch.float32}


# Interrupted and resumed


def test_stopped_then_torn_then_resumed_it_ends_as_if_nothing_had_been(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = trained()
    with monkeypatch.context() as patch:
        stop_at(patch, 6)
        result, finished = pretrain.pretrain(pretraining(name="torn"))
    assert not finished
    assert result == {"run": "torn", "step": 7}
    folder = run_dir("torn")
    assert checkpoint.steps(folder)[-1] == 7
    newest = checkpoint.folder_of(folder, 7)
    for step in (8, 9):  # as if the power had failed in the middle of later saves
        shutil.copytree(newest, checkpoint.folder_of(folder, step))
        (checkpoint.folder_of(folder, step) / checkpoint.COMPLETE).unlink()
    (checkpoint.folder_of(folder, 9) / ".metadata").write_bytes(b"")
    shutil.copytree(newest, folder / "checkpoints" / ".000009.partial")
    for name in ("metrics.jsonl", "events.jsonl"):
        with open(folder / name, "a") as file:
            file.write('{"step": 7, "event": "fini')
    resumed = trained(name="torn", resume=True)
    assert resumed["weights_sha256"] == whole["weights_sha256"]
    assert resumed["val_bpb"] == whole["val_bpb"]
    assert [line["step"] for line in metrics(folder)] == list(range(STEPS))
    assert [line["loss"] for line in metrics(folder)] == [line["loss"] for line in metrics(run_dir("base"))]
    assert weights_sha256(weights("torn")) == whole["weights_sha256"]
    assert not list(folder.glob("checkpoints/.*"))


def test_the_command_leaves_with_130_when_it_was_stopped(monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch, pytest.raises(SystemExit) as left:
        stop_at(patch, 2)
        pretraining().run()
    assert left.value.code == 130
    assert pretraining(resume=True).run()["steps"] == STEPS


def test_a_finished_run_trains_nothing_and_gives_the_same_object(monkeypatch: pytest.MonkeyPatch) -> None:
    first = trained()

    def never(*_: Any, **__: Any) -> None:
        raise AssertionError("a finished run was trained")

    monkeypatch.setattr(session, "train", never)
    monkeypatch.setattr(pretraining_module, "GPT", never)
    assert trained(resume=True) == first


def test_a_run_that_exists_is_refused_without_resume() -> None:
    first = trained()
    with pytest.raises(
        FathomError,
        match="'base' exists already; go on with --resume, train it for longer with --extend base as another run",
    ):
        trained()
    assert trained(resume=True) == first


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"steps": 10}, "began with --steps 9, not 10; `fathom pretrain --extend base --steps 10`"),
        ({"seed": 2}, "--seed 1, not 2"),
        ({"lr_scale": 0.5}, "--lr-scale .*, not 0.5"),
        ({"batch_tokens": 64}, "--batch-tokens 128, not 64"),
        ({"seq_len": 16, "eval_tokens": None}, "--seq-len 32, not 16"),
        ({"window": "L"}, "--window SSSL, not L"),
        ({"head_dim": 64}, "--head-dim 32, not 64"),
        ({"depth": 2}, "began with --depth 1, not 2; `fathom pretrain --run base --resume` goes on with it"),
        ({"dtype": "bf16"}, "--dtype fp32, not bf16"),
        ({"packing": "best-fit"}, "--packing lossless, not best-fit"),
        ({"tokenizer": "other"}, "--tokenizer tiny, not other"),
        ({"corpus": "second"}, "--corpus tiny, not second"),
        ({"ratio": 3.0, "steps": None}, "--ratio 12, not 3"),
        ({"rules": "reference"}, "--rules auto, not reference"),
        ({"document_mask": True}, "without --document-mask, not with it"),
    ],
)
def test_a_changed_setting_is_named_on_resume(
    monkeypatch: pytest.MonkeyPatch, changes: dict[str, Any], words: str
) -> None:
    with monkeypatch.context() as patch:
        stop_at(patch, 0)
        assert not pretrain.pretrain(pretraining())[1]
    tokenizers.train(texts(60), 290).save(tokenizer_dir("other"))
    write_corpus("second", texts(30, seed=5), texts(4, seed=6), source="made for a test")
    with pytest.raises(FathomError, match=words):
        trained(resume=True, **changes)


def test_it_is_resumed_by_its_name_alone_whatever_this_machine_would_choose(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = trained()
    monkeypatch.setattr(hardware, "bf16_instructions", lambda: "AMX")
    assert pretrain.pretrain(pretrain.Pretrain(name="base", resume=True)) == (whole, True)


def test_an_extended_run_has_the_precision_of_its_base(monkeypatch: pytest.MonkeyPatch) -> None:
    trained()
    monkeypatch.setattr(hardware, "bf16_instructions", lambda: "AMX")
    longer = pretrain.Pretrain(extend="base", name="long", steps=STEPS + 1, compile="off", sample=False)
    for config, dtype in ((longer, "fp32"), (replace(longer, name="other", dtype="bf16"), "bf16")):
        assert pretrain.pretrain(config)[1]
        assert read_config(str(config.name))["config"]["dtype"] == dtype


def test_what_is_not_there_to_resume_is_told_by_its_name(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def stop(*_: Any) -> None:
        raise FathomError("far enough")

    trained()
    monkeypatch.setattr(pretrain, "tokenize", stop)
    recipe = tmp_path / "one.toml"
    recipe.write_text("depth = 1\n")
    for config, name in (
        (pretrain.Pretrain(extend="base", steps=20, resume=True), "base-20"),
        (pretrain.Pretrain("tiny", "tiny", recipe=str(recipe), resume=True), "d1"),
        (pretrain.Pretrain(name="bse", resume=True), "bse"),
    ):
        with pytest.raises(FathomError):
            config.run()
        said = capsys.readouterr().err
        assert said.count(f"there is no run {name!r} to resume, so it begins anew") == said.count("to resume") == 1


def test_what_only_looks_at_a_run_may_change_on_resume(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = trained()
    with monkeypatch.context() as patch:
        stop_at(patch, 3)
        pretrain.pretrain(pretraining(name="other"))
    resumed = trained(name="other", resume=True, eval_every=2, eval_tokens=64, save_every="5m", keep=1)
    assert resumed["weights_sha256"] == whole["weights_sha256"]
    assert checkpoint.steps(run_dir("other")) == [3, 8, STEPS]


def test_a_damaged_newest_checkpoint_costs_no_more_than_its_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = trained()
    with monkeypatch.context() as patch:
        stop_at(patch, 6)
        pretrain.pretrain(pretraining(name="hurt"))
    newest = checkpoint.folder_of(run_dir("hurt"), 7)
    data = next(newest.glob("*.distcp"))
    data.write_bytes(data.read_bytes()[:1000])
    assert trained(name="hurt", resume=True)["weights_sha256"] == whole["weights_sha256"]


# What may go wrong


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"save_every": "never"}, "says no interval"),
        ({"keep": 0}, "--keep is 0"),
        ({"device_batch": 3}, "device batch of 3 rows does not divide"),
        ({"device_batch": 0}, "device batch of 0"),
        ({"eval_tokens": 5}, "fills no row"),
        ({"eval_every": -2}, "--eval-every is -2"),
        ({"batch_tokens": 100}, "not a whole number of rows"),
        ({"steps": 0}, "steps is 0"),
        ({"depth": None}, "no depth"),
        ({"corpus": "gone"}, "no corpus 'gone'"),
        ({"tokenizer": "gone"}, "no tokenizer 'gone'"),
        ({"seq_len": 10**6, "batch_tokens": 10**6, "eval_tokens": None}, "fewer than"),
    ],
)
def test_what_is_refused_leaves_nothing_to_resume(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(FathomError, match=words):
        trained(**changes)
    assert not (run_dir("base") / "run.toml").exists()
    assert trained()["steps"] == STEPS


def test_a_corpus_without_validation_is_one_sentence_before_anything_is_trained(tmp_path: Path) -> None:
    write_corpus("other", texts(60), texts(1), source="test")
    with pytest.raises(FathomError, match="validation|fewer than"):
        trained(corpus="other", eval_tokens=None, seq_len=512, batch_tokens=512)
    assert not (run_dir("base") / "run.toml").exists()


def test_another_corpus_under_the_same_name_is_no_resume(monkeypatch: pytest.MonkeyPatch, fathom_home: Path) -> None:
    with monkeypatch.context() as patch:
        stop_at(patch, 1)
        pretrain.pretrain(pretraining())
    shutil.rmtree(fathom_home / "corpora" / "tiny")
    write_corpus("tiny", texts(60, seed=5), texts(8, seed=6), source="another")
    with pytest.raises(FathomError, match="the corpus 'tiny' had other contents when the run 'base' began"):
        trained(resume=True)


def test_rates_that_explode_end_in_a_sentence_and_keep_the_checkpoint() -> None:
    with pytest.raises(FathomError, match=r"in a row were left out .* did not help; .*lower rates"):
        trained(lr_scale=1e6, save_every="1", warmup_steps=1, rules="reference")
    assert not events_of(run_dir("base"), "finished")


def test_the_sample_sheet_may_fail_and_the_run_is_finished(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: Any) -> None:
        raise RuntimeError("out of memory")

    monkeypatch.setattr(pretraining_module, "sample_sheet", broken)
    first = trained(sample=True)
    assert events_of(run_dir("base"), "evaluation_failed")[0]["what"] == "the sample sheet"
    assert trained(sample=True, resume=True) == first


def test_the_sample_sheet_holds_the_prompts_that_fit_the_context() -> None:
    trained(sample=True)
    lines = read_lines(run_dir("base") / "samples.jsonl")
    tokenizer = tokenizers.load("tiny")
    assert lines
    assert all(len(tokenizer.encode(line["prompt"])) + 1 < 32 for line in lines)
    assert not events_of(run_dir("base"), "evaluation_failed")


def test_an_evaluation_that_failed_is_null_in_the_result(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: Any) -> float:
        raise ValueError("a damaged shard")

    monkeypatch.setattr(session, "bits_per_byte", broken)
    assert trained()["val_bpb"] is None


def test_a_tokenizer_may_be_given_by_its_folder(tmp_path: Path) -> None:
    folder = tmp_path / "elsewhere"
    shutil.copytree(tokenizer_dir("tiny"), folder)
    trained(tokenizer=str(folder))
    assert load_model("base")[1].vocab_size == tokenizers.load(folder).vocab_size


def test_another_tokenizer_under_the_same_name_is_named() -> None:
    trained()
    shutil.rmtree(tokenizer_dir("tiny"))
    tokenizers.train(texts(60), 290).save(tokenizer_dir("tiny"))
    with pytest.raises(FathomError, match="'tiny' is not the one that 'base' was trained with"):
        load_model("base")


def test_what_a_run_was_told_stands_in_its_run_toml() -> None:
    trained()
    config = read_config("base")
    assert config["model"]["seq_len"] == PRETRAIN.seq_len
    assert config["config"]["dtype"] == "fp32"
    assert config["config"]["steps"] == STEPS
    assert config["origin"]["steps"] == "flag"
    assert not math.isnan(config["config"]["lr_scale"])


def test_two_runs_side_by_side_do_not_meet() -> None:
    first = trained()
    second = trained(name="beside")
    assert replace(PRETRAIN, name="beside") == pretraining(name="beside")
    assert first["weights_sha256"] == second["weights_sha256"]
    assert sorted(path.name for path in run_dir("base").parent.iterdir()) == ["base", "beside"]
