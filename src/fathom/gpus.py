"""What each GPU can do, from the makers' data sheets: products, memory, power. And roughly what an hour of it costs.

A name finds its row only where it surely is that card: a laptop's chip or a slice of one never gets a relative's
figures.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from difflib import get_close_matches

from fathom.errors import FathomError

GIB = 2**30 / 1e9  # of 10^9 bytes


@dataclass(frozen=True)
class Family:
    """What cards of one build have in common that no data sheet says."""

    name: str
    product_share: float
    """Of the nominal rate of matrix products, what long ones reach."""
    attention_share: float
    """The same of FlashAttention 2, forward and backward together."""
    link_gb_per_s: float
    """Between two cards of one machine."""
    is_measured: bool
    """Whether the shares come from a measured training run; else they are a guess."""


# GeForce cards are clocked above the figure that their data sheets multiply by: a 4090's products reach 152 to 165 of
# 165 TFLOP/s (FIELD C), and the seeds' 4070 trains at 85 % of nominal all in all. Hopper's are held back by power:
# 60 % is what the reference's runs 1 and 2 (REFERENCE 13) and llm.c's on 8×H100 (FIELD C) come to once everything
# else is counted; FlashAttention 2 runs there at 370 of 989 TFLOP/s forward, less backward. The A100 is llm.c's.
GEFORCE = Family("geforce", 1.0, 0.75, 20, True)
HOPPER = Family("hopper", 0.60, 0.33, 300, True)
BLACKWELL = Family("blackwell", 0.60, 0.33, 600, False)
AMPERE = Family("ampere", 0.80, 0.55, 200, True)
WORKSTATION = Family("workstation", 0.75, 0.55, 20, False)
INSTINCT = Family("instinct", 0.45, 0.30, 300, False)
BEFORE_BF16 = Family("before bf16", 0.85, 0.40, 20, False)


@dataclass(frozen=True)
class Gpu:
    """One row of the table."""

    name: str
    """Words in lower case that must all be in the device's own name."""
    family: Family
    tflops: float
    """Dense products in `dtype` with float32 accumulation, TFLOP/s."""
    fp8_tflops: float | None
    """The same in fp8; None where it has none."""
    bandwidth: float
    """Of its memory, GB/s."""
    memory: float
    """GiB, as sold."""
    watts: float
    """The most that the card is built to draw."""
    price_per_h: float
    """Dollars that renting one for an hour typically costs; prices move."""
    dtype: str = "bf16"
    """What training flows in there; fp32 on cards from before bf16."""

    @property
    def label(self) -> str:
        """ "rtx 4070 ti super" -> "RTX 4070 Ti Super"."""
        return " ".join(_SPELT.get(word, word.upper()) for word in self.name.split())

    @property
    def memory_gb(self) -> float:
        """In 10^9 bytes."""
        return self.memory * GIB


_SPELT = {"ti": "Ti", "super": "Super", "pcie": "PCIe"}

