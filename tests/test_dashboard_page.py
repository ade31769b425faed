"""The dashboard and a report's page in a real browser: what is drawn, what a hand can do, what must never happen."""

from __future__ import annotations

import json
import math
import shutil
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import uvicorn
from chromium import MARKS, QUICK_MS, launched
from run_folders import append, metric, write_run

from fathom.report import dashboard
from fathom.report.charts import Chart, Curve, page, slot

HOSTILE = "<img src=x onerror=\"document.title='taken'\"></script><script>document.title='taken'</script>"

pytestmark = MARKS


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with launched() as chromium:
        yield chromium


@pytest.fixture
def tab(browser: Any) -> Iterator[Any]:
    """A page that must raise nothing, log no error, open no dialog and ask nobody but this machine."""
    context = browser.new_context(viewport={"width": 1280, "height": 900})
    opened = context.new_page()
    opened.set_default_timeout(QUICK_MS)
    faults: list[str] = []
    opened.on("pageerror", lambda error: faults.append(f"{error.stack}"))
    opened.on("console", lambda line: faults.append(line.text) if line.type in ("error", "warning") else None)
    opened.on("dialog", lambda dialog: (faults.append(dialog.message), dialog.dismiss()))
    opened.on("request", lambda asked: None if _is_ours(asked.url) else faults.append(asked.url))
    opened.faults = faults
    yield opened
    context.close()
    assert faults == []


def _is_ours(url: str) -> bool:
    return url.startswith(("http://127.0.0.1:", "file://", "data:"))


class Served:
    """The dashboard of the test's home, on a thread."""

    def __init__(self, *first: str) -> None:
        self._socket = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._socket.getsockname()[1]}/"
        settings = uvicorn.Config(
            dashboard.application(first), log_level="error", lifespan="off", timeout_graceful_shutdown=1
        )
        self._server = uvicorn.Server(settings)
        self._thread = threading.Thread(target=self._server.run, kwargs={"sockets": [self._socket]})
        self._thread.start()

    def stop(self) -> None:
        self._server.should_exit = True
        self._thread.join()
        self._socket.close()


@pytest.fixture
def served(fathom_home: Path) -> Iterator[Served]:
    server = Served()
    yield server
    server.stop()


def until(condition: Callable[[], bool]) -> None:
    """Wait until it holds, or fail."""
    end = time.monotonic() + QUICK_MS / 1000
    while not condition():
        assert time.monotonic() < end, "it did not come about"
        time.sleep(0.05)


def titles(tab: Any) -> list[str]:
    return tab.locator("#charts figcaption b").all_text_contents()


def extent(tab: Any) -> list[list[float]]:
    """The x range that each chart shows."""
    return tab.evaluate("uPlot.sync('runs').plots.map((u) => [u.scales.x.min, u.scales.x.max])")


def inked(tab: Any, figure: int) -> int:
    """How many pixels of a chart's plotting area are strongly coloured: a curve is, a grid is not."""
    return tab.evaluate(
        """(n) => {
          const canvas = document.querySelectorAll("figure canvas")[n];
          const { data } = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height);
          let count = 0;
          for (let i = 0; i < data.length; i += 4) {
            const rgb = [data[i], data[i + 1], data[i + 2]];
            if (data[i + 3] > 200 && Math.max(...rgb) - Math.min(...rgb) > 80) count++;
          }
          return count;
        }""",
        figure,
    )


def test_the_curves_of_several_runs_are_drawn_over_any_axis(tab: Any, served: Served, fathom_home: Path) -> None:
    for name in ("one", "two"):
        folder = write_run(fathom_home, name, 300)
        append(
            folder,
            "events.jsonl",
            *({"event": "evaluated", "step": s, "train_s": s / 2, "val_bpb": 1 / s} for s in (9, 300)),
        )
    tab.goto(f"{served.url}#run=one&run=two")
    tab.wait_for_selector("#charts figure:nth-of-type(6)")
    assert titles(tab) == ["Training loss", "Validation", "Learning rate", "Speed", "MFU", "Memory"]
    assert all(inked(tab, n) > 100 for n in range(6))
    assert tab.locator("#charts figure").first.locator(".u-series:visible").all_text_contents() == [
        "steps",
        "one",
        "two",
    ]
    assert extent(tab)[0] == [1, 300]
    for axis, most in (("tokens", 300 * 4096), ("training time", 150), ("FLOPs", None)):
        tab.get_by_text(axis, exact=True).first.click()
        shown = extent(tab)[0]
        assert shown[1] == most if most else shown[1] > 1e12
    tab.reload()
    tab.wait_for_selector("#charts figure")
    assert tab.locator("[value=flops]").is_checked(), "what was chosen stands in the address"
    tab.get_by_label("log y").check()
    tab.get_by_label("log x").check()
    assert inked(tab, 0) > 100


