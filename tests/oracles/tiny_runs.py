"""A corpus, a tokenizer, conversations and runs so small that training them takes a fraction of a second."""

from __future__ import annotations

import gc
import json
import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from fathom import hardware
from fathom import tokenizer as tokenizers
from fathom.data.corpus import write_corpus
from fathom.home import home, tokenizer_dir
from fathom.train.pretrain import Pretrain
from fathom.train.sft import Sft

WORDS = ["the", "sun", "is", "warm", "and", "a", "cat", "sat", "on", "red", "mat", "while", "rain", "fell", "hills"]
STEPS = 9

PRETRAIN = Pretrain(
    "tiny",
    "tiny",
    "base",
    depth=1,
    head_dim=32,
    seq_len=32,
    steps=STEPS,
    batch_tokens=128,
    eval_every=5,
    eval_tokens=256,
    save_every="3",
    compile="off",
    dtype="fp32",
    sample=False,
)


def texts(count: int, seed: int = 0) -> list[str]:
    dice = random.Random(seed)
    return [f"Text {i}: {' '.join(dice.choices(WORDS, k=dice.randint(5, 60)))}." for i in range(count)]


def conversations(count: int, seed: int = 0) -> list[list[dict[str, Any]]]:
    dice = random.Random(seed)
    return [
        [
            {"role": "user", "content": " ".join(dice.choices(WORDS, k=3))},
            {"role": "assistant", "content": " ".join(dice.choices(WORDS, k=dice.randint(1, 3)))},
        ]
        for _ in range(count)
    ]


def furnish() -> None:
    """A corpus and a tokenizer, both called tiny, into $FATHOM_HOME."""
    write_corpus("tiny", texts(60), texts(8, seed=1), source="made for a test")
    tokenizers.train(texts(60), 300).save(tokenizer_dir("tiny"))


def write_conversations(count: int = 30, seed: int = 0, name: str = "chat.jsonl") -> str:
    path = home() / name
    path.write_text("".join(json.dumps({"messages": some}) + "\n" for some in conversations(count, seed)))
    return str(path)


def pretraining(**changes: Any) -> Pretrain:
    return replace(PRETRAIN, **changes)


def fine_tuning(data: str, **changes: Any) -> Sft:
    given: dict[str, Any] = {"save_every": "3", "compile": "off", "dtype": "fp32", "eval_every": 5, "steps": STEPS}
    return Sft("base", (data,), **(given | changes))


def hurry(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without half a second of products to measure, and without a look through all that pytest holds in memory."""
    monkeypatch.setattr(hardware, "peak_flops", lambda device, dtype: (1e12, "not measured"))
    monkeypatch.setattr(gc, "collect", lambda *_: 0)


def events_of(run_folder: Path, kind: str) -> list[dict[str, Any]]:
    from fathom.record import events

    return [line for line in events(run_folder) if line["event"] == kind]
