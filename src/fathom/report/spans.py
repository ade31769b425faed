"""Spans of time, moments and sizes as a person says them on a screen (pure); `words` has what a page says."""

from __future__ import annotations

import time


def span(seconds: float) -> str:
    """ "0.4 s", "48 s", "4 min 41 s", "2 h 05 min", "3 d 4 h"."""
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
    return f"{hours} h {minutes:02d} min" if hours < 48 else f"{hours // 24} d {hours % 24} h"


def moment(unix: float, now: float) -> str:
    """The time of the day here; with the weekday when it is another day, with the date when a week lies between."""
    try:
        then, today = time.localtime(unix), time.localtime(now)
    except (OverflowError, ValueError, OSError):
        return "a moment that no clock knows"
    if then[:3] == today[:3]:
        return time.strftime("%H:%M", then)
    pattern = "%a %H:%M" if abs(unix - now) < 6 * 86_400 else "%Y-%m-%d %H:%M"
    return time.strftime(pattern, then)


def count(number: float) -> str:
    """ "4,096", "1.76 million", "5.70 billion"."""
    for size, word in ((1e12, "trillion"), (1e9, "billion"), (1e6, "million")):
        if number >= size:
            return f"{number / size:.3g} {word}"
    return f"{number:,.0f}"


def rate(flops: float) -> str:
    """ "58.3 TFLOP/s", "133 GFLOP/s"."""
    return f"{flops / 1e12:.3g} TFLOP/s" if flops >= 1e12 else f"{flops / 1e9:.3g} GFLOP/s"


def gb(size: float) -> str:
    """From 10^9 bytes: "1.19 GB", "37 MB"."""
    return f"{size:.3g} GB" if 0.9995 <= size < 999.5 else f"{size:,.0f} GB" if size > 1 else f"{1000 * size:.3g} MB"