def test_runs_of_different_text_are_said_to_be_no_match(tab: Any, served: Served, fathom_home: Path) -> None:
    for name, corpus in (("one", "books"), ("two", "primer"), ("three", "books")):
        toml = write_run(fathom_home, name, 30) / "run.toml"
        told = f'[config]\ncorpus = "{corpus}"\ndata_digest = "{corpus}"'
        toml.write_text(toml.read_text().replace("[config]", told))
    words = "These runs read different text or tokens (one: books, two: primer)"
    tab.goto(f"{served.url}#run=one&run=two")
    tab.get_by_text(words).wait_for()
    tab.goto("about:blank")
    tab.goto(f"{served.url}#run=one&run=three")
    tab.wait_for_selector("#charts figure:nth-of-type(3)")
    assert tab.get_by_text("different text").count() == 0


def test_a_drag_zooms_all_charts_and_the_button_brings_them_back(tab: Any, served: Served, fathom_home: Path) -> None:
    folder = write_run(fathom_home, "mine", 300)
    tab.goto(served.url)
    over = tab.locator("#charts .u-over").first
    box = over.bounding_box()
    tab.mouse.move(box["x"] + box["width"] * 0.5, box["y"] + 60)
    tab.mouse.down()
    tab.mouse.move(box["x"] + box["width"] * 0.75, box["y"] + 60, steps=4)
    tab.mouse.up()
    zoomed = extent(tab)
    assert len(zoomed) > 3
    assert all(140 < low < 160 and 215 < high < 235 for low, high in zoomed)
    append(folder, "metrics.jsonl", *(metric(step) for step in range(300, 310)))
    tab.get_by_text("step 310 of 300").wait_for()
    until(lambda: tab.evaluate("uPlot.sync('runs').plots[0].data[0].length") == 310)
    assert sum(extent(tab), []) == pytest.approx(sum(zoomed, [])), "new steps leave the zoom alone"
    tab.get_by_role("button", name="reset zoom").first.click()
    until(lambda: all(shown == [1, 310] for shown in extent(tab)))
    assert tab.get_by_role("button", name="reset zoom").count() == 0


def test_smoothing_changes_the_curve_and_zero_leaves_it(tab: Any, served: Served, fathom_home: Path) -> None:
    write_run(fathom_home, "mine", 50)
    tab.goto(served.url)
    tab.wait_for_selector("#charts figure")
    tab.locator("#smoothing").fill("0.9")
    raw, smooth = tab.evaluate("uPlot.sync('runs').plots[0].data.slice(1).map((y) => [...y])")
    assert smooth[0] == raw[0] and smooth[10] > raw[10] + 0.1
    weight = [0.9 ** (10 - i) for i in range(11)]
    assert smooth[10] == pytest.approx(sum(w * y for w, y in zip(weight, raw, strict=False)) / sum(weight))
    tab.locator("#smoothing").fill("0")
    assert tab.evaluate("uPlot.sync('runs').plots[0].data.length") == 2


def test_runs_come_grow_and_go_while_it_is_open(tab: Any, served: Served, fathom_home: Path) -> None:
    tab.goto(served.url)
    tab.get_by_text("There are no runs here yet").wait_for()
    folder = write_run(fathom_home, "mine", 4)
    tab.locator("#runs input").check()
    tab.wait_for_selector("#charts figure")
    append(folder, "metrics.jsonl", metric(4))
    tab.get_by_text("step 5 of 4").wait_for()
    shutil.rmtree(folder)
    tab.get_by_text("There are no runs here yet").wait_for()
    assert tab.locator("#runs li").count() == 0


