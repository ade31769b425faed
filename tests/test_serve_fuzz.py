"""The API against what nobody would send: requests made from its own description, and requests torn to pieces."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterator
from importlib.util import find_spec
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from oracles.generation import random_model
from oracles.malformed import malformed, status_of
from oracles.tiny_runs import texts
from serving_world import World, served, wait_for

from fathom import tokenizer as tokenizers
from fathom.serve.serving import Limits

TOKENIZER = tokenizers.train(texts(60), 300)
ALLOWED = {0, 200, 400, 403, 404, 405, 408, 413, 421, 429, 503}


@pytest.fixture(scope="module")
def world() -> Iterator[World]:
    model = random_model(vocab_size=TOKENIZER.vocab_size, seq_len=64)
    with served(model, TOKENIZER, limits=Limits(max_tokens=4, patience_s=2), max_batch=8) as world:
        yield world


def fuzz(world: World, n_requests: int, seed: int) -> Counter[int]:
    dice = random.Random(seed)
    found = Counter(status_of(world.port, malformed(dice)) for _ in range(n_requests))
    assert set(found) <= ALLOWED, found
    wait_for(lambda: world.serving.n_stream == 0 and world.serving.n_open == 0)
    assert world.get("/health")[0] == 200
    answer = world.post("/v1/completions", {"prompt": "the sun", "max_tokens": 2})
    assert answer[0] == 200 and answer[1]["choices"]
    assert world.metric("fathom_engine_failures_total") == 0
    return found


def test_malformed_requests_in_miniature(world: World, capsys: pytest.CaptureFixture[str]) -> None:
    found = fuzz(world, 500, seed=1)
    assert found[400] > 200 and not found[503]
    assert capsys.readouterr().err == ""


@pytest.mark.long
def test_ten_thousand_malformed_requests(world: World, capsys: pytest.CaptureFixture[str]) -> None:
    found = fuzz(world, 10_000, seed=2)
    assert found[400] > 5_000 and not found[503]
    assert capsys.readouterr().err == ""


pytestmark_schemathesis = pytest.mark.skipif(find_spec("schemathesis") is None, reason="schemathesis is not installed")


@pytestmark_schemathesis
@pytest.mark.parametrize("mode", ["positive", "negative"])
def test_what_is_described_is_what_is_served(world: World, mode: str) -> None:
    probe(world, mode, n_examples=8)


@pytest.mark.long
@pytestmark_schemathesis
@pytest.mark.parametrize("mode", ["positive", "negative"])
def test_what_is_described_is_what_is_served_at_length(world: World, mode: str) -> None:
    probe(world, mode, n_examples=400)


def probe(world: World, mode: str, n_examples: int) -> None:
    """Examples of every operation, right or wrong by the description: every answer is one that is described."""
    import schemathesis
    from schemathesis.generation import GenerationMode

    schema = schemathesis.openapi.from_url(f"{world.url}/openapi.json")
    checks = _checks()
    n_operation = 0
    for found in schema.get_all_operations():
        operation = found.ok()
        takes_nothing = not (operation.body or operation.path_parameters)
        if mode == "negative" and not operation.body:
            continue
        n_operation += 1

        @settings(
            max_examples=1 if takes_nothing else n_examples,
            derandomize=True,
            database=None,
            deadline=None,
            suppress_health_check=list(HealthCheck),
        )
        @given(case=operation.as_strategy(generation_mode=GenerationMode(mode)))
        def one(case: Any) -> None:
            response = case.call()
            case.validate_response(response, checks=checks)
            if mode == "negative":
                assert response.status_code >= 400

        one()
    assert n_operation >= 5
    assert world.metric("fathom_engine_failures_total") == 0


def _checks() -> list[Any]:
    from schemathesis.checks import not_a_server_error
    from schemathesis.specs.openapi import checks

    return [
        not_a_server_error,
        checks.status_code_conformance,
        checks.content_type_conformance,
        checks.response_schema_conformance,
    ]
