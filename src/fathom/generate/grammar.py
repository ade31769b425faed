"""Answers that obey a JSON schema: which tokens may come next, by the llguidance library."""

from __future__ import annotations

import json
from collections import OrderedDict
from collections.abc import Set
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from fathom.data import conversations
from fathom.errors import FathomError

if TYPE_CHECKING:
    from fathom.tokenizer import Tokenizer

KEPT = 64  # compiled schemas
# No endless blanks, which small models like: one between two parts at most.
_OPTIONS: Any = {"whitespace_pattern": "[ \\n]?"}


class Matcher:
    """One answer's way through its schema."""

    def __init__(self, matcher: Any, end: int, vocab_size: int) -> None:
        self._matcher, self._end, self._vocab_size = matcher, end, vocab_size

    @property
    def finished(self) -> bool:
        """Nothing can follow."""
        return bool(self._matcher.is_stopped())

    def allowed(self, stop: Set[int]) -> Tensor:
        """(V,) bool: the tokens that may come next; those of `stop` where the answer may end. None after an error."""
        bits = torch.frombuffer(bytearray(self._matcher.compute_logit_bias()), dtype=torch.uint8)[: self._vocab_size]
        allowed = bits != 0
        may_end = bool(allowed[self._end])
        allowed[self._end] = False
        if may_end:
            allowed[list(stop)] = True
        return allowed if not self._matcher.is_error() else torch.zeros_like(allowed)

    def take(self, token: int) -> None:
        """`token` was chosen; it is none of those that end the answer."""
        self._matcher.consume_token(token)


class Grammars:
    """Compiles schemas for one tokenizer, and keeps the last ones."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._end = tokenizer.special(conversations.ASSISTANT_END)
        self._known: OrderedDict[str, Any] = OrderedDict()
        self._vocabulary: Any = None

    def matcher(self, schema: str) -> Matcher:
        """A new way through this schema. Raises FathomError where it is none."""
        if schema not in self._known:
            self._known[schema] = self._compile(schema)
            if len(self._known) > KEPT:
                self._known.popitem(last=False)
        self._known.move_to_end(schema)
        return Matcher(self._known[schema].deep_copy(), self._end, self._tokenizer.vocab_size)

    def _compile(self, schema: str) -> Any:
        from llguidance import LLMatcher, LLTokenizer, TokenizerWrapper

        try:
            content = json.loads(schema)
        except (ValueError, RecursionError) as error:
            raise FathomError(f"the schema {_short(schema)} is no JSON ({error})", "give a JSON schema") from None
        if not isinstance(content, dict):
            raise FathomError(f"the schema {_short(schema)} is no JSON object", 'give one, as {"type": "object"}')
        if self._vocabulary is None:
            self._vocabulary = LLTokenizer(TokenizerWrapper(_Vocabulary(self._tokenizer, self._end)))
        try:
            grammar = LLMatcher.grammar_from_json_schema(schema, defaults=_OPTIONS)
            problem = LLMatcher.validate_grammar(grammar, self._vocabulary)
            matcher = LLMatcher(self._vocabulary, grammar, log_level=0)
        except ValueError as error:
            raise _refusal(schema, str(error)) from None
        if problem and not problem.startswith("WARNING"):
            raise _refusal(schema, problem)
        if matcher.is_error():
            raise _refusal(schema, matcher.get_error())
        return matcher


class _Vocabulary:
    """What llguidance asks of a tokenizer."""

    def __init__(self, tokenizer: Tokenizer, end: int) -> None:
        special = {id: name.encode() for name, id in tokenizer.specials.items()}
        self.eos_token_id, self.bos_token_id = end, tokenizer.bos_id
        self.tokens = [special.get(i) or tokenizer.decode_bytes([i]) for i in range(tokenizer.vocab_size)]
        self.special_token_ids = list(special)
        self._tokenizer = tokenizer

    def __call__(self, text: bytes) -> list[int]:
        return self._tokenizer.encode(text.decode("utf-8", "replace"))


def _short(schema: str) -> str:
    return repr(schema if len(schema) <= 60 else schema[:57] + "…")


def _refusal(schema: str, problem: str) -> FathomError:
    line = next((line.strip() for line in problem.splitlines() if line.strip()), "no reason given")
    return FathomError(f"the schema {_short(schema)} cannot be followed ({line[:200]})", "change that part of it")
