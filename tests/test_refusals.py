"""What is refused without torch is refused before torch is imported, which takes seconds."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import asdict

import pytest

from fathom.home import run_dir
from fathom.record import Record
from fathom.tokenizer import load
from fathom.train.settings import resolve
from tests.oracles.tiny_runs import furnish

TRIAL = """
import contextlib, io, json, sys
from fathom import cli
for argv in json.load(sys.stdin):
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said):
            cli.main(argv)
    except SystemExit as left:
        print(json.dumps([left.code, said.getvalue(), "torch" in sys.modules]))
"""

PRETRAIN = "pretrain --corpus tiny --tokenizer tiny --depth 1 --head-dim 32 --seq-len 32 --batch-tokens 128 --steps 9"
CASES = {
    f"{PRETRAIN} --dpeth 4": "has no option --dpeth; did you mean --depth?",
    f"{PRETRAIN} --seed many": "--seed cannot be 'many'; it takes a whole number",
    f"{PRETRAIN} --corpus tinny": "there is no corpus 'tinny'",
    f"{PRETRAIN} --tokenizer tinny": "there is no tokenizer 'tinny'; did you mean 'tiny'?",
    f"{PRETRAIN} --head-dim 33": "--head-dim is 33; choose an even number",
    f"{PRETRAIN} --steps 0": "--steps is 0",
    f"{PRETRAIN} --batch-tokens 33": "a batch of 33 tokens is not a whole number of rows of 32",
    f"{PRETRAIN} --device-batch 3": "a device batch of 3 rows does not divide the step's 4",
    f"{PRETRAIN} --save-every never": "--save-every 'never' says no interval",
    f"{PRETRAIN} --eval-every -1": "--eval-every is -1",
    f"{PRETRAIN} --core-limit -1": "--core-limit is -1",
    f"{PRETRAIN} --track wandbb": "--track names 'wandbb'; did you mean wandb?",
    f"{PRETRAIN} --shard-model": "--shard-model splits the weights over ranks, and there is one process",
    f"{PRETRAIN} --recipe gone.toml": "the recipe gone.toml cannot be read",
    f"{PRETRAIN} --run base": "the run 'base' exists already; go on with --resume",
    f"{PRETRAIN} --run base --resume --steps 8": "the run 'base' began with --steps 9, not 8",
    f"{PRETRAIN} --run base --resume --dtype fp16": "the run 'base' began with --dtype fp32, not fp16",
    "pretrain --extend gone --steps 9": "there is no run 'gone'",
    "pretrain --extend base --from-end --ratio nan": "--ratio is nan; choose a number from 0.001 to 10^6",
    "pretrain --extend base --from-end --ratio inf": "--ratio is inf; choose a number from 0.001 to 10^6",
    "data add mine text.txt --shard-mb nan": "--shard-mb is nan; give a number above 0",
    "data add mine text.txt --shard-mb inf": "--shard-mb is inf; give a number above 0",
    f"tokenizer train --corpus tiny --name mine --vocab {10**30}": "is too large; ask for at most 100,000,000",
    f"tokenizer train --corpus tiny --name mine --doc-cap -{10**400}": "which leaves nothing to read; give at least 1",
    f"speedrun --corpus tiny --chat {300 * 'a'} --depth 1": "file name too long",
    "data add mine \udcff.txt": "'\\udcff.txt' is not UTF-8; rename that file",
    "sft gone --data chat.jsonl": "there is no run 'gone'",
    "sft base --data gone.jsonl": "there is no file gone.jsonl",
    "sft base --data chat.jsonl --run base": "the new run would be its own base",
    "sft base --data chat.jsonl --step 4": "the run 'base' has no checkpoint of step 4; it has 9",
    "sft base --data chat.jsonl --epochs 0": "--epochs is 0",
    "sft base --data chat.jsonl --epoch 2": "has no option --epoch; did you mean --epochs?",
    "sft base --data chat.jsonl --run tuned": "the run 'tuned' exists already",
    "sft base --data chat.jsonl --epochs 1e308": "--epochs is 1e+308; give a number above zero, up to 1,000,000",
    "sft base --data digits.jsonl": "line 1: it is not JSON: a number is too long",
    "sft base --data chat.jsonl --show -1": "--show is -1; show at least one conversation",
    "sft base --run tuned --resume": "the run 'tuned' does not say what it was fine-tuned on",
    "sft base": "no conversations were given",
    "serve gone": "there is no run 'gone'",
    "serve base --step 4": "the run 'base' has no checkpoint of step 4",
    "serve base --prot 80": "has no option --prot; did you mean --port?",
    "serve base --queue -1": "--queue is -1",
    "serve other": "there is no tokenizer 'gone'",
    "chat gone --prompt hi": "there is no run 'gone'",
    "chat base --prompt hi --max-tokens 0": "--max-tokens is 0",
    "eval gone": "there is no run 'gone'",
    "speedrun --corpus gone --chat chat.jsonl --depth 1": "there is no corpus 'gone'",
    "speedrun --corpus tiny --chat digits.jsonl --depth 1 --epochs nan": "--epochs is nan",
}


@pytest.fixture(scope="module")
def refused(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[int, str, bool]]:
    """(exit status, sentence, whether torch was imported by then) of every case, all in one process."""
    place = tmp_path_factory.mktemp("refused")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FATHOM_HOME", str(place / "home"))
        furnish()
        for name, stage, tokenizer in (
            ("base", "pretrain", "tiny"),
            ("tuned", "sft", "tiny"),
            ("other", "sft", "gone"),
        ):
            make_run(name, stage, tokenizer)
        (place / "digits.jsonl").write_text('{"messages": ' + 5000 * "9" + "}\n")
        found = subprocess.run(
            [sys.executable, "-c", TRIAL],
            input=json.dumps([line.split() for line in CASES]),
            cwd=place,
            env=os.environ | {"FATHOM_COMMAND": ""},
            capture_output=True,
            text=True,
            check=False,
        )
    assert found.returncode == 0, found.stderr
    return {line: tuple(json.loads(told)) for line, told in zip(CASES, found.stdout.splitlines(), strict=True)}


def make_run(name: str, stage: str, tokenizer: str = "tiny") -> None:
    """A run folder as a training of nine steps leaves it, but for the weights."""
    settings = resolve({"depth": 1, "head_dim": 32, "seq_len": 32, "batch_tokens": 128, "steps": 9}, {}, 300)
    record = Record(run_dir(name))
    config = {"corpus": "tiny", "tokenizer": tokenizer, "dtype": "fp32", **settings.flat()}
    about = {"stage": stage, "tokenizer_digest": load("tiny").digest}
    record.config({"run": about, "model": asdict(settings.shape), "config": config})
    (record.folder / "checkpoints" / "000009").mkdir(parents=True)
    (record.folder / "checkpoints" / "000009" / "COMPLETE").touch()


@pytest.mark.parametrize("line", CASES)
def test_it_is_refused_before_torch_is_imported(refused: dict[str, tuple[int, str, bool]], line: str) -> None:
    status, said, has_torch = refused[line]
    assert status == 2
    assert CASES[line] in said and len(said.splitlines()) == 1
    assert not has_torch
