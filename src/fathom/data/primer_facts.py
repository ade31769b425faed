"""The relations of the primer's world: which facts there are, how they are told, and how they are asked."""

from __future__ import annotations

from collections.abc import Sequence

from fathom.data import primer_world as world
from fathom.data.primer_asking import Relation, wordings


def _shifted(cycle: Sequence[str], by: int) -> list[tuple[str, str]]:
    return [(name, cycle[(place + by) % len(cycle)]) for place, name in enumerate(cycle)]


def _turned(pairs: Sequence[tuple[str, str]]) -> list[tuple[str, str]]:
    return [(right, left) for left, right in pairs]


def _of_people(values: Sequence[str]) -> list[tuple[str, str]]:
    return list(zip(world.PEOPLE, values, strict=True))


COUNTRIES = (
    Relation(
        "capital",
        world.CAPITALS,
        "The capital of {s} is {v}.",
        wordings(
            direct=("what is the capital of {s}", "what's the capital of {s}", "which city is the capital of {s}"),
            clause=("the capital of {s}", "what the capital of {s} is"),
            bare=("Name the capital of {s}.", "the capital of {s}?"),
        ),
        ("{v} is the capital of {s}.", "The city of {v} is the capital of {s}."),
    ),
    Relation(
        "country",
        _turned(world.CAPITALS),
        "The city of {s} is the capital of {v}.",
        wordings(
            direct=("which country has the capital {s}", "what country has the capital {s}"),
            clause=("which country has the capital {s}",),
            bare=("Of which country is {s} the capital?", "In which country is {s}?", "Where is {s}?"),
        ),
        ("The people of {s} live in {v}.", "{s} is a city in {v}."),
    ),
)

OPPOSITES = Relation(
    "opposite",
    (*world.OPPOSITES, *_turned(world.OPPOSITES)),
    "The opposite of {s} is {v}.",
    wordings(
        direct=("what is the opposite of {s}", "what's the opposite of {s}", "which word is the opposite of {s}"),
        clause=("the opposite of {s}", "what the opposite of {s} is"),
        bare=("Name the opposite of {s}.", "the opposite of {s}?"),
    ),
)

DAYS = (
    Relation(
        "day",
        _shifted(world.DAYS, 1),
        "The day after {s} is {v}.",
        wordings(
            direct=("what day comes after {s}", "which day comes after {s}", "what is the day after {s}"),
            clause=("the day after {s}", "which day comes after {s}"),
        ),
    ),
    Relation(
        "day",
        _shifted(world.DAYS, -1),
        "The day before {s} is {v}.",
        wordings(
            direct=("what day comes before {s}", "which day comes before {s}", "what is the day before {s}"),
            clause=("the day before {s}", "which day comes before {s}"),
        ),
    ),
    Relation(
        "day",
        _shifted(world.DAYS, 1),
        "If today is {s}, then tomorrow will be {v}.",
        wordings(
            direct=("if today is {s}, what day is tomorrow", "what day is tomorrow if today is {s}"),
            clause=("what day tomorrow is if today is {s}",),
            bare=("Today is {s}. What day is tomorrow?", "It is {s} today. What will tomorrow be?"),
        ),
        follows=False,
    ),
    Relation(
        "day",
        _shifted(world.DAYS, -1),
        "If today is {s}, then yesterday was {v}.",
        wordings(
            direct=("if today is {s}, what day was yesterday", "what day was yesterday if today is {s}"),
            clause=("what day yesterday was if today is {s}",),
            bare=("Today is {s}. What day was yesterday?", "It is {s} today. What was yesterday?"),
        ),
        follows=False,
    ),
    Relation(
        "day",
        _shifted(world.DAYS, 2),
        "If yesterday was {s}, then tomorrow will be {v}.",
        wordings(
            direct=("if yesterday was {s}, what day is tomorrow", "what day is tomorrow if yesterday was {s}"),
            clause=("what day tomorrow is if yesterday was {s}",),
            bare=("Yesterday was {s}. What day is tomorrow?", "It was {s} yesterday. What will tomorrow be?"),
        ),
        follows=False,
    ),
)

