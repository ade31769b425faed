"""Training on an NVIDIA GPU, whole: stopped and resumed bit for bit, compiled, extended, fine-tuned. All opt-in."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch

from fathom.home import run_dir
from fathom.record import Record, metrics
from fathom.train.pretrain import Pretrain, pretrain
from fathom.train.sft import sft
from tests.oracles.tiny_runs import fine_tuning, furnish, pretraining, write_conversations

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU"),
]
STEPS = 6


@pytest.fixture(autouse=True)
def furnished(fathom_home: Path) -> None:
    furnish()


def stopped_after(step: int, monkeypatch: pytest.MonkeyPatch, train: Any) -> None:
    """Train until a SIGTERM comes while this step is logged."""
    real = Record.metric

    def metric(self: Record, **values: Any) -> None:
        real(self, **values)
        if values["step"] == step:
            os.kill(os.getpid(), signal.SIGTERM)

    with monkeypatch.context() as patch:
        patch.setattr(Record, "metric", metric)
        assert not train()[1]


@pytest.mark.parametrize("dtype", ["fp32", "bf16", "fp16"])
def test_a_run_is_stopped_and_resumed_bit_for_bit(monkeypatch: pytest.MonkeyPatch, dtype: str) -> None:
    given = {"dtype": dtype, "steps": STEPS, "window": "SL", "depth": 2, "seq_len": 64, "batch_tokens": 256}
    whole, _ = pretrain(pretraining(name="whole", **given))
    losses = [line["loss"] for line in metrics(run_dir("whole"))]
    assert len(losses) == STEPS and losses[-1] < losses[0]
    stopped_after(2, monkeypatch, lambda: pretrain(pretraining(name="torn", **given)))
    resumed, finished = pretrain(pretraining(name="torn", resume=True, **given))
    assert finished and resumed["weights_sha256"] == whole["weights_sha256"]


def test_a_run_is_extended_and_fine_tuned() -> None:
    pretrain(pretraining(name="base", steps=STEPS))
    more = Pretrain(extend="base", name="longer", steps=2 * STEPS, compile="off", dtype="fp32", sample=False)
    longer, finished = pretrain(more)
    assert finished and longer["steps"] == 2 * STEPS
    tuned, finished = sft(fine_tuning(write_conversations(), steps=STEPS))
    assert finished and tuned["steps"] == STEPS


def test_a_long_run_is_compiled_in_its_middle_and_goes_on() -> None:
    result, finished = pretrain(pretraining(name="compiled", steps=36, compile="on", save_every="100", eval_every=0))
    assert finished and result["steps"] == 36
    losses = [line["loss"] for line in metrics(run_dir("compiled"))]
    assert losses[-1] < losses[0]
