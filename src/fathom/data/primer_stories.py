"""Short stories of two people, and questions that only the story answers.

The stories are told so that a small model can learn to look an answer up: what is asked for stands right behind what
the question and the reply name, or is the only one of its kind. (Asking who of the two did a deed, which has to be
looked up backwards, stays at a coin's throw for as long as the quickstart trains.)

Held out: a person, a place and a deed together. Person and deed alone are not held out: a model would learn that
those two never meet, and would rather believe that than the story.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from fathom.data import primer_world as world
from fathom.data.primer_asking import Exchange, Kind
from fathom.data.primer_dice import Dice, is_held_out

TIMES = ("One day", "One morning", "One sunny morning", "On a rainy day", "Early in the morning", "Last summer")
ENDINGS = (
    "In the end everyone was happy.",
    "It was a good day.",
    "Then they went to sleep.",
    "They laughed and went home.",
    "Nobody was sad.",
)

WHERE = (
    "Where did they go?",
    "Tell me where they went.",
    "To which place did they go?",
    "Do you know where they went?",
)
MEAL = ("What did they eat?", "Tell me what they ate.", "Which food did they eat?", "Do you know what they ate?")
WHAT = ("What did {a} do?", "Tell me what {a} did.", "What was {a} doing?", "Do you know what {a} did?")
WHO = (
    "Who went to the {place}?",
    "Tell me who went to the {place}.",
    "Which people went to the {place}?",
    "Do you know who went to the {place}?",
)


@dataclass(frozen=True)
class Deed:
    """Who did what."""

    person: str
    did: str

    def held_out(self, place: str) -> bool:
        return is_held_out(combination(self, place))


@dataclass(frozen=True)
class Story:
    """Two people at one place, what each of them did there, and what they ate."""

    place: str
    first: Deed
    second: Deed
    food: str
    both: str
    """The two names as the story begins with them."""


def combination(deed: Deed, place: str) -> str:
    return f"story | {deed.person} | {deed.did} | {place}"


def invent(dice: Dice, held_out: bool = False) -> Story:
    """A story on the asked side of the fence; only its first deed may be one that is held out."""
    while True:
        place = dice.pick(world.PLACES)
        people, deeds = dice.some(world.PEOPLE, 2), dice.some(world.DEEDS, 2)
        first, second = (Deed(person, did) for person, did in zip(people, deeds, strict=True))
        if first.held_out(place) == held_out and not second.held_out(place):
            return Story(place, first, second, dice.pick(world.FOODS), " and ".join(dice.shuffled(people)))


def tell(dice: Dice, story: Story) -> str:
    """The story in four or five sentences; either person may come first, either deed too."""
    deeds = dice.shuffled((story.first, story.second))
    sentences = [
        f"{dice.pick(TIMES)} {story.both} went to the {story.place}.",
        *(f"{dice.pick(('', '', 'There ', 'Then '))}{deed.person} {deed.did}." for deed in deeds),
        f"{dice.pick(('In the evening', 'After that', 'Later'))} they ate {story.food}.",
    ]
    if dice.chance(0.4):
        sentences.append(dice.pick(ENDINGS))
    return " ".join(sentences)


@dataclass(frozen=True)
class Ask:
    """A way to ask for a story: wordings, the reply, and what of it is the answer."""

    wordings: Sequence[str]
    reply: str
    answer: str

    def exchange(self, dice: Dice, kind: str, story: Story, deed: Deed) -> Exchange:
        names = {"a": deed.person, "did": deed.did, "place": story.place, "food": story.food, "both": story.both}
        return Exchange(
            kind=kind,
            question=dice.pick(self.wordings).format(**names),
            reply=self.reply.format(**names),
            answer=self.answer.format(**names),
            combination=combination(deed, story.place),
        )


ASKS = {
    "story_where": Ask(WHERE, "They went to the {place}.", "{place}"),
    "story_meal": Ask(MEAL, "They ate {food}.", "{food}"),
    "story_what": Ask(WHAT, "In the story {a} {did}.", "{did}"),
    "story_who": Ask(WHO, "{both} went to the {place}.", "{both}"),
}


def _after(text: str, exchange: Exchange, dice: Dice) -> Exchange:
    """The exchange with the story told before its question."""
    return replace(exchange, question=text + dice.pick((" ", "\n")) + exchange.question)


def _story_kind(name: str, ask: Ask) -> Kind:
    """A kind that tells a story and asks for its first deed, its place or its meal."""

    def draw(dice: Dice, held_out: bool) -> Exchange:
        story = invent(dice, held_out)
        return _after(tell(dice, story), ask.exchange(dice, name, story, story.first), dice)

    return Kind(name, draw)


KINDS = tuple(_story_kind(name, ask) for name, ask in ASKS.items())


def asked_often(dice: Dice, n: int) -> list[Exchange]:
    """A story and n different questions about it, one after another; always what they ate, which is learnt last."""
    story = invent(dice)
    every = [(name, story.first) for name in ASKS if name != "story_meal"] + [("story_what", story.second)]
    chosen = dice.shuffled([*dice.some(every, n - 1), ("story_meal", story.first)])
    first, *others = [ASKS[name].exchange(dice, name, story, deed) for name, deed in chosen]
    return [_after(tell(dice, story), first, dice), *others]
