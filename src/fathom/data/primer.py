"""The embedded corpus: texts and conversations about a small world, and a quiz whose questions they do not hold.

Everything follows from a seed, on every machine. A question is a combination of things that are taught one by one;
a stable hash keeps about one combination in seven out of all training text, and the quiz asks for exactly those.
What a combination is:

- facts (capitals, opposites, days, planets, elements, animals, people of a town, spelling, …): subject × wording,
  whatever the capital letters and marks
- calculations (sums, equations, word problems, …): the calculation itself, in any wording
- counting: the first and the last number; counting letters: word × letter; repeating: the words; in any wording
- stories: who did what at which place
- questions about Fathom: greeting × question
- follow-ups ("And of Italy?"): the two subjects, in that order

Nothing that is needed for an answer is held out: every fact is told, and asked in other wordings, many times.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from fathom.data import primer_facts as facts
from fathom.data import primer_numbers as numbers
from fathom.data import primer_stories as stories
from fathom.data import primer_talk as talk
from fathom.data import primer_words as words
from fathom.data import primer_world as world
from fathom.data.conversations.messages import Message
from fathom.data.primer_asking import Exchange, Kind, Relation, kind_of_facts, typed, until
from fathom.data.primer_dice import Dice, is_held_out

QUESTIONS_PER_KIND = 40
DOCUMENT_CHARACTERS = 600
MANY_FACTS = 32

RELATIONS: tuple[Relation, ...] = (*facts.RELATIONS, *numbers.NEIGHBOURS, words.SPELLING, *words.ENDS)

FOLLOW_UPS = ("And {s}?", "What about {s}?", "And what about {s}?")


def _follow_up(dice: Dice) -> Exchange:
    """A question, and a second one that says only what is new."""
    relation = dice.pick([relation for relation in RELATIONS if relation.follows])
    (one, _), (two, value) = dice.some(relation.facts, 2)
    asked_first = until(False, lambda: relation.exchange(dice.pick(relation.asked), one, dict(relation.facts)[one]))
    return Exchange(
        kind="follow_up",
        question=relation.say(dice.pick(FOLLOW_UPS), two, value),
        reply=relation.say(relation.reply, two, value),
        answer=value,
        combination=f"follow_up | {relation.reply} | {one} | {two}",
        before=(asked_first,),
    )


def _kinds() -> tuple[Kind, ...]:
    of_facts: dict[str, list[Relation]] = {}
    for relation in RELATIONS:
        of_facts.setdefault(relation.kind, []).append(relation)
    return (
        *(kind_of_facts(name, relations) for name, relations in of_facts.items()),
        *numbers.KINDS,
        words.LETTER_COUNT,
        words.REPEAT,
        *stories.KINDS,
        talk.IDENTITY,
        Kind("follow_up", lambda dice, held_out: until(held_out, lambda: _follow_up(dice))),
    )


KINDS = _kinds()

SHARES = {
    "count": 2, "day": 2, "opposite": 2, "spell": 2, "town": 2, "next_number": 2, "letter_count": 2, "follow_up": 2,
    "add": 2, "subtract": 2, "multiply": 2, "larger_number": 2, "algebra": 2, "word_problem": 2,
    "story_what": 2, "story_who": 2, "story_meal": 2, "repeat": 3,
}  # fmt: skip
"""How often a kind is asked in the training text, where not once: more often what takes longer to learn."""


def _lot() -> list[Kind]:
    return [kind for kind in KINDS for _ in range(SHARES.get(kind.name, 1))]


# Documents


def _questions(dice: Dice, kinds: Iterator[Kind]) -> str:
    """Questions with their replies, up to the size of a document."""
    blocks: list[str] = []
    length = 0
    limit = dice.between(DOCUMENT_CHARACTERS // 3, DOCUMENT_CHARACTERS)
    while length < limit:
        blocks.append(typed(dice, next(kinds).draw(dice, False)).as_text())
        length += len(blocks[-1])
    return "\n\n".join(blocks)


def _statements(dice: Dice, relations: Iterator[Relation]) -> str:
    """Facts one after another, of one relation or of a few."""
    chosen = [next(relations) for _ in range(dice.pick((1, 1, 3)))]
    known = [sentence for relation in chosen for sentence in dice.some(relation.sentences, 10 // len(chosen))]
    return dice.pick((" ", "\n")).join(dice.shuffled(known))


def _story(dice: Dice) -> str:
    return stories.tell(dice, stories.invent(dice))


def _story_with_questions(dice: Dice) -> str:
    return "\n".join(exchange.as_text() for exchange in stories.asked_often(dice, dice.between(3, 5)))


def _in_order(dice: Dice) -> str:
    """A list that everyone knows by heart, or a run of numbers."""
    lists = (
        ("The days of the week are: {}.", world.DAYS),
        ("The months of the year are: {}.", world.MONTHS),
        ("The planets of the solar system are: {}.", world.PLANETS),
        ("From the smallest to the largest: {}.", world.BY_SIZE),
        ("The people of our town are: {}.", world.PEOPLE),
    )
    return "\n".join(template.format(", ".join(names)) for template, names in dice.some(lists, dice.between(1, 3)))


def _equations(dice: Dice) -> str:
    """Equations with their solutions, none of which the quiz asks for."""
    lines: list[str] = []
    while len(lines) < 8:
        text, call, x = numbers.equation(dice, highest=5)
        if not is_held_out(numbers.calculation(call)):
            lines.append(f"If {text}, then x is {x}.")
    return "\n".join(lines)


def documents(seed: int, target_bytes: int) -> Iterator[str]:
    """Texts of 100 to 700 characters, about `target_bytes` of UTF-8 in all, streamed."""
    dice = Dice(seed, "documents")
    kinds = dice.decks(_lot())
    relations = dice.decks([relation for relation in RELATIONS if relation.told for _ in relation.facts[:MANY_FACTS]])
    makers: list[tuple[int, Callable[[], str]]] = [
        (52, lambda: _questions(dice, kinds)),
        (18, lambda: _statements(dice, relations)),
        (20, lambda: _story_with_questions(dice)),
        (4, lambda: _story(dice)),
        (3, lambda: _in_order(dice)),
        (3, lambda: _equations(dice)),
    ]
    order = dice.decks([make for share, make in makers for _ in range(share)])
    written = 0
    while written < target_bytes:
        text = next(order)()
        written += len(text.encode())
        yield text


# Conversations


def _story_wish(dice: Dice) -> Exchange:
    story = stories.invent(dice)
    wish = dice.pick(talk.STORY_WISHES)
    if dice.chance(0.5):
        wish = dice.pick(talk.STORY_WISHES_ABOUT).format(a=story.first.person)
    return Exchange("talk", wish, stories.tell(dice, story), "", "talk")


def conversations(seed: int, count: int) -> list[list[Message]]:
    """`count` conversations of one to four exchanges; each is a list of messages that begins with the user's."""
    dice = Dice(seed, "conversations")
    kinds = dice.decks(_lot())
    return [_conversation(dice, kinds) for _ in range(count)]


