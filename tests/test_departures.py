"""Sums of gradients set out as they get ready, in one order on all ranks, and each once a step."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor, nn

from fathom.optim import departures
from fathom.optim.departures import Departures


class Bucket:
    def __init__(self, name: str, log: list[str], n_weights: int = 1) -> None:
        self.name, self.log = name, log
        self.weights = [nn.Parameter(torch.ones(2)) for _ in range(n_weights)]

    def launch_sum(self) -> None:
        self.log.append(self.name)


@pytest.fixture
def log() -> list[str]:
    return []


def backward(*weights: Tensor) -> None:
    """Through these one after another, the first one first."""
    loss = torch.zeros(2)
    for weight in reversed(weights):
        loss = loss * weight + weight
    loss.sum().backward()


def learnt(monkeypatch: pytest.MonkeyPatch, of_the_main_rank: Sequence[int] | None = None) -> list[list[int]]:
    """What this rank would have said, where another is the main one."""
    said: list[list[int]] = []

    def told(numbers: Sequence[int], _: torch.device) -> list[int]:
        said.append(list(numbers))
        return list(of_the_main_rank or numbers)

    monkeypatch.setattr(departures, "as_main_has_it", told)
    return said


def test_nothing_sets_out_before_the_last_pass_and_nothing_twice(log: list[str]) -> None:
    a, b = Bucket("a", log), Bucket("b", log)
    plan = Departures([a, b])
    backward(*a.weights, *b.weights)
    assert log == []
    plan.watch()
    backward(*a.weights, *b.weights)
    assert log == ["a", "b"]
    plan.rest()
    assert log == ["a", "b"]
    plan.again()
    backward(*a.weights, *b.weights)
    assert log == ["a", "b"]


def test_a_bucket_waits_for_all_its_weights_and_for_those_before_it(log: list[str]) -> None:
    a, b = Bucket("a", log, n_weights=2), Bucket("b", log)
    plan = Departures([a, b])
    plan.watch()
    backward(*b.weights, a.weights[0])
    assert log == []
    backward(a.weights[1])
    assert log == ["a", "b"]


def test_what_gets_no_gradient_sets_out_with_the_rest(log: list[str]) -> None:
    a, b, c = (Bucket(name, log) for name in "abc")
    plan = Departures([a, b, c])
    plan.watch()
    backward(*a.weights, *c.weights)
    assert log == ["a"]
    plan.rest()
    assert log == ["a", "b", "c"]


def test_after_a_pass_that_broke_off_all_start_anew(log: list[str]) -> None:
    a, b = Bucket("a", log), Bucket("b", log)
    plan = Departures([a, b])
    plan.watch()
    hook = b.weights[0].register_hook(stumble)
    with pytest.raises(torch.OutOfMemoryError):
        backward(*a.weights, *b.weights)
    hook.remove()
    assert log == ["a"] and plan.gone == 1
    plan.rest()
    assert log == ["a", "b"]
    plan.again()
    plan.watch()
    backward(*a.weights, *b.weights)
    assert log == ["a", "b", "a", "b"]


def stumble(_: Tensor) -> None:
    raise torch.OutOfMemoryError("injected")


def test_from_the_second_step_on_they_go_as_the_main_rank_had_them_ready(
    log: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    a, b, c = (Bucket(name, log) for name in "abc")
    plan, said = Departures([a, b, c]), learnt(monkeypatch, of_the_main_rank=[2, 0, 1])
    for _ in range(3):
        plan.watch()
        backward(*b.weights, *c.weights)
        plan.rest()
        plan.learn()
        plan.again()
    assert said == [[1, 2, 0]], "asked once, with what was ready first and then the others"
    assert log == ["a", "b", "c", "c", "a", "b", "c", "a", "b"]
