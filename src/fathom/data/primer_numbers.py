"""Numbers in the primer: every calculation goes through the calculator, so the model copies instead of computing.

Held out: the calculation itself. An expression that the quiz asks for is called nowhere in the training text,
whatever the wording; sums and products also not with their operands changed about.
"""

from __future__ import annotations

from collections.abc import Callable

from fathom.data import primer_world as world
from fathom.data.primer_asking import Exchange, Kind, Relation, until, wordings
from fathom.data.primer_dice import Dice

ADD = wordings(
    direct=("what is {a} + {b}", "what's {a} + {b}", "what is {a} plus {b}", "how much is {a} + {b}"),
    clause=("the sum of {a} and {b}",),
    bare=("{a} + {b}", "{a}+{b}", "{a} + {b} = ?", "Add {a} and {b}.", "Calculate {a} + {b}."),
)
SUBTRACT = wordings(
    direct=("what is {a} - {b}", "what's {a} - {b}", "what is {a} minus {b}", "how much is {a} - {b}"),
    clause=("what {a} minus {b} is",),
    bare=("{a} - {b}", "{a}-{b}", "{a} - {b} = ?", "Calculate {a} - {b}."),
)
MULTIPLY = wordings(
    direct=("what is {a} * {b}", "what's {a} * {b}", "what is {a} times {b}", "how much is {a} * {b}"),
    clause=("the product of {a} and {b}",),
    bare=("{a} * {b}", "{a}*{b}", "{a} * {b} = ?", "Multiply {a} by {b}.", "Calculate {a} * {b}."),
)
DIVIDE = wordings(
    direct=("what is {a} / {b}", "what's {a} / {b}", "what is {a} divided by {b}", "how much is {a} / {b}"),
    clause=("what {a} divided by {b} is",),
    bare=("{a} / {b}", "{a}/{b}", "{a} / {b} = ?", "Divide {a} by {b}.", "Calculate {a} / {b}."),
)
LARGER = wordings(
    direct=("which is larger, {a} or {b}", "which number is larger, {a} or {b}", "what is more, {a} or {b}"),
    clause=("which is larger, {a} or {b}", "the larger of {a} and {b}"),
)
SOLVE = (
    "If {equation}, what is x?", "If {equation}, then what is x?", "Solve {equation}.", "Solve {equation} for x.",
    "{equation}. What is x?", "What is x if {equation}?", "Find x if {equation}.", "Tell me x if {equation}.",
)  # fmt: skip

GAINED = (
    "{p} has {a} {things}. {q} gives {p} {b} more. How many {things} does {p} have now?",
    "There are {a} {things} on the table. {p} puts {b} more there. How many {things} are there now?",
    "{p} has {a} {things} and {q} has {b} {things}. How many {things} do they have together?",
)
LOST = (
    "{p} has {a} {things}. {p} gives {b} of them to {q}. How many {things} does {p} have now?",
    "There are {a} {things} on the table. {p} takes {b} of them away. How many {things} are there now?",
    "{p} had {a} {things} and lost {b} of them. How many {things} are left?",
)
PACKED = (
    "{p} has {a} boxes with {b} {things} in each box. How many {things} does {p} have?",
    "{p} buys {a} bags. There are {b} {things} in each bag. How many {things} are there?",
)
SHARED = (
    "{p} shares {a} {things} between {b} friends. How many {things} does each friend get?",
    "{p} puts {a} {things} into {b} boxes, the same number in each. How many {things} are in each box?",
)

COUNT_UP = wordings(
    direct=("can you count from {a} to {b}",),
    bare=("Count from {a} to {b}.", "Count from {a} up to {b}.", "Please count from {a} to {b}.",
          "Say the numbers from {a} to {b}.", "Which numbers are there from {a} to {b}?"),
)  # fmt: skip

NEIGHBOURS = (
    Relation(
        "next_number",
        [(str(n), str(n + 1)) for n in range(1, 31)],
        "The number after {s} is {v}.",
        wordings(
            direct=("what number comes after {s}", "which number comes after {s}"),
            clause=("which number comes after {s}", "the number after {s}"),
        ),
    ),
    Relation(
        "next_number",
        [(str(n), str(n - 1)) for n in range(1, 31)],
        "The number before {s} is {v}.",
        wordings(
            direct=("what number comes before {s}", "which number comes before {s}"),
            clause=("which number comes before {s}", "the number before {s}"),
        ),
    ),
)


def whole_if_whole(number: str) -> str:
    """What a person says for the calculator's "12.0": 12. Other results stay as they are."""
    return number.removesuffix(".0")


def calculation(call: str) -> str:
    """The combination that stands for an expression, the same for 2+3 and 3+2."""
    for sign in "+*":
        operands = call.split(sign)
        if len(operands) == 2 and all(operand.isdigit() for operand in operands):
            call = sign.join(sorted(operands))
    return f"calculation | {call}"


def _number(dice: Dice) -> int:
    """Mostly two and three digits, now and then one or four."""
    return dice.between(*dice.pick(((1, 20), (1, 99), (1, 99), (1, 99), (100, 999), (100, 999), (100, 999), (1, 9999))))


def _handy(dice: Dice) -> int:
    """A number of things that people have: three digits at most."""
    return dice.between(*dice.pick(((2, 20), (2, 99), (2, 99), (100, 999))))


