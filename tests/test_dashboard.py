"""The dashboard as a browser asks it: what it says of runs in every state, to whom, and how it begins and ends."""

from __future__ import annotations

import fcntl
import json
import math
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from run_folders import append, metric, write_run
from starlette.applications import Starlette
from starlette.routing import Mount
from starlette.testclient import TestClient

from fathom import cli
from fathom.errors import FathomError
from fathom.report import dashboard, live
from fathom.report.charts import static
from fathom.report.findings import assess
from fathom.report.history import COLUMNS, History, history_of

ADDRESS = "http://127.0.0.1:8001"


@pytest.fixture
def client(fathom_home: Path, monkeypatch: pytest.MonkeyPatch) -> TestClient:
    """Asks a dashboard that reads a run again at once, however long the last reading took."""
    monkeypatch.setattr(live, "DUTY", 1.0)
    return TestClient(dashboard.application(), base_url=ADDRESS)


def listed(client: TestClient) -> dict[str, dict[str, Any]]:
    return {run["name"]: run for run in client.get("/api/runs").json()["runs"]}


def history(steps: int, loss: np.ndarray | None = None) -> History:
    columns = {name: np.full(steps, np.nan) for name in COLUMNS}
    columns["loss"] = np.arange(steps, dtype=np.float64) if loss is None else loss
    columns["train_s"] = np.arange(steps, dtype=np.float64) * 2
    step = np.arange(1, steps + 1)
    return History("a", Path("."), {}, step, columns, (), (), (), (), {}, None, False, ())


# ---- the list


def test_an_empty_home_has_no_runs(client: TestClient) -> None:
    assert client.get("/api/runs").json() == {"first": [], "runs": []}


def test_a_run_is_told_in_a_line(client: TestClient, fathom_home: Path) -> None:
    folder = write_run(fathom_home, "mine", 3, planned=10)
    append(folder, "events.jsonl", {"event": "evaluated", "step": 3, "train_s": 1.5, "val_bpb": 0.9})
    line = listed(client)["mine"]
    assert line["state"] == "broken off" and line["stage"] == "pretrain"
    assert (line["steps_done"], line["steps_planned"], line["val_bpb"]) == (3, 10, 0.9)
    assert line["loss"] == pytest.approx(2 + 5 / 3**0.5, abs=1e-5)


def test_a_run_that_cannot_be_read_hides_no_other(client: TestClient, fathom_home: Path) -> None:
    write_run(fathom_home, "good", 2)
    (fathom_home / "runs" / "nothing-yet").mkdir()
    (fathom_home / "runs" / "torn").mkdir()
    (fathom_home / "runs" / "torn" / "run.toml").write_text("[run]\nname = ")
    (write_run(fathom_home, "odd", 3) / "run.toml").write_text("run = 3\n")
    found = listed(client)
    assert found["good"]["troubles"] == 0 and "nothing-yet" not in found
    assert found["torn"]["state"] == "unreadable" and "run.toml" in found["torn"]["problem"]
    assert client.get("/api/runs/torn").status_code == 409
    assert found["odd"]["steps_done"] == 3 and found["odd"]["troubles"] > 0
    assert client.get("/api/runs/odd").json()["flops_per_token"] is None


def test_runs_appear_and_vanish(client: TestClient, fathom_home: Path) -> None:
    folder = write_run(fathom_home, "mine", 2)
    assert list(listed(client)) == ["mine"]
    shutil.rmtree(folder)
    assert listed(client) == {}
    answer = client.get("/api/runs/mine")
    assert answer.status_code == 404 and "any more" in answer.json()["problem"]
    write_run(fathom_home, "mine", 5)
    assert listed(client)["mine"]["steps_done"] == 5


@pytest.mark.parametrize("name", ["..", "%2e%2e", ".hidden", "a%2Fb", "a b", "%00"])
def test_a_name_that_is_none_leads_nowhere(client: TestClient, name: str) -> None:
    for path in (f"/api/runs/{name}", f"/api/runs/{name}/details"):
        assert client.get(path).status_code == 404


