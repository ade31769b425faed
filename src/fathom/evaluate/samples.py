"""The sample sheet: what a model makes of a few beginnings, greedily."""

from __future__ import annotations

from collections.abc import Sequence

from fathom.generate.engine import Engine, Request
from fathom.model.gpt import GPT
from fathom.tokenizer import Tokenizer

PROMPTS = (
    "The capital of France is",
    "The chemical symbol of gold is",
    "If yesterday was Friday, then tomorrow will be",
    "The opposite of hot is",
    "The planets of the solar system are:",
    "My favorite color is",
    "If 5*x + 3 = 13, then x is",
)


def sample_sheet(
    model: GPT, tokenizer: Tokenizer, prompts: Sequence[str] = PROMPTS, max_tokens: int = 16
) -> list[tuple[str, str]]:
    """(prompt, continuation) pairs, of the prompts that fit the context; BOS stands before each."""
    engine = Engine(model, tokenizer, max_batch=max(1, len(prompts)))
    ids = {prompt: (tokenizer.bos_id, *tokenizer.encode(prompt)) for prompt in prompts}
    fitting = [prompt for prompt in prompts if len(ids[prompt]) < engine.seq_len]
    done = engine.generate(
        [Request(prompt=ids[prompt], max_tokens=max_tokens, temperature=0.0, tools=False) for prompt in fitting]
    )
    return [(prompt, tokenizer.decode(c.ids)) for prompt, c in zip(fitting, done, strict=True)]
