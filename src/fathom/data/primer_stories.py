"""Short stories of the primer's people, and questions that only the story answers.

Held out: who went where and who found what. A pair of the quiz (Anna and the park, Ben and the key) comes together
in no story, question or reply of the training text.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

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
    def to_place(self) -> str:
        return f"story | {self.person} went to the {self.place}"

    @property
    def to_thing(self) -> str:
        return f"story | {self.person} found a {self.thing}"


def _trip(dice: Dice, people: Sequence[str], others: Sequence[Trip], place_held: bool, thing_held: bool) -> Trip:
    """A trip on the asked sides of the fence that shares nothing with the others."""
    while True:
        trip = Trip(dice.pick(people), dice.pick(world.PLACES), dice.pick(world.THINGS))
        shares = any(set((trip.person, trip.place, trip.thing)) & {o.person, o.place, o.thing} for o in others)
        if not shares and is_held_out(trip.to_place) == place_held and is_held_out(trip.to_thing) == thing_held:
            return trip


def trips(dice: Dice, hero: str = "", place_held: bool = False, thing_held: bool = False) -> tuple[Trip, Trip]:
    """Two trips of one story; the second never holds a combination that is held out."""
    first = _trip(dice, (hero,) if hero else world.PEOPLE, (), place_held, thing_held)
    return first, _trip(dice, world.PEOPLE, (first,), False, False)


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


def _where(dice: Dice, trip: Trip) -> tuple[str, str, str]:
    return dice.pick(WHERE).format(a=trip.person), f"{trip.person} went to the {trip.place}.", trip.place


def _what(dice: Dice, trip: Trip) -> tuple[str, str, str]:
    return dice.pick(WHAT).format(a=trip.person), f"{trip.person} found a {trip.thing}.", trip.thing


def _who_found(dice: Dice, trip: Trip) -> tuple[str, str, str]:
    return dice.pick(WHO_FOUND).format(x=trip.thing), f"{trip.person} found the {trip.thing}.", trip.person


def _who_went(dice: Dice, trip: Trip) -> tuple[str, str, str]:
    return dice.pick(WHO_WENT).format(p=trip.place), f"{trip.person} went to the {trip.place}.", trip.person


def _story_kind(name: str, asks: Sequence[tuple[bool, Callable[[Dice, Trip], tuple[str, str, str]]]]) -> Kind:
    """A kind that tells a story and asks for one of its trips; each way to ask says whether it asks for a thing."""

    def draw(dice: Dice, held_out: bool) -> Exchange:
        of_thing, ask = dice.pick(asks)
        asked, other = trips(dice, place_held=held_out and not of_thing, thing_held=held_out and of_thing)
        question, reply, answer = ask(dice, asked)
        text = tell(dice, asked, other) + dice.pick((" ", "\n")) + question
        return Exchange(name, text, reply, answer, asked.to_thing if of_thing else asked.to_place)

    return Kind(name, draw)


KINDS = (
    _story_kind("story_where", ((False, _where),)),
    _story_kind("story_what", ((True, _what),)),
    _story_kind("story_who", ((True, _who_found), (False, _who_went))),
)
