"""The embedded corpus: the same everywhere, true to its tables, and without a trace of what the quiz asks."""

from __future__ import annotations

import hashlib
import os
import re
import subprocess
import sys
from collections import Counter
from functools import cache
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fathom.data import primer
from fathom.data import primer_world as world
from fathom.data.conversations.messages import canonical, parts_of, text_of
from fathom.data.primer_asking import Exchange, plain, typed
from fathom.data.primer_dice import Dice, is_held_out
from fathom.data.primer_numbers import calculation
from fathom.data.primer_stories import Deed, invent
from fathom.generate.tools import calculate

SIZE = 2_000_000
CONTEXT_CHARACTERS = 900
"""256 tokens hold about this much of the text (3.2 bytes a token on average, with room for the markers)."""


@cache
def documents() -> list[str]:
    return list(primer.documents(1, SIZE))


@cache
def conversations() -> list[list[dict]]:
    return primer.conversations(1, 4000)


@cache
def quiz() -> list[primer.Question]:
    return [question for seed in range(5) for question in primer.quiz(seed)]


@cache
def training_texts() -> list[str]:
    """Every document and every message of the conversations, calls and results as lines of their own."""
    said = [part["text"] for talk in conversations() for message in talk for part in parts_of(message["content"])]
    return [*documents(), *said]


@cache
def training_lines() -> set[str]:
    return {plain(line) for text in training_texts() for line in text.split("\n")}


def exchanges_of(kind: str, seed: int, n: int, held_out: bool = False) -> list[Exchange]:
    dice = Dice(seed, "test")
    draw = next(one.draw for one in primer.KINDS if one.name == kind)
    return [draw(dice, held_out) for _ in range(n)]


KIND_NAMES = [kind.name for kind in primer.KINDS]


# Determinism


def test_the_same_seed_gives_the_same_text_and_another_seed_another():
    first, again, other = (list(primer.documents(seed, 50_000)) for seed in (7, 7, 8))
    assert first == again != other
    assert primer.conversations(7, 50) == primer.conversations(7, 50) != primer.conversations(8, 50)
    assert [q.messages for q in primer.quiz(7)] == [q.messages for q in primer.quiz(7)]


def test_a_longer_text_begins_with_the_shorter_one():
    short, long = list(primer.documents(3, 20_000)), list(primer.documents(3, 60_000))
    assert long[: len(short)] == short


DIGEST = """
import hashlib
from fathom.data import primer
text = repr((list(primer.documents(1, 40_000)), primer.conversations(1, 60), [q.messages for q in primer.quiz(1)]))
print(hashlib.sha256(text.encode()).hexdigest())
"""


