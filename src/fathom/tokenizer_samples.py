"""Short texts of several kinds, written for this purpose, to see how well a vocabulary fits each kind."""

from __future__ import annotations

SAMPLES = {
    "news": """\
The harbour of Lindwick opened again on Thursday, three weeks after the storm that had torn away its northern wall.
Engineers said that the repairs, which cost the town $4.2 million, should hold for at least thirty years. "We had to
decide in a single night whether to save the pier or the lighthouse," the mayor, Ellen Marsh, told reporters. "I'm glad
that we chose the lighthouse." Fishing boats left before dawn; by noon the first of them had returned with mackerel,
and the market, silent since September, was crowded. Insurance companies haven't yet announced how much they'll pay.
A report on the causes of the collapse, commissioned by the regional government, is expected before the end of March.
""",
    "encyclopedia": """\
A lichen is not one organism but a partnership of a fungus with algae or cyanobacteria that live among its filaments.
The alga produces carbohydrates by photosynthesis; the fungus surrounds it, protects it from drying out, and takes up
water and minerals. Lichens grow on bark, rock and bare soil, from the tropics to the edge of the Antarctic ice, often
by less than a millimetre a year. Because they have no roots and absorb what falls on them, many species die when the
air is polluted, and their absence is used as a measure of sulphur dioxide.
""",
    "python": '''\
import json
from pathlib import Path


def word_counts(path: Path, min_length: int = 3) -> dict[str, int]:
    """How often each word of a file occurs, most frequent first."""
    counts: dict[str, int] = {}
    with path.open(encoding="utf-8") as file:
        for line in file:
            for word in line.lower().split():
                word = word.strip(".,;:!?\\"'()[]")
                if len(word) >= min_length:
                    counts[word] = counts.get(word, 0) + 1
    return dict(sorted(counts.items(), key=lambda item: -item[1]))


if __name__ == "__main__":
    print(json.dumps(word_counts(Path("notes.txt")), indent=2))
''',
    "c and shell": """\
#include <stdio.h>

static int gcd(int a, int b) {
    while (b != 0) {
        int rest = a % b;
        a = b;
        b = rest;
    }
    return a;
}

int main(void) {
    for (int i = 1; i <= 10; i++)
        printf("%d\\t%d\\n", i, gcd(i, 60));
    return 0;
}

$ cc -O2 -Wall gcd.c -o gcd && ./gcd | awk '$2 > 1 { n++ } END { print n " of " NR }'
$ grep -rn --include='*.h' "size_t" /usr/include | head -5 > found.txt 2>/dev/null
""",
    "mathematics": """\
Let $f(x) = x^3 - 6x^2 + 11x - 6$. Since $f(1) = 1 - 6 + 11 - 6 = 0$, the polynomial is divisible by $x - 1$, and
\\[ f(x) = (x - 1)(x^2 - 5x + 6) = (x - 1)(x - 2)(x - 3). \\]
Its derivative is $f'(x) = 3x^2 - 12x + 11$, which vanishes where $x = 2 \\pm \\frac{1}{\\sqrt{3}}$. The area between
the curve and the axis from 1 to 2 is $\\int_1^2 f(x)\\,dx = \\frac{1}{4}$. By induction,
$\\sum_{k=1}^{n} k = \\frac{n(n+1)}{2}$ for every $n \\in \\mathbb{N}$: if it holds for $n$,
adding $n + 1$ gives $\\frac{(n+1)(n+2)}{2}$.
""",
    "numbers": """\
date,station,min_c,max_c,rain_mm,pressure_hpa
2024-01-03,47,-3.2,4.8,0.0,1021.4
2024-01-04,47,-1.9,6.1,12.6,1008.77
2024-01-05,112,0.4,7.35,3.25,1003.9
1234567 + 7654321 = 8888888; 365 * 24 * 60 = 525600; 22 / 7 = 3.142857142857
IBAN 00 1234 5678 9012 3456 78, tel. +00 (0)555 019 283, room 4.117, v2.13.0rc1, 0x7fff5fbff8a0, 192.168.1.254:8080
""",
    "conversation": """\
hey, are you still coming tonight? we're starting around 8
yeah sorry!! got stuck at work lol. can i bring anything?
just yourself :) maybe some ice if you pass a shop
ok will do. btw is Tom bringing his dog again? last time she ate half the cheese haha
omg yes. he says she's "much better behaved now". we'll see...
What is the difference between a frog and a toad?
Good question! Most frogs have smooth, moist skin and long legs for jumping, while toads have dry, bumpy skin and
shorter legs. In short: every toad is a frog, but not every frog is a toad. Would you like some examples?
""",
    "markdown": """\
# Baking bread at home

1. **Mix** 500 g flour, 350 ml water, 10 g salt and 2 g yeast.
2. Wait *overnight* (12–16 hours) at room temperature.
3. Bake at 240 °C for 35 minutes, see [the notes](#notes).

| flour | water | result |
|-------|------:|--------|
| white | 70 %  | airy   |
| rye   | 85 %  | dense  |

> A wet dough is harder to shape, but it bakes into a lighter loaf.
""",
    "german and french": """\
Der Zug nach Königsfeld hatte wieder Verspätung, und die Reisenden standen fröstelnd unter dem Vordach. „Früher“, sagte
die alte Frau mit den Handschuhen, „war alles langsamer, aber pünktlich.“ Niemand widersprach ihr. Die Geschwindigkeits-
begrenzung galt seit dem Frühjahr, weil die Brücke über die Weiße Saale ausgebessert werden musste.
Le lendemain, à l'aube, le boulanger trouva devant sa porte un panier rempli de pommes et une lettre sans signature.
« Merci pour le pain de l'hiver dernier », disait-elle. Il n'avait jamais su à qui il l'avait donné, ni pourquoi.
""",
    "other scripts": """\
Сегодня утром в городе выпал первый снег, и дети побежали на улицу, не дожидаясь завтрака.
η θάλασσα ήταν ήρεμη και το καράβι έφυγε νωρίς το πρωί για το νησί.
في الصباح الباكر فتح الخباز دكانه وملأت رائحة الخبز الشارع كله.
बारिश के बाद बच्चे आँगन में खेलने लगे और दादी ने चाय बनाई।
今天早上下了第一场雪,孩子们没吃早饭就跑到院子里去了。
朝早く、パン屋が店を開けると、通りじゅうに焼きたての香りが広がった。
오늘 아침 도시에 첫눈이 내려서 아이들이 밖으로 뛰어나갔다.
""",
    "emoji and symbols": """\
Congratulations!!! 🎉🎂🥳 See you on the beach 🏖️👩‍👩‍👧‍👦 … 5★ would go again 👍🏽 (╯°□°)╯︵ ┻━┻ ♥ ♪♫ ☕→😀
∀ε>0 ∃δ>0: |x−a|<δ ⇒ |f(x)−f(a)|<ε · ½ + ¼ = ¾ · 25 °C ± 0.5 · €12.50 / £10 / ¥1,500 · naïve café, Ångström, Łódź, ñandú
┌────────┬────────┐
│ ▁▂▃▄▅▆ │ ☐ ☑ ☒ │
└────────┴────────┘
""",
}
