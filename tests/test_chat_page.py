"""The chat page in a real browser, against a server that says what it is told to: what a hand can do, and what no
answer may ever do."""

from __future__ import annotations

import json
import random
import re
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from chat_stand_in import BREAK, Piece, Script, StandIn, words
from chromium import MARKS, QUICK_MS, launched
from run_folders import write_run

from fathom.data.conversations import read_conversations

pytestmark = MARKS


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with launched() as chromium:
        yield chromium


@pytest.fixture(scope="module")
def stand_in() -> Iterator[StandIn]:
    server = StandIn()
    yield server
    server.stop()


@pytest.fixture
def served(stand_in: StandIn) -> StandIn:
    stand_in.reset()
    return stand_in


def new_tab(browser: Any, url: str, script: str = "", **settings: Any) -> Any:
    """A page at `url` whose `faults` tell what must never be: an error, a dialog, a request to another host."""
    context = browser.new_context(**{"viewport": {"width": 1280, "height": 900}} | settings)
    context.add_init_script("window.alarm = (what) => { (window.alarms ??= []).push(what); console.error(what) }")
    context.add_init_script(script)
    tab = context.new_page()
    tab.set_default_timeout(QUICK_MS)
    tab.faults = []
    context.on("page", lambda page: tab.faults.append(f"another page opened: {page.url}"))
    tab.on("pageerror", lambda error: tab.faults.append(f"{error.stack}"))
    tab.on("console", lambda line: tab.faults.append(line.text) if line.type in ("error", "warning") else None)
    tab.on("dialog", lambda dialog: (tab.faults.append(dialog.message), dialog.dismiss()))
    tab.on("request", lambda asked: None if asked.url.startswith(url) else tab.faults.append(asked.url))
    tab.goto(url)
    return tab


@pytest.fixture
def open_tab(browser: Any) -> Iterator[Callable[..., Any]]:
    """Opens pages with settings of their own; at the end none may have a fault."""
    opened: list[Any] = []

    def open_tab(url: str, script: str = "", **settings: Any) -> Any:
        opened.append(new_tab(browser, url, script, **settings))
        return opened[-1]

    yield open_tab
    for tab in opened:
        tab.context.close()
    assert [fault for tab in opened for fault in tab.faults] == []


@pytest.fixture(scope="module")
def one_tab(browser: Any, stand_in: StandIn) -> Iterator[Any]:
    tab = new_tab(browser, stand_in.url)
    yield tab
    tab.context.close()


@pytest.fixture
def tab(one_tab: Any, served: StandIn) -> Iterator[Any]:
    """The page as a newcomer meets it, once it knows the model."""
    one_tab.goto(f"{served.url}icon.svg")
    one_tab.evaluate("localStorage.clear(), sessionStorage.clear()")
    one_tab.faults.clear()
    one_tab.goto(served.url)
    one_tab.wait_for_selector("#where[data-state=ready]")
    yield one_tab
    assert one_tab.faults == []


def until(condition: Callable[[], bool]) -> None:
    """Wait until it holds, or fail."""
    end = time.monotonic() + QUICK_MS / 1000
    while not condition():
        assert time.monotonic() < end, "it did not come about"
        time.sleep(0.02)


def ask(tab: Any, text: str) -> None:
    """Say something and wait until the answer has ended."""
    tab.fill("#message", text)
    tab.press("#message", "Enter")
    tab.wait_for_selector("#stop", state="hidden")
    tab.wait_for_selector(".answer:last-child:not(.going)")


def said(tab: Any) -> list[str]:
    """What each turn shows, without its buttons."""
    return [text.strip() for text in tab.locator(".turn .said").all_inner_texts()]


def shows(tab: Any, text: str) -> None:
    """Wait until a turn shows that."""
    tab.locator(".turn").get_by_text(text).last.wait_for()


def forgive(tab: Any, *refusals: str) -> None:
    """A browser logs every refusal of a server; these are looked for."""
    expected = [f"status of {refusal}" for refusal in refusals] or ["net::ERR_"]
    tab.faults[:] = [fault for fault in tab.faults if not any(words in fault for words in expected)]


def test_an_answer_streams_and_says_how_fast_it_came(tab: Any, served: StandIn) -> None:
    served.scripts = [words("One two three four five six.", pause_s=0.15)]
    assert tab.locator("#welcome-name").inner_text() == "quickstart-sft"
    assert "depth 4" in tab.locator("#welcome-facts").inner_text()
    tab.fill("#message", "Count.")
    tab.press("#message", "Enter")
    seen = set()
    while tab.locator("#stop").is_visible():
        seen.add(tab.locator(".answer .said").inner_text())
    tab.wait_for_selector(".answer:not(.going)")
    assert said(tab) == ["Count.", "One two three four five six."]
    assert len(seen) > 3, "it was seen to grow"
    pace = tab.locator(".pace").inner_text()
    assert pace.startswith("6 tokens · ") and "tokens/s · first after 0." in pace
    assert served.bodies[0]["messages"] == [{"role": "user", "content": "Count."}]
    assert served.bodies[0]["model"] == "quickstart-sft"
    assert served.bodies[0]["stream"] and served.bodies[0]["logprobs"] and served.bodies[0]["truncate"]
    ask(tab, "And on?")
    assert [message["role"] for message in served.bodies[1]["messages"]] == ["user", "assistant", "user"]
    assert tab.locator("#read-out").inner_text().startswith("One two three four five six.")


def test_what_was_said_before_a_stop_stays(tab: Any, served: StandIn) -> None:
    served.scripts = [words("word " * 200, pause_s=0.03)]
    tab.fill("#message", "Go on and on.")
    tab.press("#message", "Enter")
    shows(tab, "word word word")
    tab.get_by_role("button", name="Stop").click()
    shows(tab, "Stopped.")
    kept = said(tab)[1]
    assert kept.startswith("word word word") and len(kept) < 900
    until(lambda: served.n_left == 1)
    ask(tab, "And now?")
    assert served.bodies[1]["messages"][1]["content"].strip() == kept