def test_the_text_does_not_hang_on_the_hash_seed():
    digests = {
        subprocess.run(
            [sys.executable, "-c", DIGEST],
            env={**os.environ, "PYTHONHASHSEED": seed, "PYTHONPATH": os.pathsep.join(sys.path)},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in ("0", "1", "12345")
    }
    assert len(digests) == 1


def test_the_throws_are_those_that_python_promises_to_keep():
    dice = Dice(1, "golden")
    assert [dice.below(100) for _ in range(8)] == [62, 61, 19, 79, 50, 29, 22, 15]
    assert Dice(1, "golden").shuffled("abcdef") == list("ebcafd")


@given(st.lists(st.integers(), max_size=30), st.integers())
def test_shuffling_keeps_everything(items: list[int], seed: int):
    assert sorted(Dice(seed, "x").shuffled(items)) == sorted(items)


@given(st.integers(-50, 50), st.integers(0, 50), st.integers())
def test_between_includes_both_ends_and_nothing_else(low: int, more: int, seed: int):
    dice = Dice(seed, "y")
    assert {dice.between(low, low + more) for _ in range(20)} <= set(range(low, low + more + 1))
    assert dice.between(low, low) == low


def test_a_deck_deals_everything_before_anything_twice():
    deck = Dice(1, "z").decks("abcde")
    assert sorted(next(deck) for _ in range(10)) == sorted("abcde" * 2)


def test_about_a_seventh_is_held_out():
    share = sum(is_held_out(f"some | {i}") for i in range(20_000)) / 20_000
    assert 0.14 < share < 0.16


# Sizes


def test_documents_reach_the_size_and_fit_the_context():
    size = sum(len(text.encode()) for text in documents())
    assert SIZE <= size < SIZE + 2 * CONTEXT_CHARACTERS
    assert max(len(text) for text in documents()) <= CONTEXT_CHARACTERS
    assert min(len(text) for text in documents()) >= 50
    assert all(text == text.strip() for text in documents())


def test_documents_hardly_repeat():
    assert len(set(documents())) > 0.97 * len(documents())


def test_conversations_are_in_the_form_and_fit_the_context():
    assert len(conversations()) == 4000
    lengths = []
    for talk in conversations():
        assert canonical(talk) == talk
        assert talk[-1]["role"] == "assistant"
        lengths.append(sum(len(part["text"]) for message in talk for part in parts_of(message["content"])))
    assert max(lengths) <= 1.25 * CONTEXT_CHARACTERS
    assert sum(length > CONTEXT_CHARACTERS for length in lengths) < 0.01 * len(lengths)
    assert {len(talk) // 2 for talk in conversations()} >= {1, 2, 3}


def test_the_quiz_has_many_kinds_and_enough_of_each():
    questions = primer.quiz(11)
    per_kind = Counter(question.kind for question in questions)
    assert len(questions) >= 1200
    assert len(per_kind) >= 20
    assert min(per_kind.values()) >= 40
    assert len({repr(question.messages) for question in questions}) == len(questions)
    assert all(question.messages[-1]["role"] == "user" for question in questions)
    assert all(canonical(question.messages) == question.messages for question in questions)


# Held out


def test_every_question_of_the_quiz_is_held_out_and_no_training_exchange_is():
    for kind in KIND_NAMES:
        assert all(exchange.held_out for exchange in exchanges_of(kind, 1, 100, held_out=True))
        assert not any(exchange.held_out for exchange in exchanges_of(kind, 1, 100))


def test_no_question_of_the_quiz_stands_in_the_training_text():
    for question in quiz():
        if question.kind != "follow_up":
            last_line = plain(question.messages[-1]["content"])
            assert last_line not in training_lines(), question


def test_no_held_out_calculation_stands_in_the_training_text_in_any_form():
    seen = 0
    for text in training_texts():
        for line in text.split("\n"):
            for a, sign, b in re.findall(r"(?<![\d.)*/])(\d+) ?([-+*/]) ?(\d+)(?![\d*/x])", line):
                seen += 1
                assert not is_held_out(calculation(f"{a}{sign}{b}")) or "x" in line or "(" in line, line
            if re.fullmatch(r"[\d()+*/-]+", line) and re.search(r"\d[-+*/)]", line):
                assert not is_held_out(calculation(line)), line
    assert seen > 1000


def test_no_operands_of_the_quiz_meet_in_a_question_of_the_training_text():
    """The pair of numbers of a word problem, a sum in words, a count: in the same order in one line, it is nowhere."""
    kinds = {"add": "+", "subtract": "-", "multiply": "*", "divide": "/", "word_problem": ""}
    asked = [question for question in quiz() if question.kind in kinds]
    signs = {sign for sign in kinds.values() if sign}
    met = set()
    for text in training_texts():
        for line, following in pairwise(text.split("\n") + [""]):
            numbers = re.findall(r"\d+", line)
            if len(numbers) == 2 and re.fullmatch(r"\d+[-+*/]\d+", following):
                met.add((*numbers, re.sub(r"\d", "", following)))
    assert len(met) > 500
    for question in asked:
        a, b = re.findall(r"\d+", question.messages[-1]["content"])
        for sign in signs if question.kind == "word_problem" else {kinds[question.kind]}:
            if is_held_out(calculation(f"{a}{sign}{b}")):
                assert (a, b, sign) not in met


def deeds_of(text: str) -> list[tuple[Deed, str]]:
    """Every deed of a story with its place, read from the story itself."""
    places = re.findall(r" and \w+ went to the (\w+)\.", text)
    told = re.findall(rf"({'|'.join(world.PEOPLE)}) ({'|'.join(world.DEEDS)})\.", text)
    return [(Deed(person, did), place) for place in places[:1] for person, did in told]


def test_no_held_out_deed_of_a_story_stands_in_the_training_text():
    stories = [block for text in training_texts() for block in text.split("\n\n")]
    told = [deed for story in stories for deed in deeds_of(story)]
    assert len(told) > 1000
    assert not any(deed.held_out(place) for deed, place in told)
    asked = [question.messages[-1]["content"] for question in quiz() if question.kind.startswith("story")]
    assert all(sum(deed.held_out(place) for deed, place in deeds_of(text)) == 1 for text in asked)


def test_no_held_out_word_and_letter_are_counted_in_the_training_text():
    seen = set()
    for text in training_texts():
        seen |= set(re.findall(r"'(\w+)'\.count\('(\w)'\)", text))
    assert len(seen) > 200
    assert not any(is_held_out(f"letter_count | {word} | {letter}") for word, letter in seen)


def test_no_held_out_words_are_repeated_in_the_training_text():
    said = {line.removeprefix("you said ") for line in training_lines() if line.startswith("you said ")}
    assert len(said) > 100
    assert not any(is_held_out(f"repeat | {words}") for words in said)


def test_no_held_out_count_stands_in_the_training_text():
    seen = {tuple(re.findall(r"\d+", line)) for line in training_lines() if re.search(r"from \d+ (up )?to \d+", line)}
    assert len(seen) > 50
    assert not any(is_held_out(f"count | {a} | {b}") for a, b in seen)


def test_no_held_out_follow_up_stands_in_the_training_text():
    lines = "\n".join(plain(line) for text in documents() for line in text.split("\n"))
    spoken = [plain(text_of(parts_of(message["content"]))) for talk in conversations() for message in talk]
    lines += "\n" + "\n".join(spoken)
    asked = [question for question in quiz() if question.kind == "follow_up"]
    for question in asked:
        reply, follow_up = (plain(message["content"]) for message in question.messages[-2:])
        assert f"\n{reply}\n{follow_up}\n" not in lines, question
    assert re.search(r"\nthe capital of \w+ is \w+\nand \w+\n", lines)


@pytest.mark.parametrize("kind", ["capital", "opposite", "spell", "planet"])
def test_typing_carelessly_does_not_carry_a_question_over_the_fence(kind: str):
    dice = Dice(5, "careless")
    for exchange in exchanges_of(kind, 2, 300):
        assert plain(typed(dice, exchange).question) == plain(exchange.question)


# Truth


def all_calls() -> list[tuple[str, str, str]]:
    found = []
    for talk in conversations():
        for message in talk:
            parts = {part["type"]: part["text"] for part in parts_of(message["content"])}
            if "python" in parts:
                found.append((parts["python"], parts["python_output"], parts["text"]))
    return found


def test_the_calculator_gives_what_the_replies_say():
    calls = all_calls()
    assert len(calls) > 800
    for call, output, reply in calls:
        assert calculate(call) == output
        if "larger" not in reply:
            assert re.search(rf"(?<![\d.]){re.escape(output.removesuffix('.0'))}(?![\d]|\.\d)", reply), (call, reply)


def test_the_larger_number_is_the_larger_one():
    for exchange in exchanges_of("larger_number", 4, 300) + exchanges_of("larger_number", 4, 50, held_out=True):
        a, b = (int(n) for n in re.findall(r"\d+", exchange.question))
        assert exchange.answer == str(max(a, b)) and exchange.call == f"{a}-{b}" and exchange.result == str(a - b)


def test_equations_hold_for_their_x():
    for exchange in exchanges_of("algebra", 4, 300):
        left, right = re.search(r"([\dx*+ -]*x[\dx*+ -]*) = (\d+)", exchange.question).groups()
        assert eval(left, {"x": int(exchange.answer)}) == int(right)
        assert calculate(exchange.call) == exchange.result == exchange.answer


def test_equations_in_documents_are_true():
    lines = [line for text in documents() for line in re.findall(r"If (\S.*) = (\d+), then x is (\d+)\.", text)]
    assert len(lines) > 100
    assert all(eval(left, {"x": int(x)}) == int(right) for left, right, x in lines)


def test_spelling_and_ends_of_words():
    for exchange in exchanges_of("spell", 1, 200):
        word = re.search(r"word (\w+) is", exchange.reply)[1]
        assert exchange.answer.replace("-", "") == word and len(exchange.answer) == 2 * len(word) - 1
    for exchange in exchanges_of("letter", 1, 200):
        which, word = re.search(r"The (first|last) letter of (\w+) is", exchange.reply).groups()
        assert exchange.answer == word[0 if which == "first" else -1]


def test_counting_counts():
    for exchange in exchanges_of("count", 1, 100):
        low, high = (int(n) for n in re.findall(r"\d+", exchange.question))
        assert exchange.answer == ", ".join(str(n) for n in range(low, high + 1))


def test_repeating_repeats():
    for exchange in exchanges_of("repeat", 1, 50):
        assert exchange.answer in exchange.question and exchange.reply == f"You said: {exchange.answer}."
        assert len(exchange.answer.split()) == len(set(exchange.answer.split())) >= 3


def test_stories_tell_what_their_questions_ask():
    for kind in ("story_where", "story_meal", "story_what", "story_who"):
        for exchange in exchanges_of(kind, 3, 100) + exchanges_of(kind, 3, 50, held_out=True):
            story, question = re.fullmatch(
                r"(.*\.)\s((?:Where|What|Who|Which|Tell|Do|To) .*)", exchange.question
            ).groups()
            if kind == "story_where":
                assert f"went to the {exchange.answer}." in story
            elif kind == "story_meal":
                assert f"they ate {exchange.answer}." in story
            elif kind == "story_what":
                person = re.search("|".join(world.PEOPLE), question)[0]
                assert f" {person} {exchange.answer}." in story
            else:
                place = next(place for place in world.PLACES if place in question)
                assert f" {exchange.answer} went to the {place}." in story
            assert exchange.answer in exchange.reply


@given(st.integers(), st.booleans())
def test_the_two_people_of_a_story_do_different_things(seed: int, held_out: bool):
    story = invent(Dice(seed, "stories"), held_out)
    assert story.first.person != story.second.person and story.first.did != story.second.did
    assert story.first.held_out(story.place) == held_out and not story.second.held_out(story.place)


def test_tables_are_sound():
    for table in (world.CAPITALS, world.SYMBOLS, world.PLANET_MARKS):
        assert len({left for left, _ in table}) == len(table)
    for values in (world.PEOPLE, world.JOBS, world.PETS, world.FOODS, world.HOUSES, world.PLACES):
        assert len(set(values)) == 12
    assert len(world.CAPITALS) == 24 and len(set(world.SPELLED)) == len(world.SPELLED) == 48
    both_ways = [*world.OPPOSITES, *((b, a) for a, b in world.OPPOSITES)]
    assert len({left for left, _ in both_ways}) == len(both_ways) == 48


def test_one_question_has_one_answer():
    answers: dict[str, set[str]] = {}
    for relation in primer.RELATIONS:
        for exchange in (*relation.exchanges[False], *relation.exchanges[True]):
            answers.setdefault(plain(exchange.question), set()).add(exchange.answer)
    assert [question for question, known in answers.items() if len(known) > 1] == []


# Derivable: what the quiz asks, the training text teaches


def test_every_fact_is_told_or_asked_many_times_in_the_documents():
    text = "\n".join(documents())
    few = {}
    for relation in (relation for relation in primer.RELATIONS if relation.told):
        for subject, value in relation.facts:
            said = relation.say(relation.reply, subject, value)
            few[said] = text.count(said)
    assert {said: n for said, n in few.items() if n < 3} == {}
    assert sum(few.values()) / len(few) > 15


def test_every_wording_is_asked_in_training():
    seen = Counter(exchange.combination for kind in KIND_NAMES for exchange in exchanges_of(kind, 9, 10))
    assert seen
    for relation in primer.RELATIONS:
        for subject, _ in relation.facts:
            sides = Counter(is_held_out(relation.exchange(w, subject, "").combination) for w in relation.asked)
            assert sides[False] >= 3, (relation.kind, subject)


# The rule of the quiz


def test_accept_takes_the_sentence_or_the_bare_answer_and_nothing_else():
    question = primer.Question("capital", [], "Paris", "The capital of France is Paris.")
    assert question.accept("The capital of France is Paris.")
    assert question.accept(" The capital of  France is Paris.\n")
    assert question.accept("Paris") and question.accept("Paris.")
    for wrong in ("", "Rome", "paris", "Paris Rome Berlin", "The capital of France is Paris. Or Rome.", "Parisian"):
        assert not question.accept(wrong)


@pytest.mark.parametrize("kind", KIND_NAMES)
def test_replies_of_other_questions_are_not_accepted(kind: str):
    mine = [question for question in primer.quiz(2) if question.kind == kind]
    assert all(question.accept(question.sentence) and question.accept(question.answer) for question in mine)
    fixed_reply = Counter(question.sentence for question in mine).most_common(1)[0][0]
    assert sum(question.accept(fixed_reply) for question in mine) <= len(mine) / 2


# What is shown


def test_samples_begin_sentences_of_the_documents():
    text = "\n".join(documents())
    for prompt in primer.samples():
        assert prompt in text or prompt.startswith(("If 5*x", "One morning Anna and "))
    assert len(primer.short_conversation()) >= 4


def test_the_text_is_plain_ascii_and_small_in_words():
    text = "\n".join(documents())
    assert text.isascii()
    words = Counter(re.findall(r"[A-Za-z]+", text))
    assert len(words) < 1600


def test_generation_is_a_pure_stream():
    stream = primer.documents(1, 10**12)
    first = [next(stream) for _ in range(3)]
    assert (
        hashlib.sha256("".join(first).encode()).digest() == hashlib.sha256("".join(documents()[:3]).encode()).digest()
    )
