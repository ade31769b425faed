"""`fathom`, as torchrun starts it; its second rank is killed after the third step of the first attempt."""

from __future__ import annotations

import os

import pytest

from fathom.cli import main
from fathom.ranks import Ranks
from tests.oracles import ranked_runs, tiny_runs

with pytest.MonkeyPatch.context() as patch:
    tiny_runs.hurry(patch)
    if os.environ["TORCHELASTIC_RESTART_COUNT"] == "0":
        ranked_runs.befall(patch, "die 1 2", Ranks(int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])))
    main()
