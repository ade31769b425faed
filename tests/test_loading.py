"""A word while torch loads, and none where it is quick or there is no torch."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = """
import sys
sys.path.insert(0, {folder!r})
from fathom import loading
loading.PATIENCE_S = 0.2
loading.say_when_torch_takes_long()
loading.say_when_torch_takes_long()
assert sum(isinstance(one, loading._Watch) for one in sys.meta_path) == 1
try:
    import torch
except ImportError:
    pass
import time
time.sleep(0.5)
"""


@pytest.mark.parametrize(
    ("torch", "said"),
    [
        ("import time; time.sleep(1.0)", "  loading torch, which takes some seconds\n"),
        ("", ""),
        ("raise ImportError", ""),
    ],
)
def test_what_takes_long_is_said_once(tmp_path: Path, torch: str, said: str) -> None:
    (tmp_path / "torch.py").write_text(torch)
    program = PROGRAM.format(folder=str(tmp_path))
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, said)
