"""Chat tasks against the slow oracle and the golden values of REFERENCE 6.2; spelling; ChatCORE."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from oracles import chat_tasks as oracle
from oracles.chain_model import TOKENIZER
from oracles.generation import random_model
from oracles.scripted_model import answering

from fathom.data.conversations import render_for_completion
from fathom.errors import FathomError
from fathom.evaluate.chat import (
    KNOWN,
    NAMES,
    ChatTask,
    Tally,
    answers,
    centered,
    chat_metrics,
    known,
    open_task,
    score_task,
    spelling,
)
from fathom.evaluate.chat.example import Example, choice_of
from fathom.evaluate.chat.rows import rows_of
from fathom.generate.sandbox import Outcome, available
from fathom.model.gpt import GPT

END = TOKENIZER.special("<|assistant_end|>")


@pytest.fixture(scope="module")
def model() -> GPT:
    return random_model(seq_len=160)


def scored(model: Any, task: ChatTask, **more: Any) -> tuple[Tally, list[dict[str, Any]]]:
    said: list[dict[str, Any]] = []
    tally = score_task(model, TOKENIZER, task, dump=said.append, **more)
    return tally, sorted(said, key=lambda one: int(one["index"]))


# Multiple choice


def test_the_question_is_put_as_the_reference_puts_it() -> None:
    row = {"question": "Which is a cat?", "choices": ["a dog", "a tom"], "answer": "B"}
    assert choice_of(row).messages[0]["content"] == (
        "Multiple Choice question: Which is a cat?\n- a dog=A\n- a tom=B\n\n"
        "Respond only with the letter of the correct answer."
    )
    assert choice_of(row).answer == "B"


@pytest.mark.parametrize("name", ["arc_easy_test", "mmlu_test"])
def test_every_letter_is_that_of_one_question_at_a_time(model: GPT, shared: Path, name: str) -> None:
    task = open_task(name.removesuffix("_test").replace("_", "-"), shared / "chat")
    few = ChatTask(task.name, [one for one in task.examples if len(one.row["question"]) < 250][:12], task.chance)
    tally, said = scored(model, few)
    expected = [oracle.letter(model, TOKENIZER, one.row) for one in few.examples]
    assert [one["reply"] for one in said] == expected
    assert tally.right == sum(letter == one.answer for letter, one in zip(expected, few.examples, strict=True))
    assert [one["tokens"] for one in said] == [
        oracle.prompt(oracle.question_with_choices(one.row), TOKENIZER) for one in few.examples
    ]
    assert tally.n_long == sum(len(one["tokens"]) > 160 for one in said) > 0


def test_how_questions_are_batched_does_not_matter(model: GPT, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [{"question": "n" * n, "choices": list("abcde"[: 2 + n % 4]), "answer": 0} for n in range(1, 40, 3)]
    task = ChatTask("mine", [choice_of(row) for row in rows], 0.25)
    together = scored(model, task)
    for most in (1, 4):
        monkeypatch.setattr(answers, "CHOICES_AT_ONCE", most)
        assert scored(model, task) == together


def test_of_equally_likely_letters_the_first_is_said() -> None:
    task = ChatTask("mine", [choice_of({"question": "?", "choices": ["x", "y", "z"], "answer": "B"})])
    even = random_model(seq_len=160)
    with torch.no_grad():
        even.head.zero_()
    tally, said = scored(even, task)
    assert (said[0]["reply"], tally) == ("A", Tally(1, 0))


def test_rows_of_mmlu_name_an_index_and_those_of_arc_their_own_letters() -> None:
    assert choice_of({"question": "?", "choices": ["x", "y"], "answer": 1}).answer == "B"
    arc = choice_of({"question": "?", "choices": {"text": ["x", "y"], "label": ["1", "2"]}, "answerKey": "2"})
    assert (arc.letters, arc.answer) == (("1", "2"), "2")
    assert "- x=1\n- y=2\n" in arc.messages[0]["content"]


@pytest.mark.parametrize(
    "row",
    [
        {"question": "?", "choices": ["x"], "answer": "A"},
        {"question": "?", "choices": "xy", "answer": "A"},
        {"question": "?", "choices": ["x", 2], "answer": "A"},
        {"question": "?", "choices": ["x", "y"], "answer": "C"},
        {"question": "?", "choices": ["x", "y"], "answer": 2},
        {"question": "?", "choices": ["x", "y"], "answer": "AB"},
        {"question": "?", "choices": ["x", "y"]},
        {"choices": ["x", "y"], "answer": "A"},
        {"question": "?", "choices": {"text": ["x", "y"], "label": ["1"]}, "answerKey": "1"},
        {"question": "?", "choices": {"text": ["x", "y"], "label": ["12", "3"]}, "answerKey": "3"},
    ],
)
def test_a_row_that_is_no_choice_is_refused(row: dict[str, Any]) -> None:
    with pytest.raises(FathomError):
        choice_of(row)


def test_a_model_that_computes_no_numbers_is_refused(model: GPT) -> None:
    broken = random_model(seq_len=160)
    with torch.no_grad():
        broken.head.fill_(math.nan)
    for task in (
        ChatTask("letters", [choice_of({"question": "?", "choices": ["x", "y"], "answer": "A"})]),
        ChatTask("words", [Example([{"role": "user", "content": "?"}])], grade=lambda reply, example: True),
    ):
        with pytest.raises(FathomError, match="not finite"):
            score_task(broken, TOKENIZER, task)


# Written answers


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("so #### 1,234", "1234"),
        ("#### $5", None),
        ("#### 3.", "3."),
        ("####7", None),
        ("#### -2 and #### 4", "-2"),
        ("#### x #### 4", "4"),
        ("#### ,", ""),
        ("", None),
    ],
)
def test_the_final_number_as_the_reference_reads_it(text: str, number: str | None) -> None:
    assert known.final_number(text) == number


@given(st.text(alphabet="# -0123456789.,$a\n", max_size=40))
def test_the_final_number_is_that_of_the_oracle(text: str) -> None:
    assert (known.final_number(text) or None) == (oracle.final_number(text) or None)


def test_written_answers_are_those_of_one_question_at_a_time(model: GPT) -> None:
    prompts = ["n" * n for n in (1, 30, 7, 120, 140, 150, 200)]
    examples = [Example([{"role": "user", "content": prompt}], prompt) for prompt in prompts]
    task = ChatTask("mine", examples, grade=lambda reply, example: len(reply) % 2 == 0, max_tokens=20)
    calls = {TOKENIZER.special("<|python_start|>"), TOKENIZER.special("<|python_end|>")}
    with torch.no_grad():
        model.head[list(calls)] = 0
    tally, said = scored(model, task)
    fitting = [one for one in prompts if len(oracle.prompt(one, TOKENIZER)) < 160]
    replies = [oracle.reply(model, TOKENIZER, prompt, 20) for prompt in fitting]
    assert [one["reply"] for one in said] == [*replies, None]
    assert tally.n == 7
    assert tally.n_long == 1
    assert tally.right == sum(len(reply) % 2 == 0 for reply in replies)


def test_the_calculator_is_really_called_and_its_result_read() -> None:
    """The script knows that "#### 42" is right; what stands before it is the calculator's."""
    task = ChatTask("gsm8k", [known.worked_problem({"question": "?", "answer": "#### 42"})], grade=known.ends_in_number,
                    reads_marks=True)  # fmt: skip
    call = [TOKENIZER.special("<|python_start|>"), *b"7*6", TOKENIZER.special("<|python_end|>")]
    length = len(render_for_completion(task.examples[0].messages, TOKENIZER))
    says = answering(
        length, [call, [*b"#### 42", END]], [len("42") + 2, 0], vocab_size=TOKENIZER.vocab_size, otherwise=END
    )
    tally, said = scored(says, task)
    assert tally == Tally(1, 1)
    assert said[0]["reply"].endswith("42#### 42")


