"""Numbers as a person reads them, with their units (pure)."""

from __future__ import annotations

import math
import time
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


def count(number: float) -> str:
    """ "4,096", "1.76 million", "5.70 billion"."""
    for size, word in ((1e12, "trillion"), (1e9, "billion"), (1e6, "million")):
        if number >= size:
            return f"{number / size:.3g} {word}"
    return f"{number:,.0f}"


def rate(flops: float) -> str:
    """ "58.3 TFLOP/s", "133 GFLOP/s"."""
    return f"{figure(flops / 1e12, 3)} TFLOP/s" if flops >= 1e12 else f"{flops / 1e9:.3g} GFLOP/s"


def gb(size: float) -> str:
    """From 10^9 bytes: "1.19 GB", "37 MB"."""
    return f"{size:.3g} GB" if 0.9995 <= size < 999.5 else f"{size:,.0f} GB" if size > 1 else f"{1000 * size:.3g} MB"


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
    """ "0.4 s", "48 s", "4 min 41 s", "25 min", "2 h 05 min", "3 d 4 h", "114 years"."""
    if not math.isfinite(seconds):
        return NOTHING
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    minutes, rest = divmod(whole, 60)
    if minutes < 10:
        return f"{minutes} min {rest:02d} s"
    hours, minutes = divmod(round(seconds / 60), 60)
    if hours == 0:
        return f"{minutes} min"
    if hours < 48:
        return f"{hours} h {minutes:02d} min"
    return f"{hours // 24} d {hours % 24} h" if hours < 24_000 else f"{hours / 8766:,.0f} years"


def lately(unix: float, now: float) -> str:
    """The time of the day here; with the weekday when it is another day, with the date when a week lies between."""
    try:
        then, today = time.localtime(unix), time.localtime(now)
    except (OverflowError, ValueError, OSError):
        return "a moment that no clock knows"
    if then[:3] == today[:3]:
        return time.strftime("%H:%M", then)
    pattern = "%a %H:%M" if abs(unix - now) < 6 * 86_400 else "%Y-%m-%d %H:%M"
    return time.strftime(pattern, then)


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


def listed(items: Sequence[str]) -> str:
    """ "a, b and c"."""
    return " and ".join(filter(None, [", ".join(items[:-1]), items[-1] if items else ""]))


def windows(counts: Sequence[int]) -> str:
    """How many layers see how far back: "9 × 512, 3 × 2,048"."""
    kinds = sorted(set(counts))
    return ", ".join(f"{list(counts).count(kind)} × {kind:,}" for kind in kinds)
