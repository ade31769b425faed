"""How the primer asks: an exchange is a question with its reply, a relation makes one from every fact and wording."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from fathom.data.primer_dice import Dice, is_held_out

DIRECT_FRAMES = ("{}?", "Please tell me: {}?", "Fathom, {}?")
CLAUSE_FRAMES = ("Tell me {}.", "Please tell me {}.", "Can you tell me {}?", "Do you know {}?", "I want to know {}.")

LONG_QUESTION = 90


@dataclass(frozen=True)
class Exchange:
    """One question and its one right reply, through the calculator where `call` is not empty."""

    kind: str
    question: str
    reply: str
    answer: str
    combination: str
    call: str = ""
    result: str = ""
    before: tuple[Exchange, ...] = ()
    """What was said earlier in the same conversation, where the question needs it."""

    @property
    def held_out(self) -> bool:
        return is_held_out(self.combination)

    def as_text(self) -> str:
        """The exchange as lines of a document; call and result are lines of their own."""
        lines = [exchange.as_text() for exchange in self.before]
        lines += [self.question, self.call, self.result, self.reply] if self.call else [self.question, self.reply]
        return "\n".join(lines)

    def as_messages(self) -> list[dict[str, Any]]:
        """The exchange as messages of a conversation; an assistant that calls has parts as its content."""
        earlier = [message for exchange in self.before for message in exchange.as_messages()]
        parts = (("python", self.call), ("python_output", self.result), ("text", self.reply))
        content: Any = [{"type": kind, "text": text} for kind, text in parts] if self.call else self.reply
        return [*earlier, {"role": "user", "content": self.question}, {"role": "assistant", "content": content}]


def typed(dice: Dice, exchange: Exchange) -> Exchange:
    """The exchange as people type it: now and then without capitals, without the mark at the end, or neither.

    Long questions (stories, word problems) stay as they are.
    """
    text = exchange.question
    if len(text) > LONG_QUESTION:
        return exchange
    if dice.chance(0.15):
        text = text.lower()
    if dice.chance(0.15):
        text = text.rstrip("?.!")
    return replace(exchange, question=text)


@dataclass(frozen=True)
class Kind:
    """A kind of question. `draw(dice, held_out)` gives an exchange from the side of the fence that is asked for."""

    name: str
    draw: Callable[[Dice, bool], Exchange]


def until(held_out: bool, make: Callable[[], Exchange]) -> Exchange:
    """Throw again until the exchange lies on the side of the fence that is asked for."""
    while True:
        exchange = make()
        if exchange.held_out == held_out:
            return exchange


def plain(question: str) -> str:
    """The words of a question alone: small letters, no marks but those of arithmetic."""
    return " ".join(re.findall(r"[a-z0-9]+|[-+*/=]", question.lower()))


def capital(text: str) -> str:
    """The text with a capital letter at its beginning."""
    return text[:1].upper() + text[1:]


def wordings(direct: Sequence[str] = (), clause: Sequence[str] = (), bare: Sequence[str] = ()) -> tuple[str, ...]:
    """All wordings as templates: "what is …" and "the capital of …" in all their frames, `bare` ones as they are."""
    framed = [frame.format(part) for frames, parts in ((DIRECT_FRAMES, direct), (CLAUSE_FRAMES, clause))
              for part in parts for frame in frames]  # fmt: skip
    return tuple(capital(text) for text in (*framed, *bare))


@dataclass(frozen=True)
class Relation:
    """Facts of one sort and the wordings that ask for them.

    In the templates {s} is the subject and {v} the value, {S} and {V} the same with a capital letter.
    Held out: pairs of a subject and a wording.
    """

    kind: str
    facts: Sequence[tuple[str, str]]
    reply: str
    asked: Sequence[str]
    statements: Sequence[str] = ()
    follows: bool = True
    """Whether "And {s}?" makes sense after a question of this relation."""
    told: bool = True
    """Whether the reply says all by itself, so that a text may tell it."""

    def say(self, template: str, subject: str, value: str) -> str:
        return template.format(s=subject, v=value, S=capital(subject), V=capital(value))

    def exchange(self, wording: str, subject: str, value: str) -> Exchange:
        question = self.say(wording, subject, value)
        return Exchange(
            kind=self.kind,
            question=question,
            reply=self.say(self.reply, subject, value),
            answer=value,
            combination=f"{self.kind} | {plain(question)}",
        )

    @cached_property
    def exchanges(self) -> dict[bool, list[Exchange]]:
        """All exchanges of the relation by side of the fence."""
        both = [self.exchange(wording, *fact) for wording in self.asked for fact in self.facts]
        return {side: [one for one in both if one.held_out == side] for side in (False, True)}

    @cached_property
    def sentences(self) -> list[str]:
        """All plain statements of the relation."""
        templates = (self.reply, *self.statements) if self.told else self.statements
        return [self.say(template, *fact) for template in templates for fact in self.facts]


def kind_of_facts(name: str, relations: Sequence[Relation]) -> Kind:
    """A kind whose questions come from relations, each as often as it has facts."""
    lot = [relation for relation in relations for _ in relation.facts]

    def draw(dice: Dice, held_out: bool) -> Exchange:
        return dice.pick(dice.pick(lot).exchanges[held_out])

    return Kind(name, draw)
