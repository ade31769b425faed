"""CORE: the files, the items in words and tokens, and what is counted. The whole procedure: test_core_oracle.py."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fathom import tokenizer as tokenizers
from fathom.data.hub.fetching import Patience
from fathom.errors import FathomError
from fathom.evaluate import core
from fathom.evaluate.core import Bundle, TaskScore, core_metric, fetching, open_bundle, score_bundle, score_task
from fathom.evaluate.core.bundle import read_bundle
from fathom.evaluate.core.items import PromptEncoder, as_rows, chosen
from fathom.evaluate.core.prompts import prompts_for, shots_for, shuffled
from fathom.evaluate.scorer import Group, OnScored, RowScore
from tests.hub_server import FakeHub, answers, drops, fake_hub
from tests.oracles import small_bundle
from tests.oracles.tiny_runs import texts

TOKENIZER = tokenizers.train(texts(60), 300)


class Guesser:
    """Scores by the last token of each row, so that what is right is known; remembers what it was asked."""

    bos_id, seq_len, max_tokens = TOKENIZER.bos_id, 64, None

    def __init__(self, max_tokens: int | None = None) -> None:
        self.max_tokens = max_tokens  # type: ignore[assignment]
        self.asked: list[Group] = []

    def score(self, groups: Sequence[Group], on_scored: OnScored | None = None) -> list[list[RowScore]]:
        self.asked += groups
        found = [[self._score(row.ids, len(row.targets)) for row in group.rows] for group in groups]
        for at, scores in reversed(list(enumerate(found))):
            if on_scored is not None:
                on_scored(at, scores)
        return found

    @staticmethod
    def _score(ids: np.ndarray, n: int) -> RowScore:
        return RowScore(np.full(n, ids.sum() % 97, dtype=np.float32), ids[-n:] + (ids.sum() % 2))


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    return open_bundle(small_bundle.write_zip(tmp_path / "b.zip", small_bundle.contents()))


# Which items, which examples, which words


def test_the_shuffle_is_the_reference_s() -> None:
    assert shuffled(range(10), None) == [0, 3, 7, 2, 1, 6, 4, 5, 8, 9]
    assert shuffled(range(10), 4) == [0, 3, 7, 2] and shuffled(range(3), 10) == shuffled(range(3), None)


@pytest.mark.parametrize(
    ("index", "picked"), [(0, [29, 8, 1, 6, 38]), (1, [45, 28, 35, 38, 31]), (7, [39, 32, 49, 14, 19])]
)
def test_the_examples_are_the_reference_s(index: int, picked: list[int]) -> None:
    assert shots_for(index, 50, 5) == picked


@given(st.integers(1, 300).flatmap(lambda n: st.tuples(st.just(n), st.integers(0, n - 1))), st.integers(0, 12))
def test_examples_are_drawn_from_all_others(place: tuple[int, int], shots: int) -> None:
    n_items, index = place
    others = [i for i in range(n_items) if i != index]
    assert shots_for(index, n_items, shots) == random.Random(1234 + index).sample(others, min(shots, len(others)))


def test_prompts_of_multiple_choice() -> None:
    shot = {"query": "F", "choices": ["m", "n"], "gold": 0}
    item = {"query": "Q", "choices": ["x", "y"], "gold": 1}
    wanted = ["F\nAnswer: m\n\nQ\nAnswer: x", "F\nAnswer: m\n\nQ\nAnswer: y"]
    assert prompts_for("multiple_choice", item, [shot], "\nAnswer: ") == wanted


def test_prompts_of_a_schema() -> None:
    shot = {"context_options": ["I", "you"], "continuation": "go.", "gold": 1}
    item = {"context_options": ["A", " B "], "continuation": "end", "gold": 0}
    assert prompts_for("schema", item, [shot], " ") == ["you go.\n\nA end", "you go.\n\n B  end"]


def test_prompts_of_language_modelling_are_trimmed() -> None:
    shot = {"context": "\n one\t", "continuation": "two "}
    item = {"context": " three  ", "continuation": " four"}
    assert prompts_for("language_modeling", item, [shot], " ") == ["one two \n\nthree", "one two \n\nthree  four"]


# Tokens and spans


def _rows(*rows: Sequence[int]) -> list[np.ndarray]:
    return [np.array(row) for row in rows]


@pytest.mark.parametrize(
    ("kind", "rows", "spans"),
    [
        ("multiple_choice", _rows([0, 1, 2, 3], [0, 1, 4], [0, 1, 2, 5]), [(2, 4), (2, 3), (2, 4)]),
        ("multiple_choice", _rows([0, 1], [0, 1, 2]), [(2, 2), (2, 3)]),
        ("schema", _rows([0, 1, 2, 3], [0, 4, 5, 2, 3]), [(2, 4), (3, 5)]),
        ("schema", _rows([0, 1], [0, 1]), [(0, 2), (0, 2)]),
        ("language_modeling", _rows([0, 1], [0, 1, 2, 3]), [(2, 4)]),
    ],
)
def test_spans(kind: str, rows: list[np.ndarray], spans: list[tuple[int, int]]) -> None:
    assert [(row.start, row.end) for row in as_rows(kind, rows)] == spans


@pytest.mark.parametrize("rows", [_rows([0, 1, 2], [0, 1]), _rows([0, 1], [0, 1]), _rows([0, 1], [0, 2, 3])])
def test_a_context_that_is_no_beginning_is_refused(rows: list[np.ndarray]) -> None:
    with pytest.raises(ValueError, match="beginning"):
        as_rows("language_modeling", rows)


@given(
    st.lists(
        st.sampled_from(
            ["\n", "\n\n", " ", "\t", "a", "Warm", "12", ".", "?!", "'s", "é", "\u2003", "\x85", "\x1c", "日"]
        )
    )
)
def test_text_between_blank_lines_may_be_encoded_by_itself(parts: list[str]) -> None:
    text = "".join(parts)
    encode = PromptEncoder(TOKENIZER, TOKENIZER.bos_id)
    assert encode(text).tolist() == [TOKENIZER.bos_id, *TOKENIZER.encode(text)]


def test_examples_that_recur_are_encoded_once() -> None:
    class Counting:
        pattern = TOKENIZER.pattern
        seen: list[str] = []

        def encode(self, text: str) -> list[int]:
            self.seen.append(text)
            return TOKENIZER.encode(text)

    encode = PromptEncoder(Counting(), 0)
    encode("the sun\n\nis warm")
    encode("a cat\n\nthe sun\n\nis red")
    assert Counting.seen == ["the sun\n\n", "is warm", "a cat\n\n", "is red"]
    Counting.pattern = "."  # of which it is not known where its words end
    PromptEncoder(Counting(), 0)("a\n\nb")
    assert Counting.seen[-1] == "a\n\nb"


@given(st.lists(st.sampled_from([0.0, 1.0, 2.0, math.nan]), min_size=1, max_size=5))
def test_the_least_mean_is_chosen_as_the_reference_compares(means: list[float]) -> None:
    scores = [RowScore(np.array([mean] if mean == mean else [], dtype=np.float32), np.zeros(0)) for mean in means]
    found = [math.nan if mean != mean else mean for mean in means]
    assert chosen(scores) == found.index(min(found))


# The files


def test_a_zip_and_a_folder_hold_the_same(tmp_path: Path) -> None:
    files = small_bundle.contents()
    zipped = open_bundle(small_bundle.write_zip(tmp_path / "b.zip", files))
    folder = small_bundle.write_folder(tmp_path / "at" / "eval_bundle", files)
    for unpacked in (open_bundle(folder), open_bundle(folder.parent)):
        assert unpacked.tasks == zipped.tasks and unpacked.digest == zipped.digest
        assert [task.items() for task in unpacked.tasks] == [task.items() for task in zipped.tasks]
    about = [(task.label, task.kind, task.shots, task.delimiter, task.baseline) for task in zipped.tasks]
    assert about == [(label, *rest) for label, rest in small_bundle.TASKS.items()]
    assert zipped.task("twins").label == "twins" and len(zipped.task("twins").items()) == 24


def test_the_digest_tells_other_data(tmp_path: Path) -> None:
    files = small_bundle.contents()
    before = open_bundle(small_bundle.write_zip(tmp_path / "b.zip", files))
    files["eval_data/some/twins.jsonl"] += b"\n" + files["eval_data/some/twins.jsonl"].split(b"\n")[0]
    after = open_bundle(small_bundle.write_zip(tmp_path / "c.zip", files))
    assert before.digest != after.digest and before.task("twins").digest != after.task("twins").digest
    assert before.task("choosing").digest == after.task("choosing").digest
    assert len(after.task("twins").items()) == 25  # a blank line is no item


def _line(files: dict[str, bytes], label: str, number: int, line: bytes) -> None:
    path = f"eval_data/some/{label}.jsonl"
    lines = files[path].split(b"\n")
    lines[number - 1] = line
    files[path] = b"\n".join(lines)


BROKEN: list[tuple[Any, str]] = [
    (lambda files: files.pop("core.yaml"), "holds no core.yaml"),
    (lambda files: files.pop("eval_meta_data.csv"), "lacks eval_meta_data.csv"),
    (lambda files: files.pop("eval_data/some/twins.jsonl"), "lacks eval_data/some/twins.jsonl"),
    (lambda files: files.update({"core.yaml": b"icl_tasks: ["}), "core.yaml in .* is not YAML"),
    (lambda files: files.update({"core.yaml": b"\xff\xfe\x00"}), "core.yaml in .* is not YAML"),
    (lambda files: files.update({"core.yaml": b"- a\n"}), "has no list icl_tasks"),
    (lambda files: files.update({"core.yaml": b"icl_tasks:\n- label: x\n"}), "entry 1 of core.yaml .*dataset_uri"),
    (
        lambda files: files.update({"core.yaml": files["core.yaml"].replace(b"schema", b"song")}),
        "entry 2 .* unknown kind 'song'",
    ),
    (lambda files: files.update({"eval_meta_data.csv": b"a,b\n1,2\n"}), "line 2 of eval_meta_data.csv"),
    (
        lambda files: files.update({"eval_meta_data.csv": b"Eval Task,Random baseline\ntwins,50\n"}),
        "no baseline for 'choosing'",
    ),
    (lambda files: _line(files, "twins", 7, b'{"continuation": "half'), r"line 7 of eval_data/some/twins.jsonl"),
    (lambda files: _line(files, "twins", 2, b"[1]"), "line 2 of .* is not a JSON object"),
    (lambda files: _line(files, "twins", 3, b'{"continuation": "a", "gold": 0}'), "line 3 .* has no 'context_options'"),
    (
        lambda files: _line(files, "choosing", 4, b'{"query": "a", "choices": ["b", 1], "gold": 0}'),
        "line 4 .* 'choices' that is not a list of texts",
    ),
    (
        lambda files: _line(files, "choosing", 5, b'{"query": "a", "choices": ["b"], "gold": 1}'),
        "line 5 .* has gold 1, and 1 choices",
    ),
    (lambda files: _line(files, "going_on", 1, b'{"context": "a", "continuation": 4}'), "that is not text"),
    (lambda files: files.update({"eval_data/some/twins.jsonl": b"\n\n"}), "holds no item"),
]


@pytest.mark.parametrize(("spoil", "words"), BROKEN)
@pytest.mark.parametrize("zipped", [True, False])
def test_what_is_wrong_with_a_bundle_is_named(spoil: Any, words: str, zipped: bool, tmp_path: Path) -> None:
    files = small_bundle.contents()
    spoil(files)
    write = small_bundle.write_zip if zipped else small_bundle.write_folder
    place = write(tmp_path / "b", files)
    with pytest.raises(FathomError, match=words):
        for task in open_bundle(place).tasks:
            task.items()


def test_a_place_that_is_no_bundle(tmp_path: Path) -> None:
    with pytest.raises(FathomError, match="there is no evaluation bundle at .*--bundle"):
        open_bundle(tmp_path / "nowhere.zip")
    (tmp_path / "torn.zip").write_bytes(small_bundle.as_zip(small_bundle.contents())[:-50])
    with pytest.raises(FathomError, match="torn.zip cannot be read"):
        open_bundle(tmp_path / "torn.zip")
    spoiled = bytearray(small_bundle.as_zip(small_bundle.contents()))
    middle = spoiled.index(b"choosing.jsonl") + 200
    spoiled[middle : middle + 20] = bytes(20)
    (tmp_path / "spoiled.zip").write_bytes(spoiled)
    with pytest.raises(FathomError, match="choosing.jsonl in .*spoiled.zip cannot be read"):
        open_bundle(tmp_path / "spoiled.zip").task("choosing").items()
    with pytest.raises(FathomError, match="no task 'song'; its tasks are choosing, twins"):
        open_bundle(small_bundle.write_zip(tmp_path / "b.zip", small_bundle.contents())).task("song")


# Fetching it


@pytest.fixture
def hub(fathom_home: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    patience = Patience(timeout_s=2.0, attempts=3, first_wait_s=0.001, longest_wait_s=0.001)
    with fake_hub() as server:
        server.repos["a/b"] = {"eval_bundle.zip": small_bundle.as_zip(small_bundle.contents())}
        monkeypatch.setattr(fetching, "ADDRESS", f"{server.url}/store/a/b/eval_bundle.zip")
        monkeypatch.setattr(fetching, "IMPATIENT", patience)
        yield server


def test_a_machine_without_a_bundle_fetches_it_once(hub: FakeHub, fathom_home: Path) -> None:
    assert [task.label for task in open_bundle().tasks] == list(small_bundle.TASKS)
    assert hub.starts("eval_bundle.zip") == [0] and open_bundle().place == fathom_home / "eval_bundle.zip"
    assert hub.starts("eval_bundle.zip") == [0]
    assert {path.name for path in fathom_home.iterdir()} <= {"eval_bundle.zip", ".eval_bundle.lock"}
    assert not any("authorization" in map(str.lower, seen.headers) for seen in hub.seen)


def test_a_broken_connection_is_gone_on_with(hub: FakeHub) -> None:
    hub.faults["eval_bundle.zip"] = [drops(1000)]
    open_bundle().task("twins").items()
    assert hub.starts("eval_bundle.zip") == [0, 1000]


@pytest.mark.parametrize("spoil", ["a torn zip", "a missing file"])
def test_what_is_no_bundle_is_not_kept(hub: FakeHub, fathom_home: Path, spoil: str) -> None:
    files = small_bundle.contents()
    whole = small_bundle.as_zip(files)
    files.pop("eval_data/some/twins.jsonl")
    hub.repos["a/b"]["eval_bundle.zip"] = whole[:-30] if spoil == "a torn zip" else small_bundle.as_zip(files)
    with pytest.raises(FathomError, match="no whole evaluation bundle: .*--bundle"):
        open_bundle()
    assert not list(fathom_home.glob("*.zip")) and not list(fathom_home.glob(".*.part"))
    hub.repos["a/b"]["eval_bundle.zip"] = whole
    open_bundle()


def test_an_address_without_a_bundle_is_one_sentence(hub: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.faults["eval_bundle.zip"] = [answers(404)]
    with pytest.raises(FathomError, match=r"the evaluation bundle is not at http.* \(404\); give --bundle"):
        open_bundle()
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(FathomError, match="HF_HUB_OFFLINE"):
        open_bundle()


def test_a_bundle_of_one_s_own_comes_first(fathom_home: Path) -> None:
    small_bundle.write_zip(fathom_home / "eval_bundle.zip", small_bundle.contents())
    assert open_bundle().place.name == "eval_bundle.zip"
    small_bundle.write_folder(fathom_home / "eval_bundle", small_bundle.contents(5))
    assert len(open_bundle().task("twins").items()) == 5


# Counting


def test_ranks_share_the_items(bundle: Bundle) -> None:
    for task in bundle.tasks:
        whole: list[dict[str, Any]] = []
        shares: list[dict[str, Any]] = []
        all_of_it = score_task(Guesser(), TOKENIZER, task, limit=None, dump=whole.append)
        parts = [score_task(Guesser(), TOKENIZER, task, limit=None, share=(r, 5), dump=shares.append) for r in range(5)]
        joined = parts[0] + parts[1] + parts[2] + parts[3] + parts[4]
        assert (joined.n, joined.right, joined.n_long) == (24, all_of_it.right, all_of_it.n_long)
        assert sorted(shares, key=lambda line: line["index"]) == whole
        assert [line["index"] for line in whole] == list(range(24))
        assert sum(line["correct"] for line in whole) == all_of_it.right and json.loads(json.dumps(whole)) == whole


def test_items_in_portions_are_the_same_items(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    task = bundle.task("choosing")
    lines: list[dict[str, Any]] = []
    heard: list[tuple[int, ...]] = []
    whole = score_task(Guesser(), TOKENIZER, task, limit=20)
    monkeypatch.setattr(core.scoring, "ITEMS_AT_ONCE", 6)
    again = score_task(
        Guesser(),
        TOKENIZER,
        task,
        limit=20,
        dump=lines.append,
        on_items=lambda done, right: heard.append((done, right)),
    )
    assert (again.n, again.right) == (whole.n, whole.right) == (20, heard[-1][1])
    assert [done for done, _ in heard] == list(range(1, 21)) and [line["index"] for line in lines] == list(range(20))


def test_too_few_items_for_the_examples_are_said(bundle: Bundle) -> None:
    task = bundle.task("going_on")  # asks for ten
    lines: list[dict[str, Any]] = []
    score = score_task(Guesser(), TOKENIZER, task, limit=4, dump=lines.append)
    assert score.pool_short == 7 and all(line["prompts"][1].count("\n\n") == 3 for line in lines)
    assert score_task(Guesser(), TOKENIZER, task, limit=11).pool_short == 0
    assert score_task(Guesser(), TOKENIZER, bundle.task("twins"), limit=1).pool_short == 0


def test_long_items_are_counted_and_cropped_for_who_has_a_maximum(bundle: Bundle) -> None:
    task = bundle.task("choosing")
    whole, short = Guesser(), Guesser(max_tokens=40)
    n_long = score_task(whole, TOKENIZER, task, limit=None).n_long
    assert 0 < n_long == sum(max(len(row.ids) for row in group.rows) > 64 for group in whole.asked)
    assert score_task(short, TOKENIZER, task, limit=None).n_long == n_long
    for before, after in zip(whole.asked, short.asked, strict=True):
        for long, cut in zip(before.rows, after.rows, strict=True):
            assert cut.ids.tolist() == long.ids[-40:].tolist() and cut.targets.tolist() == long.targets[-40:].tolist()


def test_a_tokenizer_that_does_not_fit_is_one_sentence(bundle: Bundle) -> None:
    class Whole:
        def encode(self, text: str) -> list[int]:
            return [len(text)]

    with pytest.raises(FathomError, match="item 0 of going_on: .* beginning"):
        score_task(Guesser(), Whole(), bundle.task("going_on"), limit=None)


def test_figures() -> None:
    score = TaskScore("a", 101, 25, 0, 0, 1.0)
    assert score.accuracy == 25 / 101
    assert score.standard_error == pytest.approx(math.sqrt(25 / 101 * 76 / 101 / 100))
    assert score.centered(25.0) == pytest.approx((25 / 101 - 0.25) / 0.75)
    assert score.centered_error(25.0) == pytest.approx(score.standard_error / 0.75)
    assert math.isnan(TaskScore("a", 0, 0, 0, 0, 0).accuracy) and math.isnan(
        TaskScore("a", 1, 1, 0, 0, 0).standard_error
    )
    mean, error = core_metric({"a": 0.1, "b": 0.4}, {"a": 0.3, "b": 0.4})
    assert mean == pytest.approx(0.25) and error == pytest.approx(0.25)
    assert math.isnan(core_metric({"a": 0.1})[1])


def test_the_whole_bundle(bundle: Bundle) -> None:
    scores: list[TaskScore] = []
    heard: set[str] = set()
    found = score_bundle(Guesser(), TOKENIZER, bundle, 12, scores.append, lambda label, done, right: heard.add(label))
    assert found["n"] == 36 and list(found["tasks"]) == list(small_bundle.TASKS) and heard == set(small_bundle.TASKS)
    centered = [score.centered(bundle.baselines[score.label]) for score in scores]
    assert found["value"] == pytest.approx(sum(centered) / 3)
    assert found["tasks"]["twins"] == {"accuracy": scores[1].accuracy, "centered": centered[1], "n": 12}


def test_the_real_tables(shared: Path) -> None:
    bundle = read_bundle(shared / "eval_bundle" / "eval_bundle.zip")
    about = {task.label: (task.kind, task.shots, task.baseline) for task in bundle.tasks}
    assert len(about) == 22 and about["commonsense_qa"] == ("multiple_choice", 10, 40.3)
    assert about["winograd"] == ("schema", 0, 50) and about["boolq"][2] == 62 and about["squad"][1] == 10
    assert bundle.task("jeopardy").delimiter == "\nAnswer: " and bundle.task("copa").delimiter == " "
    assert len(bundle.task("winograd").items()) == 273
