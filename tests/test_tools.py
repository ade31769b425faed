"""What the calculator takes, what it refuses, and that it always answers at once."""

from __future__ import annotations

import sys
import threading
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fathom.generate.tools import MAX_CHARACTERS, calculate


@pytest.mark.parametrize(
    ("expression", "result"),
    [
        ("12/60", "0.2"),
        ("1,000*3", "3000"),
        ("7//2", "3"),
        ("'strawberry'.count('r')", "3"),
        ("-3 + 2*(4-1.5)", "2.0"),
        ("+5", "5"),
        ("2--3", "5"),
        ("1+2+3+4", "10"),
        ("10-3-2", "5"),
        ("8/4/2", "1.0"),
        (".5*2", "1.0"),
        (" 6*7 ", "42"),
        ("((((1))))", "1"),
        ('"Hello".lower().count("h")', "1"),
        ("'banana'.upper().count('A')", "3"),
        ("('b2b').count('b')", "2"),
        ("'a.b c_d()'.count('(')", "1"),
        ("'aaa'.count('')", "4"),
        ("999999999999*999999999999", "999999999998000000000001"),
    ],
)
def test_results(expression: str, result: str) -> None:
    assert calculate(expression) == result


@pytest.mark.parametrize(
    "expression",
    [
        "2**3",
        "5%2",
        "1.5e3",
        "1/0",
        "'file'.count('f')",
        "'PROFILE'.count('F')",
        "",
        "   ",
        "1+",
        "(1",
        "007",
        "()",
        "1 (2)",
        "'r'",
        "'a'+'b'",
        "'ab'.lower()",
        "'ab'.count('a') + 1",
        "'ab'.count(1)",
        "'ab'.count()",
        "'ab'.count('a' 'b').real",
        "b'ab'.count(b'a')",
        "''.__class__.count('')",
        "count.count('a')",
        "'a'.count('a')if(1)else(2)",
        "'é'.count('é')",
        "'a\\x62'.count('b')",
        "[1].count(1)",
        "1_000",
        "0x10",
        "1j",
        "lambda: 1",
        "-'a'.count('a')",
        "\x00",
        "１+１",
    ],
)
def test_no_result(expression: str) -> None:
    assert calculate(expression) is None


@pytest.mark.parametrize(
    "expression",
    [
        "9*" * (MAX_CHARACTERS // 2 - 1) + "9",
        "1+" * (MAX_CHARACTERS // 2 - 1) + "1",
        "(" * 490 + "1" + ")" * 490,
        "-" * (MAX_CHARACTERS - 1) + "1",
        "9" * MAX_CHARACTERS,
        "9" * 100_000,
        "9" * 400 + ".0",
        "9" * 400 + "/3",
        "'" + "a" * 900 + "'.count('a')",
        "'" + "a" * 100_000 + "'.count('a')",
        "'a'" + ".lower()" * 120 + ".count('a')",
        "(" * 100_000,
        "9" * 10_000_000,
    ],
)
def test_answers_at_once_and_leaves_the_limits_of_the_interpreter_alone(expression: str) -> None:
    """However long, deep or great: an answer within half a second."""
    limit = sys.getrecursionlimit()
    started = time.process_time()
    calculate(expression)
    assert time.process_time() - started < 0.5
    assert sys.getrecursionlimit() == limit


@pytest.mark.parametrize(
    "expression",
    [
        "9**9**9**9",
        "2 ** 10000000",
        "(9)**(9)**(9)",
        "9* *9",
        "9*" * 600 + "9",
        "(" * 300 + "1" + ")" * 300,
        "((9*" * 120 + "1" + "))" * 120,
        "-" * 900 + "1",
        "1-(" * 200 + "1" + ")" * 200,
        "9" * 500 + "/7",
        "'" + "ab" * 500 + "'.count('a')",
        "('" + "a" * 400 + "')" + ".lower().upper()" * 30 + ".count('a')",
        "'a'" + ".lower()" * 60 + ".count('a')",
    ],
)
def test_beyond_the_limits_there_is_no_result(expression: str) -> None:
    """Huge powers, long strings, deep nesting: none, and at once."""
    started = time.process_time()
    assert calculate(expression) is None
    assert time.process_time() - started < 0.5


def test_a_long_sum_is_not_nesting() -> None:
    assert calculate("+".join(["1"] * 300)) == "300"
    assert calculate("*".join(["2"] * 200)) == str(2**200)


def test_works_in_a_thread() -> None:
    results: list[str | None] = []
    thread = threading.Thread(target=lambda: results.append(calculate("12*12")))
    thread.start()
    thread.join()
    assert results == ["144"]


@given(st.text(alphabet="0123456789*+-/.() ,'\"_abceflnortuw%", max_size=60) | st.text(max_size=40))
def test_never_raises(expression: str) -> None:
    assert calculate(expression) is None or isinstance(calculate(expression), str)


@given(st.recursive(
    st.integers(0, 999).map(str),
    lambda inner: st.tuples(inner, st.sampled_from("+-*/"), inner).map(lambda t: f"({t[0]}{t[1]}{t[2]})"),
    max_leaves=8,
))  # fmt: skip
def test_agrees_with_python(expression: str) -> None:
    try:
        expected = str(eval(expression))
    except (ZeroDivisionError, OverflowError):
        expected = None  # type: ignore[assignment]
    assert calculate(expression) == expected
