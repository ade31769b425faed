"""REFERENCE 6.2 as it stands there: a question at a time, prompts by hand, a whole forward pass for each token."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from fathom.model.attention import DenseContext
from fathom.model.gpt import GPT


def prompt(text: str, tokenizer: Any) -> list[int]:
    """The user's text, and the mark behind which the assistant answers."""
    start, end, answer = (tokenizer.special(f"<|{name}|>") for name in ("user_start", "user_end", "assistant_start"))
    return [tokenizer.bos_id, start, *tokenizer.encode(text), end, answer]


def question_with_choices(row: Mapping[str, Any]) -> str:
    text = "Multiple Choice question: " + row["question"] + "\n"
    for place, choice in enumerate(row["choices"]):
        text += "- " + choice + "=" + "ABCDEFGH"[place] + "\n"
    return text + "\nRespond only with the letter of the correct answer."


@torch.inference_mode()
def next_logits(model: GPT, ids: Sequence[int]) -> list[float]:
    hidden = model(torch.tensor([list(ids)]), DenseContext(len(ids), "cpu"))
    found: list[float] = model.logits(hidden[:, -1])[0].tolist()
    return found


def letter(model: GPT, tokenizer: Any, row: Mapping[str, Any]) -> str:
    """The letter whose token is likeliest, the first of equally likely ones."""
    logits = next_logits(model, prompt(question_with_choices(row), tokenizer))
    best, best_logit = "", -float("inf")
    for place in range(len(row["choices"])):
        (token,) = tokenizer.encode("ABCDEFGH"[place])
        if logits[token] > best_logit:
            best, best_logit = "ABCDEFGH"[place], logits[token]
    return best


def reply(model: GPT, tokenizer: Any, text: str, max_tokens: int) -> str:
    """Greedily, to the end mark, to `max_tokens` or to the end of the context; the model must call no tool."""
    ids = prompt(text, tokenizer)
    said: list[int] = []
    ends = {tokenizer.special("<|assistant_end|>"), tokenizer.bos_id}
    while len(said) < max_tokens and len(ids) + len(said) < model.shape.seq_len:
        logits = next_logits(model, ids + said)
        token = logits.index(max(logits))
        if token in ends:
            break
        assert token != tokenizer.special("<|python_start|>")
        said.append(token)
    found: str = tokenizer.decode(said)
    return found


def final_number(text: str) -> str | None:
    """Read by hand: four marks, a blank, perhaps a minus, then every digit, point and comma; commas are dropped."""
    for at in range(len(text)):
        if text.startswith("#### ", at):
            rest = text[at + 5 :]
            minus = "-" if rest.startswith("-") else ""
            number = ""
            for character in rest[len(minus) :]:
                if character not in "0123456789.,":
                    break
                number += character
            if number:
                return minus + number.replace(",", "")
    return None