# NVIDIA's consumer cards: half of the figure with float16 accumulation; MI250X: one of its two dies, which is what a
# process sees. The first row whose words are all in the device's name wins. Prices: REFERENCE 13 for the H100, the
# others in proportion to what the market asked in 2026.
GPUS = (
    Gpu("gb200", BLACKWELL, 2500, 5000, 8000, 186, 1200, 10.0),
    Gpu("b200", BLACKWELL, 2250, 4500, 8000, 180, 1000, 5.5),
    Gpu("b100", BLACKWELL, 1800, 3500, 8000, 180, 700, 4.5),
    Gpu("h200 nvl", HOPPER, 836, 1671, 4800, 141, 600, 3.2),
    Gpu("h200", HOPPER, 989, 1979, 4800, 141, 700, 3.6),
    Gpu("h100 nvl", HOPPER, 835, 1671, 3900, 94, 400, 2.6),
    Gpu("h100 pcie", HOPPER, 756, 1513, 2000, 80, 350, 2.4),
    Gpu("h100", HOPPER, 989, 1979, 3350, 80, 700, 3.0),
    Gpu("h20", HOPPER, 148, 296, 4000, 96, 400, 1.5),
    Gpu("h800 pcie", HOPPER, 756, 1513, 2000, 80, 350, 2.4),
    Gpu("h800", HOPPER, 989, 1979, 3350, 80, 700, 3.0),
    Gpu("a100 40gb", AMPERE, 312, None, 1555, 40, 400, 1.3),
    Gpu("a100 pcie", AMPERE, 312, None, 1935, 80, 300, 1.6),
    Gpu("a100", AMPERE, 312, None, 2039, 80, 400, 1.8),
    Gpu("a800", AMPERE, 312, None, 2039, 80, 400, 1.6),
    Gpu("rtx 6000 ada", WORKSTATION, 364.2, 728.5, 960, 48, 300, 0.8),
    Gpu("rtx a6000", WORKSTATION, 155, None, 768, 48, 300, 0.5),
    Gpu("rtx a4000", WORKSTATION, 77, None, 448, 16, 140, 0.2),
    Gpu("l40s", WORKSTATION, 362, 733, 864, 48, 350, 0.9),
    Gpu("l40", WORKSTATION, 181, 362, 864, 48, 300, 0.8),
    Gpu("l20", WORKSTATION, 119.5, 239, 864, 48, 275, 0.6),
    Gpu("l4", WORKSTATION, 121, 242, 300, 24, 72, 0.5),
    Gpu("a40", WORKSTATION, 149.7, None, 696, 48, 300, 0.45),
    Gpu("a10", WORKSTATION, 125, None, 600, 24, 150, 0.4),
    Gpu("a30", WORKSTATION, 165, None, 933, 24, 165, 0.4),
    Gpu("mi355x", INSTINCT, 2500, 5000, 8000, 288, 1400, 4.0),
    Gpu("mi350x", INSTINCT, 2300, 4600, 8000, 288, 1000, 3.5),
    Gpu("mi325x", INSTINCT, 1307.4, 2614.9, 6000, 256, 1000, 3.0),
    Gpu("mi300x", INSTINCT, 1307.4, 2614.9, 5300, 192, 750, 2.5),
    Gpu("mi300a", INSTINCT, 980.6, 1961.2, 5300, 128, 550, 2.0),
    Gpu("mi250x", INSTINCT, 191.5, None, 1638, 64, 280, 0.7),
    Gpu("mi250", INSTINCT, 181, None, 1638, 64, 250, 0.6),
    Gpu("mi210", INSTINCT, 181, None, 1638, 64, 300, 0.6),
    Gpu("rtx 5090", GEFORCE, 209.5, 419, 1792, 32, 575, 0.7),
    Gpu("rtx 5080", GEFORCE, 112.6, 225.2, 960, 16, 360, 0.35),
    Gpu("rtx 5070 ti", GEFORCE, 87.9, 175.8, 896, 16, 300, 0.3),
    Gpu("rtx 5070", GEFORCE, 61.7, 123.4, 672, 12, 250, 0.2),
    Gpu("rtx 5060 ti", GEFORCE, 47.4, 94.9, 448, 16, 180, 0.15),
    Gpu("rtx 5060", GEFORCE, 38.4, 76.8, 448, 8, 145, 0.12),
    Gpu("rtx 4090", GEFORCE, 165.2, 330.3, 1008, 24, 450, 0.45),
    Gpu("rtx 4080 super", GEFORCE, 104.4, 208.8, 736, 16, 320, 0.3),
    Gpu("rtx 4080", GEFORCE, 97.5, 195, 717, 16, 320, 0.3),
    Gpu("rtx 4070 ti super", GEFORCE, 88.2, 176.4, 672, 16, 285, 0.25),
    Gpu("rtx 4070 ti", GEFORCE, 80.2, 160.4, 504, 12, 285, 0.2),
    Gpu("rtx 4070 super", GEFORCE, 71, 142, 504, 12, 220, 0.18),
    Gpu("rtx 4070", GEFORCE, 58.3, 116.6, 504, 12, 200, 0.15),
    Gpu("rtx 4060 ti", GEFORCE, 44.1, 88.2, 288, 8, 160, 0.12),
    Gpu("rtx 4060", GEFORCE, 30.2, 60.4, 272, 8, 115, 0.1),
    Gpu("rtx 3090 ti", GEFORCE, 80, None, 1008, 24, 450, 0.3),
    Gpu("rtx 3090", GEFORCE, 71, None, 936, 24, 350, 0.25),
    Gpu("rtx 3080 ti", GEFORCE, 68.2, None, 912, 12, 350, 0.2),
    Gpu("rtx 3080", GEFORCE, 59.5, None, 760, 10, 320, 0.18),
    Gpu("rtx 3070 ti", GEFORCE, 43.5, None, 608, 8, 290, 0.14),
    Gpu("rtx 3070", GEFORCE, 40.6, None, 448, 8, 220, 0.12),
    Gpu("rtx 3060 ti", GEFORCE, 32.4, None, 448, 8, 200, 0.11),
    Gpu("rtx 3060", GEFORCE, 25.6, None, 360, 12, 170, 0.1),
    Gpu("rtx 2080 ti", BEFORE_BF16, 13.4, None, 616, 11, 250, 0.15, "fp32"),
    Gpu("rtx 2080 super", BEFORE_BF16, 11.2, None, 496, 8, 250, 0.12, "fp32"),
    Gpu("rtx 2080", BEFORE_BF16, 10.1, None, 448, 8, 215, 0.1, "fp32"),
    Gpu("rtx 2070 super", BEFORE_BF16, 9.1, None, 448, 8, 215, 0.1, "fp32"),
    Gpu("rtx 2070", BEFORE_BF16, 7.5, None, 448, 8, 175, 0.09, "fp32"),
    Gpu("rtx 2060 super", BEFORE_BF16, 7.2, None, 448, 8, 175, 0.09, "fp32"),
    Gpu("rtx 2060", BEFORE_BF16, 6.5, None, 336, 6, 160, 0.08, "fp32"),
    Gpu("v100 pcie", BEFORE_BF16, 14, None, 900, 16, 250, 0.4, "fp32"),
    Gpu("v100", BEFORE_BF16, 15.7, None, 900, 16, 300, 0.5, "fp32"),
    Gpu("t4", BEFORE_BF16, 8.1, None, 320, 16, 70, 0.2, "fp32"),
)

