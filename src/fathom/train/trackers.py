"""Other places where a run's figures may go: TensorBoard, Weights & Biases, trackio. metrics.jsonl comes first.

Each is fed by a thread of its own, so that one that fails, or waits for a network, costs the run nothing: it is said
once, and the run goes on without it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from difflib import get_close_matches
from importlib.util import find_spec
from queue import Empty, Full, Queue
from threading import Event, Thread
from typing import Any, Protocol

from fathom.errors import FathomError
from fathom.record import Record
from fathom.screen import say

NEEDS = {"tensorboard": "tensorboard", "wandb": "wandb", "trackio": "trackio"}
WAITING = 10_000  # lines that may wait for one that is slow
PATIENCE_S = 10.0  # for what still waits when the run has ended
PROJECT = "fathom"


class Writer(Protocol):
    def log(self, step: int, values: Mapping[str, float]) -> None: ...

    def close(self) -> None: ...


def asked_for(text: str | None) -> tuple[str, ...]:
    """ "tensorboard,wandb" -> both names. FathomError for another word, and for one that is not installed."""
    names = tuple(dict.fromkeys(name.strip().lower() for name in (text or "").split(",") if name.strip()))
    for name in names:
        if name not in NEEDS:
            near = get_close_matches(name, NEEDS, n=1)
            remedy = f"did you mean {near[0]}?" if near else f"choose of {', '.join(NEEDS)}"
            raise FathomError(f"--track names {name[:40]!r}", remedy)
        if find_spec(NEEDS[name]) is None:
            raise FathomError(
                f"--track names {name}, which is not installed",
                f"`.venv/bin/pip install {NEEDS[name]}`, or leave it out",
            )
    return names


@contextmanager
def tracking(names: tuple[str, ...], run: str, record: Record, config: Mapping[str, Any]) -> Iterator[None]:
    """Within, the figures of `record` go to these too."""
    trackers = [Tracker(name, lambda name=name: WRITERS[name](run, record, config)) for name in names]  # type: ignore[misc]
    for tracker in trackers:
        record.also.append(tracker.hear)
    try:
        yield
    finally:
        for tracker in trackers:
            record.also.remove(tracker.hear)
            tracker.close()


class Tracker:
    """One of them, with its thread; hears every line of the record and passes the figures on."""

    def __init__(self, name: str, begin: Callable[[], Writer]) -> None:
        self.name, self._begin = name, begin
        self._lines: Queue[tuple[int, dict[str, float]]] = Queue(WAITING)
        self._ending, self._has_failed = Event(), False
        self._thread = Thread(target=self._work, name=name, daemon=True)
        self._thread.start()

    def hear(self, kind: str, line: Mapping[str, Any]) -> None:
        figures = figures_of(kind, line)
        if not figures or self._has_failed:
            return
        try:
            self._lines.put_nowait((int(line["step"]), figures))
        except Full:
            self._fail(f"{WAITING:,} lines wait for it")

    def close(self) -> None:
        """What waits is still written, if it does not take long."""
        self._ending.set()
        self._thread.join(PATIENCE_S)
        if self._thread.is_alive():
            self._fail(f"it did not come to its end within {PATIENCE_S:.0f} s")

    def _work(self) -> None:
        try:
            writer = self._begin()
            while not (self._ending.is_set() and self._lines.empty()):
                try:
                    step, figures = self._lines.get(timeout=0.1)
                except Empty:
                    continue
                writer.log(step, figures)
            writer.close()
        except BaseException as error:  # some end the process where they mean to say no
            self._fail(str(error) or type(error).__name__)

    def _fail(self, why: str) -> None:
        if not self._has_failed:
            self._has_failed = True
            say(f"{self.name} gets no more figures ({why.splitlines()[0][:200]}); the run goes on", style="yellow")


def figures_of(kind: str, line: Mapping[str, Any]) -> dict[str, float]:
    """What of a line is a figure to plot, by the name that it goes under."""
    if "step" not in line:
        return {}
    if kind == "metric":
        found = {f"train/{key}": value for key, value in line.items() if key not in ("step", "time")}
    elif kind in ("evaluated", "core"):
        found = {f"validation/{key}": value for key, value in line.items() if key in ("val_bpb", "core")}
    else:
        return {}
    return {
        name: float(value)
        for name, value in found.items()
        if isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
    }


class _TensorBoard:
    def __init__(self, run: str, record: Record, config: Mapping[str, Any]) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._writer = SummaryWriter(str(record.folder / "tensorboard"))  # type: ignore[no-untyped-call]

    def log(self, step: int, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)  # type: ignore[no-untyped-call]

    def close(self) -> None:
        self._writer.close()  # type: ignore[no-untyped-call]


class _Wandb:
    def __init__(self, run: str, record: Record, config: Mapping[str, Any]) -> None:
        import wandb

        self._run = wandb.init(
            project=PROJECT, name=run, id=run, resume="allow", dir=str(record.folder), config=dict(config)
        )

    def log(self, step: int, values: Mapping[str, float]) -> None:
        self._run.log(dict(values), step=step)

    def close(self) -> None:
        self._run.finish()


class _Trackio:
    def __init__(self, run: str, record: Record, config: Mapping[str, Any]) -> None:
        import trackio

        self._trackio = trackio
        trackio.init(project=PROJECT, name=run, config=dict(config), resume="allow")

    def log(self, step: int, values: Mapping[str, float]) -> None:
        self._trackio.log(dict(values), step=step)

    def close(self) -> None:
        self._trackio.finish()


WRITERS: dict[str, Callable[[str, Record, Mapping[str, Any]], Writer]] = {
    "tensorboard": _TensorBoard,
    "wandb": _Wandb,
    "trackio": _Trackio,
}