def _sum(dice: Dice) -> tuple[int, int]:
    return _number(dice), _number(dice)


def _difference(dice: Dice) -> tuple[int, int]:
    a, b = _number(dice), _number(dice)
    return (a, b) if dice.chance(0.15) else (max(a, b), min(a, b))


def _product(dice: Dice) -> tuple[int, int]:
    """Two numbers of two digits at most, or three digits times one."""
    a, b = (
        (dice.between(2, 99), dice.between(2, 99)) if dice.chance(0.7) else (dice.between(100, 999), dice.between(2, 9))
    )
    return (a, b) if dice.chance(0.7) else (b, a)


def _quotient(dice: Dice) -> tuple[int, int]:
    """Two thirds of the divisions come out even; the others end after a digit or two behind the point."""
    if dice.chance(0.66):
        b = dice.between(2, 20)
        return b * dice.between(2, 60), b
    return dice.between(3, 400), dice.pick((2, 4, 5, 8, 10))


def _few(dice: Dice) -> tuple[int, int]:
    return _handy(dice), _handy(dice)


def _packed(dice: Dice) -> tuple[int, int]:
    return dice.between(2, 99), dice.between(2, 20)


def _exact_quotient(dice: Dice) -> tuple[int, int]:
    b = dice.between(2, 12)
    return b * dice.between(2, 30), b


def _calculated(kind: str, question: str, call: str, result: str, reply: str, answer: str) -> Exchange:
    return Exchange(kind, question, reply, answer, calculation(call), call, result)


def _value(a: int, sign: str, b: int) -> str:
    """What the calculator prints for `a sign b`."""
    return str({"+": a + b, "-": a - b, "*": a * b}[sign] if sign != "/" else a / b)


def _plain_kind(name: str, asked: tuple[str, ...], sign: str, operands: Callable[[Dice], tuple[int, int]]) -> Kind:
    def make(dice: Dice) -> Exchange:
        a, b = operands(dice)
        result = _value(a, sign, b)
        said = whole_if_whole(result)
        question = dice.pick(asked).format(a=a, b=b)
        return _calculated(name, question, f"{a}{sign}{b}", result, f"The answer is {said}.", said)

    return Kind(name, lambda dice, held_out: until(held_out, lambda: make(dice)))


def _larger(dice: Dice) -> Exchange:
    """The sign of the difference tells which is larger."""
    a, b = _number(dice), _number(dice)
    while a == b:
        b = _number(dice)
    answer = str(max(a, b))
    question = dice.pick(LARGER).format(a=a, b=b)
    return _calculated("larger_number", question, f"{a}-{b}", str(a - b), f"The larger number is {answer}.", answer)


def equation(dice: Dice, highest: int = 20) -> tuple[str, str, int]:
    """An equation with one step or two, the calculation that solves it, and its x."""
    x, b = dice.between(1, highest), dice.between(1, highest)
    form = dice.below(5)
    if form == 0:
        return f"x + {b} = {x + b}", f"{x + b}-{b}", x
    a = dice.between(2, min(highest, 12))
    if form == 1:
        return f"{a}*x = {a * x}", f"{a * x}//{a}", x
    if form == 2 and a * x > b:
        return f"{a}*x - {b} = {a * x - b}", f"({a * x - b}+{b})//{a}", x
    return f"{a}*x + {b} = {a * x + b}", f"({a * x + b}-{b})//{a}", x


def _algebra(dice: Dice) -> Exchange:
    text, call, x = equation(dice)
    return _calculated("algebra", dice.pick(SOLVE).format(equation=text), call, str(x), f"So x is {x}.", str(x))


def _word_problem(dice: Dice) -> Exchange:
    asked, sign, operands = dice.pick((
        (GAINED, "+", _few), (LOST, "-", _few), (PACKED, "*", _packed), (SHARED, "/", _exact_quotient),
    ))  # fmt: skip
    a, b = operands(dice)
    a, b = (max(a, b), min(a, b)) if sign == "-" else (a, b)
    p, q = dice.some(world.PEOPLE, 2)
    things = dice.pick(world.COUNTED)
    result = _value(a, sign, b)
    said = whole_if_whole(result)
    question = dice.pick(asked).format(p=p, q=q, a=a, b=b, things=things)
    return _calculated("word_problem", question, f"{a}{sign}{b}", result, f"The answer is {said}.", said)


def _count(dice: Dice) -> Exchange:
    """Up to the next whole ten: a small model learns to stop at those, and not at a number it has to look up."""
    a = 10 * dice.between(0, 8) + dice.between(1, 9)
    b = a + 10 - a % 10
    numbers = ", ".join(str(n) for n in range(a, b + 1))
    question = dice.pick(COUNT_UP).format(a=a, b=b)
    return Exchange("count", question, f"{numbers}.", numbers, f"count | {a} | {b}")


def _kind(name: str, make: Callable[[Dice], Exchange]) -> Kind:
    return Kind(name, lambda dice, held_out: until(held_out, lambda: make(dice)))


KINDS = (
    _plain_kind("add", ADD, "+", _sum),
    _plain_kind("subtract", SUBTRACT, "-", _difference),
    _plain_kind("multiply", MULTIPLY, "*", _product),
    _plain_kind("divide", DIVIDE, "/", _quotient),
    _kind("larger_number", _larger),
    _kind("algebra", _algebra),
    _kind("word_problem", _word_problem),
    _kind("count", _count),
)
