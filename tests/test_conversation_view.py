"""What `--show` prints: every token with its mask, with and without colour."""

from __future__ import annotations

import io
from typing import Any

import pytest
from oracles.byte_tokenizer import ByteTokenizer

from fathom.data.conversations import render
from fathom.data.conversations.view import show, spans

TOKENIZER: Any = ByteTokenizer()
MESSAGES = [
    {"role": "user", "content": "1+1 [b]?"},
    {"role": "assistant", "content": [{"type": "python", "text": "1+1"}, {"type": "python_output", "text": "2"}]},
]


def test_spans_hold_every_token_once() -> None:
    ids, mask = render(MESSAGES, TOKENIZER)
    assert [(text, trained) for text, trained, _ in spans(ids, mask, TOKENIZER)] == [
        ("<|bos|><|user_start|>", False),
        ("1+1 [b]?", False),
        ("<|user_end|><|assistant_start|>", False),
        ("<|python_start|>", True),
        ("1+1", True),
        ("<|python_end|>", True),
        ("<|output_start|>", False),
        ("2", False),
        ("<|output_end|>", False),
        ("<|assistant_end|>", True),
    ]


def test_without_colour_brackets_show_the_mask() -> None:
    file = io.StringIO()
    show([render(MESSAGES, TOKENIZER)] * 2, TOKENIZER, file)
    printed = file.getvalue()
    assert "conversation 2: 21 tokens, 6 of them trained" in printed
    assert "<|user_start|>1+1 [b]?<|user_end|>" in printed
    assert "⟦<|python_start|>⟧⟦1+1⟧⟦<|python_end|>⟧<|output_start|>2<|output_end|>⟦<|assistant_end|>⟧" in printed


def test_with_colour_the_mask_is_green(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.delenv("NO_COLOR", raising=False)
    file = io.StringIO()
    show([render(MESSAGES, TOKENIZER)], TOKENIZER, file)
    assert "\x1b[32m1+1" in file.getvalue()
    assert "⟦" not in file.getvalue()
