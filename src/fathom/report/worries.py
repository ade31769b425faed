"""What to worry about in a run: rules over its standing, each with its number and what to do (pure)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from fathom.report.standing import Standing
from fathom.report.words import count, duration, gb, percent
from fathom.screen import plural

STALLED_TIMES = 10
STALLED_LEAST_S = 15.0
SLOW_WORK_S = 600.0
"""What starting, compiling and measuring may take where the record holds no longer pause."""
CHECKPOINT_OLD_S = 15 * 60
SLOWER = 0.2
WAITING_SHARE = 0.1
BPB_ROSE = 0.003
LOSS_ROSE = 0.01
SKIPPED_SHARE = 0.01
MEMORY_SHARE = 0.92
FULL_GB = 0.05
EPOCHS = 4
"""Up to about four times, repeated text is worth nearly as much as new (Muennighoff et al. 2023, arXiv 2305.16264)."""


@dataclass(frozen=True)
class Worry:
    rule: str
    grade: Literal["act", "watch"]
    """act: something will be lost or is wrong now; watch: it may become so."""
    found: str
    do: str


Rule = Callable[[Standing], Worry | None]


def worries(run: Standing) -> list[Worry]:
    """All that applies, the urgent first."""
    found = [worry for rule in RULES if (worry := rule(run)) is not None]
    return sorted(found, key=lambda worry: worry.grade != "act")


def _broken_off(run: Standing) -> Worry | None:
    if run.state != "broken off":
        return None
    if not run.steps_done:
        do = f"{run.resume or 'the same command again'} begins anew"
        why = f": {run.refusal}" if run.refusal else ""
        return Worry("broken off", "act", f"the process ended before its first step{why}", do)
    held = ""
    if run.memory_gb and run.device_memory_gb and run.memory_gb > MEMORY_SHARE * run.device_memory_gb:
        held = f"; it held {gb(run.memory_gb)} of {gb(run.device_memory_gb)}, so perhaps for want of memory"
    if run.checkpoint is None:
        lost, do = "nothing was saved", f"{_resume(run)} begins anew"
    else:
        lost = f"{_unsaved(run)} after the checkpoint are lost" if run.unsaved_steps else "nothing is lost"
        do = f"{_resume(run)} goes on from step {run.checkpoint.step:,}"
    if run.refusal:
        return Worry("broken off", "act", f"after step {run.steps_done:,}: {run.refusal} ({lost})", do)
    how = "killed or crashed, or the disk was full," if _is_full(run) else "killed or crashed"
    return Worry("broken off", "act", f"{how} after step {run.steps_done:,}{held}: {lost}", do)


def _is_full(run: Standing) -> bool:
    """Whether the disk has no room for a checkpoint, or had none: what ends a run then cannot be written down."""
    least = max(FULL_GB, run.checkpoint.gb if run.checkpoint else 0.0)
    return bool(run.save_failed_last) or (run.disk_free_gb is not None and run.disk_free_gb < least)


def _stalled(run: Standing) -> Worry | None:
    if run.state != "running" or run.silence_s is None:
        return None
    usual = run.step_s_usual or 0.0
    limit = max(STALLED_TIMES * usual, STALLED_LEAST_S, 2 * run.longest_pause_s)
    if run.activity != "training":
        limit = max(limit, SLOW_WORK_S)
    if run.silence_s <= limit:
        return None
    if run.activity == "training" and usual:
        times = f"{run.silence_s / usual:,.0f} times the usual {duration(usual)}"
        found = f"no new step for {duration(run.silence_s)}, {times}"
    else:
        found = f"{run.activity} for {duration(run.silence_s)} without a new step"
    do = f"look at the terminal it runs in; if it hangs, stop it (Ctrl-C), and {_resume(run)} goes on"
    return Worry("stalled", "act", found, do)


def _not_a_number(run: Standing) -> Worry | None:
    if not run.bad_losses:
        return None
    words = "that of the last one among them" if run.loss_is_bad_now else f"the last one is {run.loss or 0:.3f}"
    return Worry(
        "not a number",
        "act" if run.loss_is_bad_now else "watch",
        f"the loss of {plural(run.bad_losses, 'logged step')} is not a number, {words}",
        f"what was trained since is worthless: begin again at lower rates; {_typed_out(run)}",
    )


def _save_failed(run: Standing) -> Worry | None:
    if not run.save_failed_last or run.state == "finished":
        return None
    failed = run.counts.get("save_failed", 0)
    return Worry(
        "save failed",
        "act",
        f"the last checkpoint could not be saved ({run.save_failed_last}), {plural(failed, 'failed save')} so far; "
        f"{_unsaved(run)} hang on the next",
        "make room, or mend the disk, before the next save",
    )


def _old_checkpoint(run: Standing) -> Worry | None:
    if run.state != "running" or run.activity == "starting" or not run.unsaved_steps:
        return None
    age = run.checkpoint.age_s if run.checkpoint else run.unsaved_s
    if age is None or age <= CHECKPOINT_OLD_S:
        return None
    what = f"the last checkpoint is {duration(age)} old" if run.checkpoint else f"no checkpoint after {duration(age)}"
    more_often = ", with --save-every 10m saving more often" if "--resume" in _resume(run) else ""
    return Worry(
        "old checkpoint",
        "watch",
        f"{what}: {_unsaved(run)} would be lost",
        f"Ctrl-C in its terminal saves and stops; {_resume(run)} goes on{more_often}",
    )


def _disk(run: Standing) -> Worry | None:
    if run.state == "finished" or run.disk_free_gb is None or run.checkpoint is None:
        return None
    if run.disk_free_gb >= 2 * run.checkpoint.gb:
        return None
    return Worry(
        "disk",
        "act",
        f"the disk has {gb(run.disk_free_gb)} left, and a checkpoint takes {gb(run.checkpoint.gb)}",
        "make room: old runs and their checkpoints are plain folders that can be deleted",
    )


def _slower(run: Standing) -> Worry | None:
    if run.state != "running" or run.phase_steps < 50 or not run.step_s_now or not run.step_s_usual:
        return None
    if run.step_s_usual / run.step_s_now > 1 - SLOWER:
        return None
    slower = percent(1 - run.step_s_usual / run.step_s_now)
    return Worry(
        "slower",
        "watch",
        f"a step takes {run.step_s_now:.3g} s of late, usually {run.step_s_usual:.3g} s: the speed fell by {slower}",
        "see what else this machine is doing (top, nvidia-smi) and whether it is too hot",
    )


def _waiting(run: Standing) -> Worry | None:
    if run.state != "running" or run.loader_share is None or run.loader_share <= WAITING_SHARE:
        return None
    return Worry(
        "waiting for data",
        "watch",
        f"{percent(run.loader_share)} of the time of late goes by waiting for batches",
        "see what else reads from that disk, or keep the corpus on a faster one",
    )


def _bpb_rose(run: Standing) -> Worry | None:
    sound = [(step, bpb) for step, bpb in run.bpb if bpb == bpb]
    if len(sound) < 2:
        return None
    best_step, best = min(sound, key=lambda one: one[1])
    step, last = sound[-1]
    if last <= best * (1 + BPB_ROSE):
        return None
    return Worry(
        "bpb rose",
        "watch",
        f"{last:.4f} bits per byte at step {step:,}, {percent(last / best - 1)} above the best, {best:.4f} at step "
        f"{best_step:,}",
        "after a raise of the rate (an extended run) this passes; otherwise train for fewer steps or on more data, "
        f"or lower {_rate_flag(run)}. The checkpoint with the best bpb is kept",
    )


def _rate_flag(run: Standing) -> str:
    return "--lr-share" if run.stage == "sft" else "--lr-scale"


def _loss_rises(run: Standing) -> Worry | None:
    line = run.loss_trend
    if run.state != "running" or line is None or line.direction != "rising" or not run.loss:
        return None
    if line.change < LOSS_ROSE * run.loss:
        return None
    return Worry(
        "loss rises",
        "watch",
        f"the training loss rose by {line.change:.3f} (to {run.loss:.3f}) since step {line.first_step:,}, which chance "
        "does not explain",
        f"if it goes on for as long again, stop it and begin again with a lower {_rate_flag(run)}",
    )


def _jumped(run: Standing) -> Worry | None:
    if run.jump is None or run.state not in ("running", "stopped"):
        return None
    now = f"{run.jump.loss:.3g} nats at step {run.jump.step:,}, and is at {run.jump.last:.3g}"
    return Worry(
        "loss jumped",
        "act",
        f"the training loss jumped from {run.jump.before:.3g} to {now}: the rates are too high for it",
        f"stop it and begin again with a lower {_rate_flag(run)}",
    )


def _skipped(run: Standing) -> Worry | None:
    skipped = run.counts.get("skipped", 0)
    if not run.steps_done or skipped < SKIPPED_SHARE * run.steps_done or not skipped:
        return None
    share = percent(skipped / run.steps_done)
    return Worry(
        "skipped steps",
        "watch",
        f"{plural(skipped, 'step')} left out, {share} of those done",
        f"{_typed_out(run)}, by why they were left out",
    )


def _rolled_back(run: Standing) -> Worry | None:
    times = run.counts.get("rolled_back", 0)
    if not times:
        return None
    return Worry(
        "rolled back",
        "watch",
        f"four steps in a row had to be left out {plural(times, 'time')}: back to the last good checkpoint, and on "
        "with the data after them",
        f"after three such returns a run stops; {_typed_out(run)}",
    )


def _evaluation_failed(run: Standing) -> Worry | None:
    failed = run.counts.get("evaluation_failed", 0)
    if not failed:
        return None
    return Worry(
        "evaluation failed",
        "watch",
        f"{plural(failed, 'evaluation')} failed, {len(run.bpb):,} succeeded",
        "events.jsonl says why; where memory was short, --device-batch can be smaller",
    )


def _memory(run: Standing) -> Worry | None:
    if run.state != "running" or not run.memory_gb or not run.device_memory_gb:
        return None
    share = run.memory_gb / run.device_memory_gb
    if share <= MEMORY_SHARE:
        return None
    return Worry(
        "memory",
        "watch",
        f"{gb(run.memory_gb)} of {gb(run.device_memory_gb)} of memory are used ({percent(share)})",
        "close what else uses it; a resumed run may have a smaller --device-batch",
    )


def _out_of_memory(run: Standing) -> Worry | None:
    times = run.counts.get("out_of_memory", 0)
    if not times or run.state != "running":
        return None
    return Worry(
        "out of memory",
        "watch",
        f"a step did not fit {plural(times, 'time')}, and micro-batches were halved; the batch stays as it is",
        "nothing has to be done; a smaller --device-batch from the start would have spared it",
    )


def _no_checkpoint(run: Standing) -> Worry | None:
    if run.state != "finished" or run.checkpoint is not None:
        return None
    found = "0 whole checkpoints are there: nobody can talk to this run or go on with it"
    return Worry("no checkpoint", "act", found, "put its checkpoints back, or train it again")


def _damaged(run: Standing) -> Worry | None:
    if run.checkpoint is None or not run.checkpoint.trouble:
        return None
    return Worry(
        "damaged checkpoint",
        "act",
        f"the checkpoint of step {run.checkpoint.step:,} cannot be loaded: {run.checkpoint.trouble}",
        f"copy it anew, or remove checkpoints/{run.checkpoint.step:06d}: an older one counts then, if there is one",
    )


def _not_described(run: Standing) -> Worry | None:
    if run.is_described:
        return None
    return Worry(
        "no run.toml",
        "act",
        f"what was trained in {plural(run.steps_done, 'step')} is not known: run.toml is missing or cannot be read",
        "copy it back into the run's folder; without it nobody can talk to this run or go on with it",
    )


def _report(run: Standing) -> Worry | None:
    if not run.to_mend:
        return None
    more = f", and {len(run.to_mend) - 1} more" if run.to_mend[1:] else ""
    return Worry(
        "report", "watch", f"{run.to_mend[0].rstrip('.')}{more}", f"`fathom report {run.run}` says what to do about it"
    )


def _typed_out(run: Standing) -> str:
    return f"`fathom report {run.run}` has the command"


def _resume(run: Standing) -> str:
    return run.resume or "the same command with --resume"


def _repeats(run: Standing) -> Worry | None:
    if run.stage != "pretrain" or run.epochs_planned is None or run.epochs_planned <= EPOCHS:
        return None
    return Worry(
        "repeated data",
        "watch",
        f"{count(run.tokens_planned or 0)} tokens go through the data {run.epochs_planned:.1f} times",
        f"more text would teach more: beyond about {EPOCHS} times repeating does little; or train for fewer steps",
    )


def _unsaved(run: Standing) -> str:
    seconds = "" if run.unsaved_s is None else f" ({duration(run.unsaved_s)} of training)"
    return plural(run.unsaved_steps, "step") + seconds


RULES: tuple[Rule, ...] = (
    _broken_off,
    _not_described,
    _no_checkpoint,
    _damaged,
    _stalled,
    _not_a_number,
    _save_failed,
    _old_checkpoint,
    _disk,
    _slower,
    _waiting,
    _bpb_rose,
    _loss_rises,
    _jumped,
    _skipped,
    _rolled_back,
    _evaluation_failed,
    _memory,
    _out_of_memory,
    _repeats,
    _report,
)