def test_an_answer_that_the_context_cuts_off_is_counted() -> None:
    task = ChatTask("mine", [Example([{"role": "user", "content": "?"}])], grade=lambda reply, example: True)
    talker = answering(1, [[]], [0], vocab_size=TOKENIZER.vocab_size, otherwise=ord("a"), seq_len=50)
    assert score_task(talker, TOKENIZER, task) == Tally(1, 1, n_cut=1)


def test_a_program_is_the_prompts_imports_the_code_and_the_tests() -> None:
    row = {
        "prompt": "# solve\nimport math\n\n from typing import List\ndef f(x):\n  import os\n",
        "test": "def check(f): assert f(1) == 2",
        "entry_point": "f",
    }
    tests = "def check(f): assert f(1) == 2\n\ncheck(f)\n"
    imports = "import math\nfrom typing import List\n\n"
    code = "def f(x):\n    return x + 1"
    for reply in (f"Sure:\n```python\n{code}\n```\nor\n```\nno\n```", f"```\n{code}\n```", f"{code}\n"):
        assert known.program_of(reply, row) == f"{imports}{code}\n\n{tests}"
    assert known.program_of(f"```python\n{code}", row) == f"{imports}```python\n{code}\n\n{tests}"


@pytest.fixture
def outcomes(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What becomes of the next programs, in a sandbox that runs none."""
    coming: list[str] = []

    def run(program: str) -> Outcome:
        why = coming.pop(0)
        return Outcome(why == "passed", why, "", "", 0.1)

    monkeypatch.setattr("fathom.generate.sandbox.run_python", run)
    return coming


@pytest.mark.parametrize(
    ("fates", "right"),
    [(["passed"], True), (["failed"], False), (["timeout", "passed"], True), (["timeout", "timeout"], False)],
)
def test_only_a_program_that_took_too_long_gets_a_second_try(
    outcomes: list[str], fates: list[str], right: bool
) -> None:
    outcomes += fates
    row = {"prompt": "def f():\n", "test": "def check(f): pass", "entry_point": "f"}
    assert known.passes_its_tests("def f(): pass", known.function_to_write(row)) is right
    assert outcomes == []


def test_published_solutions_pass_in_the_sandbox_and_empty_ones_do_not(shared: Path) -> None:
    if available().mechanism is None:
        pytest.skip("no code can be shut in on this machine")
    for one in open_task("humaneval", shared / "chat").examples[:3]:
        fenced = "Of course:\n```python\n{}\n```\nDone."
        assert known.passes_its_tests(fenced.format(one.row["prompt"] + one.row["canonical_solution"]), one)
        assert not known.passes_its_tests(fenced.format(one.row["prompt"] + "    pass"), one)


# Order, shares, limits


def test_rows_are_permuted_as_the_reference_permutes_them(tmp_path: Path) -> None:
    assert np.random.default_rng(42).permutation(10).tolist() == [5, 6, 0, 7, 3, 2, 4, 9, 1, 8]
    lines = [f'{{"question": "{n}", "choices": ["a", "b"], "answer": "A"}}\n' for n in range(10)]
    (tmp_path / "mmlu_test.jsonl").write_text("".join(lines))
    rows = rows_of(KNOWN["mmlu"].source, tmp_path)
    assert [int(row["question"]) for _, row in rows] == [5, 6, 0, 7, 3, 2, 4, 9, 1, 8]


def test_ranks_share_the_first_items_and_their_tallies_add_up(model: GPT) -> None:
    rows = [{"question": "n" * (n + 1), "choices": ["x", "y"], "answer": "AB"[n % 2]} for n in range(11)]
    task = ChatTask("mine", [choice_of(row) for row in rows], 0.5)
    whole, said = scored(model, task, limit=9)
    parts = [scored(model, task, limit=9, share=(rank, 3)) for rank in range(3)]
    assert sum((tally for tally, _ in parts), Tally()) == whole
    assert [one["index"] for one in parts[1][1]] == [1, 4, 7]
    assert sorted((one for _, items in parts for one in items), key=lambda one: int(one["index"])) == said
    assert score_task(model, TOKENIZER, task, limit=1, share=(1, 3)) == Tally()


def test_the_shared_sets_have_their_published_sizes(shared: Path) -> None:
    sizes = {name: len(open_task(name, shared / "chat").examples) for name in KNOWN}
    assert sizes == {"arc-easy": 2376, "arc-challenge": 1172, "mmlu": 14_042, "gsm8k": 1319, "humaneval": 164}


# Spelling


def test_spelling_asks_the_same_different_questions_every_time() -> None:
    examples = spelling.examples()
    questions = [one.messages[0]["content"] for one in examples]
    assert len(set(questions)) == len(questions) == spelling.N_EXAMPLES
    assert questions == [one.messages[0]["content"] for one in spelling.examples()]
    assert questions != [one.messages[0]["content"] for one in spelling.examples(seed=1)]
    assert sum(one.answer.isdecimal() for one in examples) == spelling.N_EXAMPLES // 2
    for one in examples:
        if one.answer.isdecimal():
            letter, word = [word.strip("?.") for word in one.messages[0]["content"].split() if word.strip("?.") in
                            {*"abcdefghijklmnopqrstuvwxyz", *spelling.WORDS}][-2:]  # fmt: skip
            assert word.count(letter) == int(one.answer)


@pytest.mark.parametrize(
    ("answer", "reply", "right"),
    [
        ("apple", "a-p-p-l-e", True),
        ("apple", "It is spelled A, P, P, L, E.", True),
        ("apple", "apple", False),
        ("apple", "a-p-l-e", False),
        ("apple", "a-p-p-l-e-s", False),
        ("3", "There are 3 of them.", True),
        ("3", "13", False),
        ("3", "3, no: 4", False),
        ("3", "three", False),
    ],
)
def test_what_is_right_in_spelling(answer: str, reply: str, right: bool) -> None:
    assert spelling.grade(reply, Example([], answer)) is right


# ChatCORE


def test_chatcore_is_the_mean_over_all_five_sets_and_only_of_all() -> None:
    accuracies = {"arc-easy": 0.4, "arc-challenge": 0.25, "mmlu": 0.325, "gsm8k": 0.05, "humaneval": 0.1}
    scores = {name: (accuracy, 0.01) for name, accuracy in accuracies.items()}
    metrics = chat_metrics(scores | {"spelling": (1.0, 0.0)})
    assert metrics["chatcore"][0] == pytest.approx((0.2 + 0 + 0.1 + 0.05 + 0.1) / 5)
    assert metrics["chatcore_cat"][0] == pytest.approx((0.2 + 0 + 0.1) / 3)
    assert metrics["chatcore"][1] == pytest.approx(math.sqrt(3 * (0.01 / 0.75) ** 2 + 2 * 0.01**2) / 5)
    del scores["gsm8k"]
    assert set(chat_metrics(scores)) == {"chatcore_cat"}
    assert chat_metrics({"spelling": (1.0, 0.0)}) == {}
    assert centered(0.25, 0.25) == 0
    assert set(NAMES) == {*KNOWN, "spelling"}