def _conversation(dice: Dice, kinds: Iterator[Kind]) -> list[Message]:
    exchanges = [talk.small_talk(dice)] if dice.chance(0.15) else []
    if dice.chance(0.1):
        exchanges += stories.asked_often(dice, dice.between(2, 3))
    elif dice.chance(0.05):
        exchanges.append(_story_wish(dice))
    else:
        exchanges += [next(kinds).draw(dice, False) for _ in range(dice.between(1, 3))]
    return [message for exchange in exchanges for message in typed(dice, exchange).as_messages()]


# Quiz


@dataclass(frozen=True)
class Question:
    """One question of the quiz: the conversation up to the user's last turn, and what is right."""

    kind: str
    messages: list[Message]
    answer: str
    sentence: str

    def accept(self, reply: str) -> bool:
        """Right is the whole reply sentence that the primer teaches, or the bare answer; nothing before or after it.

        `reply` is the text a person reads: calls and their outputs are left out.
        """
        return " ".join(reply.split()) in (self.sentence, self.answer, f"{self.answer}.")


def quiz(seed: int) -> list[Question]:
    """QUESTIONS_PER_KIND questions of every kind, all different, none of which the training text holds."""
    questions = []
    for kind in KINDS:
        dice = Dice(seed, f"quiz {kind.name}")
        chosen: dict[str, Exchange] = {}
        while len(chosen) < QUESTIONS_PER_KIND:
            exchange = kind.draw(dice, True)
            chosen[exchange.combination + exchange.question] = exchange
        questions += [_question(exchange) for exchange in chosen.values()]
    return questions


def _question(exchange: Exchange) -> Question:
    return Question(exchange.kind, exchange.as_messages()[:-1], exchange.answer, exchange.reply)


def samples() -> list[str]:
    """Beginnings that a model of the primer can go on with."""
    return [
        "The capital of France is",
        "The chemical symbol of gold is",
        "If yesterday was Friday, then tomorrow will be",
        "The opposite of hot is",
        "The planets of the solar system are:",
        "If 5*x + 3 = 13, then x is",
        "One morning Anna and Ben went to the",
    ]


def short_conversation() -> list[str]:
    """What a newcomer might type first."""
    return [
        "Hello!",
        "What is the capital of France?",
        "And Italy?",
        "What is 347 + 285?",
        "How many r are in strawberry?",
        "Tell me a story.",
    ]
