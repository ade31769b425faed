"""CORE: 22 tasks that tell base models apart, scored as the reference scores them, only faster. REFERENCE 6.1

bundle ──▶ prompts ──▶ items ──▶ a Scorer ──▶ scoring
the files  in words    as rows   losses       counted
"""

from fathom.evaluate.core.bundle import Bundle, Task
from fathom.evaluate.core.fetching import open_bundle
from fathom.evaluate.core.scoring import TaskScore, core_metric, score_bundle, score_task

__all__ = ["Bundle", "Task", "TaskScore", "core_metric", "open_bundle", "score_bundle", "score_task"]