def test_a_run_at_work_comes_first_and_one_that_is_killed_is_noticed(client: TestClient, fathom_home: Path) -> None:
    write_run(fathom_home, "later", 4)
    folder = write_run(fathom_home, "early", 3)
    os.utime(folder / "metrics.jsonl", (1, 1))
    os.utime(folder / "events.jsonl", (1, 1))
    with open(folder / ".lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        found = listed(client)
        assert list(found) == ["early", "later"] and found["early"]["state"] == "running"
    after = listed(client)["early"]
    assert after["state"] == "broken off" and after["version"] != found["early"]["version"]


def test_a_run_is_read_again_only_when_a_file_changed(
    client: TestClient, fathom_home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    readings: list[str] = []
    read = live.salvaged
    monkeypatch.setattr(live, "salvaged", lambda name: (readings.append(name), read(name))[1])
    folder = write_run(fathom_home, "mine", 2)
    for _ in range(3):
        listed(client)
        client.get("/api/runs/mine/details")
    assert readings == ["mine"]
    append(folder, "metrics.jsonl", metric(2))
    assert listed(client)["mine"]["steps_done"] == 3
    (folder / "evals" / "core.json").write_text("{}")
    assert "core" in client.get("/api/runs/mine/details").json()["evals"]
    assert len(readings) == 3


def test_a_run_slow_to_read_is_not_read_without_pause(fathom_home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [100.0]
    read = live.salvaged

    def slow(name: str) -> History:
        clock[0] += 5.0
        return read(name)

    monkeypatch.setattr(live.time, "monotonic", lambda: clock[0])
    monkeypatch.setattr(live, "salvaged", slow)
    shelf = live.Shelf()
    folder = write_run(fathom_home, "mine", 2)
    assert shelf.reading("mine").history.steps_done == 2  # type: ignore[union-attr]
    append(folder, "metrics.jsonl", metric(2))
    clock[0] += 44.0
    assert shelf.reading("mine").history.steps_done == 2, "5 s of reading are a tenth of 50 s"  # type: ignore[union-attr]
    clock[0] += 2.0
    assert shelf.reading("mine").history.steps_done == 3  # type: ignore[union-attr]


def test_a_listing_does_not_wait_for_every_run(fathom_home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(live, "LISTING_S", -1.0)
    write_run(fathom_home, "mine", 2)
    shelf = live.Shelf()
    assert [line["state"] for line in shelf.listing()] == ["reading"]
    shelf.reading("mine")
    assert [line["state"] for line in shelf.listing()] == ["broken off"]


# ---- curves


def test_a_short_run_is_sent_line_by_line(client: TestClient, fathom_home: Path) -> None:
    write_run(fathom_home, "mine", 3)
    sent = client.get("/api/runs/mine").json()
    columns = sent["curves"]["columns"]
    assert columns["step"] == [1, 2, 3] and columns["train_s"] == [0.5, 1, 1.5]
    assert columns["mfu"] == [0.45] * 3 and sent["batch_tokens"] == 4096 and sent["flops_per_token"] > 1e6


def test_what_was_sent_is_not_sent_again(client: TestClient, fathom_home: Path) -> None:
    folder = write_run(fathom_home, "mine", 3)
    first = client.get("/api/runs/mine").json()["curves"]
    append(folder, "metrics.jsonl", metric(3), metric(4))
    client.get("/api/runs")
    later = client.get("/api/runs/mine", params={"has": first["mark"]}).json()["curves"]
    assert later["from"] == 3 and later["columns"]["step"] == [4, 5]


def test_steps_that_were_done_again_are_sent_again(client: TestClient, fathom_home: Path) -> None:
    folder = write_run(fathom_home, "mine", 3)
    first = client.get("/api/runs/mine").json()["curves"]
    append(folder, "metrics.jsonl", metric(1, loss=9.0), metric(2))
    later = client.get("/api/runs/mine", params={"has": first["mark"]}).json()["curves"]
    assert later["from"] == 0 and later["columns"]["loss"][1] == 9


@settings(deadline=None, max_examples=40)
@given(st.integers(0, 9000), st.integers(0, 9000), st.text(max_size=20))
def test_pieces_make_the_whole(some: int, more: int, nonsense: str) -> None:
    before, whole = live.curves(history(some)), live.curves(history(some + more))
    piece = live.curves(history(some + more), before["mark"])
    assert len(whole["columns"]["step"]) <= live.MOST_POINTS + 1
    for name, values in whole["columns"].items():
        assert before["columns"][name][: piece["from"]] + piece["columns"][name] == values
    assert live.curves(history(some), nonsense) == before


def test_a_long_run_is_thinned_to_means_and_keeps_its_end() -> None:
    sent = live.curves(history(5001))["columns"]
    assert len(sent["step"]) == 5001 // 4 + 1
    assert sent["step"][:2] == [4, 8] and sent["step"][-1] == 5001
    assert sent["loss"][:2] == [1.5, 5.5] and sent["loss"][-1] == 5000
    assert sent["train_s"][-1] == 10_000


def test_what_is_no_number_is_a_gap_or_left_out_of_a_mean() -> None:
    loss = np.arange(4000, dtype=np.float64)
    loss[:2] = np.nan
    loss[2] = np.inf
    sent = live.curves(history(4000, loss))["columns"]
    assert sent["loss"][:2] == [None, 3] and sent["mfu"][0] is None
    assert live.curves(history(3, loss[:3]))["columns"]["loss"] == [None, None, None]


def test_a_torn_last_line_is_passed_over(client: TestClient, fathom_home: Path) -> None:
    folder = write_run(fathom_home, "mine", 2)
    with open(folder / "metrics.jsonl", "a") as file:
        file.write('{"step": 2, "loss": 1.')
    assert client.get("/api/runs/mine").json()["curves"]["columns"]["step"] == [1, 2]
    assert client.get("/api/runs/mine/details").json()["troubles"]


# ---- the rest of a run


def test_details_hold_what_was_said_measured_and_run_on(client: TestClient, fathom_home: Path) -> None:
    folder = write_run(fathom_home, "mine", 2)
    append(folder, "events.jsonl", {"event": "training", "step": 0, "device_name": "RTX 4070", "dtype": "bf16"})
    append(folder, "samples.jsonl", {"step": 2, "prompt": "The", "text": "\ud800 end"})
    (folder / "evals" / "core.json").write_text('{"core": NaN, "by_task": {"piqa": 0.6}}')
    told = client.get("/api/runs/mine/details").json()
    assert told["samples"] == [{"step": 2, "prompt": "The", "text": "\ud800 end"}]
    assert told["evals"]["core"] == {"core": None, "by_task": {"piqa": 0.6}}
    assert told["phases"][0]["circumstances"]["device_name"] == "RTX 4070"
    assert told["peak_memory_gb"] == 9.2


def test_the_assessment_is_that_of_the_report(client: TestClient, fathom_home: Path) -> None:
    folder = write_run(fathom_home, "mine", 200)
    append(folder, "metrics.jsonl", *(metric(step, loss=math.nan) for step in range(200, 210)))
    told = client.get("/api/runs/mine/details").json()["findings"]
    assert told == [json.loads(json.dumps(asdict(one))) for one in assess(history_of("mine"))]
    assert told[0]["severity"] == "bad" and told[0]["evidence"]


# ---- who may ask


@pytest.mark.parametrize("host", ["127.0.0.1:8001", "localhost", "LOCALHOST:9", "[::1]:8001", "192.168.1.7:8001"])
def test_its_own_addresses_are_answered(client: TestClient, host: str) -> None:
    assert client.get("/api/runs", headers={"host": host}).status_code == 200


@pytest.mark.parametrize("host", ["evil.example", "127.0.0.1.evil.example:8001", "localhost.evil.example", ""])
def test_a_name_that_is_not_ours_is_refused(client: TestClient, host: str) -> None:
    for path in ("/", "/api/runs", "/static/dashboard.js"):
        assert client.get(path, headers={"host": host}).status_code == 421


def test_a_name_it_was_told_to_listen_on_is_its_own(fathom_home: Path) -> None:
    client = TestClient(dashboard.application((), "box.lan"), base_url=ADDRESS)
    assert client.get("/api/runs", headers={"host": "box.lan:8001"}).status_code == 200


def test_every_answer_says_that_no_foreign_script_may_run(client: TestClient) -> None:
    for path in ("/", "/static/charts.js", "/api/runs", "/static/none", "/api/runs/none"):
        headers = client.get(path).headers
        policy = headers["content-security-policy"]
        assert "default-src 'none'" in policy and "script-src 'self'" in policy and "unsafe" not in policy
        assert headers["x-content-type-options"] == "nosniff"
        assert "access-control-allow-origin" not in headers


def test_the_page_finds_all_that_it_loads(client: TestClient) -> None:
    text = client.get("/").text
    wanted = re.findall(r'(?:src|href)="(?!data:)([^"]+)"', text)
    assert len(wanted) >= 8
    for path in wanted:
        assert not path.startswith(("/", "http")), "a page mounted elsewhere needs relative addresses"
        assert client.get(f"/{path}").status_code == 200
    assert client.get("/static/..%2fdashboard.py").status_code == 404
    assert client.get("/static/page.html").status_code == 404


def test_no_script_makes_markup_of_what_it_is_told() -> None:
    ours = "".join(static(name) for name in dashboard.STATIC if name.endswith(".js") and "iife" not in name)
    assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\b|new Function", ours)


def test_it_can_be_a_tab_of_another_server(fathom_home: Path) -> None:
    write_run(fathom_home, "mine", 2)
    client = TestClient(Starlette(routes=[Mount("/dashboard", routes=dashboard.routes(["mine"]))]), base_url=ADDRESS)
    assert client.get("/dashboard").url.path == "/dashboard/"
    assert client.get("/dashboard/static/dashboard.js").status_code == 200
    assert client.get("/dashboard/api/runs").json()["first"] == ["mine"]


# ---- beginning and end


def test_only_this_machine_is_the_default() -> None:
    assert dashboard.is_loopback(dashboard.Dashboard().host)
    assert dashboard.is_loopback("::1") and dashboard.is_loopback("localhost") and dashboard.is_loopback("127.3.2.1")
    assert not dashboard.is_loopback("0.0.0.0") and not dashboard.is_loopback("192.168.1.7")


def test_a_port_that_is_taken_is_said_in_a_sentence(fathom_home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(SystemExit) as stop:
            cli.main(["dashboard", "--port", str(port)])
    said = capsys.readouterr()
    assert stop.value.code == 2 and said.out == ""
    assert said.err.count("\n") == 1 and f"port {port}" in said.err and "--port" in said.err


@pytest.mark.parametrize(
    ("host", "port"), [("127.0.0.1", 70_000), ("127.0.0.1", -1), ("no such host", 0), ("", 70_000)]
)
def test_an_address_that_cannot_be_is_refused(host: str, port: int) -> None:
    with pytest.raises(FathomError):
        dashboard.listen(host, port)


def test_a_run_that_is_not_there_is_named(fathom_home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        cli.main(["dashboard", "nothing"])
    assert stop.value.code == 2 and "nothing" in capsys.readouterr().err


@pytest.fixture
def started(fathom_home: Path) -> Iterator[subprocess.Popen[str]]:
    write_run(fathom_home, "mine", 2)
    command = [sys.executable, "-m", "fathom", "dashboard", "mine", "--port", "0", "--host", "0.0.0.0", "--json"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def test_it_says_where_it_is_warns_and_ends_with_ctrl_c(started: subprocess.Popen[str]) -> None:
    assert started.stderr is not None
    where = re.search(r"http://127\.0\.0\.1:\d+/", started.stderr.readline())
    assert where
    assert "can read your runs" in started.stderr.readline()
    with urllib.request.urlopen(f"{where[0]}api/runs", timeout=20) as answer:
        assert json.load(answer)["first"] == ["mine"]
    started.send_signal(signal.SIGINT)
    out, err = started.communicate(timeout=20)
    assert started.returncode == 0 and "Traceback" not in err
    assert json.loads(out) == {"url": where[0]}
