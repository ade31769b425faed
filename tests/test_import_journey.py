"""A checkpoint of the reference comes in, is measured, talked to, fine-tuned and trained further."""

from __future__ import annotations

import io
import json
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from fathom import cli
from fathom import tokenizer as tokenizers
from fathom.data.batches import ValidationRows
from fathom.data.corpus import open_corpus
from fathom.data.shards import tokenize
from fathom.errors import FathomError
from fathom.evaluate.bpb import bits_per_byte
from fathom.home import run_dir
from fathom.record import events, metrics, read_config
from fathom.report.history import history_of
from fathom.train import loop
from fathom.train.checkpoint import find, load_model, read_meta, steps
from fathom.train.pretrain import pretrain
from fathom.train.sft import sft
from tests.oracles import reference_layout as layout
from tests.oracles import small_bundle
from tests.oracles.tiny_runs import fine_tuning, furnish, hurry, pretraining, write_conversations

STEP, STEPS = 20, 26
LOOP = {"min_val_bpb": 2.0, "smooth_train_loss": 3.0, "total_training_time": 50.0}


@pytest.fixture
def theirs(tmp_path: Path, fathom_home: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The reference's folder: an unfinished run of two ranks, and a corpus in ours."""
    hurry(monkeypatch)
    furnish()
    tokenizer = tokenizers.load("tiny")
    config = layout.config(tokenizer.vocab_size)
    layout.write_tokenizer(tmp_path / "base" / "tokenizer", tokenizer)
    return layout.write_checkpoint(
        tmp_path / "base" / "base_checkpoints" / "d4",
        config,
        layout.random_weights(config, tables=torch.bfloat16),
        STEP,
        layout.random_moments(config, STEP),
        ranks=2,
        user_config={"num_iterations": STEPS, "depth": 4, "head_dim": 32, "max_seq_len": 32, "total_batch_size": -1},
        total_batch_size=128,
        loop_state=LOOP,
    )


def command(capsys: pytest.CaptureFixture[str], *words: str) -> dict[str, Any]:
    """What a command prints with --json; exit 0."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as left:
        cli.main([*words, "--json"])
    captured = capsys.readouterr()
    assert left.value.code == 0, captured.err
    result: dict[str, Any] = json.loads(captured.out)
    return result


def further(**changes: Any) -> Any:
    none = {"depth": None, "head_dim": None, "seq_len": None, "steps": None, "batch_tokens": None}
    return replace(pretraining(), tokenizer="theirs", name="theirs", resume=True, **(none | changes))


def test_it_is_measured_talked_to_fine_tuned_and_trained_further(
    theirs: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert command(capsys, "import", str(theirs), "--run", "theirs")["optimizer_ranks"] == 2

    model, tokenizer, _ = load_model("theirs", dtype="fp32")
    rows = ValidationRows(tokenize(open_corpus("tiny"), tokenizer), "best-fit", 32)
    before = bits_per_byte(model, [rows.rows(0, 8)], tokenizer.token_bytes())
    bundle = str(small_bundle.write_zip(theirs.parent / "bundle.zip", small_bundle.contents()))
    tasks = ("--tasks", "bpb,core,samples", "--corpus", "tiny", "--bundle", bundle, "--limit", "8")
    measured = command(capsys, "eval", "theirs", *tasks, "--dtype", "fp32")
    assert measured["step"] == STEP and measured["core"]["n"] == 8 * len(small_bundle.TASKS)
    assert before > 1 and len(measured["samples"]) > 3 and measured["bpb"]

    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"the sun is\n")))
    reply = command(capsys, "chat", "theirs", "--max-tokens", "8", "--seed", "1")
    assert (reply["run"], reply["step"]) == ("theirs", STEP)
    assert reply["tokens"] > 0

    tuned, finished = sft(replace(fine_tuning(write_conversations(), name="tuned"), base="theirs"))
    assert finished
    assert read_config("tuned")["config"]["base_step"] == STEP
    # 0.8 of the peak, scaled to the batch: never the raw flags
    assert metrics(run_dir("tuned"))[0]["lr"] == 1
    batches = [read_config(name)["config"]["batch_tokens"] for name in ("theirs", "tuned")]
    expected = 0.8 * (batches[1] / 2**19) ** 0.5
    assert read_config("tuned")["config"]["lr_scale"] == pytest.approx(expected)

    result, finished = pretrain(further())
    assert finished
    assert (result["steps"], result["tokens"]) == (STEPS, STEPS * 128)
    assert [line["step"] for line in metrics(run_dir("theirs"))] == list(range(STEP, STEPS))
    assert result["seconds"] > 50
    assert result["val_bpb"] < before
    assert steps(run_dir("theirs"))[-1] == STEPS


def test_it_goes_on_as_a_run_of_ours_does(theirs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where it was stopped again, on the schedule that it began with; what import could not know is now written."""
    run_import(theirs)
    assert "corpus" not in read_config("theirs")["config"]
    seen: list[tuple[float, float, float]] = []
    real = loop.Optimizer.step

    def step(self: Any, lr: float, momentum: float, decay: float) -> None:
        seen.append((lr, momentum, decay))
        real(self, lr, momentum, decay)
        if len(seen) == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(loop.Optimizer, "step", step)
    with pytest.raises(KeyboardInterrupt):
        pretrain(further(save_every="1"))
    for writer in threading.enumerate():  # so hard a stop does not wait for the checkpoint on its way
        if writer.name == "checkpoint":
            writer.join(60)
    config = read_config("theirs")
    assert (config["config"]["corpus"], config["config"]["packing"], config["config"]["seed"]) == (
        "tiny",
        "best-fit",
        1,
    )
    assert config["origin"]["run"].startswith("imported from")
    assert read_meta(find("theirs"))["step"] == STEP + 1
    monkeypatch.setattr(loop.Optimizer, "step", lambda self, *rates: (seen.append(rates), real(self, *rates))[0])
    pretrain(further())
    warmdown = round(0.65 * STEPS)
    for step_, (lr, momentum, _) in zip([20, 21, *range(21, STEPS)], seen, strict=True):
        assert lr == (step_ + 1) / 40  # warm-up has precedence
        assert momentum == pytest.approx(0.85 + 0.12 * step_ / 400)
        assert step_ > STEPS - warmdown
    with pytest.raises(FathomError, match="began with --seed 1, not 2"):
        pretrain(further(seed=2))


def run_import(folder: Path, name: str = "theirs") -> None:
    from fathom.interop.command import import_checkpoint

    import_checkpoint(str(folder), name, None, None)


def test_no_flag_changes_what_it_came_with(theirs: Path) -> None:
    run_import(theirs)
    for change in ({"steps": 50}, {"depth": 6}, {"matrix_lr": 0.5}, {"ratio": 20.0}, {"rules": "auto"}):
        word = next(iter(change))
        with pytest.raises(FathomError, match=f"began with --{word.replace('_', '-')} .*, not|leave --{word} out"):
            pretrain(further(**change))


def test_how_documents_are_packed_may_be_chosen_once(theirs: Path) -> None:
    run_import(theirs)
    _, finished = pretrain(further(packing="lossless", seed=7, steps=STEPS, depth=4))
    assert finished
    assert read_config("theirs")["config"]["packing"] == "lossless"


def test_without_the_optimizers_state_it_is_fine_tuned_but_not_trained_further(theirs: Path) -> None:
    for path in theirs.glob("optim_*"):
        path.unlink()
    run_import(theirs)
    with pytest.raises(FathomError, match="was imported without its optimizer's state; import it with its optim files"):
        pretrain(further())
    _, finished = sft(replace(fine_tuning(write_conversations(), name="tuned"), base="theirs"))
    assert finished


def test_a_fine_tuned_one_chats_by_default_and_is_fine_tuned_again(
    theirs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run_import(theirs, "base")
    tuned = theirs.parents[1] / "chatsft_checkpoints" / "d4"
    tuned.parent.mkdir()
    theirs.rename(tuned)
    run_import(tuned)
    assert command(capsys, "chat", "--prompt", "the sun", "--max-tokens", "4")["run"] == "theirs"
    _, finished = sft(replace(fine_tuning(write_conversations(), name="again", steps=2), base="theirs"))
    assert finished
    with pytest.raises(FathomError, match="was made by `fathom sft`, not by `fathom pretrain`"):
        pretrain(further())


def test_another_vocabulary_is_not_trained_on(theirs: Path) -> None:
    run_import(theirs)
    tokenizers.train(["other words entirely, " * 9], 290).save(Path(run_dir("x")).parents[1] / "tokenizers" / "other")
    with pytest.raises(
        FathomError,
        match="--tokenizer theirs, not other; `fathom pretrain .* --corpus CORPUS",
    ):
        pretrain(replace(further(), tokenizer="other"))


def test_a_finished_one_says_so(theirs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    meta = json.loads((theirs / "meta_000020.json").read_text())
    meta["user_config"]["num_iterations"] = 20
    (theirs / "meta_000020.json").write_text(json.dumps(meta))
    run_import(theirs)
    result, finished = pretrain(further())
    assert finished
    assert (result["steps"], result["seconds"]) == (20, 50.0)
    assert "finished; nothing to train" in capsys.readouterr().err


def test_status_and_history_know_it(theirs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run_import(theirs)
    history = history_of("theirs")
    assert (history.state, history.steps_done, history.steps_planned) == ("stopped", STEP, STEPS)
    assert not history.troubles
    assert [line["event"] for line in events(run_dir("theirs"))] == ["started", "saved", "stopped"]
    assert command(capsys, "status", "theirs")["steps_done"] == STEP