ANOTHER_CARD = {"ti", "super", "d", "laptop", "mobile", "max", "mig"}
"""Words that make a different, mostly slower, card of the one whose name they follow; MIG is a slice of one."""


def find_gpu(name: str) -> Gpu | None:
    """The row of a GPU by the name that its driver gives; None for one that is not surely in the table."""
    words = set(re.split(r"[^a-z0-9.]+", name.lower()))
    for gpu in GPUS:
        its = set(gpu.name.split())
        if its <= words and not (words - its) & ANOTHER_CARD:
            return gpu
    return None


def several(text: str) -> tuple[int | None, str]:
    """ "8xH100", "8 × H100" -> (8, "H100"); (None, text) where no number of them is said."""
    found = re.fullmatch(r"\s*(\d{1,9})\s*[x×*]\s*(.+)", text, re.IGNORECASE)
    return (int(found[1]), found[2]) if found else (None, text)


def gpu_named(text: str) -> Gpu:
    """The row that a person means: "RTX 4070", "rtx4070ti", "H100". Raises FathomError with the nearest names."""
    asked = re.sub(r"\b(rtx|gtx)(?=[0-9a])|(?<=\d{4})(?=ti|super)|(?<=ti)(?=super)", r"\1 ", text.lower().strip())[:40]
    found = find_gpu(asked) or find_gpu(f"rtx {asked}")
    if found is not None:
        return found
    if re.match(r"(apple\b|m[1-9]\b)", asked):
        remedy = "plan on that Mac itself, with --probe or --hours"
        raise FathomError(f"no training on Apple's {text[:40]!r} is known to plan by", remedy)
    names = [gpu.name for gpu in GPUS]
    near = get_close_matches(asked, names, n=3, cutoff=0.5)
    if not near and any(character.isdigit() for character in asked):
        near = get_close_matches(f"rtx {asked}", names, n=3, cutoff=0.5)
    labels = [gpu.label for name in near for gpu in GPUS if gpu.name == name]
    remedy = f"the nearest there are {', '.join(labels)}" if labels else "try RTX 4070, RTX 4090, A100, H100 or H200"
    raise FathomError(f"no GPU {text[:40]!r} is in the table", remedy)
