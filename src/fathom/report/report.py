"""`fathom report RUN`: what a run was and why it went as it did, as report.md and report.html."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tyro

from fathom.errors import FathomError
from fathom.home import write_atomic
from fathom.report import measures
from fathom.report.document import Document, present
from fathom.report.findings import Finding, assess
from fathom.report.history import History, salvaged
from fathom.report.hypertext import to_html
from fathom.report.lineage import with_ancestors
from fathom.report.markdown import to_markdown
from fathom.report.recipe import Difference, differences
from fathom.report.sections import course, evaluated, outcome, overview, setting
from fathom.report.surroundings import checkpoint_bytes, corpus_facts, earlier_attempts, recipe_named
from fathom.screen import say
from fathom.train.settings import read_recipe

COLOURS = {"bad": "bold red", "warn": "yellow", "note": "cyan", "good": "green"}


@dataclass(frozen=True)
class Report:
    """Write what a run was and why it went as it did: report.md and report.html, in the run's folder."""

    name: tyro.conf.Positional[str]
    """The run."""
    recipe: str | None = None
    """TOML file with the settings that the run was meant to have. Default the one that its record names."""
    out: Path | None = None
    """Folder to write into. Default the run's own."""
    json: bool = False
    """Print the assessment as one JSON object on standard output."""

    def run(self) -> dict[str, Any]:
        alone = salvaged(self.name)
        meant = _meant(alone, self.recipe)
        document, history, findings = compose(alone, *meant)
        folder = alone.folder if self.out is None else self.out
        written = [folder / "report.md", folder / "report.html"]
        try:
            write_atomic(written[0], to_markdown(document))
            write_atomic(written[1], to_html(document))
        except OSError as error:
            found = f"{error.filename} cannot be written ({error.strerror})"
            raise FathomError(
                found, "name another folder with --out, or set FATHOM_HOME to a folder of yours"
            ) from None
        if not self.json:
            _print(history, findings, written)
        return {
            "run": history.name,
            "state": history.state,
            "steps": history.steps_done,
            "tokens": history.tokens_done,
            "val_bpb": next((one.val_bpb for one in reversed(measures.measured(history))), None),
            "files": [str(path) for path in written],
            "findings": [asdict(finding) for finding in findings],
            "troubles": list(history.troubles),
        }


def compose(
    alone: History, recipe: str = "", unlike: list[Difference] | None = None
) -> tuple[Document, History, list[Finding]]:
    """The whole report of a run, the history it is of (ancestors joined to it), and its assessment."""
    with np.errstate(all="ignore"):
        return _composed(alone, recipe, unlike)


def _composed(alone: History, recipe: str, unlike: list[Difference] | None) -> tuple[Document, History, list[Finding]]:
    history, ancestors = with_ancestors(alone)
    findings = assess(history)
    known = tuple(one.name for one in ancestors)
    sections = present(
        [
            overview.overview(history, ancestors, findings, checkpoint_bytes(alone)),
            setting.network(history),
            setting.configuration(history),
            setting.deviations(recipe, unlike),
            setting.data(history, corpus_facts(history)),
            setting.hardware(history),
            course.progression(history),
            course.training(history),
            course.phases(history),
            course.budget(history),
            course.timeline(history),
            evaluated.evaluations(history),
            outcome.samples(history),
            outcome.attempts(earlier_attempts(history, known)),
            outcome.expectation(history),
            outcome.record(history),
            outcome.assessment(findings),
        ]
    )
    return Document(f"Training report: {history.name}", sections), history, findings


def _meant(history: History, asked: str | None) -> tuple[str, list[Difference] | None]:
    """(the recipe's file, how the run differs); no name without a recipe, None where the named one is gone."""
    if asked is not None:
        return asked, differences(history, read_recipe(asked))
    named = recipe_named(history)
    if named is None:
        return "", None
    try:
        return named, differences(history, read_recipe(named))
    except FathomError:
        return named, None


def _print(history: History, findings: Sequence[Finding], written: Sequence[Path]) -> None:
    say(f"{history.name}: {history.state}, {history.steps_done:,} steps. {overview.verdict(findings)}", style="bold")
    advised = overview.worth_doing(findings)
    for finding in findings:
        say(f"  {finding.severity:<5} {finding.sentence}", style=COLOURS[finding.severity])
        if finding.advice and (finding.severity in ("bad", "warn") or finding in advised):
            say(f"        {finding.advice}")
    for trouble in history.troubles:
        say(f"  record: {trouble}", style="dim")
    say(f"  written: {' and '.join(str(path) for path in written)}")