def test_samples_through_time(tab: Any, served: Served, fathom_home: Path) -> None:
    folder = write_run(fathom_home, "mine", 30)
    append(
        folder,
        "samples.jsonl",
        *({"step": s, "prompt": "The sky", "text": f"is {s}\n  <b>blue</b>"} for s in (10, 20, 30)),
    )
    tab.goto(f"{served.url}#tab=samples")
    tab.get_by_text("is 30").wait_for()
    assert tab.locator(".said").inner_text().endswith("is 30\n  <b>blue</b>")
    tab.locator("#moment").fill("0")
    tab.get_by_text("is 10").wait_for()
    append(folder, "samples.jsonl", {"step": 40, "prompt": "The sky", "text": "is 40"})
    assert tab.locator("#at").inner_text() == "10", "who looks at the past stays there"


def test_nothing_that_a_run_says_becomes_part_of_the_page(tab: Any, served: Served, fathom_home: Path) -> None:
    folder = write_run(fathom_home, "mine", 20, run={"name": HOSTILE, "stage": HOSTILE})
    facts = {"device_name": HOSTILE, "dtype": HOSTILE, "peak_flops": 1e13, "peak_source": HOSTILE, "torch": HOSTILE}
    append(
        folder,
        "events.jsonl",
        {"event": "training", "step": 0} | facts,
        {"event": "stopped", "step": 20, "why": HOSTILE},
    )
    append(
        folder, "samples.jsonl", {"step": 20, "prompt": HOSTILE, "text": HOSTILE}, {"step": HOSTILE, "text": [HOSTILE]}
    )
    (folder / "evals" / f"{HOSTILE.replace('/', '')}.json").write_text(
        json.dumps({HOSTILE: HOSTILE, "d": {HOSTILE: 1}, "l": [HOSTILE]})
    )
    (fathom_home / "runs" / "torn").mkdir()
    (fathom_home / "runs" / "torn" / "run.toml").write_text(f"{HOSTILE}\n")
    tab.goto(f"{served.url}#run=torn&run=mine&run={HOSTILE}")
    tab.wait_for_selector("#charts figure")
    for name in ("Samples", "Evaluations", "Hardware", "Assessment"):
        tab.get_by_role("button", name=name).click()
        found = tab.locator(f"#{name.lower()} {'.finding' if name == 'Assessment' else '.content'}")
        found.first.wait_for()
        assert name == "Assessment" or found.get_by_text(HOSTILE).count()
    time.sleep(0.2)
    assert tab.title() == "fathom dashboard"
    assert tab.locator("img, body script").count() == 0


def test_an_evaluation_says_what_was_found_and_leaves_digests_to_the_file(
    tab: Any, served: Served, fathom_home: Path
) -> None:
    folder = write_run(fathom_home, "mine", 40)
    one = {"split": "validation", "rows_of": "lossless", "tokens": 5120, "bpb": 2.271488, "standard_error": 0.040839}
    about = {"data": {"corpus": "books", "digest": "d18f" * 16}, "settings": {"limit": 40}, "data_digest": "d18f" * 16}
    found = {"task": "bpb", "step": 40, "value": 2.271488, "standard_error": 0.040839, "n": 5120, "sets": [one]}
    more = {"val_bpb": 2.271488, "seconds": 102.2, "time": 1_796_010_329.3}
    (folder / "evals" / "bpb-000040-limit40-cf94b2.json").write_text(json.dumps(found | about | more))
    tab.goto(f"{served.url}#run=mine")
    tab.wait_for_selector("#charts figure")
    tab.get_by_role("button", name="Evaluations").click()
    tab.get_by_text("Bits per byte of books, step 40, at most 40 rows of each part").wait_for()
    said = tab.locator("#evaluations").text_content()
    assert "2.2715 ± 0.0408" in said and "whole documents" in said and "in 1 min 42 s." in said
    for raw in ("standard_error", "digest", "d18f", "cf94b2", "1.796", "val_bpb"):
        assert raw not in said


