"""Short stories of the primer's people, and questions that only the story answers.

Held out: who went where and found what there. A trip of the quiz (Anna, the park, a key) is in no story of the
training text. Person and place alone are not held out: a model would learn that those two never meet, and would rather
believe that than the story.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from fathom.data import primer_world as world
from fathom.data.primer_asking import Exchange, Kind
from fathom.data.primer_dice import Dice, is_held_out

TIMES = ("One day", "One morning", "One sunny morning", "On a rainy day", "Early in the morning", "In the evening")
MEANWHILE = ("", "", "At the same time ", "On the same day ", "Later ")
MEETINGS = (
    "Then {a} met {b} on the way home.",
    "{a} gave the {x} to {b}.",
    "Then {a} and {b} told each other what they had found.",
    "{b} liked the {x} of {a} very much.",
    "{a} put the {x} into a box.",
)
ENDINGS = (
    "In the end everyone was happy.",
    "In the evening {a} and {b} ate {food} together.",
    "It was a good day.",
    "Then they went to sleep.",
    "They laughed and went home.",
)

WHERE = ("Where did {a} go?", "Tell me where {a} went.", "To which place did {a} go?", "Do you know where {a} went?")
WHAT = ("What did {a} find?", "Tell me what {a} found.", "Which thing did {a} find?", "Do you know what {a} found?")
WHO_FOUND = ("Who found the {x}?", "Tell me who found the {x}.", "Which person found the {x}?")
WHO_WENT = ("Who went to the {p}?", "Tell me who went to the {p}.", "Which person went to the {p}?")


@dataclass(frozen=True)
class Trip:
    """Who went where and found what there."""

    person: str
    place: str
    thing: str

    @property
    def combination(self) -> str:
        return f"story | {self.person} | {self.place} | {self.thing}"


def _trip(dice: Dice, held_out: bool, other: Trip | None = None) -> Trip:
    """A trip on the asked side of the fence that shares nothing with the other one."""
    while True:
        trip = Trip(dice.pick(world.PEOPLE), dice.pick(world.PLACES), dice.pick(world.THINGS))
        shares = other and (trip.person == other.person or trip.place == other.place or trip.thing == other.thing)
        if not shares and is_held_out(trip.combination) == held_out:
            return trip


def trips(dice: Dice, held_out: bool = False) -> tuple[Trip, Trip]:
    """Two trips of one story; only the first may be one that is held out."""
    first = _trip(dice, held_out)
    return first, _trip(dice, False, first)


def tell(dice: Dice, first: Trip, second: Trip) -> str:
    """A story of four to six sentences around two trips, in either order."""
    one, two = dice.shuffled((first, second))
    time = dice.pick(TIMES)
    went = f"{time} {one.person} went to the {one.place}."
    also = f"{dice.pick(MEANWHILE)}{two.person} went to the {two.place}."
    found, found_too = (
        f"{dice.pick(('There ', ''))}{trip.person} found a {trip.thing}." for trip in (one, two)
    )  # fmt: skip
    sentences = [went, found, also, found_too] if dice.chance(0.6) else [went, also, found, found_too]
    last = {"a": one.person, "b": two.person, "x": one.thing, "food": dice.pick(world.FOODS)}
    if dice.chance(0.6):
        sentences.append(dice.pick(MEETINGS).format(**last))
    if dice.chance(0.6):
        sentences.append(dice.pick(ENDINGS).format(**last))
    return " ".join(sentences)


@dataclass(frozen=True)
class Ask:
    """A way to ask for a trip: its wordings, the reply, and what of it is the answer."""

    wordings: Sequence[str]
    reply: str
    answer: str

    def exchange(self, dice: Dice, kind: str, trip: Trip) -> Exchange:
        names = {"a": trip.person, "p": trip.place, "x": trip.thing}
        return Exchange(
            kind=kind,
            question=dice.pick(self.wordings).format(**names),
            reply=self.reply.format(**names),
            answer=self.answer.format(**names),
            combination=trip.combination,
        )


ASKS = {
    "story_where": (Ask(WHERE, "{a} went to the {p}.", "{p}"),),
    "story_what": (Ask(WHAT, "{a} found a {x}.", "{x}"),),
    "story_who": (
        Ask(WHO_FOUND, "{a} found the {x}.", "{a}"),
        Ask(WHO_WENT, "{a} went to the {p}.", "{a}"),
    ),
}


def _after(story: str, exchange: Exchange, dice: Dice) -> Exchange:
    """The exchange with the story told before its question."""
    return replace(exchange, question=story + dice.pick((" ", "\n")) + exchange.question)


def _story_kind(name: str) -> Kind:
    """A kind that tells a story and asks for one of its trips."""

    def draw(dice: Dice, held_out: bool) -> Exchange:
        ask = dice.pick(ASKS[name])
        pair = trips(dice, held_out)
        return _after(tell(dice, *pair), ask.exchange(dice, name, pair[0]), dice)

    return Kind(name, draw)


KINDS = tuple(_story_kind(name) for name in ASKS)


def asked_often(dice: Dice, n: int) -> list[Exchange]:
    """A story and n different questions about it, one after another."""
    pair = trips(dice)
    every = [ask.exchange(dice, name, trip) for trip in pair for name, asks in ASKS.items() for ask in asks]
    first, *others = dice.some(every, n)
    return [_after(tell(dice, *pair), first, dice), *others]
