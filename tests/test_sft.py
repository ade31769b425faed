"""Fine-tuning: what is learnt from, where it starts, what is held out, and everything that can be wrong with it."""

from __future__ import annotations

import json
import os
import shutil
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from fathom import hardware
from fathom import tokenizer as tokenizers
from fathom.data.conversations import render
from fathom.errors import FathomError
from fathom.home import run_dir, tokenizer_dir
from fathom.record import Record, metrics, read_config
from fathom.tokenizer import Tokenizer
from fathom.train import checkpoint, session, sft
from fathom.train import fine_tuning as fine_tuning_module
from fathom.train.checkpoint import load_model, weights_sha256
from fathom.train.pretrain import pretrain
from fathom.train.step import Step, Stepper
from tests.oracles import bits
from tests.oracles.tiny_runs import (
    STEPS,
    conversations,
    events_of,
    fine_tuning,
    furnish,
    hurry,
    pretraining,
    texts,
    write_conversations,
)


@pytest.fixture(scope="module")
def furnished_home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A home with a base run in it."""
    home = tmp_path_factory.mktemp("sft") / "home"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FATHOM_HOME", str(home))
        hurry(patch)
        furnish()
        pretrain(pretraining())
    return home


@pytest.fixture(autouse=True)
def base(furnished_home: Path, fathom_home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hurry(monkeypatch)
    shutil.copytree(furnished_home, fathom_home)


@pytest.fixture
def chat() -> str:
    return write_conversations()


@pytest.fixture
def tokenizer() -> Tokenizer:
    return tokenizers.load("tiny")


def tuned(data: str, **changes: Any) -> dict[str, Any]:
    result, finished = sft.sft(fine_tuning(data, **changes))
    assert finished
    return result


def caught_batches(monkeypatch: pytest.MonkeyPatch) -> list[tuple[np.ndarray, np.ndarray]]:
    """Fills with the batches of the steps that are trained."""
    caught: list[tuple[np.ndarray, np.ndarray]] = []
    real = Stepper.take

    def take(self: Stepper, step: int, inputs: np.ndarray, targets: np.ndarray) -> Step:
        caught.append((inputs, targets))
        return real(self, step, inputs, targets)

    monkeypatch.setattr(Stepper, "take", take)
    return caught


# What is learnt


def test_only_what_the_assistant_says_is_learnt(
    monkeypatch: pytest.MonkeyPatch, chat: str, tokenizer: Tokenizer
) -> None:
    caught = caught_batches(monkeypatch)
    tuned(chat)
    assert len(caught) == STEPS
    start, end = tokenizer.special("<|assistant_start|>"), tokenizer.special("<|assistant_end|>")
    learnt = 0
    for inputs, targets in caught:
        for ids, wanted in zip(inputs, targets, strict=True):
            speaking = False
            for token, target, following in zip(ids, wanted, [*ids[1:], None], strict=True):
                speaking = (speaking or token == start) and token != end
                assert (target != -1) == speaking
                if speaking and following is not None:
                    assert target == following
                learnt += target != -1
    assert learnt > 0


def test_the_loss_is_per_supervised_token(monkeypatch: pytest.MonkeyPatch, chat: str) -> None:
    caught = caught_batches(monkeypatch)
    tuned(chat, batch_tokens=128, device_batch=1)
    model, _, _ = load_model("base", dtype="fp32")
    inputs, targets = caught[0]
    as_bytes = np.ones(model.shape.vocab_size, dtype=np.int32)  # a byte a token makes bits per byte the loss in bits
    expected = bits.bits_per_byte(model, [(inputs, targets)], as_bytes) * np.log(2)
    assert metrics(run_dir("base-sft"))[0]["loss"] == pytest.approx(expected, rel=1e-4)


def test_it_learns(chat: str) -> None:
    tuned(chat, steps=20, lr_share=3.0, eval_every=0, save_every="5m")
    losses = [line["loss"] for line in metrics(run_dir("base-sft"))]
    assert losses[-1] < 0.8 * losses[0]


def test_how_rows_are_split_over_the_device_changes_rounding_only(chat: str) -> None:
    runs = [tuned(chat, name=f"by{rows}", batch_tokens=128, device_batch=rows) for rows in (1, 2, 4)]
    one, *others = [[line["loss"] for line in metrics(run_dir(run["run"]))] for run in runs]
    for other in others:
        assert other == pytest.approx(one, rel=1e-3)
    assert [run["val_bpb"] for run in runs] == pytest.approx([runs[0]["val_bpb"]] * 3, rel=2e-3)


# Where it starts


class Stop(Exception):
    """Raised instead of training."""


def caught_start(monkeypatch: pytest.MonkeyPatch, data: str, **changes: Any) -> tuple[Any, ...]:
    """What `run_to_the_end` would have been given."""
    caught: list[tuple[Any, ...]] = []

    def catch(*arguments: Any, **_: Any) -> None:
        caught.append(arguments)
        raise Stop

    monkeypatch.setattr(fine_tuning_module, "run_to_the_end", catch)
    with pytest.raises(Stop):
        sft.sft(fine_tuning(data, **changes))
    return caught[0]


def test_it_starts_from_the_base_runs_weights_and_moments(monkeypatch: pytest.MonkeyPatch, chat: str) -> None:
    _, _, model, optimizer, *_ = caught_start(monkeypatch, chat)
    weights, _, _ = load_model("base", dtype="fp32")
    assert weights_sha256(model) == weights_sha256(weights)
    moments = optimizer.state()
    assert {moment["step"].item() for moment in moments["adam"].values()} == {STEPS}
    assert all(moment["exp_avg_sq"].abs().sum() > 0 for moment in moments["adam"].values())
    assert all(moment["momentum"].abs().sum() > 0 for moment in moments["muon"].values())
    expected = optimizer_state_of_base(moments)
    for kind in ("adam", "muon"):
        for key, moment in moments[kind].items():
            for name, tensor in moment.items():
                assert torch.equal(tensor, expected[kind][key][name]), (kind, key, name)


def optimizer_state_of_base(like: dict[str, Any]) -> dict[str, Any]:
    empty = {
        kind: {key: {name: torch.zeros_like(tensor) for name, tensor in moment.items()} for key, moment in some.items()}
        for kind, some in like.items()
    }
    checkpoint.load(checkpoint.find("base"), {"optimizer": empty})
    return empty


def test_it_starts_from_the_step_that_was_asked_for(monkeypatch: pytest.MonkeyPatch, chat: str) -> None:
    _, _, model, *_ = caught_start(monkeypatch, chat, step=6)
    weights, _, _ = load_model("base", step=6, dtype="fp32")
    assert weights_sha256(model) == weights_sha256(weights)
    assert read_config("base-sft")["config"]["base_step"] == 6
    with pytest.raises(FathomError, match="no checkpoint of step 4; it has 3, 5, 6, 9"):
        sft.sft(fine_tuning(chat, name="other", step=4))


def test_another_precision_than_the_base_run_had(chat: str) -> None:
    result = tuned(chat, dtype="bf16", steps=2)
    assert np.isfinite(result["val_bpb"])


def test_epochs_become_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    many = write_conversations(400)
    source = caught_start(monkeypatch, many, steps=None, name="one")[5]
    one = read_config("one")["config"]["steps"]
    assert one == source.steps_per_epoch
    caught_start(monkeypatch, many, steps=None, epochs=2.5, batch_tokens=source.rows_per_step * 32, name="more")
    assert read_config("more")["config"]["steps"] == -(-5 * one // 2)


# What it is measured on


def test_every_fiftieth_conversation_is_held_out(monkeypatch: pytest.MonkeyPatch, tokenizer: Tokenizer) -> None:
    every = [render(some, tokenizer) for some in conversations(101)]
    arguments = caught_start(monkeypatch, write_conversations(101))
    source, validation = arguments[5], arguments[8]
    assert source.n_conversation == 98
    held_out = [every[0], every[50], every[100]]
    assert sorted(targets_of(validation.batches())) == sorted(learnt_tokens(held_out))
    assert validation.n_rows == sum(len(inputs) for inputs, _ in validation.batches())


def test_validation_files_are_measured_on_and_nothing_is_held_out(
    monkeypatch: pytest.MonkeyPatch, tokenizer: Tokenizer
) -> None:
    other = write_conversations(7, seed=3, name="other.jsonl")
    arguments = caught_start(monkeypatch, write_conversations(101), validation=(other,), device_batch=1)
    source, validation = arguments[5], arguments[8]
    assert source.n_conversation == 101
    expected = learnt_tokens([render(some, tokenizer) for some in conversations(7, seed=3)])
    assert sorted(targets_of(validation.batches())) == sorted(expected)


def test_bpb_does_not_depend_on_the_device_batch_or_the_seed(monkeypatch: pytest.MonkeyPatch, chat: str) -> None:
    other = write_conversations(23, seed=3, name="other.jsonl")
    found = []
    for rows, seed in ((1, 1), (4, 1), (2, 7)):
        arguments = caught_start(
            monkeypatch, chat, validation=(other,), batch_tokens=128, device_batch=rows, seed=seed, name=f"r{rows}"
        )
        found.append(sorted(targets_of(arguments[8].batches())))
    assert found[0] == found[1] == found[2]


def targets_of(batches: Any) -> list[int]:
    return [int(target) for _, targets in batches for target in targets.flatten() if target != -1]


def learnt_tokens(rendered: list[tuple[list[int], list[int]]]) -> list[int]:
    return [token for ids, mask in rendered for token, learnt in zip(ids, mask, strict=True) if learnt]


def test_the_result_and_the_evaluations_on_disk(chat: str) -> None:
    result = tuned(chat)
    assert result["run"] == "base-sft" and result["steps"] == STEPS
    assert weights_sha256(load_model("base-sft", dtype="fp32")[0]) == result["weights_sha256"]
    kept = json.loads((run_dir("base-sft") / "evals" / f"bpb-{STEPS:06d}.json").read_text())
    assert kept["val_bpb"] == result["val_bpb"]
    assert kept["rows_of"] == "held-out answers"
    assert read_config("base-sft")["run"]["base"] == "base"


def test_what_is_cut_and_dropped_is_counted(fathom_home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    long = {"role": "assistant", "content": "warm " * 100}
    odd = [
        [{"role": "user", "content": "sun"}, long],
        [{"role": "user", "content": "hill " * 100}, {"role": "assistant", "content": "mat"}],
        [{"role": "user", "content": "cat " * 100}, {"role": "assistant", "content": "hills"}],
    ]
    path = fathom_home / "odd.jsonl"
    lines = [{"messages": some} for some in [*conversations(1), *odd, *conversations(20)]]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    tuned(str(path), steps=1)
    assert "21 conversations, 1 held out; 1 cut to the context, 2 dropped" in capsys.readouterr().err


# Going on


def stop_at(monkeypatch: pytest.MonkeyPatch, step: int) -> None:
    """A SIGTERM while this step is logged."""
    real = Record.metric

    def metric(self: Record, **values: Any) -> None:
        real(self, **values)
        if values["step"] == step:
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(Record, "metric", metric)


def test_stopped_and_resumed_it_ends_as_if_nothing_had_been(monkeypatch: pytest.MonkeyPatch, chat: str) -> None:
    whole = tuned(chat, name="whole")
    with monkeypatch.context() as patch, pytest.raises(SystemExit) as left:
        stop_at(patch, 4)
        fine_tuning(chat).run()
    assert left.value.code == 130
    assert tuned(chat, resume=True)["weights_sha256"] == whole["weights_sha256"]


def test_a_device_batch_that_is_asked_for_outranks_what_was_found_to_fit(
    monkeypatch: pytest.MonkeyPatch, chat: str
) -> None:
    add = Stepper._add_gradient
    seen: list[int] = []

    def single(self: Stepper, inputs: np.ndarray, *rest: Any) -> torch.Tensor:
        if len(inputs) > 1:
            raise torch.OutOfMemoryError("injected")
        return add(self, inputs, *rest)

    def watched(self: Stepper, inputs: np.ndarray, *rest: Any) -> torch.Tensor:
        seen.append(len(inputs))
        return add(self, inputs, *rest)

    with monkeypatch.context() as patch:
        stop_at(patch, 4)
        patch.setattr(Stepper, "_add_gradient", single)
        assert not sft.sft(fine_tuning(chat, batch_tokens=128))[1]
    shutil.copytree(run_dir("base-sft"), run_dir("other"))
    monkeypatch.setattr(Stepper, "_add_gradient", watched)
    tuned(chat, batch_tokens=128, name="other", resume=True)
    assert set(seen) == {1}
    seen.clear()
    tuned(chat, batch_tokens=128, device_batch=2, resume=True)
    assert set(seen) == {2}


def test_it_goes_on_when_the_base_s_checkpoint_is_gone(monkeypatch: pytest.MonkeyPatch, chat: str) -> None:
    """As it is once the base was trained on and kept its newest ones."""
    whole = tuned(chat, name="whole", step=6)
    with monkeypatch.context() as patch:
        stop_at(patch, 4)
        assert not sft.sft(fine_tuning(chat, step=6))[1]
    checkpoint._remove(checkpoint.folder_of(run_dir("base"), 6))
    resumed = tuned(chat, resume=True)
    assert resumed["weights_sha256"] == whole["weights_sha256"]
    assert sft.sft(sft.Sft("base", resume=True)) == (resumed, True), "finished, and by its name alone"
    for step in checkpoint.steps(run_dir("base-sft")):
        checkpoint._remove(checkpoint.folder_of(run_dir("base-sft"), step))
    with pytest.raises(FathomError, match="'base' has no checkpoint of step 6; it has 3, 5, 9"):
        tuned(chat, resume=True)


def test_a_finished_run_trains_nothing_and_gives_the_same_object(monkeypatch: pytest.MonkeyPatch, chat: str) -> None:
    first = tuned(chat)
    with pytest.raises(FathomError, match="'base-sft' exists already"):
        tuned(chat)

    def never(*_: Any, **__: Any) -> None:
        raise AssertionError("a finished run was trained")

    monkeypatch.setattr(session, "train", never)
    assert tuned(chat, resume=True) == first


def test_it_is_resumed_by_its_name_alone(monkeypatch: pytest.MonkeyPatch, chat: str) -> None:
    whole = tuned(chat, lr_share=0.5, seed=3)
    monkeypatch.setattr(hardware, "bf16_instructions", lambda: "AMX")
    assert sft.sft(sft.Sft("base", name="base-sft", resume=True)) == (whole, True)
    with pytest.raises(FathomError, match="no conversations were given; say which with --data"):
        sft.sft(replace(fine_tuning(chat), data=(), name="other", resume=True))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"steps": 10}, "--steps 9, not 10; `fathom sft base --run base-sft --resume` goes on with it"),
        ({"seed": 2}, "--seed 1, not 2"),
        ({"lr_share": 0.5}, "--lr-share 0.8, not 0.5"),
        ({"step": 6}, "--step 9, not 6"),
        ({"dtype": "bf16"}, "--dtype fp32, not bf16"),
        ({"batch_tokens": 64}, "--batch-tokens 32, not 64"),
    ],
)
def test_a_changed_setting_is_named_on_resume(chat: str, changes: dict[str, Any], words: str) -> None:
    tuned(chat)
    with pytest.raises(FathomError, match=words):
        tuned(chat, resume=True, **changes)


def test_changed_conversations_are_another_run(chat: str) -> None:
    tuned(chat)
    write_conversations(30, seed=9)
    with pytest.raises(FathomError, match="the data had other contents when the run 'base-sft' began"):
        tuned(chat, resume=True)


def test_another_base_is_another_run(chat: str) -> None:
    pretrain(pretraining(name="second"))
    tuned(chat)
    with pytest.raises(FathomError, match="'base-sft' was fine-tuned from 'base', not from 'second'"):
        sft.sft(sft.Sft("second", (chat,), name="base-sft", dtype="fp32", steps=STEPS, resume=True))


# What may go wrong


def test_no_base_is_one_sentence(chat: str) -> None:
    with pytest.raises(FathomError, match=r"no run 'gone' in .*; the runs there are: base\."):
        sft.sft(sft.Sft("gone", (chat,)))
    for folder in run_dir("base").glob("checkpoints/*"):
        (folder / checkpoint.COMPLETE).unlink()
    with pytest.raises(FathomError, match="'base' has no checkpoint yet"):
        tuned(chat)
    assert not run_dir("base-sft").exists()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"name": "base"}, "would be its own base"),
        ({"epochs": 0.0}, "--epochs is 0"),
        ({"epochs": float("nan")}, "--epochs is nan"),
        ({"lr_share": -1.0}, "--lr-share is -1"),
        ({"steps": 0}, "--steps is 0"),
        ({"steps": -5}, "--steps is -5"),
        ({"seed": -1}, "--seed is -1"),
        ({"eval_every": -1}, "--eval-every is -1"),
        ({"batch_tokens": 33}, "not a whole number of rows"),
        ({"batch_tokens": 96, "device_batch": 2}, "device batch of 2 rows does not divide"),
        ({"save_every": "often"}, "says no interval"),
        ({"keep": 0}, "--keep is 0"),
        ({"data": ("gone.jsonl",)}, "gone.jsonl"),
        ({"validation": ("gone.jsonl",)}, "gone.jsonl"),
    ],
)
def test_what_is_refused_leaves_nothing_to_resume(chat: str, changes: dict[str, Any], words: str) -> None:
    with pytest.raises(FathomError, match=words):
        sft.sft(sft.Sft("base", **({"data": (chat,), "dtype": "fp32", "steps": 1} | changes)))
    assert not (run_dir("base-sft") / "run.toml").exists()
    assert tuned(chat, steps=1)["steps"] == 1


def test_one_conversation_is_too_few(chat: str) -> None:
    with pytest.raises(FathomError, match="1 conversation in .*at least two"):
        tuned(write_conversations(1))
    assert tuned(write_conversations(2), steps=1)["steps"] == 1


def test_nothing_to_learn_is_one_sentence(fathom_home: Path) -> None:
    path = fathom_home / "mute.jsonl"
    mute = {"messages": [{"role": "user", "content": "sun " * 60}, {"role": "assistant", "content": "mat"}]}
    path.write_text((json.dumps(mute) + "\n") * 5)
    with pytest.raises(FathomError, match="none of the 4 conversations has anything to learn"):
        tuned(str(path))
    with pytest.raises(FathomError, match="none of the 5 conversations has anything to learn"):
        tuned(write_conversations(), validation=(str(path),))
    assert not (run_dir("base-sft") / "run.toml").exists()


def test_another_tokenizer_under_the_same_name_is_named(chat: str) -> None:
    shutil.rmtree(tokenizer_dir("tiny"))
    tokenizers.train(texts(60), 290).save(tokenizer_dir("tiny"))
    for changes in ({}, {"show": 1}):
        with pytest.raises(FathomError, match="'tiny' is not the one that 'base' was trained with"):
            sft.Sft("base", (chat,), **changes).run()


# Showing


def test_show_prints_ids_and_masks_and_trains_nothing(
    chat: str, tokenizer: Tokenizer, capsys: pytest.CaptureFixture[str]
) -> None:
    shown = fine_tuning(chat, show=3, json=True).run()["conversations"]
    expected = [render(some, tokenizer) for some in conversations(30)[:3]]
    assert [(one["ids"], one["mask"]) for one in shown] == [(ids[:33], mask[:33]) for ids, mask in expected]
    assert not run_dir("base-sft").exists()
    captured = capsys.readouterr()
    assert captured.out == ""
    fine_tuning(chat, show=1).run()
    assert "assistant" in "".join(capsys.readouterr())


def test_a_failed_evaluation_is_null_in_the_result(monkeypatch: pytest.MonkeyPatch, chat: str) -> None:
    def broken(*_: Any) -> float:
        raise IndexError("rows")

    monkeypatch.setattr(session, "bits_per_byte", broken)
    assert tuned(chat)["val_bpb"] is None
    assert events_of(run_dir("base-sft"), "evaluation_failed")
