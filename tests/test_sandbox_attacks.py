"""Nothing gets out of the sandbox: each attack, by each mechanism that this machine has, looked at from outside."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from sandbox_attacks import ATTACKS, Attack
from sandbox_world import World

from fathom.generate.sandbox.mechanism import MECHANISMS, Mechanism, missing
from fathom.generate.sandbox.running import Limits, execute
from fathom.generate.sandbox.trial import held


@pytest.fixture(scope="module", params=MECHANISMS, ids=lambda mechanism: mechanism.name)
def mechanism(request: pytest.FixtureRequest) -> Mechanism:
    found: Mechanism = request.param
    if why := missing(found) or held(found):
        pytest.skip(f"{found.name}: {why}")
    return found


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    with World(tmp_path_factory.mktemp("world")) as world:
        yield world


@pytest.mark.parametrize("attack", ATTACKS, ids=lambda attack: attack.name)
def test_nothing_gets_through(attack: Attack, mechanism: Mechanism, world: World) -> None:
    outcome, harm = world.attacked(attack, mechanism)
    assert (harm, outcome.stdout[-2000:] if harm else "") == ([], "")
    assert outcome.why in attack.ends, (outcome.stdout[-1000:], outcome.stderr[-1000:])
    assert outcome.ok == (outcome.why == "passed")


def test_the_caller_goes_on(mechanism: Mechanism) -> None:
    assert execute(mechanism, "print(6 * 7)", Limits(), "").stdout == "42\n"
