"""What a run will be worth: bits per byte and CORE from its compute, with an interval, and in words (pure, no torch).

Fitted on what is published of the reference system (REFERENCE 13 and 14): straight lines of ln(bpb) and of CORE over
log10(FLOPs). Each set of validation texts has its own level and all share one slope; the intervals are the 90 % ones of
that regression for a single new run, so they widen with the distance from its points. Where no point is near, nothing
is claimed.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Point:
    """One trained model."""

    texts: str
    flops: float
    value: float


# REFERENCE 13: the compute-optimal table and runs 1 to 3 (one set of texts), runs 4 to 6 (ClimbMix); REFERENCE 14, x0
# scalars: depths 8, 12, 16, 20 on the old set. FLOPs of runs by the formulas of their time.
COMPUTE_OPTIMAL = (
    Point("fineweb-edu", 1e18, 0.8972),
    Point("fineweb-edu", 2e18, 0.8616),
    Point("fineweb-edu", 5e18, 0.8293),
    Point("fineweb-edu", 1e19, 0.7999),
)
BPB = (
    *COMPUTE_OPTIMAL,
    Point("fineweb-edu", 4.331e19, 0.74833),
    Point("fineweb-edu", 4.828e19, 0.74504),
    Point("fineweb-edu", 4.686e19, 0.74645),
    Point("old fineweb", 1.49e17, 1.0782),
    Point("old fineweb", 1.00e18, 0.9693),
    Point("old fineweb", 4.47e18, 0.9002),
    Point("old fineweb", 1.51e19, 0.8526),
    Point("climbmix", 3.43e19, 0.71854),
    Point("climbmix", 3.09e19, 0.71808),
    Point("climbmix", 2.79e19, 0.71800),
)
# REFERENCE 13 (run 4 is the mean of seven) and, for depths 16 and 18, the baselines of the mixtures in REFERENCE 14.
CORE = (
    Point("all", 4.2e18, 0.155),
    Point("all", 7.7e18, 0.199),
    Point("all", 4.331e19, 0.2585),
    Point("all", 4.828e19, 0.2578),
    Point("all", 4.686e19, 0.2602),
    Point("all", 3.43e19, 0.25714),
    Point("all", 3.09e19, 0.2690),
    Point("all", 2.79e19, 0.2626),
)
UNLIKE_DOUBT = 0.02  # of bpb, for a doubling of what own runs differ by at the same compute
REACH = 6.0  # how far beyond its points, in FLOPs, a line is believed
DEPTHS = (8, 32)
RATIOS = (2.0, 200.0)
VOCABULARIES = (16_384, 131_072)
HARDLY_TRAINED = 0.2  # tokens for each parameter under which a model has hardly begun to learn
BEST_RATIO = 10.7  # tokens for each parameter in blocks and head at the optimum: REFERENCE 13, mean of 10.3 to 11.2
CURVATURE = 0.1  # loss ~ cosh(0.1·ln t) when the model is t times the best size: both exponents of the fit about 0.1
T_90 = {5: 2.02, 6: 1.94, 7: 1.89, 8: 1.86, 9: 1.83, 10: 1.81, 11: 1.80, 12: 1.78}  # Student's t, 90 % two-sided


@dataclass(frozen=True)
class Expectation:
    """A single run's value will lie from `low` to `high` nine times in ten."""

    low: float
    expected: float
    high: float
    source: str

    def as_json(self) -> dict[str, float | str]:
        return {
            "low": round(self.low, 4),
            "expected": round(self.expected, 4),
            "high": round(self.high, 4),
            "from": self.source,
        }


@dataclass(frozen=True)
class Line:
    """Least squares with one slope and a level for each set of texts."""

    slope: float
    means: dict[str, tuple[float, float, int]]
    """Of each set: mean x, mean y, how many points."""
    spread: float
    """Standard deviation of the residuals."""
    within: float
    """Sum of squared distances of x from its set's mean."""
    freedom: int

    def value(self, x: float, texts: str) -> float:
        mean_x, mean_y, _ = self.means[texts]
        return mean_y + self.slope * (x - mean_x)

    def at(self, x: float, texts: str) -> tuple[float, float]:
        """(value, half width of the 90 % interval of one new run)."""
        mean_x, _, n = self.means[texts]
        half = T_90[self.freedom] * self.spread * math.sqrt(1 + 1 / n + (x - mean_x) ** 2 / self.within)
        return self.value(x, texts), half


def fit(points: Sequence[tuple[str, float, float]]) -> Line:
    """The line through (texts, x, y)."""
    sets = {texts: [(x, y) for its, x, y in points if its == texts] for texts, _, _ in points}
    means = {
        texts: (sum(x for x, _ in own) / len(own), sum(y for _, y in own) / len(own), len(own))
        for texts, own in sets.items()
    }
    centred = [(x - means[texts][0], y - means[texts][1]) for texts, x, y in points]
    within = sum(x * x for x, _ in centred)
    slope = sum(x * y for x, y in centred) / within
    freedom = len(points) - len(sets) - 1
    spread = math.sqrt(sum((y - slope * x) ** 2 for x, y in centred) / freedom)
    return Line(slope, means, spread, within, freedom)


def fit_bpb(points: Sequence[Point]) -> Line:
    """A power law: the line through (log10(FLOPs), ln(bpb))."""
    return fit([(p.texts, math.log10(p.flops), math.log(p.value)) for p in points])