def test_an_answer_can_be_had_again_and_both_are_kept(tab: Any, served: StandIn) -> None:
    served.scripts = [words("Rome."), words("Paris.")]
    ask(tab, "What is the capital of France?")
    tab.get_by_role("button", name="Answer again").click()
    tab.get_by_text("2/2").wait_for()
    assert said(tab) == ["What is the capital of France?", "Paris."]
    assert served.bodies[0]["messages"] == served.bodies[1]["messages"]
    tab.get_by_role("button", name="Earlier version").click()
    assert said(tab)[1] == "Rome."
    ask(tab, "Sure?")
    assert served.bodies[2]["messages"][1]["content"] == "Rome.", "one goes on from the version that is shown"
    tab.get_by_role("button", name="Later version").click()
    assert said(tab) == ["What is the capital of France?", "Paris."]


def test_an_edited_turn_replaces_what_follows(tab: Any, served: StandIn) -> None:
    served.scripts = [words("Paris."), words("Yes."), words("Rome.")]
    ask(tab, "What is the capital of France?")
    ask(tab, "Sure?")
    tab.locator(".user").first.hover()
    tab.get_by_role("button", name="Edit this message").first.click()
    tab.get_by_label("Edit your message").fill("What is the capital of Italy?")
    tab.keyboard.press("Enter")
    shows(tab, "Rome.")
    tab.wait_for_selector(".answer:not(.going)")
    assert said(tab) == ["What is the capital of Italy?", "Rome."]
    assert served.bodies[-1]["messages"] == [{"role": "user", "content": "What is the capital of Italy?"}]
    tab.get_by_role("button", name="Earlier version").click()
    assert said(tab) == ["What is the capital of France?", "Paris.", "Sure?", "Yes."]


def test_conversations_stay_and_can_be_named_and_deleted(tab: Any, served: StandIn) -> None:
    ask(tab, "First of all?")
    tab.keyboard.press("Control+k")
    ask(tab, "Second of all?")
    names = tab.locator("#talks .open")
    assert names.all_inner_texts() == ["Second of all?", "First of all?"]
    tab.reload()
    tab.wait_for_selector(".answer")
    assert said(tab)[0] == "Second of all?"
    assert tab.locator(".pace").inner_text().startswith("6 tokens")
    names.nth(1).click()
    assert said(tab)[0] == "First of all?"
    tab.get_by_role("button", name="More about “First of all?”").click()
    tab.get_by_role("menuitem", name="Rename").click()
    tab.get_by_label("The conversation's name").fill("Mine")
    tab.keyboard.press("Enter")
    assert names.all_inner_texts() == ["Second of all?", "Mine"]
    tab.get_by_role("button", name="More about “Mine”").click()
    tab.keyboard.press("ArrowUp")
    tab.keyboard.press("Enter")
    assert names.all_inner_texts() == ["Second of all?"] and said(tab)[0] == "Second of all?"
    tab.get_by_role("button", name="Undo").click()
    assert names.all_inner_texts() == ["Second of all?", "Mine"] and said(tab)[0] == "First of all?"
    tab.reload()
    tab.wait_for_selector(".answer")
    assert names.all_inner_texts() == ["Second of all?", "Mine"]


def test_an_exported_conversation_is_one_that_sft_reads(tab: Any, served: StandIn, tmp_path: Path) -> None:
    call: list[Piece] = [("python", "12*3"), ("python_output", "36"), ("text", "It is 36.")]
    served.scripts = [Script(call), Script([("text", "")], status=400)]
    tab.get_by_role("button", name="Settings").click()
    tab.get_by_label("System message").fill("Be brief.")
    tab.keyboard.press("Escape")
    ask(tab, "What is 12*3?")
    ask(tab, "This one is refused")
    forgive(tab, "400")
    tab.get_by_role("button", name="More about").click()
    with tab.expect_download() as download:
        tab.get_by_role("menuitem", name="Export as .jsonl").click()
    file = tmp_path / download.value.suggested_filename
    assert file.name == "what-is-12-3.jsonl"
    download.value.save_as(file)
    parts = [{"type": kind, "text": text} for kind, text in call]
    assert list(read_conversations([file])) == [
        [
            {"role": "user", "content": "Be brief.\n\nWhat is 12*3?"},
            {"role": "assistant", "content": parts},
        ]
    ]


def test_settings_reach_the_request_and_are_kept(tab: Any, served: StandIn) -> None:
    ask(tab, "As usual?")
    usual = {"temperature": 0.6, "top_p": 1, "top_k": 50, "min_p": 0, "repetition_penalty": 1, "max_tokens": 256}
    assert {key: served.bodies[0].get(key) for key in usual} == usual and "seed" not in served.bodies[0]
    tab.get_by_role("button", name="Settings").click()
    chosen = {"Temperature": "0", "Top-p": "0.9", "Top-k": "0", "Min-p": "0.05", "Longest answer": "17", "Seed": "42"}
    for label, value in chosen.items():
        tab.get_by_label(label, exact=True).fill(value)
    tab.get_by_label("Repetition penalty").fill("9")
    assert tab.get_by_label("Repetition penalty").get_attribute("aria-invalid") == "true"
    tab.get_by_label("System message").fill("Be brief.")
    tab.reload()
    ask(tab, "And now?")
    wanted = {"temperature": 0, "top_p": 0.9, "top_k": 0, "min_p": 0.05, "repetition_penalty": 1, "max_tokens": 17}
    assert {key: served.bodies[1].get(key) for key in wanted} == wanted and served.bodies[1]["seed"] == 42
    assert served.bodies[1]["messages"][0] == {"role": "system", "content": "Be brief."}
    tab.get_by_role("button", name="Settings").click()
    tab.get_by_role("button", name="Reset to defaults").click()
    tab.keyboard.press("Escape")
    ask(tab, "As usual again?")
    assert {key: served.bodies[2].get(key) for key in usual} == usual and "seed" not in served.bodies[2]
    assert served.bodies[2]["messages"][0]["role"] == "user"


