"""Whether a JSON value is what a schema wants, said to a person: the part of JSON Schema that the API is described in.

The same schemas are published in /openapi.json, so what is described is what is checked.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from difflib import get_close_matches
from typing import Any

from fathom.serve.refusals import Refusal

Schema = Mapping[str, Any]
KINDS: dict[str, tuple[type, ...]] = {
    "string": (str,),
    "boolean": (bool,),
    "integer": (int,),
    "number": (int, float),
    "array": (list,),
    "object": (dict,),
    "null": (type(None),),
}
NOUNS = {
    "string": "a string",
    "boolean": "true or false",
    "integer": "a whole number",
    "number": "a number",
    "array": "a list",
    "object": "an object",
    "null": "null",
}
Problem = tuple[str, str]  # (where, what)


def check(value: Any, schema: Schema) -> None:
    """Raises Refusal (400) that names the place and what would be right there."""
    found = find_problem(value, schema)
    if found:
        where, what = found
        raise Refusal(400, f"{where or 'the request'} {what}", param=where or None)


def find_problem(value: Any, schema: Schema, where: str = "") -> Problem | None:
    """The first thing that is wrong, or None."""
    if "anyOf" in schema:
        return _of_several(value, schema, where)
    kind = _kind_of(value, schema)
    if kind is None:
        return where, f"is {_shown(value)}, it has to be {_wanted(schema)}"
    if "enum" in schema and value not in schema["enum"]:
        near = get_close_matches(str(value), map(str, schema["enum"]), n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        return where, f"is {_shown(value)}, it has to be {_wanted(schema)}{hint}"
    return LOOKS[kind](value, schema, where) if kind in LOOKS else None


def _of_several(value: Any, schema: Schema, where: str) -> Problem | None:
    found = [(find_problem(value, one, where), one) for one in schema["anyOf"]]
    if any(problem is None for problem, _ in found):
        return None
    deeper = [problem for problem, one in found if problem and _kind_of(value, one) is not None]
    if len(deeper) == 1:
        return deeper[0]
    inside = [problem for problem in deeper if problem[0] != where]
    return inside[0] if inside else (where, f"is {_shown(value)}, it has to be {_wanted(schema)}")


def _kind_of(value: Any, schema: Schema) -> str | None:
    """Which of the schema's types the value has; "any" where the schema names none."""
    kinds = schema.get("type", "any")
    for kind in [kinds] if isinstance(kinds, str) else kinds:
        if kind == "any" or _is(value, kind):
            return str(kind)
    return None


def _is(value: Any, kind: str) -> bool:
    if isinstance(value, bool):
        return kind == "boolean"
    if kind == "integer" and isinstance(value, float):
        return math.isfinite(value) and value.is_integer()
    return isinstance(value, KINDS[kind])


def _number(value: float, schema: Schema, where: str) -> Problem | None:
    low, high = schema.get("minimum", -math.inf), schema.get("maximum", math.inf)
    above = schema.get("exclusiveMinimum", -math.inf)
    finite = not isinstance(value, float) or math.isfinite(value)
    if finite and low <= value <= high and value > above:
        return None
    return where, f"is {_shown(value)}, it has to be {_wanted(schema)}"


def _string(value: str, schema: Schema, where: str) -> Problem | None:
    low, high = schema.get("minLength", 0), schema.get("maxLength", math.inf)
    if low <= len(value) <= high:
        return None
    return where, f"has {len(value):,} characters, it needs {low:,} at least" + (
        f" and {high:,} at most" if high < math.inf else ""
    )


def _array(value: list[Any], schema: Schema, where: str) -> Problem | None:
    low, high = schema.get("minItems", 0), schema.get("maxItems", math.inf)
    if not low <= len(value) <= high:
        limit = f"{low:,} at least" + (f" and {high:,} at most" if high < math.inf else "")
        return where, f"has {len(value):,} entries, it needs {limit}"
    item = schema.get("items")
    if item:
        for number, one in enumerate(value):
            if problem := find_problem(one, item, f"{where}[{number}]"):
                return problem
    return None


def _object(value: dict[str, Any], schema: Schema, where: str) -> Problem | None:
    known, others = schema.get("properties", {}), schema.get("additionalProperties", True)
    lead = f"{where}." if where else ""
    if len(value) > (most := schema.get("maxProperties", math.inf)):
        return where, f"has {len(value):,} entries, it may have {most:,}"
    for name in schema.get("required", []):
        if name not in value:
            return f"{lead}{name}", "is missing"
    for name, one in value.items():
        if name in known or isinstance(others, Mapping):
            if problem := find_problem(one, known.get(name, others), f"{lead}{name}"):
                return problem
        elif not others:
            return f"{lead}{name[:60]}", f"is not known here; {_nearest(name, known)}"
    return None


LOOKS: Mapping[str, Callable[[Any, Schema, str], Problem | None]] = {
    "number": _number,
    "integer": _number,
    "string": _string,
    "array": _array,
    "object": _object,
}


def _nearest(name: str, known: Mapping[str, Any]) -> str:
    near = get_close_matches(name[:60], known, n=1)
    return f"did you mean {near[0]!r}?" if near else f"known are {', '.join(known)}"


def _wanted(schema: Schema) -> str:
    """What a schema takes, in words."""
    if "anyOf" in schema:
        words = [_wanted(one) for one in schema["anyOf"] if one.get("type") != "null"]
        return " or ".join(dict.fromkeys(words))
    if "enum" in schema:
        return " or ".join(repr(one) for one in schema["enum"] if one is not None)
    kinds = schema.get("type", "any")
    words = [NOUNS[kind] for kind in ([kinds] if isinstance(kinds, str) else kinds) if kind != "null"]
    text = " or ".join(words)
    if "minimum" in schema and "maximum" in schema:
        return f"{text} from {schema['minimum']:,} to {schema['maximum']:,}"
    if "minimum" in schema:
        return f"{text} from {schema['minimum']:,} on"
    return f"{text} above {schema['exclusiveMinimum']:,}" if "exclusiveMinimum" in schema else text


def _shown(value: Any) -> str:
    if isinstance(value, dict | list):
        return "an object" if isinstance(value, dict) else "a list"
    words = {True: "true", False: "false", None: "null"}
    if value is None or isinstance(value, bool):
        return words[value]
    try:
        text = repr(value)
    except ValueError:
        return "a number of thousands of digits"
    return text if len(text) <= 60 else f"{text[:57]}…"
