"""A conversation with a model: its turns, how many of them the context still holds, and its answers as they come."""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass, field
from typing import Any

from fathom.data import conversations
from fathom.data.conversations import parse_reply, render_turn
from fathom.data.conversations.messages import text_of
from fathom.errors import FathomError
from fathom.generate.engine import Engine
from fathom.generate.running import Event, Request
from fathom.generate.sampling import Sampling


@dataclass
class Turn:
    """What the user said, and the tokens of the answer as they were generated, without the end mark."""

    user: str
    reply: list[int] = field(default_factory=list)


class Talk:
    """One conversation, on an engine that it has for itself.

    Where the context cannot hold all turns and an answer, the oldest are left out of what the model sees.
    """

    def __init__(self, engine: Engine, system: str = "") -> None:
        self.engine, self.system = engine, system
        self.turns: list[Turn] = []
        self.n_forgotten = 0

    def reset(self) -> None:
        """Begin anew; the system message stays."""
        self.turns, self.n_forgotten = [], 0

    def ask(self, text: str, sampling: Sampling, max_tokens: int, seed: int) -> Generator[Event]:
        """The answer to `text`, token by token. Closing the iterator stops it and keeps what was said.

        Raises FathomError where the message does not fit the context.
        """
        prompt = self._prompt(text, max_tokens)
        request = Request(
            tuple(prompt),
            max_tokens=max_tokens,
            temperature=sampling.temperature,
            top_k=sampling.top_k,
            top_p=sampling.top_p,
            min_p=sampling.min_p,
            seed=seed,
        )
        self.turns.append(Turn(text))
        return self._events(self.engine.add(request), self.turns[-1])

    def _events(self, request_id: int, turn: Turn) -> Generator[Event]:
        try:
            while self.engine.n_unfinished:
                for event in self.engine.step():
                    if event.finished not in ("stop", "error"):
                        turn.reply.append(event.token)
                    yield event
        finally:
            self.engine.cancel(request_id)

    def messages(self) -> list[dict[str, Any]]:
        """All turns, those that were forgotten too, in the form that files of conversations have."""
        result: list[dict[str, Any]] = [{"role": "system", "content": self.system}] if self.system else []
        for turn in self.turns:
            parts = parse_reply(turn.reply, self.engine.tokenizer)
            plain = all(part["type"] == "text" for part in parts)
            result.append({"role": "user", "content": turn.user})
            result.append({"role": "assistant", "content": text_of(parts) if plain else parts})
        return result

    def _prompt(self, text: str, max_tokens: int) -> list[int]:
        """The last turns that fit, `text`, and the mark that opens the answer; counts what was left out."""
        room = self.engine.seq_len - min(max_tokens, self.engine.seq_len // 4)
        for first in range(self.n_forgotten, len(self.turns) + 1):
            prompt = self._render(self.turns[first:], text)
            if len(prompt) <= room:
                self.n_forgotten = first
                return prompt
        n_token = len(self.engine.tokenizer.encode(text))
        limit = max(0, room - len(prompt) + n_token)
        beside = "the answer and the system message" if self.system else "the answer"
        raise FathomError(
            f"the message has {n_token:,} tokens, and beside {beside} the context of {self.engine.seq_len:,} tokens "
            f"has room for {limit:,}",
            "shorten it",
        )

    def _render(self, turns: list[Turn], text: str) -> list[int]:
        tokenizer = self.engine.tokenizer
        ids, system = [tokenizer.bos_id], f"{self.system}\n\n" if self.system else ""
        for turn in turns:
            ids += render_turn(system + turn.user, tokenizer)
            ids += [*turn.reply, tokenizer.special(conversations.ASSISTANT_END)]
            system = ""
        return ids + render_turn(system + text, tokenizer)