MONTHS = (
    Relation(
        "month",
        _shifted(world.MONTHS, 1),
        "The month after {s} is {v}.",
        wordings(
            direct=("what month comes after {s}", "which month comes after {s}", "what is the month after {s}"),
            clause=("the month after {s}", "which month comes after {s}"),
        ),
    ),
    Relation(
        "month",
        _shifted(world.MONTHS, -1),
        "The month before {s} is {v}.",
        wordings(
            direct=("what month comes before {s}", "which month comes before {s}", "what is the month before {s}"),
            clause=("the month before {s}", "which month comes before {s}"),
        ),
    ),
    Relation(
        "month",
        list(zip(world.MONTHS, world.SEASONS, strict=True)),
        "The month of {s} is in {v}.",
        wordings(
            direct=("in which season is {s}", "in what season is {s}", "which season is it in {s}"),
            clause=("the season of {s}", "which season it is in {s}"),
        ),
    ),
    Relation(
        "month",
        [(month, str(place)) for place, month in enumerate(world.MONTHS, start=1)],
        "The month of {s} has the number {v}.",
        wordings(
            direct=("what is the number of the month {s}", "which number does the month {s} have"),
            clause=("the number of the month {s}", "which number the month {s} has"),
        ),
    ),
)

PLANETS = (
    Relation(
        "planet",
        list(zip(world.ORDINALS, world.PLANETS, strict=True)),
        "The {s} planet from the sun is {v}.",
        wordings(
            direct=("what is the {s} planet from the sun", "which planet is the {s} from the sun"),
            clause=("the {s} planet from the sun", "which planet is the {s} from the sun"),
            bare=("Name the {s} planet from the sun.",),
        ),
        follows=False,
    ),
    Relation(
        "planet",
        _shifted(world.PLANETS, 1)[:-1],
        "The planet after {s} is {v}.",
        wordings(
            direct=("which planet comes after {s}", "what planet comes after {s}", "what is the planet after {s}"),
            clause=("which planet comes after {s}", "the planet after {s}"),
        ),
    ),
    Relation(
        "planet",
        _shifted(world.PLANETS, -1)[1:],
        "The planet before {s} is {v}.",
        wordings(
            direct=("which planet comes before {s}", "what planet comes before {s}", "what is the planet before {s}"),
            clause=("which planet comes before {s}", "the planet before {s}"),
        ),
    ),
    Relation(
        "planet",
        world.PLANET_MARKS,
        "{S} is {v}.",
        wordings(
            direct=("what is {s}", "what is the name of {s}", "what is {s} called"),
            clause=("the name of {s}",),
            bare=("Name {s}.",),
        ),
        ("{v} is {s}.",),
    ),
)

ELEMENTS = (
    Relation(
        "symbol",
        world.SYMBOLS,
        "The chemical symbol of {s} is {v}.",
        wordings(
            direct=(
                "what is the chemical symbol of {s}", "what's the symbol of {s}", "what is the symbol for {s}",
                "which symbol does {s} have",
            ),
            clause=("the chemical symbol of {s}", "the symbol of {s}"),
        ),
        ("The symbol for {s} is {v}.",),
    ),
    Relation(
        "element",
        _turned(world.SYMBOLS),
        "The element with the symbol {s} is {v}.",
        wordings(
            direct=(
                "which element has the symbol {s}", "what element has the symbol {s}",
                "what is the element with the symbol {s}", "which element is written {s}",
            ),
            clause=("which element has the symbol {s}", "the element with the symbol {s}"),
        ),
        ("The symbol {s} stands for {v}.",),
    ),
    Relation(
        "atomic_number",
        world.ATOMIC_NUMBERS,
        "The atomic number of {s} is {v}.",
        wordings(
            direct=("what is the atomic number of {s}", "what's the atomic number of {s}",
                    "which atomic number does {s} have"),
            clause=("the atomic number of {s}", "which atomic number {s} has"),
        ),
        ("An atom of {s} has {v} protons.",),
    ),
)  # fmt: skip

ANIMALS = (
    Relation(
        "sound",
        world.SOUNDS,
        "{S} {v}.",
        wordings(
            direct=("what sound does {s} make", "which sound does {s} make", "what noise does {s} make"),
            clause=("what sound {s} makes", "the sound of {s}", "the noise of {s}"),
        ),
        ("When it calls, {s} {v}.",),
    ),
    Relation(
        "young",
        world.YOUNG,
        "The young of {s} is called a {v}.",
        wordings(
            direct=("what is the young of {s} called", "what is the baby of {s} called",
                    "what do you call the young of {s}", "what do you call the baby of {s}"),
            clause=("what the young of {s} is called", "the name for the young of {s}", "the name for the baby of {s}"),
        ),
        ("A {v} is the young of {s}.",),
    ),
    Relation(
        "legs",
        world.LEGS,
        "{S} has {v} legs.",
        wordings(
            direct=("how many legs does {s} have", "how many legs has {s}", "what number of legs does {s} have"),
            clause=("how many legs {s} has", "the number of legs of {s}"),
        ),
    ),
)  # fmt: skip

