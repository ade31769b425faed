"""Spelling and counting letters, generated: what subword tokens hide from a model. Not part of ChatCORE."""

from __future__ import annotations

import random
import re

from fathom.data import primer_world as world
from fathom.evaluate.chat.example import Example

N_EXAMPLES = 256
SEED = 1337
WORDS = sorted({*world.SPELLED, *world.PLACES, *world.PETS, *world.FOODS, *world.COUNTED})
TO_SPELL = (
    "Spell the word {word}, letter by letter.",
    "Which letters does the word {word} consist of? Give them one by one, in their order.",
)
TO_COUNT = (
    "How many times does the letter {letter} occur in the word {word}?",
    "Count how often {letter} stands in {word}.",
)


def examples(n: int = N_EXAMPLES, seed: int = SEED) -> list[Example]:
    """`n` different questions, half of them to spell a word, half to count a letter (one time in five a rare one)."""
    dice = random.Random(seed)
    chosen: dict[str, Example] = {}
    while len(chosen) < n:
        word = dice.choice(WORDS)
        if len(chosen) % 2:
            question, answer = dice.choice(TO_SPELL).format(word=word), word
        else:
            letter = dice.choice("aeiorstlnm" if dice.random() < 0.2 else word)
            question, answer = dice.choice(TO_COUNT).format(word=word, letter=letter), str(word.count(letter))
        chosen.setdefault(question, Example([{"role": "user", "content": question}], answer))
    return list(chosen.values())


def grade(reply: str, example: Example) -> bool:
    """Right are the letters in order with anything but letters between them, and no further letter in the same breath;
    of a count, the last number in a reply.
    """
    if example.answer.isdecimal():
        return re.findall(r"\d+", reply)[-1:] == [example.answer]
    spelled = r"[^a-z]+".join(example.answer)
    further = r"[^a-z.!?\n]*[a-z](?![a-z])"
    return re.search(rf"(?<![a-z]){spelled}(?![a-z])(?!{further})", reply.lower()) is not None