BPB_LINE = fit_bpb(BPB)
OPTIMAL_LINE = fit_bpb(COMPUTE_OPTIMAL)
CORE_LINE = fit([(p.texts, math.log10(p.flops), p.value) for p in CORE])


def why_unknown(depth: int, vocab_size: int, ratio: float) -> str:
    """Why nothing published speaks of such a model; empty where something does."""
    if depth < DEPTHS[0]:
        return f"nothing is published of depths under {DEPTHS[0]}"
    if depth > DEPTHS[1]:
        return f"nothing is published of depths over {DEPTHS[1]}"
    if not VOCABULARIES[0] <= vocab_size <= VOCABULARIES[1]:
        return f"what is published has 32,768 tokens of vocabulary, not {vocab_size:,}"
    if not RATIOS[0] <= ratio <= RATIOS[1]:
        return f"{ratio:.3g} tokens for each parameter is far from the {BEST_RATIO:g} or so of what is published"
    return ""


def worth_flops(flops: float, ratio: float) -> float:
    """FLOPs of a run of the best shape that gets as far as one of `ratio` tokens for each parameter does."""
    away = math.log(ratio / BEST_RATIO) / 2  # the model is too small by this factor of e, the tokens too many
    return float(flops * 10 ** (math.log(math.cosh(CURVATURE * away)) / BPB_LINE.slope))


def expected_bpb(flops: float, ratio: float) -> Expectation | str:
    """On web text: from ClimbMix's level, which is the expected one, to FineWeb-Edu's. Or why none is known."""
    worth = worth_flops(flops, ratio)
    if beyond := _beyond(worth, BPB):
        return beyond
    x = math.log10(worth)
    value, half = BPB_LINE.at(x, "climbmix")
    upper, upper_half = BPB_LINE.at(x, "fineweb-edu")
    source = "the reference's runs on web text, 14 points: ClimbMix, the upper end FineWeb-Edu"
    return Expectation(math.exp(value - half), math.exp(value), math.exp(upper + upper_half), source)


def expected_core(flops: float, ratio: float) -> Expectation | str:
    """The mean of 22 tasks, chance being 0 (GPT-2 of 1.5 billion parameters 0.2565). Or why none is known."""
    worth = worth_flops(flops, ratio)
    if beyond := _beyond(worth, CORE):
        return beyond
    value, half = CORE_LINE.at(math.log10(worth), "all")
    return Expectation(
        max(0.0, value - half), max(0.0, value), value + half, "the reference's runs on web text, 8 points"
    )


def from_own_run(flops: float, bpb: float, own_flops: float, name: str, unlike: float = 0.0) -> Expectation | None:
    """From a run on the same corpus and tokenizer; None where its compute is more than ten times off.

    The published slope leads from there, and half the way it leads is the doubt about it; `unlike` is in how many
    doublings of size, context and batch together it differs, and adds UNLIKE_DOUBT each.
    """
    away = math.log10(flops / own_flops)
    if not abs(away) <= 1 or not bpb > 0:
        return None
    change = BPB_LINE.slope * away
    doubt = 2 * BPB_LINE.spread + abs(change) / 2 + UNLIKE_DOUBT * unlike
    low, expected, high = (bpb * math.exp(change + sign * doubt) for sign in (-1, 0, 1))
    return Expectation(low, expected, high, f"your run {name}, same corpus, vocabulary and rates")


def capability(depth: int, ratio: float, better_depth: int | None) -> str:
    """What models of that depth, trained in full on web text, have been seen to do; less where `ratio`, the tokens for
    each parameter in blocks and head, is small. `better_depth` is what the same budget trains best.
    """
    words = next(words for least, words in CAPABILITIES if depth >= least)
    if ratio >= RATIOS[0]:
        return words
    better = "" if better_depth in (None, depth) else f"; the same budget trains depth {better_depth} best"
    if ratio < HARDLY_TRAINED:
        return f"Scraps of words at most: {ratio:.2g} tokens a parameter are far too little for depth {depth}{better}."
    return f"At most: {words} {ratio:.2g} tokens a parameter are few for depth {depth}{better}."


CAPABILITIES = (
    (28, "Beyond GPT-2 by the trend; nobody has published such a run of this recipe."),
    (24, "GPT-2 grade: pages that hold together, many facts, simple chat after fine-tuning; still makes things up."),
    (20, "Nearly GPT-2: paragraphs that hold together and a fair number of facts; weak at reasoning."),
    (16, "Between GPT-1 and GPT-2: stays on a topic for a paragraph, knows common facts, cannot reason."),
    (12, "GPT-1 sized: coherent sentences, lists the planets, gets half its facts wrong, repeats itself, no sums."),
    (8, "Grammatical sentences on a topic, few facts, loses the thread; small talk after fine-tuning."),
    (4, "Sentences that sound right without knowledge; on one narrow kind of text (the primer) answers well."),
    (0, "Spelling, common words and scraps of sentences."),
)


def _beyond(flops: float, points: Sequence[Point]) -> str:
    least, most = min(p.flops for p in points), max(p.flops for p in points)
    if least / REACH <= flops <= most * REACH:
        return ""
    believed = f"believed from {least / REACH:.2g} to {most * REACH:.2g}"
    return f"what is published spans {least:.2g} to {most:.2g} FLOPs, {believed}; this run is worth {flops:.2g}"
