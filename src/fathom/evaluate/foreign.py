"""Hugging Face causal models in a local folder, for our CORE code: so that GPT-2's published score can be checked here.

Nothing is fetched and no code of the folder is run. Needs the extra `hf` (transformers).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from fathom.errors import FathomError
from fathom.evaluate.foreign_folder import is_foreign
from fathom.evaluate.scorer import Group, OnScored, Row, RowScore

LOGITS_AT_ONCE = {"cpu": 2**27, "cuda": 2**29}  # numbers of float32: tokens that pass together, times the vocabulary
_CONTEXT_NAMES = ("n_positions", "max_position_embeddings", "n_ctx", "max_seq_len", "seq_length")


def open_foreign(folder: Path, device: str = "cpu") -> tuple[ForeignScorer, ForeignTokenizer]:
    """A model in float32 on `device`, and its tokenizer. FathomError where either is missing or cannot be read."""
    try:
        import transformers
    except ImportError:
        raise FathomError(
            "a Hugging Face model needs the package transformers, which is not installed",
            "in the project's folder: .venv/bin/python -m pip install -c constraints.txt transformers",
        ) from None
    if not is_foreign(folder):
        raise FathomError(f"{folder} holds no config.json", "name a folder as transformers' save_pretrained writes it")
    transformers.utils.logging.set_verbosity_error()
    try:
        tokenizer = transformers.AutoTokenizer.from_pretrained(folder, local_files_only=True)
        model = transformers.AutoModelForCausalLM.from_pretrained(folder, local_files_only=True, dtype=torch.float32)
    except Exception as error:  # whatever its readers find wrong with the files
        said = " ".join(str(error).split())[:300] or type(error).__name__
        raise FathomError(f"{folder} cannot be read as a causal model ({said})", "get it whole, once more") from None
    known = ForeignTokenizer(tokenizer, folder)
    vocabulary = int(model.get_output_embeddings().weight.shape[0])
    if len(tokenizer) > vocabulary:
        raise FathomError(
            f"the tokenizer in {folder} has {len(tokenizer):,} tokens and the model {vocabulary:,}",
            "put a model and its own tokenizer into the folder",
        )
    return ForeignScorer(model.eval().to(device), known.bos_id), known


class ForeignTokenizer:
    """What CORE asks of a tokenizer: text to ids, nothing put before or behind, and what begins a text."""

    def __init__(self, tokenizer: Any, folder: Path) -> None:
        self._tokenizer = tokenizer
        end_of_text = tokenizer.get_vocab().get("<|endoftext|>")
        found = (tokenizer.bos_token_id, end_of_text, tokenizer.eos_token_id)
        if all(one is None for one in found):
            raise FathomError(f"the tokenizer in {folder} names no token that begins a text", "give it a bos_token")
        self.bos_id: int = next(one for one in found if one is not None)

    def encode(self, text: str) -> list[int]:
        ids: list[int] = self._tokenizer.encode(text, add_special_tokens=False, verbose=False)
        return ids


class ForeignScorer:
    """A causal model of transformers as a `Scorer`: every row whole, those of like length together."""

    def __init__(self, model: Any, bos_id: int) -> None:
        self._model, self.bos_id = model, bos_id
        declared = [getattr(model.config, name, None) for name in _CONTEXT_NAMES]
        self.max_tokens: int | None = next((n for n in declared if isinstance(n, int) and n > 0), None)
        self.seq_len = self.max_tokens or 2**31
        vocabulary = int(model.get_output_embeddings().weight.shape[0])
        self._batch_tokens = max(1, LOGITS_AT_ONCE.get(model.device.type, 2**27) // vocabulary)

    @torch.inference_mode()
    def score(self, groups: Sequence[Group], on_scored: OnScored | None = None) -> list[list[RowScore]]:
        """As `Scorer.score` says; the longest rows come first."""
        found: list[dict[int, RowScore]] = [{} for _ in groups]
        if on_scored is not None:
            for at, group in enumerate(groups):
                if not group.rows:
                    on_scored(at, [])
        for batch in self._batches(groups):
            rows = [groups[at].rows[number] for at, number in batch]
            for (at, number), score in zip(batch, self._score(rows), strict=True):
                found[at][number] = score
                if on_scored is not None and len(found[at]) == len(groups[at].rows):
                    on_scored(at, [found[at][i] for i in range(len(found[at]))])
        return [[scores[number] for number in range(len(scores))] for scores in found]

    def _batches(self, groups: Sequence[Group]) -> Iterator[list[tuple[int, int]]]:
        """(group, row) pairs whose rows, padded, have at most so many tokens together; one that has more goes alone."""
        every = [(at, number) for at, group in enumerate(groups) for number in range(len(group.rows))]
        every.sort(key=lambda pair: -_read(groups[pair[0]].rows[pair[1]]))
        first = 0
        while first < len(every):
            width = _read(groups[every[first][0]].rows[every[first][1]])
            last = first + max(1, self._batch_tokens // width)
            yield every[first:last]
            first = last

    def _score(self, rows: Sequence[Row]) -> Iterator[RowScore]:
        ids = torch.full((len(rows), max(map(_read, rows))), self.bos_id, dtype=torch.int64)
        mask = torch.zeros_like(ids)
        for i, row in enumerate(rows):
            n = _read(row)
            ids[i, :n], mask[i, :n] = torch.from_numpy(row.ids[:n]), 1
        device = self._model.device
        logits = self._model(input_ids=ids.to(device), attention_mask=mask.to(device), use_cache=False).logits
        for row, of_row in zip(rows, logits, strict=True):
            targets = torch.from_numpy(np.ascontiguousarray(row.targets)).to(device)
            before = of_row[row.start - 1 : row.start - 1 + len(targets)].float()
            losses = before.logsumexp(dim=1) - before.gather(1, targets[:, None])[:, 0]
            yield RowScore(losses.cpu().numpy(), before.argmax(dim=1).cpu().numpy())


def _read(row: Row) -> int:
    """How many tokens of a row the network has to read: none after the last that counts."""
    return max(1, row.end - 1)
