"""The small world of the primer: plain tables of facts, nothing else."""

from __future__ import annotations

Pairs = tuple[tuple[str, str], ...]


def _pairs(text: str) -> Pairs:
    """ "a b, c d" as (("a", "b"), ("c", "d")); a colon parts the two where one has blanks."""
    entries = (entry.strip() for entry in text.replace("\n", " ").split(","))
    return tuple(_pair(entry) for entry in entries if entry)


def _pair(entry: str) -> tuple[str, str]:
    left, right = entry.split(":") if ":" in entry else entry.split(" ")
    return left.strip(), right.strip()


CAPITALS = _pairs("""
    France Paris, Italy Rome, Spain Madrid, Germany Berlin, England London, Ireland Dublin, Norway Oslo,
    Sweden Stockholm, Finland Helsinki, Denmark Copenhagen, Poland Warsaw, Austria Vienna, Greece Athens,
    Portugal Lisbon, Hungary Budapest, Russia Moscow, Turkey Ankara, Egypt Cairo, Kenya Nairobi, Japan Tokyo,
    China Beijing, Canada Ottawa, Cuba Havana, Peru Lima
""")

OPPOSITES = _pairs("""
    hot cold, big small, good bad, old young, high low, fast slow, day night, black white, open closed, happy sad,
    early late, full empty, hard soft, left right, long short, rich poor, strong weak, up down, wet dry, clean dirty,
    near far, thick thin, true false, first last
""")

DAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")

MONTHS = (
    "January", "February", "March", "April", "May", "June",
    "July", "August", "September", "October", "November", "December",
)  # fmt: skip

SEASONS = ("winter", "winter", "spring", "spring", "spring", "summer",
           "summer", "summer", "autumn", "autumn", "autumn", "winter")  # fmt: skip

ORDINALS = ("first", "second", "third", "fourth", "fifth", "sixth", "seventh", "eighth")

PLANETS = ("Mercury", "Venus", "Earth", "Mars", "Jupiter", "Saturn", "Uranus", "Neptune")

PLANET_MARKS = _pairs("""
    the largest planet: Jupiter, the smallest planet: Mercury, the hottest planet: Venus, the red planet: Mars,
    our home planet: Earth, the planet with bright rings: Saturn, the windiest planet: Neptune,
    the planet that lies on its side: Uranus
""")

SYMBOLS = _pairs("""
    hydrogen H, helium He, carbon C, nitrogen N, oxygen O, neon Ne, sodium Na, silicon Si, sulfur S, chlorine Cl,
    potassium K, calcium Ca, iron Fe, nickel Ni, copper Cu, zinc Zn, silver Ag, tin Sn, gold Au, lead Pb
""")

ATOMIC_NUMBERS = _pairs("""
    hydrogen 1, helium 2, carbon 6, nitrogen 7, oxygen 8, neon 10, sodium 11, silicon 14, sulfur 16, chlorine 17,
    potassium 19, calcium 20, iron 26, nickel 28, copper 29, zinc 30, silver 47, tin 50, gold 79, lead 82
""")

SOUNDS = _pairs("""
    a dog: barks, a cat: meows, a cow: moos, a horse: neighs, a pig: grunts, a duck: quacks, a lion: roars,
    a frog: croaks, a bee: buzzes, a wolf: howls, a mouse: squeaks, an owl: hoots, a snake: hisses, a sheep: bleats
""")

YOUNG = _pairs("""
    a dog: puppy, a cat: kitten, a cow: calf, a horse: foal, a pig: piglet, a duck: duckling, a lion: cub,
    a frog: tadpole, a goat: kid, an owl: owlet, a sheep: lamb, a hen: chick, a deer: fawn, a kangaroo: joey
""")

LEGS = _pairs("""
    a dog: 4, a cat: 4, a cow: 4, a horse: 4, a duck: 2, a hen: 2, an owl: 2, a bee: 6, an ant: 6, a fly: 6,
    a spider: 8, a snake: 0, a fish: 0, a crab: 10
""")

BY_SIZE = ("an ant", "a bee", "a mouse", "a duck", "a cat", "a sheep", "a lion", "a cow", "an elephant", "a whale")

COLOURS = _pairs("""
    grass: green, snow: white, the sky: blue, blood: red, coal: black, a lemon: yellow, a carrot: orange,
    chocolate: brown, milk: white, a tomato: red, a leaf: green, the sea: blue, a banana: yellow, a raven: black,
    a frog: green, an elephant: gray, a flamingo: pink, a plum: purple
""")

PLURALS = _pairs("""
    man men, woman women, child children, foot feet, tooth teeth, mouse mice, goose geese, leaf leaves, knife knives,
    wolf wolves, city cities, baby babies, story stories, box boxes, bus buses, dog dogs, cat cats, house houses,
    wife wives, potato potatoes
""")

PASTS = _pairs("""
    go went, see saw, eat ate, run ran, come came, give gave, take took, find found, write wrote, sing sang,
    drink drank, swim swam, speak spoke, buy bought, think thought, know knew, fly flew, sleep slept, make made,
    tell told
""")

PEOPLE = ("Anna", "Ben", "Clara", "David", "Emma", "Felix", "Grace", "Hugo", "Ida", "Jack", "Kate", "Leo")

JOBS = ("baker", "farmer", "teacher", "doctor", "painter", "sailor",
        "singer", "gardener", "cook", "pilot", "dancer", "writer")  # fmt: skip

PETS = ("cat", "turtle", "parrot", "dog", "rabbit", "goat", "hamster", "duck", "pony", "mouse", "hen", "goldfish")

FOODS = ("soup", "pizza", "rice", "cheese", "cake", "fish", "honey", "bread", "pasta", "salad", "pie", "corn")

HOUSES = ("red", "blue", "green", "yellow", "white", "black",
          "brown", "orange", "pink", "purple", "gray", "golden")  # fmt: skip

PLACES = ("park", "lake", "market", "school", "forest", "beach",
          "bridge", "library", "station", "garden", "castle", "mill")  # fmt: skip

DEEDS = (
    "painted a wall", "sang a song", "read a book", "planted a tree", "wrote a letter", "built a boat",
    "found a coin", "drew a map", "caught a ball", "flew a kite", "rang a bell", "lost a shoe",
    "bought a hat", "told a joke", "fed a bird", "broke a cup",
)  # fmt: skip

COUNTED = ("apples", "books", "coins", "stones", "cards", "eggs", "pens", "shells")

SPELLED = (
    "strawberry", "banana", "apple", "orange", "cherry", "lemon", "tomato", "potato", "carrot", "pepper",
    "cheese", "coffee", "sugar", "window", "kitchen", "garden", "flower", "forest", "river", "mountain",
    "island", "winter", "summer", "rainbow", "planet", "letter", "paper", "school", "teacher", "doctor",
    "sister", "brother", "mother", "father", "friend", "monkey", "rabbit", "tiger", "spider", "turtle",
    "elephant", "butterfly", "yellow", "purple", "hello", "happy", "water", "computer",
)  # fmt: skip
