"""A queue of runs in plain files: each a process of its own, begun, resumed or given up by what its folder says.

sweeps/NAME/points/RUN.toml    its recipe
sweeps/NAME/points/RUN.json    how often it failed, and why
sweeps/NAME/logs/RUN.log       what it said

Nothing else remembers where the queue is, so it can be killed anywhere: a finished run is known by its own folder, a
half one goes on from its checkpoint, and one that a killed sweep left running is waited for.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any, Literal, Protocol

import fathom
from fathom.home import run_dir, write_atomic
from fathom.record import events, to_toml
from fathom.report.history import is_locked
from fathom.sweep.grid import Point

LOOK_EVERY_S = 0.2
REFUSED = 2  # a sentence was said: the same command would say it again
STOPPED = 130
State = Literal["finished", "given up", "waiting"]


@dataclass(frozen=True)
class Slot:
    """Where one run at a time may be: a GPU, or a share of the processor."""

    name: str
    surroundings: Mapping[str, str]


def slots_of(workers: int, gpus: Sequence[str]) -> list[Slot]:
    """A slot for each GPU, else `workers` of them with an equal share of the cores."""
    if gpus:
        return [Slot(f"GPU {gpu}", {"CUDA_VISIBLE_DEVICES": gpu}) for gpu in gpus]
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    share = {"OMP_NUM_THREADS": str(max(1, cores // workers))} if workers > 1 else {}
    return [Slot(f"worker {i + 1}", share) for i in range(workers)]


class Watcher(Protocol):
    """Who shows how the queue goes."""

    def started(self, run: str, slot: Slot) -> None: ...
    def ended(self, run: str, state: str, why: str) -> None: ...
    def held(self, run: str) -> None: ...
    def look(self, running: Mapping[str, Slot], waiting: int) -> None: ...


@dataclass
class _Job:
    point: Point
    slot: Slot
    process: subprocess.Popen[bytes]
    is_asked: bool = False

    def ask_to_stop(self) -> None:
        """Once only: training takes a second signal for impatience, and saves nothing."""
        if not self.is_asked:
            self.is_asked = True
            self.process.send_signal(signal.SIGTERM)


class Queue:
    """The runs of one sweep. `arguments` are pretrain's, the same for all."""

    def __init__(self, folder: Path, arguments: Sequence[str], tries: int) -> None:
        self.folder, self._arguments, self._tries = folder, list(arguments), tries
        self._is_told = False

    def failures(self, run: str) -> list[dict[str, Any]]:
        try:
            found = json.loads(self._path(run, "json").read_bytes())["failures"]
        except (OSError, ValueError, KeyError, TypeError):
            return []
        return found if isinstance(found, list) else []

    def state(self, run: str) -> State:
        if any(line.get("event") == "finished" for line in events(run_dir(run))):
            return "finished"
        failures = self.failures(run)
        refused = bool(failures) and failures[-1].get("code") == REFUSED
        return "given up" if refused or len(failures) >= self._tries else "waiting"

    def forgive(self, run: str) -> None:
        """Let it be tried again."""
        self._path(run, "json").unlink(missing_ok=True)

    def work(self, points: Sequence[Point], slots: Sequence[Slot], watcher: Watcher) -> bool:
        """Bring every run to its end, or until Ctrl-C or SIGTERM, after which each has saved. Whether all was done."""
        waiting = [point for point in points if self.state(point.run) == "waiting"]
        running: list[_Job] = []
        with _Stop() as stop:
            try:
                while (waiting and not stop.asked) or running:
                    for job in [job for job in running if job.process.poll() is not None]:
                        running.remove(job)
                        if self._ended(job, watcher) and not stop.asked:
                            waiting.append(job.point)
                    if stop.asked:
                        for job in running:
                            job.ask_to_stop()
                    else:
                        self._start(waiting, running, slots, watcher)
                    watcher.look({job.point.run: job.slot for job in running}, len(waiting))
                    time.sleep(LOOK_EVERY_S)
            finally:
                for job in running:
                    job.ask_to_stop()
        return not stop.asked

    def _start(self, waiting: list[Point], running: list[_Job], slots: Sequence[Slot], watcher: Watcher) -> None:
        taken = {job.slot.name for job in running}
        for slot in [slot for slot in slots if slot.name not in taken]:
            free = [point for point in waiting if not is_locked(run_dir(point.run) / ".lock")]
            if waiting and not free and not running and not self._is_told:
                self._is_told = True
                watcher.held(waiting[0].run)
            if not free:
                return
            point = free[0]
            waiting.remove(point)
            if self.state(point.run) == "finished":  # by a process that an earlier sweep left
                watcher.ended(point.run, "finished", "")
                continue
            running.append(_Job(point, slot, self._process(point, slot)))
            watcher.started(point.run, slot)

    def _process(self, point: Point, slot: Slot) -> subprocess.Popen[bytes]:
        recipe, log = self._path(point.run, "toml"), self.folder / "logs" / f"{point.run}.log"
        write_atomic(recipe, to_toml({"run": point.settings}).removeprefix("[run]\n"))
        log.parent.mkdir(exist_ok=True)
        where = str(Path(fathom.__file__).parents[1])
        path = os.pathsep.join(filter(None, [where, os.environ.get("PYTHONPATH")]))
        command = [sys.executable, "-m", "fathom", "pretrain", "--run", point.run, "--recipe", str(recipe), "--resume"]
        with log.open("ab") as said:
            return subprocess.Popen(
                [*command, *self._arguments],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=said,
                env={**os.environ, **slot.surroundings, "PYTHONPATH": path},
                start_new_session=True,  # a Ctrl-C in the terminal is passed on by us, once
            )

    def _ended(self, job: _Job, watcher: Watcher) -> bool:
        """Note how it ended; whether it is to be tried again now."""
        run, code = job.point.run, job.process.returncode
        if self.state(run) == "finished":
            watcher.ended(run, "finished", "")
            return False
        if job.is_asked or code == STOPPED:
            watcher.ended(run, "stopped", "it goes on from its checkpoint next time")
            return False
        why = self._why(run, code)
        found = [*self.failures(run), {"time": round(time.time(), 3), "code": code, "why": why}]
        write_atomic(self._path(run, "json"), json.dumps({"failures": found}, indent=1) + "\n")
        state = self.state(run)
        watcher.ended(run, "given up" if state == "given up" else "failed", why)
        return state == "waiting"

    def _why(self, run: str, code: int) -> str:
        if code < 0:
            name = signal.Signals(-code).name
            return f"killed by {name}{', perhaps for memory' if name == 'SIGKILL' else ''}"
        try:
            lines = (self.folder / "logs" / f"{run}.log").read_bytes()[-20_000:].decode(errors="replace").splitlines()
        except OSError:
            lines = []
        said = [line.strip() for line in lines if line.strip()]
        sentence = next((line for line in reversed(said) if line.startswith("fathom: ")), said[-1] if said else "")
        return sentence.removeprefix("fathom: ")[:400] or f"it ended with {code} and said nothing"

    def _path(self, run: str, ending: str) -> Path:
        return self.folder / "points" / f"{run}.{ending}"


class _Stop:
    """Ctrl-C, SIGTERM and a closed terminal ask for an end; a second Ctrl-C does not wait for the checkpoints."""

    def __init__(self) -> None:
        self.asked = False
        self._before: dict[int, Any] = {}

    def __enter__(self) -> _Stop:
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            self._before[number] = signal.signal(number, self._ask)
        return self

    def _ask(self, number: int, _: FrameType | None) -> None:
        if self.asked and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.asked = True

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