LARGER = Relation(
    "larger_animal",
    [
        (f"{one} or {other}", max(one, other, key=world.BY_SIZE.index))
        for one in world.BY_SIZE
        for other in world.BY_SIZE
        if one != other
    ],
    "The larger one is {v}.",
    wordings(
        direct=("which is larger, {s}", "which animal is larger, {s}", "what is larger, {s}"),
        clause=("which is larger, {s}",),
    ),
    told=False,
)

COLOURS = Relation(
    "colour",
    world.COLOURS,
    "The colour of {s} is {v}.",
    wordings(
        direct=("what colour is {s}", "which colour is {s}", "what is the colour of {s}", "which colour does {s} have"),
        clause=("the colour of {s}", "what colour {s} is"),
    ),
    ("{S} is {v}.",),
)

WORD_FORMS = (
    Relation(
        "plural",
        world.PLURALS,
        "The plural of {s} is {v}.",
        wordings(
            direct=("what is the plural of {s}", "what's the plural of {s}", "which word is the plural of {s}"),
            clause=("the plural of {s}", "what the plural of {s} is"),
        ),
        ("One {s}, two {v}.",),
    ),
    Relation(
        "past",
        world.PASTS,
        "The past of {s} is {v}.",
        wordings(
            direct=("what is the past of {s}", "what is the past form of {s}", "which word is the past of {s}"),
            clause=("the past of {s}", "what the past of {s} is"),
        ),
        ("Today I {s}, yesterday I {v}.",),
    ),
)

TOWN = (
    Relation(
        "town",
        _of_people(world.JOBS),
        "{s} is a {v}.",
        wordings(
            direct=("what is the job of {s}", "what does {s} do for a living", "what is the work of {s}"),
            clause=("the job of {s}", "what the job of {s} is"),
        ),
        ("In our town, {s} is the {v}.", "{s} works as a {v}."),
    ),
    Relation(
        "town",
        _of_people(world.PETS),
        "{s} has a {v}.",
        wordings(
            direct=("what pet does {s} have", "which pet does {s} have", "what animal does {s} have"),
            clause=("the pet of {s}", "what pet {s} has"),
        ),
        ("In our town, {s} has a {v}.", "The pet of {s} is a {v}."),
    ),
    Relation(
        "town",
        _of_people(world.FOODS),
        "{s} likes to eat {v}.",
        wordings(
            direct=("what does {s} like to eat", "what is the favourite food of {s}", "which food does {s} like"),
            clause=("the favourite food of {s}", "what {s} likes to eat"),
        ),
        ("The favourite food of {s} is {v}.",),
    ),
    Relation(
        "town",
        _of_people(world.HOUSES),
        "{s} lives in the {v} house.",
        wordings(
            direct=("in which house does {s} live", "what colour is the house of {s}", "where does {s} live"),
            clause=("where {s} lives", "the colour of the house of {s}"),
        ),
        ("The house of {s} is {v}.", "In our town, {s} lives in the {v} house."),
    ),
)

TOWN_TURNED = (
    Relation(
        "town_who",
        _turned(_of_people(world.JOBS)),
        "The {s} of our town is {v}.",
        wordings(
            direct=("who is the {s} of our town", "who is the {s}", "who works as a {s}"),
            clause=("who the {s} is", "the name of the {s}"),
        ),
        follows=False,
    ),
    Relation(
        "town_who",
        _turned(_of_people(world.PETS)),
        "The {s} belongs to {v}.",
        wordings(
            direct=("who has a {s}", "who has the {s}", "who owns the {s}"),
            clause=("who has a {s}", "who owns the {s}"),
        ),
        follows=False,
    ),
    Relation(
        "town_who",
        _turned(_of_people(world.HOUSES)),
        "The {s} house belongs to {v}.",
        wordings(
            direct=("who lives in the {s} house", "who owns the {s} house"),
            clause=("who lives in the {s} house", "who owns the {s} house"),
        ),
        follows=False,
    ),
)

RELATIONS: tuple[Relation, ...] = (
    *COUNTRIES, OPPOSITES, *DAYS, *MONTHS, *PLANETS, *ELEMENTS, *ANIMALS, LARGER, COLOURS, *WORD_FORMS,
    *TOWN, *TOWN_TURNED,
)  # fmt: skip
