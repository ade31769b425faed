"""Asks a model the questions of a chat task and counts what is right. REFERENCE 6.2"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import torch

from fathom.data.conversations import parse_reply, render_for_completion
from fathom.data.conversations.messages import text_of
from fathom.errors import FathomError
from fathom.evaluate.chat.example import ChatTask, Grade, Tally
from fathom.generate.engine import Engine, Request
from fathom.generate.running import Completion
from fathom.model.attention import DenseContext
from fathom.model.gpt import GPT
from fathom.model.shape import Shape
from fathom.tokenizer import Tokenizer

BATCH_TOKENS = {"cpu": 4096}  # padded tokens of a batch of choices
BATCH_TOKENS_GPU = 65_536
CACHE_BYTES = 4e9
MOST_AT_ONCE = 256

OnItems = Callable[[int, int], None]
Dump = Callable[[dict[str, Any]], None]
Judged = tuple[int, Tally, dict[str, Any]]  # index, what it counts for, what is dumped of it


def score_task(
    model: GPT,
    tokenizer: Tokenizer,
    task: ChatTask,
    *,
    limit: int | None = None,
    share: tuple[int, int] = (0, 1),
    on_items: OnItems = lambda done, right: None,
    dump: Dump | None = None,
) -> Tally:
    """The first `limit` examples, or of them those of one rank: `share` is (rank, ranks), items rank, rank + ranks, ….

    `on_items(done, right)` is told after each batch or answer. `dump` gets an object for each item: task, index, tokens
    of the prompt, reply, correct.
    """
    rank, world = share
    mine = list(range(len(task.examples)))[:limit][rank::world]
    prompts = {i: render_for_completion(task.examples[i].messages, tokenizer) for i in mine}
    if task.grade is None:
        judged = _choices(model, tokenizer, task, prompts)
    else:
        judged = _written(model, tokenizer, task, task.grade, prompts)
    total = Tally()
    for index, one, said in judged:
        total += one
        on_items(total.n, total.right)
        if dump is not None:
            dump({"task": task.name, "index": index, "tokens": prompts[index], **said, "correct": bool(one.right)})
    return total


def _choices(model: GPT, tokenizer: Tokenizer, task: ChatTask, prompts: dict[int, list[int]]) -> Iterator[Judged]:
    """The likeliest of the letters' tokens after each prompt, the first of equal ones."""
    letters = {letter for i in prompts for letter in task.examples[i].letters}
    token_of = {letter: tokenizer.encode(letter)[0] for letter in letters}
    for batch in _batches(prompts, BATCH_TOKENS.get(model.device.type, BATCH_TOKENS_GPU)):
        logits = last_logits(model, [prompts[i] for i in batch], tokenizer.bos_id)
        if not logits.isfinite().all():
            raise _no_numbers()
        for i, row in zip(batch, logits, strict=True):
            example = task.examples[i]
            best = int(row[[token_of[letter] for letter in example.letters]].argmax())
            said = example.letters[best]
            right = int(said == example.answer)
            yield i, Tally(1, right, n_long=int(len(prompts[i]) > model.shape.seq_len)), {"reply": said}


def _batches(prompts: dict[int, list[int]], most_tokens: int) -> Iterator[list[int]]:
    """Indices of prompts that are about equally long, at most so many tokens with their padding."""
    batch: list[int] = []
    for index in sorted(prompts, key=lambda i: len(prompts[i]), reverse=True):
        if batch and len(prompts[batch[0]]) * (len(batch) + 1) > most_tokens:
            yield batch
            batch = []
        batch.append(index)
    if batch:
        yield batch


@torch.inference_mode()
def last_logits(model: GPT, prompts: Sequence[Sequence[int]], pad: int) -> torch.Tensor:
    """What may follow each prompt: (N, V) float32 on the CPU. Padding stands behind, where no prompt looks."""
    width = max(map(len, prompts))
    ids = torch.full((len(prompts), width), pad, dtype=torch.int64)
    for row, prompt in zip(ids, prompts, strict=True):
        row[: len(prompt)] = torch.tensor(prompt)
    ends = torch.tensor([len(prompt) - 1 for prompt in prompts], device=model.device)
    hidden = model(ids.to(model.device), DenseContext(width, model.device))
    return model.logits(hidden[torch.arange(len(prompts), device=model.device), ends]).cpu()


def _written(
    model: GPT, tokenizer: Tokenizer, task: ChatTask, grade: Grade, prompts: dict[int, list[int]]
) -> Iterator[Judged]:
    """Greedy answers with the calculator, many at once, judged while others are still being written."""
    for index in [i for i, prompt in prompts.items() if len(prompt) >= model.shape.seq_len]:
        yield index, Tally(1, n_long=1), {"reply": None}
    fitting = [i for i, prompt in prompts.items() if len(prompt) < model.shape.seq_len]
    requests = [Request(tuple(prompts[i]), max_tokens=task.max_tokens) for i in fitting]
    engine = Engine(model, tokenizer, max_batch=_at_once(model.shape, model.dtype, task.max_tokens))
    waiting: list[tuple[int, Tally, str, Future[bool]]] = []
    pool = ThreadPoolExecutor(task.graders)
    try:
        for place, completion in engine.completions(requests):
            if completion.finish_reason == "error":
                raise _no_numbers()
            cut = completion.finish_reason == "length" and len(completion.ids) < task.max_tokens
            reply = _read(completion, tokenizer, task.reads_marks)
            index = fitting[place]
            grading = pool.submit(grade, reply, task.examples[index])
            waiting.append((index, Tally(1, n_cut=int(cut)), reply, grading))
            while waiting and (waiting[0][3].done() or task.graders == 1):
                yield _settled(*waiting.pop(0))
        for one in waiting:
            yield _settled(*one)
    finally:
        pool.shutdown(cancel_futures=True)


def _settled(index: int, tally: Tally, reply: str, grading: Future[bool]) -> Judged:
    return index, replace(tally, right=int(grading.result())), {"reply": reply}


def _read(completion: Completion, tokenizer: Tokenizer, with_marks: bool) -> str:
    """All that was said, marks by their names; or what a person reads."""
    return tokenizer.decode(completion.ids) if with_marks else text_of(parse_reply(completion.ids, tokenizer))


def _at_once(shape: Shape, dtype: torch.dtype, max_tokens: int) -> int:
    """Answers that are written together, so that the keys and values of all fit CACHE_BYTES."""
    tokens = min(2 * max_tokens, shape.seq_len)
    each = tokens * shape.n_layer * 2 * shape.d_kv * dtype.itemsize
    return int(min(MOST_AT_ONCE, max(1, CACHE_BYTES // each)))


def _no_numbers() -> FathomError:
    return FathomError(
        "the model computes no numbers (its logits are not finite)", "evaluate an earlier checkpoint with --step"
    )
