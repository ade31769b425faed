"""CORE of a run as it goes."""

from __future__ import annotations

import json
import math
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from fathom.errors import FathomError
from fathom.evaluate.core import open_bundle, score_bundle
from fathom.evaluate.scorer import ModelScorer
from fathom.home import run_dir
from fathom.train import core_watch, pretrain, session
from fathom.train.checkpoint import load_model
from tests.oracles import small_bundle
from tests.oracles.tiny_runs import STEPS, events_of, furnish, hurry, pretraining

RUN: dict[str, Any] = {"core_every": 4, "core_limit": 8}


@pytest.fixture(autouse=True)
def furnished(fathom_home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hurry(monkeypatch)
    furnish()
    small_bundle.write_zip(fathom_home / "eval_bundle.zip", small_bundle.contents())


def trained(**changes: Any) -> dict[str, Any]:
    result, finished = pretrain.pretrain(pretraining(**(RUN | changes)))
    assert finished
    return result


def test_it_is_measured_as_often_as_asked_and_at_the_end(capsys: pytest.CaptureFixture[str]) -> None:
    result = trained()
    lines = events_of(run_dir("base"), "core")
    assert [line["step"] for line in lines] == [4, 8, STEPS]
    assert [line["step"] for line in events_of(run_dir("base"), "evaluated")] == [5, STEPS]  # as without it
    assert result["core"] == lines[-1]["core"] and "CORE" in capsys.readouterr().err
    kept = json.loads((run_dir("base") / "evals" / f"core-{STEPS:06d}.json").read_text())
    assert (kept["step"], kept["n"], kept["settings"], kept["value"]) == (STEPS, 24, {"limit": 8}, result["core"])
    assert "core" not in kept  # which would put a part of CORE on the leaderboards
    assert kept["data"] == {"bundle": open_bundle().digest} and set(kept["tasks"]) == set(small_bundle.TASKS)
    model, tokenizer, _ = load_model("base", dtype="fp32")
    again = score_bundle(ModelScorer(model, tokenizer.bos_id), tokenizer, open_bundle(), 8)
    assert again["value"] == kept["value"] and again["tasks"] == kept["tasks"]
    assert not math.isnan(kept["standard_error"])


def test_all_items_make_a_core_for_the_leaderboards() -> None:
    core = trained(core_every=100, core_limit=0)["core"]
    kept = json.loads((run_dir("base") / "evals" / f"core-{STEPS:06d}.json").read_text())
    assert kept["core"] == kept["value"] == core and kept["n"] == 72


def test_measuring_changes_nothing_of_what_is_trained() -> None:
    plain = trained(name="plain", core_every=0)
    assert trained()["weights_sha256"] == plain["weights_sha256"] and "core" not in plain
    assert not events_of(run_dir("plain"), "core")


@pytest.mark.parametrize(
    ("module", "name", "what", "left"),
    [(core_watch, "score_bundle", "CORE", "evaluated"), (session, "bits_per_byte", "the evaluation", "core")],
)
def test_what_fails_ends_neither_the_run_nor_the_other(
    module: ModuleType, name: str, what: str, left: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: Any, **__: Any) -> None:
        raise RuntimeError("out of memory")

    monkeypatch.setattr(module, name, fails)
    result = trained()
    assert result["core" if what == "CORE" else "val_bpb"] is None
    assert {line["what"] for line in events_of(run_dir("base"), "evaluation_failed")} == {what}
    assert events_of(run_dir("base"), left)[-1]["step"] == STEPS


def test_it_comes_after_saving(monkeypatch: pytest.MonkeyPatch) -> None:
    trained(save_every="9")
    kinds = [(line["event"], line["step"]) for line in _events() if line["event"] in ("saved", "core")]
    assert kinds[1:3] == [("saved", 4), ("core", 4)] and kinds[-2:] == [("saved", STEPS), ("core", STEPS)]


def _events() -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run_dir("base") / "events.jsonl").read_text().splitlines()]


def test_a_broken_bundle_is_said_before_anything_is_trained(fathom_home: Path) -> None:
    (fathom_home / "eval_bundle.zip").write_bytes(b"PK")
    with pytest.raises(FathomError, match="eval_bundle.zip cannot be read"):
        trained()
    with pytest.raises(FathomError, match="--core-limit is -3"):
        trained(core_limit=-3)
    assert not run_dir("base").exists()
    trained(core_every=0)
