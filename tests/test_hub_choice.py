from __future__ import annotations

import pytest

from fathom.data.hub.choice import KNOWN_DATASETS, choose_files, request, split_word
from fathom.data.hub.fetching import RemoteFile
from fathom.errors import FathomError


def files(*paths: str) -> list[RemoteFile]:
    return [RemoteFile(path, "", 1) for path in paths]


def chosen(*paths: str, shards: object = "all", pattern: str = "*") -> tuple[list[str], list[str]]:
    choice = choose_files(files(*paths), request("owner/data", shards, pattern=pattern))  # type: ignore[arg-type]
    return [f.path for f in choice.train], [f.path for f in choice.validation]


def test_the_last_of_files_without_split_words_validates() -> None:
    assert chosen("b.parquet", "a.parquet", "c.parquet") == (["a.parquet", "b.parquet"], ["c.parquet"])
    assert chosen("b.parquet", "a.parquet", "c.parquet", shards=1) == (["a.parquet"], ["c.parquet"])


def test_paths_that_name_their_split_are_believed() -> None:
    paths = ["data/test-0.parquet", "data/train-0.parquet", "data/train-1.parquet", "data/validation-0.parquet"]
    assert chosen(*paths) == (paths[1:3], paths[3:])
    assert chosen(*paths[:3]) == (paths[1:3], paths[:1])
    assert chosen("train/0.jsonl", "train/1.jsonl", "test.jsonl") == (
        ["train/0.jsonl", "train/1.jsonl"],
        ["test.jsonl"],
    )


def test_train_files_alone_give_their_last_for_validation() -> None:
    paths = [f"data/CC-MAIN-2013-20/train-{i:05d}-of-00003.parquet" for i in range(3)]
    assert chosen(*paths) == (paths[:2], paths[2:])


def test_a_single_file_is_all_for_training() -> None:
    assert chosen("README.md", "all.jsonl.gz") == (["all.jsonl.gz"], [])
    assert chosen("train.parquet", "test.parquet") == (["train.parquet"], ["test.parquet"])


def test_parquet_goes_before_lines_and_lines_before_text() -> None:
    assert chosen("a.parquet", "b.parquet", "a.jsonl", "README.md", "notes.txt") == (["a.parquet"], ["b.parquet"])
    assert chosen("a.jsonl", "b.jsonl.zst", "notes.txt", ".cache/c.jsonl") == (["a.jsonl"], ["b.jsonl.zst"])
    assert chosen("a.txt", "b.txt", "README.md") == (["a.txt"], ["b.txt"])


def test_a_pattern_narrows_the_choice() -> None:
    paths = ["sample/10BT/000.parquet", "sample/10BT/001.parquet", "sample/100BT/000.parquet", "data/0.parquet"]
    assert chosen(*paths, pattern="sample/10BT/*") == (paths[:1], paths[1:2])
    with pytest.raises(FathomError, match=r"no data files that match 'smaple/\*'"):
        chosen(*paths, pattern="smaple/*")


def test_no_data_is_an_error() -> None:
    with pytest.raises(FathomError, match="owner/data has no data files; types known here are"):
        chosen("README.md", "model.safetensors")


@pytest.mark.parametrize(
    ("path", "word"),
    [
        ("train-00000.parquet", "train"),
        ("data/val_3.jsonl", "validation"),
        ("dev/a.txt", "validation"),
        ("trainer/a.txt", ""),
        ("contest.txt", ""),
        ("TEST.txt", "test"),
        ("test-suite/train-1.parquet", "train"),
        ("shard_00001.parquet", ""),
    ],
)
def test_split_words_are_whole_words(path: str, word: str) -> None:
    assert split_word(path) == word


@pytest.mark.parametrize(
    ("name", "repo", "n_files", "last"),
    [
        ("climbmix", "karpathy/climbmix-400b-shuffle", 6543, "shard_06542.parquet"),
        ("fineweb-edu", "karpathy/fineweb-edu-100b-shuffle", 1823, "shard_01822.parquet"),
    ],
)
def test_known_datasets_pin_their_last_shard_for_validation(name: str, repo: str, n_files: int, last: str) -> None:
    wanted = request(name, 3)
    assert (wanted.repo, wanted.name) == (repo, name)
    assert KNOWN_DATASETS[name].n_files == n_files
    there = files(*[f"shard_{i:05d}.parquet" for i in range(n_files)], "README.md")
    choice = choose_files(there, wanted)
    assert [f.path for f in choice.train] == ["shard_00000.parquet", "shard_00001.parquet", "shard_00002.parquet"]
    assert [f.path for f in choice.validation] == [last]
    everything = choose_files(there, request(name, "all"))
    assert len(everything.train) == n_files - 1 and [f.path for f in everything.validation] == [last]
    with pytest.raises(FathomError, match=rf"lacks {last} and 0 more"):
        choose_files(files(*[f"shard_{i:05d}.parquet" for i in range(n_files - 1)]), wanted)


def test_requests_that_make_no_sense_are_refused() -> None:
    assert request("https://huggingface.co/datasets/owner/data/", 1).repo == "owner/data"
    assert request("owner/data", 1).name == "data"
    with pytest.raises(FathomError, match="is no dataset"):
        request("climbmx", 1)
    with pytest.raises(FathomError, match="0 shards"):
        request("climbmix", 0)
    with pytest.raises(FathomError, match="0 workers"):
        request("climbmix", 1, workers=0)
