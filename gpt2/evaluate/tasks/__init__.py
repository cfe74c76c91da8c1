"""The catalogue of tasks, by name."""

from __future__ import annotations

from gpt2.errors import UserError, did_you_mean
from gpt2.evaluate.tasks import answers, choices, letters, superglue, texts
from gpt2.evaluate.tasks.task import Task

CATALOGUE: dict[str, Task] = {
    task.name: task for module in (texts, choices, superglue, answers, letters) for task in module.TASKS
}


def find_task(name: str) -> Task:
    """UserError for a name that is none."""
    if name not in CATALOGUE:
        raise UserError(f"no task '{name}'{did_you_mean(name, CATALOGUE)}; gpt2 evaluate --list names them all")
    return CATALOGUE[name]