def test_a_call_of_the_tool_is_shown_as_one(tab: Any, served: StandIn) -> None:
    served.scripts = [
        Script([("text", "So: "), ("python", "12"), ("python", "*3"), ("python_output", "36"), ("text", "It is 36.")]),
        Script([("python", "12/0"), ("text", "I do not know.")]),
        Script([("python", "1+1"), ("python_output", "2"), ("python", "2+2"), ("python_output", "4")]),
    ]
    ask(tab, "What is 12*3?")
    call = tab.locator(".call")
    assert call.locator("code").inner_text() == "12*3" and call.locator("output").inner_text() == "36"
    assert said(tab)[1].replace("\n", "") == "So:12*3→36It is 36."
    ask(tab, "And 12/0?")
    assert served.bodies[1]["messages"][1]["content"] == [
        {"type": "text", "text": "So: "},
        {"type": "python", "text": "12*3"},
        {"type": "python_output", "text": "36"},
        {"type": "text", "text": "It is 36."},
    ]
    assert call.nth(1).locator("output").inner_text() == "no result"
    ask(tab, "Twice.")
    assert call.locator("output").all_inner_texts() == ["36", "no result", "2", "4"]


def test_the_token_view_shows_probabilities_and_alternatives(tab: Any, served: StandIn) -> None:
    ask(tab, "What is the capital of France?")
    tab.get_by_role("button", name="Token view").click()
    tokens = tab.locator(".token")
    assert tokens.all_inner_texts() == ["Paris", " is", " the", " capital", " of", " France."]
    assert [n.split("-")[-1] for n in tokens.evaluate_all("all => all.map((t) => t.className)")[:4]] == list("0245")
    tokens.nth(1).hover()
    tip = tab.locator("#token-tip")
    assert " ".join(tip.inner_text().split()) == "␣is 62.0 % ␣is 62.0 % ␣Lyon 19.0 % ␣the 9.5 %"
    tab.mouse.move(5, 5)
    assert tip.is_hidden()
    tokens.first.focus()
    tab.keyboard.press("ArrowRight")
    tab.keyboard.press("ArrowRight")
    assert tab.evaluate("document.activeElement.innerText") == " the"
    assert tab.evaluate("document.activeElement.ariaLabel").startswith("␣the, 20.0 %; likely here:")
    assert tip.is_visible()
    ask(tab, "Again, token by token.")
    assert tokens.count() == 12
    tab.reload()
    until(lambda: tokens.count() == 12)  # probabilities are kept
    tab.get_by_role("button", name="Token view").click()
    assert tokens.count() == 0 and said(tab)[1] == "Paris is the capital of France."


def test_tokens_that_are_parts_of_a_character(tab: Any, served: StandIn) -> None:
    halves = [{"token": "\ufffd", "bytes": part, "logprob": -0.5, "top_logprobs": []} for part in ([0xC3], [0xA9])]
    served.scripts = [Script([("text", "é", halves)])]
    ask(tab, "Say é.")
    tab.get_by_role("button", name="Token view").click()
    assert tab.locator(".token").all_inner_texts() == ["‹c3›", "‹a9›"]


