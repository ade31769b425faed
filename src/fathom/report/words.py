"""Numbers as a person reads them, with their units (pure)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from datetime import UTC, datetime

NOTHING = "–"


def figure(value: float, digits: int = 4) -> str:
    """1234.5 is "1,234", 0.0123456 is "0.01235", what is not a number is a dash."""
    if not math.isfinite(value):
        return NOTHING
    if value == 0:
        return "0"
    if not 1e-4 <= abs(value) < 1e15:
        return f"{value:.3g}"
    places = max(0, digits - 1 - math.floor(math.log10(abs(value))))
    return f"{value:,.{places}f}"


def large(count: float) -> str:
    """286,261,730 is "286.3M", 5.7e9 is "5.70B"; below ten thousand as it is."""
    if not math.isfinite(count):
        return NOTHING
    for size, letter in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e4, "K")):
        if abs(count) >= size:
            scaled = count / min(size, 1e3 if letter == "K" else size)
            return f"{scaled:.{1 if abs(scaled) >= 10 else 2}f}{letter}"
    return f"{count:,.0f}"


def percent(share: float, digits: int = 2) -> str:
    """0.0512 is "5.1 %"."""
    value = 100 * share
    if not math.isfinite(value):
        return NOTHING
    if 0 < abs(value) < 0.01:
        return "under 0.01 %"
    if abs(value) >= 1000:
        return f"{value:,.0f} %"
    return f"{value:.{digits}g} %" if abs(value) < 99.5 else f"{value:.0f} %"


def bpb(value: float) -> str:
    return f"{value:.4f}" if math.isfinite(value) else NOTHING


def change(value: float, digits: int = 4) -> str:
    """With its sign, a minus as print has it."""
    if not math.isfinite(value):
        return NOTHING
    if abs(value) >= 1e6:
        return f"{value:+.3g}".replace("-", "−")
    return f"{value:+.{digits}f}".replace("-", "−")


def duration(seconds: float) -> str:
    """ "45 s", "12 min", "3 h 16 min", "2 d 17 h"."""
    if not math.isfinite(seconds):
        return NOTHING
    if seconds < 60:
        return f"{seconds:.0f} s" if seconds >= 10 else f"{seconds:.1f} s"
    minutes = round(seconds / 60)
    if minutes < 60:
        return f"{minutes} min"
    hours, rest = divmod(minutes, 60)
    if hours < 48:
        return f"{hours} h {rest:02d} min"
    return f"{hours // 24} d {hours % 24} h"


def moment(unix: float) -> str:
    """In UTC, so that a report reads alike wherever it is made."""
    try:
        return datetime.fromtimestamp(unix, UTC).strftime("%Y-%m-%d %H:%M UTC")
    except (ValueError, OverflowError, OSError):
        return NOTHING


def memory(gigabytes: float) -> str:
    """Bytes/10^9 and, as other tools count, MiB."""
    if not math.isfinite(gigabytes * 1e9):
        return NOTHING
    return f"{gigabytes:.2f} GB ({gigabytes * 1e9 / 2**20:,.0f} MiB)"


def plural(count: int, noun: str, many: str = "") -> str:
    return f"{count:,} {noun if count == 1 else many or noun + 's'}"


def listed(items: Sequence[str]) -> str:
    """ "a, b and c"."""
    return " and ".join(filter(None, [", ".join(items[:-1]), items[-1] if items else ""]))


def windows(counts: Sequence[int]) -> str:
    """How many layers see how far back: "9 × 512, 3 × 2,048"."""
    kinds = sorted(set(counts))
    return ", ".join(f"{list(counts).count(kind)} × {kind:,}" for kind in kinds)
