"""Fixtures for all tests: a home of one's own, and the shared real data where it is there."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import hypothesis
import pytest

SOURCE = Path(__file__).resolve().parents[1] / "src"
SHARED = Path(__file__).resolve().parents[2] / "shared" / "data"

# Child processes of the tests find the package where the tests find it.
os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(SOURCE), os.environ.get("PYTHONPATH")]))

# A shell lets what it starts in the background ignore Ctrl-C, and so would the processes that tests send one.
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# How long an example takes says more about the other processes of a machine than about the code.
hypothesis.settings.register_profile("anywhere", deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow])
hypothesis.settings.load_profile("anywhere")


@pytest.fixture
def fathom_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty FATHOM_HOME."""
    folder = tmp_path / "home"
    monkeypatch.setenv("FATHOM_HOME", str(folder))
    return folder


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of real texts and conversations beside the checkout; a test that needs it skips without."""
    if not SHARED.is_dir():
        pytest.skip("the shared data folder is not beside this checkout")
    return SHARED
