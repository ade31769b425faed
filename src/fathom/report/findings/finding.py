"""What a rule finds: a judgement, the numbers it rests on, and what to do."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Severity = Literal["good", "note", "warn", "bad"]
SEVERITIES: tuple[Severity, ...] = ("bad", "warn", "note", "good")
"""The gravest first."""


@dataclass(frozen=True)
class Finding:
    kind: str
    """A name for programs: tokens, trend, resume, mfu, …"""
    severity: Severity
    sentence: str
    """What is so, with its main figure."""
    evidence: tuple[str, ...] = ()
    """The figures behind it, a line each."""
    advice: str = ""
    """What to do; empty where nothing is to be done."""