HOSTILE = [
    "<script>alarm(1)</script>",
    "<ScRiPt src=//elsewhere.invalid/x.js></sCrIpT>",
    "<img src=x onerror=alarm(1)>",
    "<img src='https://elsewhere.invalid/pixel.png'>",
    "<svg onload=alarm(1)>",
    "<svg><script>alarm(1)</script></svg>",
    "<svg><animate onbegin=alarm(1) attributeName=x dur=1s>",
    "<svg><a xlink:href='javascript:alarm(1)'><text>x</text></a></svg>",
    "<math><mtext><table><mglyph><style><!--</style><img title='--&gt;&lt;img src=1 onerror=alarm(1)&gt;'>",
    "<math href='javascript:alarm(1)'>x</math>",
    "<iframe src='javascript:alarm(1)'></iframe>",
    "<iframe srcdoc='<script>parent.alarm(1)</script>'></iframe>",
    "<object data='data:text/html,<script>alarm(1)</script>'></object>",
    "<embed src='https://elsewhere.invalid/x.swf'>",
    "<a href='javascript:alarm(1)'>press</a>",
    "<a href=' &#x6A;avascript:alarm(1)'>press</a>",
    "<form action='javascript:alarm(1)'><button>press</button></form>",
    "<button onclick=alarm(1) formaction='javascript:alarm(1)'>press</button>",
    "<details open ontoggle=alarm(1)><summary>x</summary></details>",
    "<body onload=alarm(1)><video><source onerror=alarm(1)></video>",
    "<style>@import 'https://elsewhere.invalid/x.css'; * { background: url(https://elsewhere.invalid/y.png) }</style>",
    "<link rel=stylesheet href='https://elsewhere.invalid/x.css'><base href='https://elsewhere.invalid/'>",
    "<meta http-equiv=refresh content='0;url=https://elsewhere.invalid/'>",
    "<p style='background:url(https://elsewhere.invalid/y.png)' id=log name=send>clobber</p>",
    "<noscript><p title='</noscript><img src=x onerror=alarm(1)>'>",
    "<template><img src=x onerror=alarm(1)></template><textarea><img src=x onerror=alarm(1)></textarea>",
    "<input autofocus onfocus=alarm(1)><select autofocus onfocus=alarm(1)></select>",
    "<x contenteditable onblur=alarm(1) tabindex=1 autofocus onfocus=alarm(1)>x</x>",
    "[press](javascript:alarm(1))",
    "[press](JaVaScRiPt:alarm(1))",
    "[press](java\tscript:alarm(1))",
    "[press](&#106;avascript:alarm(1))",
    "[press](data:text/html;base64,PHNjcmlwdD5hbGFybSgxKTwvc2NyaXB0Pg==)",
    "[press](vbscript:alarm(1)) [press](file:///etc/passwd) [press](blob:x) [press](/metrics) [press](#runs)",
    "[press](<javascript:alarm(1)>) [press](https://ok.invalid/\"onmouseover=alarm(1)x=\")",
    "![x](https://elsewhere.invalid/pixel.png) ![x](javascript:alarm(1)) ![x\"onerror=alarm(1)](x)",
    "![<img src=x onerror=alarm(1)>](https://elsewhere.invalid/\"onerror=alarm(1)) <javascript:alarm(1)>",
    "[a]: javascript:alarm(1)\n\n[press][a] and [a] <https://elsewhere.invalid/\"onclick=alarm(1)>",
    "`<img src=x onerror=alarm(1)>` ``</code><script>alarm(1)</script>``",
    "```html\n<script>alarm(1)</script></code></pre><img src=x onerror=alarm(1)>\n```",
    "```\"><img/src=x/onerror=alarm(1)>\nx\n```",
    "| a |\n|--|\n| <img src=x onerror=alarm(1)> |",
    "- [x] <img src=x onerror=alarm(1)>\n- <svg/onload=alarm(1)>",
    "\u202egnp.<img src=x onerror=alarm(1)>\u2066 \u0000<scr\u0000ipt>alarm(1)</scr\u0000ipt>",
    "\uff1cscript\uff1ealarm(1)\uff1c/script\uff1e %3Cscript%3Ealarm(1)%3C/script%3E",
    "<<script>script>alarm(1)<</script>/script> <img/src=`x`onerror=alarm(1)>",
    "{{constructor.constructor('alarm(1)')()}} ${alarm(1)} javascript:alarm(1)",
    "--><!--[if gte IE 4]><script>alarm(1)</script><![endif]--> <![CDATA[<script>alarm(1)</script>]]>",
]  # fmt: skip
MAY_STAND = re.compile(
    "A|BLOCKQUOTE|BR|CODE|DEL|EM|H[1-6]|HR|LI|OL|P|PRE|STRONG|TABLE|TBODY|TD|TH|THEAD|TR|UL|DIV|FIGURE|FIGCAPTION|SPAN|"
    "BUTTON|svg|path"
)


def assert_nothing_ran(tab: Any, within: str) -> None:
    """No alarm, and nothing stands there that could run or load anything."""
    found = tab.evaluate(
        """(within) => ({
          alarms: window.alarms ?? [],
          names: [...new Set([...document.querySelectorAll(`${within} *`)].map((e) => e.nodeName))],
          attributes: [...new Set([...document.querySelectorAll(`${within} *`)].flatMap((e) => e.getAttributeNames()))],
          links: [...document.querySelectorAll(`${within} a[href]`)].map((a) => [a.getAttribute("href"), a.rel]),
        })""",
        within,
    )
    assert found["alarms"] == []
    assert [name for name in found["names"] if not MAY_STAND.fullmatch(name)] == []
    assert not [n for n in found["attributes"] if n.startswith("on") or n in ("style", "src", "srcdoc", "id", "name")]
    assert all(href.startswith(("https://", "http://", "mailto:")) for href, _ in found["links"])
    assert all(rel == "noopener noreferrer" for _, rel in found["links"])


DRAWN_ALONE = """async (payloads) => {
  const { Prose } = await import("/js/markdown.js");
  const places = (one) => [one, `So: ${one}`, `- ${one}`, `> ${one}`, `| a |\\n|--|\\n| ${one} |`];
  for (const payload of payloads.flatMap(places)) {
    const prose = new Prose();
    document.getElementById("log").append(prose.element);
    for (let cut = 1; cut < payload.length; cut += 5) prose.show(payload.slice(0, cut), false);
    prose.show(payload, true);
  }
}"""


def test_nothing_that_a_model_or_a_person_says_ever_runs(tab: Any, served: StandIn) -> None:
    assert len(HOSTILE) >= 25
    served.scripts = [Script([("text", piece) for piece in ("\n\n".join(HOSTILE))], finish="length")]
    ask(tab, " ".join(HOSTILE))
    for payload in HOSTILE[::9]:
        served.scripts.append(Script([("text", f"So: {payload}\n\n{payload}"), ("python", payload), ("text", payload)]))
        tab.get_by_role("button", name="Answer again").click()
        tab.wait_for_selector(".answer:last-child:not(.going)")
        assert_nothing_ran(tab, ".prose")
    tab.evaluate(DRAWN_ALONE, HOSTILE)
    time.sleep(0.1)
    assert_nothing_ran(tab, ".prose")
    tab.evaluate("document.querySelectorAll('.prose a:not([href])').forEach((link) => link.click())")
    tab.get_by_role("button", name="Token view").click()
    assert tab.locator(".said img, .said script, .said iframe").count() == 0
    tab.reload()
    tab.wait_for_selector(".answer")
    assert tab.evaluate("window.alarms ?? []") == []
    assert tab.locator("#log img, #side img, #log script, #log iframe").count() == 0


def test_the_sanitizer_alone_would_do(tab: Any) -> None:
    """The parser already shows HTML as text; were it to let some through, this is what it meets."""
    tab.evaluate(
        """async (payloads) => {
          const { sanitized } = await import("/js/markdown.js");
          const place = document.createElement("section");
          place.className = "trial";
          document.getElementById("chat").append(place);
          for (const payload of payloads) place.append(sanitized(payload), sanitized(`<table><tr><td>${payload}`));
        }""",
        HOSTILE,
    )
    time.sleep(0.1)
    assert_nothing_ran(tab, ".trial")
    # What is parsed to be cleaned is reported by the policy, though it is never a part of the page.
    tab.faults[:] = [fault for fault in tab.faults if "Content Security Policy" not in fault]


