"""The catalogue of tasks, by name."""

from __future__ import annotations

from gpt2.errors import UserError, did_you_mean
from gpt2.evaluate.tasks import choices, letters, passages, recall, rewriting, superglue, texts
from gpt2.evaluate.tasks.task import Task

FAMILIES = (texts, choices, superglue, recall, passages, rewriting, letters)
CATALOGUE: dict[str, Task] = {task.name: task for family in FAMILIES for task in family.TASKS}


def find_task(name: str) -> Task:
    """UserError for a name that is none."""
    if name not in CATALOGUE:
        raise UserError(f"no task '{name}'{did_you_mean(name, CATALOGUE)}; gpt2 evaluate --list names them all")
    return CATALOGUE[name]
