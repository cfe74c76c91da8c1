"""Suites: which tasks, by which paper. `quick` is what a laptop does in minutes; a file is the user's own."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from gpt2.errors import UserError, did_you_mean
from gpt2.evaluate.protocols import Job, chosen, jobs_of, why_none
from gpt2.evaluate.tasks import CATALOGUE, find_task
from gpt2.evaluate.tasks.own import read_suite
from gpt2.evaluate.tasks.task import Task

TABLE_3 = ("lambada", "cbt_cn", "cbt_ne", "wikitext2", "ptb", "enwik8", "text8", "wikitext103", "one_billion")
GPT2 = (*TABLE_3, "winograd", "coqa", "cnn_dm", "wmt14_en_fr", "wmt14_fr_en", "nq")
QUICK = (
    "lambada",
    "wikitext2",
    "piqa",
    "copa",
    "winogrande",
    "arc_easy",
    "triviaqa",
    "add_2",
    "add_3",
    "anagrams_2",
)
SUITES: dict[str, tuple[str, ...]] = {
    "quick": QUICK,
    "gpt2-paper": GPT2,
    "gpt3-paper": tuple(name for name, task in CATALOGUE.items() if "gpt3" in task.asks),
}
ZERO, BOTH = ("zero",), ("zero", "few")


class Plan(NamedTuple):
    """What is to be asked. `strict`: a task without data is an error and not left out, as the user named it.

    `skipped`: tasks of the suite that are not asked at all -> why.
    """

    jobs: list[Job]
    strict: bool
    skipped: dict[str, str]


def find_jobs(suite: str, protocol: str, shots: Sequence[str], only: Sequence[str]) -> Plan:
    """The jobs of a suite. `only`: names of tasks, of the suite or of others.

    UserError for what is unknown, for a task of `only` that cannot be asked so, and where nothing is left.
    """
    own: list[Task] = []
    if suite in SUITES:
        names = list(only or SUITES[suite])
    elif Path(suite).expanduser().is_file():
        named, own = read_suite(Path(suite).expanduser())
        names = [name for name in only or named if name not in {task.name for task in own}]
        own = [task for task in own if not only or task.name in only]
    else:
        near = did_you_mean(suite, SUITES)
        raise UserError(f"--suite {suite}: no such file, and no suite{near}; there are {', '.join(SUITES)}")
    default = BOTH if suite == "gpt3-paper" else ZERO
    jobs: list[Job] = []
    skipped: dict[str, str] = {}
    wanted = [(task, chosen(protocol, paper_of(suite, task)), default) for task in map(find_task, names)]
    for task, protocols, usual in [*wanted, *((task, ["own"], ZERO) for task in own)]:
        found = jobs_of(task, protocols, shots, usual)
        jobs += found
        if not found:
            skipped[task.name] = why_none(task, protocols)
    if only and skipped:
        raise UserError(f"--tasks {next(iter(skipped.values()))}")
    if not jobs:
        raise UserError(f"--suite {suite} --protocol {protocol}: none of its tasks is asked in this way")
    return Plan(jobs, bool(only) or suite not in SUITES, skipped)


def paper_of(suite: str, task: Task) -> str:
    """The paper whose way of asking `--protocol paper` means: the suite's; elsewhere GPT-2's, if it has the task."""
    order = ("gpt3", "gpt2") if suite == "gpt3-paper" else ("gpt2", "gpt3")
    return next((paper for paper in order if paper in task.asks), "harness")