def test_commands_of_an_assessment_are_set_as_commands(
    tab: Any, served: Served, fathom_home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FATHOM_COMMAND", "./fathom")
    write_run(fathom_home, "mine", 20, planned=400)
    tab.goto(f"{served.url}#run=mine")
    tab.wait_for_selector("#charts figure")
    tab.get_by_role("button", name="Assessment").click()
    tab.locator(".finding code").first.wait_for()
    commands = tab.locator(".finding code").all_text_contents()
    assert commands and all(command.startswith("./fathom ") for command in commands)
    assert "`" not in tab.locator("#assessment").inner_text()


def test_a_run_without_a_curve_is_not_what_is_shown_at_first(tab: Any, served: Served, fathom_home: Path) -> None:
    """An imported one has none before it is trained further."""
    write_run(fathom_home, "older", 20)
    folder = write_run(fathom_home, "imported", 0)
    append(folder, "events.jsonl", {"event": "stopped", "step": 20, "why": "import", "time": time.time() + 9})
    tab.goto(served.url)
    tab.wait_for_selector("#charts figure")
    assert tab.locator("#hint").is_visible()
    older, imported = (tab.get_by_role("checkbox", name=name) for name in ("older", "imported"))
    assert older.is_checked() and not imported.is_checked()
    tab.goto(f"{served.url}#run=imported")
    tab.reload()
    tab.get_by_text("Not in the record of this run").wait_for()
    assert not tab.locator("#hint").is_visible()


def test_it_fits_a_phone_and_the_dark(browser: Any, served: Served, fathom_home: Path) -> None:
    folder = write_run(fathom_home, "a-run-with-a-name-that-is-rather-long-for-a-phone", 300)
    append(
        folder,
        "events.jsonl",
        {"event": "training", "step": 0, "device_name": "NVIDIA GeForce RTX 4070", "dtype": "bf16"},
    )
    context = browser.new_context(viewport={"width": 400, "height": 800}, color_scheme="dark")
    tab = context.new_page()
    tab.goto(served.url)
    tab.wait_for_selector("#charts figure")
    for name in ("Curves", "Hardware", "Samples", "Evaluations", "Assessment"):
        tab.get_by_role("button", name=name).click()
        place = tab.get_by_role("button", name=name).bounding_box()
        assert place["x"] >= 0 and place["x"] + place["width"] <= 400, "no tab is out of sight"
        assert tab.evaluate("document.documentElement.scrollWidth") <= 400
    assert tab.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(20, 23, 26)"
    tab.locator("#drawer summary").click()  # the list, which stands above here, and beside on a larger screen
    tab.get_by_role("checkbox").uncheck()
    assert tab.locator("#notice").inner_text() == "Choose a run from the list under “Runs”."
    context.close()


def test_it_says_when_nobody_answers_any_more(tab: Any, fathom_home: Path) -> None:
    write_run(fathom_home, "mine", 4)
    server = Served("mine")
    tab.goto(server.url)
    tab.wait_for_selector("#charts figure")
    server.stop()
    tab.get_by_text("start it again").wait_for()
    tab.faults[:] = [fault for fault in tab.faults if "net::ERR_" not in fault]


def open_page(tab: Any, tmp_path: Path, charts: list[Chart], body: str = "") -> None:
    path = tmp_path / "report.html"
    path.write_text(page("A report", body + "".join(slot(i) for i in range(len(charts))), charts))
    tab.goto(path.as_uri())


def test_a_report_is_drawn_from_the_file_alone(tab: Any, tmp_path: Path) -> None:
    x = list(range(1, 500))
    loss = Curve(HOSTILE, x, [3 + 1 / n if n % 100 else math.nan for n in x])
    other = Curve("half", [n * 2.5 for n in x], [2 + 1 / n for n in x], "dashed")
    points = Curve("runs", [1e17, 1e17, 1e18], [1.2, 1.3, 1.0], "points")
    open_page(
        tab,
        tmp_path,
        [
            Chart("Loss", "step", "nats", (loss, other), marks=((250, "resumed"),)),
            Chart("Scaling", "FLOPs", "bpb", (points,), log_x=True, log_y=True),
            Chart("Nothing", "x", "y", ()),
        ],
    )
    assert tab.locator("figure canvas").count() == 3
    assert inked(tab, 0) > 500 and inked(tab, 1) > 60 and inked(tab, 2) == 0
    assert tab.title() == "A report"
    assert tab.locator(".u-label").nth(1).inner_text() == HOSTILE
    assert len(tab.pdf()) > 10_000


def test_a_constant_is_drawn_flat_however_it_was_rounded(tab: Any, tmp_path: Path) -> None:
    flat = [0.1 + 0.2 if n % 2 else 0.3 for n in range(90)]
    curve, still = Curve("flat", list(range(90)), flat), Curve("still", [7.0, 7.0], [5.0, 5.0])
    both = [Chart("Flat", "x", "y", (one,), log_x=log, log_y=log) for one in (curve, still) for log in (False, True)]
    open_page(tab, tmp_path, both)
    assert tab.locator("figure canvas").count() == 4
    assert all(inked(tab, n) > 10 for n in range(4))


def test_no_script_but_its_own_runs_in_a_report(tab: Any, tmp_path: Path) -> None:
    open_page(tab, tmp_path, [], body=f"<p>careless</p>{HOSTILE}<img src='https://elsewhere.invalid/x.png'>")
    time.sleep(0.2)
    assert tab.title() == "A report"
    refused = [fault for fault in tab.faults if "Content Security Policy" in fault]
    assert len(refused) >= 3
    tab.faults.clear()


def test_curves_over_different_x_are_aligned_without_inventing_points(tab: Any, tmp_path: Path) -> None:
    open_page(tab, tmp_path, [])
    aligned = tab.evaluate(
        """chartNumbers.align({curves: [
          {x: [1, 2, 3, 5], y: [10, null, 30, 50]}, {x: [4, 2.5, 2.5], y: [4, 2, 3]}, {x: [null, -1], y: [1, 1]}
        ], log_x: true}).data.map((column) => column.map((value) => value === undefined ? "none" : value))"""
    )
    assert [round(value, 9) for value in aligned[0]] == [1, 2, 2.5, 2.5, 3, 4, 5]
    assert aligned[1] == [10, None, None, None, 30, "none", 50], "a gap reaches from point to point"
    assert aligned[2] == ["none", "none", 2, 3, "none", 4, "none"]
    assert aligned[3] == ["none"] * 7


NUMBERS = [
    (0, None, "0"),
    (2.5, 2.5, "2.5"),
    (7.5, 2.5, "7.5"),
    (10, 2.5, "10.0"),
    (0.25, 0.25, "0.25"),
    (55_700, 500, "55.7k"),
    (56_000, 500, "56.0k"),
    (130_000, 10_000, "130k"),
    (8_519_680_000, None, "8.520B"),
    (1e18, None, "1.000e18"),
    (0.780026, None, "0.7800"),
    (0.0123, None, "0.01230"),
    (3.16227, None, "3.162"),
    (-1234.5, None, "-1235"),
    (0.00002, None, "2.000e-5"),
]


def test_numbers_read_well(tab: Any, tmp_path: Path) -> None:
    open_page(tab, tmp_path, [])
    asked = [[value, step] for value, step, _ in NUMBERS]
    told = tab.evaluate("(asked) => asked.map(([v, s]) => chartNumbers.format(v, s ?? undefined))", asked)
    assert told == [text for _, _, text in NUMBERS]


def test_ticks_of_a_logarithmic_axis(tab: Any, tmp_path: Path) -> None:
    open_page(tab, tmp_path, [])
    ticks = "([from, to, most]) => chartNumbers.logTicks(from, to, most)"
    assert tab.evaluate(ticks, [0.9, 1.25, 5]) == [0.9, 1, 1.1, 1.2]
    assert tab.evaluate(ticks, [2.2, 12, 5]) == [3, 4, 5, 7, 10]
    assert tab.evaluate(ticks, [1e17, 1e19, 6]) == [1e17, 2e17, 5e17, 1e18, 2e18, 5e18, 1e19]
    assert tab.evaluate(ticks, [1, 1e9, 4]) == [1, 1e3, 1e6, 1e9]
    assert tab.evaluate(ticks, [0, 1, 4]) == []