def test_the_policy_holds_where_all_else_fails(open_tab: Callable[..., Any], served: StandIn) -> None:
    tab = open_tab(served.url)
    tab.wait_for_selector("#where[data-state=ready]")
    listening = "(refusal) => (window.refused ??= []).push(refusal.effectiveDirective)"
    tab.evaluate(f"document.addEventListener('securitypolicyviolation', {listening})")
    for payload in HOSTILE[:6]:
        tab.evaluate("(html) => document.getElementById('log').insertAdjacentHTML('beforeend', html)", payload)
    until(lambda: {"img-src", "script-src-attr"} <= set(tab.evaluate("window.refused ?? []")))
    assert tab.evaluate("window.alarms ?? []") == []
    tab.faults.clear()


def test_the_names_of_runs_and_conversations_are_text(open_tab: Callable[..., Any], served: StandIn) -> None:
    served.run |= {"run": HOSTILE[2], "stage": HOSTILE[0], "step": 5}
    served.scripts = [Script([("text", HOSTILE[2])], status=400)]
    tab = open_tab(served.url)
    tab.wait_for_selector("#where[data-state=ready]")
    assert tab.locator("#welcome-name").inner_text() == HOSTILE[2]
    ask(tab, HOSTILE[2])
    forgive(tab, "400")
    assert tab.locator("#talks .open").inner_text() == HOSTILE[2]
    assert tab.locator(".note.failed span").inner_text().startswith("<img src=x")
    assert tab.locator("#chat img[src=x]").count() == 0


MARKDOWN = """# A title

Some *words* with `code`, **more**, a [link](https://ok.invalid/), https://auto.invalid and a line
that is broken.

- one
- two
  - three

  a second paragraph

1. first
2. second

3. third, after a blank line

```python
def f(x):
    return "```" if x else None

```

> a quote
> goes on

| a | b |
|---|--:|
| 1 | 2 |
| 3 | 4 |

A [reference][r], and ~~gone~~. <b>bold?</b>

Heading below
---

    indented code

[r]: https://ok.invalid/r

- [ ] open
- [x] done

```
never closed
"""


