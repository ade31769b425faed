"""The calculator that a model may call in the middle of an answer: arithmetic, and counting letters in a word.

A walker over Python's own syntax tree, because nothing else is small enough to be safe: the libraries for this are
whole interpreters from which one has to take things away. Here, work is bounded by the length of the expression
(there are no powers, no names, no repeated strings), so no clock is needed and any thread may call it.
"""

from __future__ import annotations

import ast
import math
import operator
import re
from collections.abc import Callable

MAX_CHARACTERS = 1000
MAX_NESTING = 50

_ARITHMETIC = re.compile(r"[0-9*+\-/.() ]+")
_QUOTED = re.compile(r"'[A-Za-z0-9()._ ]*'|\"[A-Za-z0-9()._ ]*\"")
_COUNTING = re.compile(r"(?:[().' ]|\b(?:count|lower|upper|strip)\b)+")
# The reference refuses an expression that holds one of these, even inside a quoted word; models were trained on that.
_REFUSED = re.compile(
    "__|import|exec|eval|compile|open|file|input|globals|locals|vars|dir|getattr|setattr|delattr|hasattr",
    re.IGNORECASE,
)
_BINARY: dict[type[ast.operator], Callable[[float, float], float]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv,
}
_UNARY: dict[type[ast.unaryop], Callable[[float], float]] = {ast.UAdd: operator.pos, ast.USub: operator.neg}


class _Refused(Exception):
    """The expression is none that the calculator takes."""


def calculate(expression: str) -> str | None:
    """The result as the model reads it, or None where there is none. Never raises, never takes long.

    Commas are dropped ("1,000*3" is "3000"). Numbers with + - * / // and brackets; 'text'.count('t'), where
    lower(), upper() and strip() may come before the count.
    """
    source = expression.replace(",", "").strip()
    if not source or len(source) > MAX_CHARACTERS or not _permitted(source):
        return None
    try:
        value = _value(ast.parse(source, mode="eval").body, 0)
    except (_Refused, SyntaxError, ValueError, ArithmeticError, RecursionError, MemoryError):
        return None
    finite_number = isinstance(value, int) or (isinstance(value, float) and math.isfinite(value))
    return str(value) if finite_number else None


def _permitted(source: str) -> bool:
    """Only characters and words of the two forms reach the parser."""
    if _ARITHMETIC.fullmatch(source):
        return "**" not in source
    return (
        ".count(" in source
        and _REFUSED.search(source) is None
        and _COUNTING.fullmatch(_QUOTED.sub("''", source)) is not None
    )


def _value(node: ast.expr, depth: int) -> int | float | str:
    if depth > MAX_NESTING:
        raise _Refused
    match node:
        case ast.Constant(value=int() | float() | str() as value):
            return value
        case ast.UnaryOp(op=op, operand=operand) if type(op) in _UNARY:
            return _UNARY[type(op)](_number(operand, depth + 1))
        case ast.BinOp(left=left, op=op, right=right) if type(op) in _BINARY:
            # A long sum leans to the left, one level for each term: that is length, not nesting.
            return _BINARY[type(op)](_chain(left, depth), _number(right, depth + 1))
        case ast.Call(func=ast.Attribute(value=text, attr=method), args=arguments, keywords=[]):
            return _call(_text(text, depth + 1), method, [_text(a, depth + 1) for a in arguments])
    raise _Refused


def _chain(node: ast.expr, depth: int) -> float:
    """The left side of an operator, unrolled so that no depth is spent on terms in a row."""
    terms: list[tuple[type[ast.operator], ast.expr]] = []
    while isinstance(node, ast.BinOp) and type(node.op) in _BINARY:
        terms.append((type(node.op), node.right))
        node = node.left
    value = _number(node, depth + 1)
    for op, right in reversed(terms):
        value = _BINARY[op](value, _number(right, depth + 1))
    return value


def _number(node: ast.expr, depth: int) -> int | float:
    value = _value(node, depth)
    if isinstance(value, str):
        raise _Refused
    return value


def _text(node: ast.expr, depth: int) -> str:
    value = _value(node, depth)
    if not isinstance(value, str):
        raise _Refused
    return value


def _call(text: str, method: str, arguments: list[str]) -> int | str:
    match method, arguments:
        case "count", [part]:
            return text.count(part)
        case "lower", []:
            return text.lower()
        case "upper", []:
            return text.upper()
        case "strip", []:
            return text.strip()
    raise _Refused
