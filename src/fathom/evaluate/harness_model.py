"""Our model as lm-eval sees one: log-likelihoods through the scorer, text through the engine, BOS before everything."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from lm_eval.api.model import TemplateLM
from lm_eval.models.utils import normalize_gen_kwargs
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window

from fathom.evaluate.scorer import Group, ModelScorer, Row, RowScore
from fathom.generate.engine import Engine
from fathom.generate.running import Request
from fathom.model.gpt import GPT
from fathom.tokenizer import Tokenizer

MAX_NEW_TOKENS = 256  # where a task does not say


class HarnessModel(TemplateLM):
    """What lm-eval asks a model: `loglikelihood` (from its own base), `loglikelihood_rolling`, `generate_until`.

    A prompt beyond the context is scored whole, as in CORE; a text to be scored from its beginning goes in windows of
    the context, as lm-eval defines it.
    """

    def __init__(
        self,
        model: GPT,
        tokenizer: Tokenizer,
        share: tuple[int, int],
        gather: Callable[[Any], list[Any]],
        on_done: Callable[[str, int, int], None],
    ) -> None:
        super().__init__()
        self._scorer, self._tokens = ModelScorer(model, tokenizer.bos_id), tokenizer
        self._engine = Engine(model, tokenizer)
        self._share, self._gather, self._on_done = share, gather, on_done

    @property
    def eot_token_id(self) -> int:
        return self._tokens.bos_id

    @property
    def max_length(self) -> int:
        return self._engine.seq_len

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **_: Any) -> list[int]:
        ids = self._tokens.encode(string)
        return ids if add_special_tokens is False else [self._tokens.bos_id, *ids]

    def loglikelihood(self, requests: Sequence[Any], disable_tqdm: bool = True) -> list[tuple[float, bool]]:
        """(log-likelihood in nats, whether greedy decoding says it) of each continuation, after its context."""
        found: list[tuple[float, bool]] = super().loglikelihood(requests, disable_tqdm=True)
        return found

    def _loglikelihood_tokens(
        self, requests: Sequence[tuple[tuple[str, str], list[int], list[int]]], **_: Any
    ) -> list[tuple[float, bool]]:
        """(texts, context ids, continuation ids) of each -> what `loglikelihood` says."""
        rows = [_row(context, continuation) for _, context, continuation in requests]
        scores = self._scored("log-likelihoods", rows)
        return [(-_sum(score), score.is_greedy(row)) for row, score in zip(rows, scores, strict=True)]

    def loglikelihood_rolling(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[float]:
        """The log-likelihood of each whole text, in nats, BOS before it."""
        rows: list[Row] = []
        counts = []
        for (text,) in (request.args for request in requests):
            ids = self.tok_encode(text, add_special_tokens=False)
            windows = get_rolling_token_windows(ids, self.eot_token_id, self.max_length, context_len=1)
            rows += (of_text := [_row(*make_disjoint_window(window)) for window in windows])
            counts.append(len(of_text))
        sums = iter([-_sum(score) for score in self._scored("texts", rows)])
        return [float(sum(next(sums) for _ in range(count))) for count in counts]

    def generate_until(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[str]:
        """What the model goes on with after each prompt, up to the first stop string, which is left out."""
        rank, world = self._share
        return _joined(self._gather(self._said([request.args for request in requests[rank::world]])))

    def _scored(self, what: str, rows: Sequence[Row]) -> list[RowScore]:
        """Scores of all rows, this rank's computed here. What is asked more than once shares its prefix."""
        rank, world = self._share
        groups = _grouped(rows[rank::world])
        done = 0

        def count(at: int, scores: list[RowScore]) -> None:
            nonlocal done
            done += len(scores)
            self._on_done(what, done, len(rows[rank::world]))

        scored = self._scorer.score(groups, count)
        return _joined(self._gather([score for scores in scored for score in scores]))

    def _said(self, asked: Sequence[tuple[str, dict[str, Any]]]) -> list[str]:
        """Answers through the engine, each stopped as soon as one of its stop strings is there."""
        stops: dict[int, list[str]] = {}
        for prompt, kwargs in asked:
            options = normalize_gen_kwargs(kwargs, MAX_NEW_TOKENS)
            id = self._engine.add(self._request(prompt, options))
            stops[id] = [stop for stop in options["until"] if stop]
        said = dict.fromkeys(stops, "")
        while self._engine.n_unfinished:
            for event in self._engine.step():
                if event.request_id not in stops:
                    continue
                said[event.request_id] += event.text
                met = any(stop in said[event.request_id] for stop in stops[event.request_id])
                if met or event.finished:
                    said[event.request_id] = _until(said[event.request_id], stops.pop(event.request_id))
                    self._engine.cancel(event.request_id)
                    self._on_done("answers", len(said) - len(stops), len(said))
        return list(said.values())

    def _request(self, prompt: str, options: dict[str, Any]) -> Request:
        """The end of a prompt that is too long, behind BOS, as much of it as leaves room for the answer."""
        room = self.max_length
        new = min(options["max_gen_toks"], room // 2)
        ids = self.tok_encode(prompt, add_special_tokens=False)
        kept = ids[max(0, len(ids) - (room - new - 1)) :]
        sampling = {}
        if options["do_sample"]:
            sampling = {key: options[key] for key in ("temperature", "top_k", "top_p", "min_p") if key in options}
        return Request((self.eot_token_id, *kept), max_tokens=max(1, new), tools=False, **sampling)


def _row(context: Sequence[int], continuation: Sequence[int]) -> Row:
    ids = np.array([*context, *continuation], dtype=np.int64)
    return Row(ids, len(context), len(ids))


def _grouped(rows: Sequence[Row]) -> list[Group]:
    """Rows in their order, those in a row that begin with the same context together: the choices of one question."""
    groups: list[list[Row]] = []
    for row in rows:
        last = groups[-1][-1] if groups else None
        if last is not None and last.start == row.start and np.array_equal(last.ids[: row.start], row.ids[: row.start]):
            groups[-1].append(row)
        else:
            groups.append([row])
    return [Group(tuple(group)) for group in groups]


def _sum(score: RowScore) -> float:
    return float(score.losses.sum(dtype=np.float64))


def _until(text: str, stops: Sequence[str]) -> str:
    return text[: min((at for stop in stops if (at := text.find(stop)) >= 0), default=len(text))]


def _joined(parts: Sequence[Sequence[Any]]) -> list[Any]:
    """What ranks 0, 1, … did of a list, each every so manieth, as the list."""
    whole: list[Any] = [None] * sum(map(len, parts))
    for rank, part in enumerate(parts):
        whole[rank :: len(parts)] = part
    return whole
