"""Compile a run's kernels ahead of time, in a process of its own, while the first steps run eagerly.

torch keeps compiled kernels in a cache on disk; when the loop comes to `compile_from` it finds them there. The step at
which it changes over is fixed, so if the compiler is late the loop waits for it, and says so. Not on a GPU, where it
would want the run's memory: see `loop`.
"""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import asdict
from json import dumps, loads

import torch

from fathom.model.attention import DenseContext
from fathom.model.gpt import GPT
from fathom.model.shape import Shape
from fathom.screen import say


class CompilerAhead:
    """Runs one compiled forward and backward pass of the same sizes elsewhere, at the lowest priority."""

    def __init__(self, model: GPT, device_rows: int) -> None:
        work = {
            "shape": asdict(model.shape),
            "dtype": str(model.dtype).removeprefix("torch."),
            "device": model.device.type,
            "rows": device_rows,
            "threads": torch.get_num_threads(),
        }
        self._process = subprocess.Popen(
            [sys.executable, "-m", "fathom.train.warm", dumps(work)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            env=os.environ | {"TORCHINDUCTOR_COMPILE_THREADS": "1"},
            start_new_session=True,  # a Ctrl-C meant for the run is not meant for it
        )

    def wait(self) -> None:
        if self._process.poll() is None:
            say("waiting for the compiled kernels")
            self._process.wait()

    def close(self) -> None:
        if self._process.poll() is None:
            self._process.terminate()
            self._process.wait()


def main(argument: str) -> None:
    work = loads(argument)
    os.nice(19)
    torch.set_num_threads(work["threads"])
    dtype = getattr(torch, work["dtype"])
    model = GPT(Shape(**work["shape"]), dtype).to(work["device"])
    model.init_weights()
    model.compile_kernels()
    ids = torch.zeros(work["rows"], model.shape.seq_len, dtype=torch.int64, device=work["device"])
    loss = model.loss(model(ids, DenseContext(model.shape.seq_len, work["device"])), ids) / ids.numel()
    loss.backward()


if __name__ == "__main__":
    main(sys.argv[1])
