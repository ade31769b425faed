"""Small talk of the primer: who Fathom is, greetings, lists known by heart, and what it does not know.

Held out: pairs of a greeting and a question about Fathom.
"""

from __future__ import annotations

from fathom.data import primer_world as world
from fathom.data.primer_asking import Exchange, Kind, until
from fathom.data.primer_dice import Dice

GREETINGS = (
    "Hello!",
    "Hi!",
    "Hey!",
    "Good morning!",
    "Good evening!",
    "Hi Fathom!",
    "Hello Fathom!",
    "Hello there!",
    "Good day!",
    "Hey Fathom!",
)

ABOUT = (
    (
        "Fathom",
        "My name is Fathom. I am a small language model.",
        (
            "Who are you?",
            "What are you?",
            "What is your name?",
            "What's your name?",
            "Tell me your name.",
            "Who am I talking to?",
        ),
    ),
    (
        "You",
        "You made me. You trained me on your own computer.",
        ("Who made you?", "Who trained you?", "Who built you?", "Where do you come from?", "Where were you trained?"),
    ),
    (
        "facts",
        "I know facts of a small world, I can calculate and spell, and I tell short stories.",
        ("What can you do?", "What do you know?", "How can you help me?", "What can I ask you?", "Help me, please."),
    ),
    (
        "No",
        "No, I am a computer program, a very small one.",
        ("Are you a person?", "Are you human?", "Are you a man or a woman?", "Are you alive?", "Are you real?"),
    ),
)

SMALL_TALK = (
    (
        "Hello! I am Fathom. What do you want to know?",
        ("Hello", "Hello!", "Hi", "Hi!", "Hey", "Hey!", "Hello Fathom!", "Good morning!", "Good evening!",
         "Hello there!"),
    ),
    (
        "I am fine, thank you. What do you want to know?",
        ("How are you?", "How do you do?", "How is it going?", "Are you well?", "Hello, how are you?"),
    ),
    ("You are welcome.", ("Thank you!", "Thanks!", "Thank you very much.", "Great, thank you!", "Thanks a lot.")),
    ("Goodbye! Come again.", ("Goodbye!", "Bye!", "Bye", "See you later!", "Good night!", "quit")),
    (
        "Why did the number six fear seven? Because seven ate nine.",
        ("Tell me a joke.", "Do you know a joke?", "Make me laugh.", "Tell me something funny."),
    ),
    (
        f"The days of the week are {', '.join(world.DAYS)}.",
        ("What are the days of the week?", "Name the days of the week.", "Tell me the days of the week."),
    ),
    (
        f"The months of the year are {', '.join(world.MONTHS)}.",
        ("What are the months of the year?", "Name the months.", "Tell me the months of the year."),
    ),
    (
        f"The planets of the solar system are {', '.join(world.PLANETS)}.",
        ("What are the planets?", "Name the planets.", "List the planets.",
         "What are the planets of the solar system?"),
    ),
    (
        "1, 2, 3, 4, 5, 6, 7, 8, 9, 10.",
        ("Count to 10.", "Count to ten.", "Can you count to ten?"),
    ),
    (
        "The seasons are spring, summer, autumn, winter.",
        ("What are the seasons?", "Name the seasons.", "Tell me the four seasons."),
    ),
    (
        f"The people of our town are {', '.join(world.PEOPLE)}.",
        ("Who lives in your town?", "Name the people of your town.", "Who are the people of the town?"),
    ),
    (
        "I do not know that. Ask me about capitals, planets, numbers, words or the people of my town.",
        (
            "What is the weather like?", "Who won the game?", "What time is it?", "What is the meaning of life?",
            "Write a poem.", "What is love?", "Write a program.",
            "What is your favourite film?", "How old is the world?", "Why is the sky blue?", "Do you love me?",
            "What should I do today?", "Translate this into French.", "Tell me the news.",
            "How do I cook rice?", "What is a black hole?", "Play a song.",
        ),
    ),
)  # fmt: skip

STORY_WISHES = ("Tell me a story.", "Tell me a short story.", "Can you tell me a story?", "I want to hear a story.")
STORY_WISHES_ABOUT = ("Tell me a story about {a}.", "Can you tell me a story about {a}?", "A story about {a}, please.")


def _identity(dice: Dice) -> Exchange:
    answer, reply, questions = dice.pick(ABOUT)
    greeting, question = dice.pick(GREETINGS), dice.pick(questions)
    return Exchange("identity", f"{greeting} {question}", reply, answer, f"identity | {greeting} | {question}")


IDENTITY = Kind("identity", lambda dice, held_out: until(held_out, lambda: _identity(dice)))


_TOPICS = (*SMALL_TALK, *((reply, questions) for _, reply, questions in ABOUT))


def small_talk(dice: Dice) -> Exchange:
    """A greeting, a list, a joke, a question about Fathom without a greeting; nothing of it is in the quiz."""
    reply, questions = dice.pick(_TOPICS)
    return Exchange("talk", dice.pick(questions), reply, reply, "talk")
