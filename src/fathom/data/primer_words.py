"""Words and letters in the primer: spelling by heart, counting letters through the calculator.

Held out: pairs of a word and a wording; for counting, the word together with the letter, in any wording; for
repeating, the words in their order, in any wording.
"""

from __future__ import annotations

from fathom.data import primer_world as world
from fathom.data.primer_asking import Exchange, Kind, Relation, until, wordings
from fathom.data.primer_dice import Dice


def spelled(word: str) -> str:
    return "-".join(word)


SPELLING = Relation(
    "spell",
    [(word, spelled(word)) for word in world.SPELLED],
    "The word {s} is spelled {v}.",
    wordings(
        direct=("how do you spell {s}", "how is {s} spelled", "how do you spell the word {s}", "can you spell {s}"),
        clause=("how {s} is spelled", "the letters of {s}"),
        bare=("Spell {s}.", "Spell the word {s}.", "Please spell {s}."),
    ),
    ("{s}: {v}",),
)

ENDS = tuple(
    Relation(
        "letter",
        [(word, word[place]) for word in world.SPELLED],
        f"The {name} letter of {{s}} is {{v}}.",
        wordings(
            direct=(f"what is the {name} letter of {{s}}", f"what's the {name} letter of {{s}}",
                    f"which letter is the {name} of {{s}}"),
            clause=(f"the {name} letter of {{s}}",),
        ),
    )
    for name, place in (("first", 0), ("last", -1))
)  # fmt: skip

COUNTING = wordings(
    direct=(
        "how many {x} are in {s}", "how many {x}'s are in {s}", "how many {x} are there in {s}",
        "how many times is the letter {x} in {s}", "how often is the letter {x} in the word {s}",
    ),
    clause=("how many {x} are in {s}",),
    bare=("Count the letter {x} in {s}.", "Count the {x} in the word {s}."),
)  # fmt: skip

FREQUENT_LETTERS = "aeiorst"


def _letter_count(dice: Dice) -> Exchange:
    """Mostly a letter of the word, now and then one it may lack."""
    word = dice.pick(world.SPELLED)
    letter = dice.pick(FREQUENT_LETTERS if dice.chance(0.1) else word)
    number = str(word.count(letter))
    return Exchange(
        kind="letter_count",
        question=dice.pick(COUNTING).format(x=letter, s=word),
        reply=f"The number of {letter} in {word} is {number}.",
        answer=number,
        combination=f"letter_count | {word} | {letter}",
        call=f"'{word}'.count('{letter}')",
        result=number,
    )


REPEATED = wordings(
    bare=("Repeat after me: {words}.", "Repeat: {words}.", "Say this: {words}.", "Please repeat: {words}.",
          "Can you say this: {words}?"),
)  # fmt: skip


def _repeat(dice: Dice) -> Exchange:
    """Three to six words to say again: what a model learns from this it needs for every look back."""
    words = " ".join(dice.some(world.SPELLED, dice.between(3, 6)))
    question = dice.pick(REPEATED).format(words=words)
    return Exchange("repeat", question, f"You said: {words}.", words, f"repeat | {words}")


REPEAT = Kind("repeat", lambda dice, held_out: until(held_out, lambda: _repeat(dice)))

LETTER_COUNT = Kind("letter_count", lambda dice, held_out: until(held_out, lambda: _letter_count(dice)))