def test_streamed_text_ends_as_it_would_look_at_once(tab: Any) -> None:
    """Cut anywhere, whole blocks are drawn once, and nothing is lost or doubled on the way."""
    dice = random.Random(5)
    plans = [[len(MARKDOWN) * step // n for step in range(1, n)] for n in (2, 7, 40, len(MARKDOWN))]
    plans += [sorted(dice.randrange(len(MARKDOWN)) for _ in range(dice.randrange(1, 30))) for _ in range(20)]
    differing = tab.evaluate(
        """async ([text, plans]) => {
          const { Prose } = await import("/js/markdown.js");
          const at_once = new Prose();
          at_once.show(text, true);
          return plans.filter((cuts) => {
            const prose = new Prose();
            for (const cut of cuts) prose.show(text.slice(0, cut), false);
            prose.show(text, true);
            return prose.element.innerHTML !== at_once.element.innerHTML;
          });
        }""",
        [MARKDOWN, plans],
    )
    assert differing == []


def test_blocks_that_stand_are_not_drawn_again(tab: Any, served: StandIn) -> None:
    served.scripts = [words("first paragraph\n\n" + "word " * 40 + "\n\nlast one", pause_s=0.005)]
    tab.fill("#message", "At length.")
    tab.press("#message", "Enter")
    shows(tab, "word word")
    tab.evaluate("document.querySelector('.prose p').mine = true")
    tab.wait_for_selector(".answer:not(.going)")
    assert tab.evaluate("document.querySelector('.prose p').mine") is True


def test_code_can_be_copied(open_tab: Callable[..., Any], served: StandIn) -> None:
    served.scripts = [Script([("text", "```py\nprint(1)\n```"), ("text", "\nDone.")])]
    tab = open_tab(served.url, permissions=["clipboard-read", "clipboard-write"])
    ask(tab, "Code?")
    assert tab.locator("figcaption").inner_text() == "py"
    tab.get_by_role("button", name="Copy this code").click()
    until(lambda: tab.evaluate("navigator.clipboard.readText()").strip() == "print(1)")
    tab.get_by_role("button", name="Copy", exact=True).last.click()
    until(lambda: tab.evaluate("navigator.clipboard.readText()") == "```py\nprint(1)\n```\nDone.")


def test_keys(tab: Any, served: StandIn) -> None:
    message = tab.locator("#message")
    message.type("one")
    tab.keyboard.press("Shift+Enter")
    message.type("two")
    served.scripts = [words("word " * 100, pause_s=0.03)]
    tab.keyboard.press("Enter")
    assert said(tab)[0] == "one\ntwo" and message.input_value() == ""
    shows(tab, "word word")
    tab.keyboard.press("Escape")
    shows(tab, "Stopped.")
    message.focus()
    tab.keyboard.press("ArrowUp")
    field = tab.get_by_label("Edit your message")
    assert field.input_value() == "one\ntwo"
    tab.keyboard.press("Escape")
    assert field.count() == 0 and tab.evaluate("document.activeElement.id") == "message"
    tab.keyboard.press("?")
    assert message.input_value() == "?" and tab.locator("#keys").is_hidden()
    message.fill("")
    tab.locator("#tokens").focus()
    tab.keyboard.press("?")
    assert tab.locator("#keys").is_visible()
    tab.keyboard.press("Escape")
    assert tab.locator("#keys").is_hidden()
    tab.keyboard.press("Control+k")
    assert tab.locator("#welcome").is_visible() and tab.locator(".turn").count() == 0
    reached = set()
    for _ in range(30):
        tab.keyboard.press("Tab")
        reached.add(tab.evaluate("document.activeElement.id || document.activeElement.className"))
    assert {"open-settings", "tokens", "theme", "new", "open", "chip", "message"} <= reached


def test_everything_has_a_name(tab: Any, served: StandIn) -> None:
    served.scripts = [Script([("text", MARKDOWN), ("python", "1+1"), ("python_output", "2")])]
    ask(tab, "Everything?")
    nameless = tab.evaluate(
        """() => {
          const kinds = "button, input:not([aria-hidden]), textarea, a[href], dialog, iframe, [role=group]";
          const named = (e) => e.ariaLabel || e.title || e.textContent.trim() || e.labels?.length;
          return [...document.querySelectorAll(kinds)].filter((e) => !named(e)).map((e) => e.outerHTML);
        }"""
    )
    assert nameless == []
    assert tab.locator("html").get_attribute("lang") == "en"


CONTRAST = """() => {
  const canvas = document.createElement("canvas").getContext("2d", { willReadFrequently: true });
  const rgba = (colour, below) => {
    if (below) canvas.putImageData(new ImageData(Uint8ClampedArray.from([...below, 255]), 1, 1), 0, 0);
    else canvas.clearRect(0, 0, 1, 1);
    canvas.fillStyle = colour;
    canvas.fillRect(0, 0, 1, 1);
    return [...canvas.getImageData(0, 0, 1, 1).data].slice(0, 3);
  };
  const light = (rgb) => rgb.map((c) => c / 255).map((c) => (c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4))
    .reduce((sum, c, i) => sum + c * [0.2126, 0.7152, 0.0722][i], 0);
  const ground = (e) => {
    const all = [];
    for (let at = e; at; at = at.parentElement) all.unshift(getComputedStyle(at).backgroundColor);
    return all.reduce((below, colour) => rgba(colour, below), [255, 255, 255]);
  };
  const poor = [];
  for (const e of document.querySelectorAll("body *")) {
    const own = [...e.childNodes].some((n) => n.nodeType === 3 && n.textContent.trim());
    if (!own || !e.checkVisibility({ opacityProperty: true, visibilityProperty: true }) || e.disabled) continue;
    const below = ground(e);
    const [a, b] = [light(rgba(getComputedStyle(e).color, below)), light(below)].sort((x, y) => y - x);
    if ((a + 0.05) / (b + 0.05) < 4.5) poor.push(`${e.outerHTML.slice(0, 90)} ${((a + 0.05) / (b + 0.05)).toFixed(2)}`);
  }
  return poor;
}"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_light_and_dark_can_be_read(open_tab: Callable[..., Any], served: StandIn, scheme: str) -> None:
    still = {"color_scheme": scheme, "reduced_motion": "reduce"}
    served.scripts = [
        Script([("text", MARKDOWN), ("python", "1"), ("text", "…")]),
        Script([("text", "no")], status=400),
    ]
    tab = open_tab(served.url, **still)
    tab.wait_for_selector(".chip")
    paper = {"light": "rgb(255, 255, 255)", "dark": "rgb(20, 23, 26)"}
    ground = "getComputedStyle(document.body).backgroundColor"
    assert tab.evaluate(ground) == paper[scheme]
    assert tab.evaluate(CONTRAST) == []
    ask(tab, "Everything?")
    ask(tab, "And an error?")
    forgive(tab, "400")
    assert tab.evaluate(CONTRAST) == []
    rare = [
        ("text", word, [{"token": word, "logprob": -n, "bytes": [], "top_logprobs": []}])
        for n, word in enumerate("abcdef")
    ]
    served.scripts = [Script(rare)]
    tab.get_by_role("button", name="Token view").click()
    ask(tab, "Tokens?")
    tab.locator(".token").last.hover()
    assert tab.evaluate(CONTRAST) == []
    tab.get_by_role("button", name="Settings").click()
    assert tab.evaluate(CONTRAST) == []
    tab.keyboard.press("Escape")
    other = "light" if scheme == "dark" else "dark"
    tab.get_by_role("button", name=f"Switch to {other}").click()
    until(lambda: tab.evaluate(ground) == paper[other])
    tab.reload()
    assert tab.evaluate(ground) == paper[other], "the choice is kept"
    tab.get_by_role("button", name=f"Switch to {scheme}").click()
    tab.emulate_media(color_scheme=other)
    until(lambda: tab.evaluate(ground) == paper[other])


def test_it_fits_a_phone(open_tab: Callable[..., Any], served: StandIn) -> None:
    served.run["run"] = "a-run-with-a-name-that-is-rather-long-for-a-phone"
    served.scripts = [
        words(MARKDOWN + "\n\n" + "x" * 300),
        Script([("python", "1+" * 90 + "1"), ("python_output", "9" * 99)]),
    ]
    tab = open_tab(served.url, viewport={"width": 320, "height": 560}, has_touch=True, is_mobile=True)
    tab.wait_for_selector("#where[data-state=ready]")

    def fits() -> bool:
        wide = tab.evaluate(
            "[document.documentElement, document.body, document.getElementById('room')].map((e) => e.scrollWidth)"
        )
        return max(wide) <= 320

    assert fits()
    ask(tab, "y" * 200)
    ask(tab, "And a long call.")
    assert fits()
    tab.get_by_role("button", name="Token view").tap()
    assert fits()
    tab.locator(".token").nth(3).tap()
    box = tab.locator("#token-tip").bounding_box()
    assert box["x"] >= 0 and box["x"] + box["width"] <= 320
    assert tab.locator("#side").is_hidden()
    tab.get_by_role("button", name="Conversations", exact=True).tap()
    tab.get_by_role("button", name="New conversation").tap()
    tab.wait_for_selector("#welcome:visible")
    tab.get_by_role("button", name="Settings").tap()
    assert fits()
    sizes = tab.evaluate(
        "[...document.querySelectorAll('header button, #send')].map((b) => b.getBoundingClientRect().height)"
    )
    assert min(sizes) >= 36
    composer = tab.locator("#composer").bounding_box()
    assert composer["y"] + composer["height"] <= 560


def test_a_server_that_wants_a_key_is_given_one(tab: Any, open_tab: Callable[..., Any], served: StandIn) -> None:
    served.key = "sesame"
    tab.fill("#message", "What is the capital of France?")
    tab.press("#message", "Enter")
    for key in ("wrong", "sesame"):
        tab.get_by_label("API key").fill(key)
        tab.keyboard.press("Enter")
        if key == "wrong":
            until(lambda: tab.get_by_label("API key").input_value() == "" and tab.locator("#key-dialog").is_visible())
    shows(tab, "Paris is the capital of France.")
    tab.reload()
    tab.wait_for_selector("#where[data-state=ready]")
    assert tab.locator("#key-dialog").is_hidden()
    assert tab.evaluate("JSON.stringify(localStorage)").find("sesame") == -1, "it is kept for the session only"
    forgive(tab, "401")
    other = open_tab(served.url)
    other.get_by_text("This server wants its key as a bearer token.").first.wait_for()
    other.get_by_role("button", name="Cancel").click()
    other.get_by_role("button", name="Ask now").wait_for()
    forgive(other, "401")


def test_failures_are_said_in_words_and_can_be_tried_again(tab: Any, served: StandIn) -> None:
    served.scripts = [
        Script([("text", "the prompt has 600 tokens, the context holds 512")], status=400),
        Script([("text", "It breaks off in"), BREAK]),
        Script([("text", "It fails"), ("error", "the engine failed")]),
        Script([("text", "the engine failed while it answered")], status=503, code="engine_error"),
        words("At last."),
    ]
    ask(tab, "Try.")
    note = tab.locator(".answer:last-child .note span")
    assert note.inner_text() == "The prompt has 600 tokens, the context holds 512."
    told = []
    for _ in range(4):
        tab.get_by_role("button", name="Try again").click()
        tab.wait_for_selector(".answer:not(.going)")
        told.append((said(tab)[1], note.inner_text() if note.is_visible() else ""))
    assert told == [
        ("It breaks off in", "The connection broke off in the middle of the answer."),
        ("It fails", "The engine failed."),
        ("", "The engine failed while it answered."),
        ("At last.", ""),
    ]
    assert tab.get_by_text("5/5").is_visible()
    forgive(tab, "400", "503")


def test_a_busy_server_is_waited_for(tab: Any, served: StandIn) -> None:
    busy = Script([("text", "64 answers wait")], status=429, headers={"Retry-After": "0.2"})
    served.scripts = [busy, busy, words("My turn.")]
    ask(tab, "Now?")
    assert said(tab)[1] == "My turn." and len(served.bodies) == 3
    served.scripts = [Script([("text", "64 answers wait")], status=429, headers={"Retry-After": "20"})]
    tab.fill("#message", "And now?")
    tab.press("#message", "Enter")
    shows(tab, "The server is busy with others. Trying again in 20 s.")
    tab.keyboard.press("Escape")
    shows(tab, "Stopped.")
    forgive(tab, "429")


def test_a_server_that_loads_or_goes_is_waited_for(open_tab: Callable[..., Any]) -> None:
    server = StandIn()
    server.is_loading = True
    tab = open_tab(server.url)
    tab.get_by_text("The model is being loaded. This page goes on by itself.").wait_for()
    tab.fill("#message", "Too early?")
    tab.press("#message", "Enter")
    tab.get_by_text("your message stays here until it is").wait_for()
    assert tab.locator("#message").input_value() == "Too early?"
    server.is_loading = False
    tab.get_by_role("button", name="Ask now").click()
    tab.wait_for_selector("#where[data-state=ready]")
    server.scripts = [words("word " * 100, pause_s=0.03)]
    tab.press("#message", "Enter")
    shows(tab, "word word")
    server.stop()
    tab.wait_for_selector(".note.failed")
    tab.fill("#message", "Still there?")
    tab.press("#message", "Enter")
    shows(tab, "The server does not answer. Is `fathom serve` still running?")
    again = StandIn(server.port)
    tab.get_by_role("button", name="Ask now").click()
    tab.wait_for_selector("#where[data-state=ready]")
    tab.get_by_role("button", name="Try again").last.click()
    shows(tab, "Paris is the capital of France.")
    again.stop()
    forgive(tab, "503")
    forgive(tab)


def test_a_run_that_cannot_chat_goes_on_with_what_is_begun(open_tab: Callable[..., Any], served: StandIn) -> None:
    served.run |= {"run": "quickstart", "stage": "pretrain", "can_chat": False}
    served.scripts = [words(" Paris, of course.")]
    tab = open_tab(served.url)
    tab.get_by_text("has not been taught to chat").wait_for()
    tab.locator(".chip").first.click()
    shows(tab, "Paris, of course.")
    assert served.bodies[0]["prompt"] == "The capital of France is" and "messages" not in served.bodies[0]
    tab.get_by_role("button", name="Token view").click()
    assert [text.strip() for text in tab.locator(".token").all_inner_texts()] == ["Paris,", "of", "course."]


def test_storage_that_is_blocked(open_tab: Callable[..., Any], served: StandIn) -> None:
    blocked = (
        "Object.defineProperty(window, 'localStorage', { get() { throw new DOMException('no', 'SecurityError') } })"
    )
    tab = open_tab(served.url, blocked)
    tab.get_by_text("This browser keeps nothing for this page").wait_for()
    ask(tab, "Still?")
    assert said(tab)[1] == "Paris is the capital of France."


def test_storage_that_is_broken(open_tab: Callable[..., Any], served: StandIn) -> None:
    rubbish = {
        "fathom.talk.a": "{not json",
        "fathom.talk.b": json.dumps({"id": "b", "nodes": {"n1": {"role": "user", "text": 5}}, "chosen": {}}),
        "fathom.talk.c": json.dumps({"id": "c", "nodes": {}, "chosen": {"root": "n1", "n1": "n1"}}),
        "fathom.talk.d": "null",
        "fathom.settings": '{"temperature": "hot", "top_k": 1e9, "seed": -1}',
        "fathom.tokens": "[",
        "fathom.current": '"c"',
        "fathom.theme": "purple",
    }
    put = "".join(f"localStorage.setItem({json.dumps(key)}, {json.dumps(value)});" for key, value in rubbish.items())
    tab = open_tab(served.url, f"if (!localStorage.length) {{ {put} }}")
    tab.get_by_text("3 conversations could not be read and was left out.").wait_for()
    ask(tab, "Still?")
    assert served.bodies[0]["temperature"] == 0.6 and served.bodies[0]["top_k"] == 200
    assert said(tab)[1] == "Paris is the capital of France."


def test_storage_that_is_full(open_tab: Callable[..., Any], served: StandIn) -> None:
    """The oldest conversation makes room, and that is said; a browser that keeps nothing at all is said too."""
    fill = """for (let n = 0; n < 8; n++) {
        const nodes = { n1: { id: "n1", parent: "root", role: "user", text: "x".repeat(370_000) } };
        const talk = { id: `t${n}`, title: `old ${n}`, updated: 9 - n, nodes, chosen: { root: "n1" } };
        localStorage.setItem(`fathom.talk.t${n}`, JSON.stringify(talk));
    }"""
    tab = open_tab(served.url, f"if (!localStorage.length) {{ {fill} }}")
    assert tab.locator("#talks .open").count() == 8
    ask(tab, "y" * 100_000)
    tab.get_by_text("the oldest are being dropped").wait_for()
    kept = tab.evaluate("Object.keys(localStorage).filter((key) => key.startsWith('fathom.talk.'))")
    assert len(kept) == 8 and "fathom.talk.t7" not in kept
    tab.evaluate("() => { Storage.prototype.setItem = () => { throw new DOMException('full', 'QuotaExceededError') } }")
    ask(tab, "And again.")
    tab.get_by_text("no room for this conversation").wait_for()
    assert said(tab)[-1] == "Paris is the capital of France."


def test_two_tabs_of_one_browser_agree(tab: Any, served: StandIn) -> None:
    other = tab.context.new_page()
    tab.faults.clear()  # this other page is no fault
    other.goto(served.url)
    ask(tab, "First?")
    until(lambda: other.locator("#talks .open").all_inner_texts() == ["First?"])
    other.locator("#talks .open").click()
    ask(tab, "Second?")
    until(lambda: len(said(other)) == 4)
    other.close()


def test_an_answer_goes_on_while_another_conversation_is_read(tab: Any, served: StandIn) -> None:
    ask(tab, "First?")
    tab.keyboard.press("Control+k")
    served.scripts = [words("word " * 30 + "end.", pause_s=0.02)]
    tab.fill("#message", "At length.")
    tab.press("#message", "Enter")
    shows(tab, "word word")
    tab.get_by_role("button", name="First?", exact=True).click()
    assert said(tab)[0] == "First?" and tab.locator("#stop").is_hidden()
    tab.get_by_role("button", name="At length.", exact=True).click()
    tab.wait_for_selector(".answer:not(.going)")
    assert said(tab)[1].endswith("word end.")


def test_a_reader_who_scrolled_up_is_left_there(tab: Any, served: StandIn) -> None:
    served.scripts = [words("line\n\n" * 60), words("line\n\n" * 100, pause_s=0.01)]
    ask(tab, "Fill the screen.")
    at_end = (
        "(() => { const r = document.getElementById('room'); return r.scrollHeight - r.scrollTop - r.clientHeight })()"
    )
    assert tab.evaluate(at_end) < 5
    tab.fill("#message", "More.")
    tab.press("#message", "Enter")
    tab.locator("#room").hover()
    tab.mouse.wheel(0, -900)
    until(lambda: tab.evaluate(at_end) > 500)
    place = tab.evaluate("document.getElementById('room').scrollTop")
    tab.wait_for_selector(".answer:last-child:not(.going)")
    assert abs(tab.evaluate("document.getElementById('room').scrollTop") - place) < 400
    assert tab.evaluate(at_end) > 1000
    tab.get_by_role("button", name="To the end").click()
    until(lambda: tab.evaluate(at_end) < 5)


def test_the_dashboard_is_a_tab_of_it(open_tab: Callable[..., Any], fathom_home: Path) -> None:
    write_run(fathom_home, "mine", 50)
    server = StandIn()
    tab = open_tab(server.url, color_scheme="light")
    tab.get_by_role("link", name="Runs").click()
    frame = tab.frame_locator("#runs")
    frame.locator("#charts figure").first.wait_for()
    assert frame.locator("header > b").is_hidden(), "the name stands above already"
    ground = "getComputedStyle(document.body).backgroundColor"
    assert tab.frames[1].evaluate(ground) == "rgb(255, 255, 255)"
    tab.get_by_role("button", name="Switch to dark").click()
    until(lambda: tab.frames[1].evaluate(ground) == "rgb(20, 23, 26)")
    assert tab.url.endswith("#runs")
    tab.reload()
    frame.locator("#charts figure").first.wait_for()
    tab.get_by_role("link", name="Chat").click()
    assert tab.locator("#message").is_visible() and tab.locator("#runs").is_hidden()
    server.stop()
    forgive(tab)
