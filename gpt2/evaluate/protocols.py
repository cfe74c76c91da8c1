"""The protocols by which a task is asked. A figure without its protocol says nothing, so every result names it.

`paper` is what the GPT-2 paper or the GPT-3 paper did, as far as it is known (docs/evaluation.md tells what is not);
`harness` is what lm-evaluation-harness 0.4 does. A user's own task is asked as its file says.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from gpt2.errors import UserError
from gpt2.evaluate.measures import Ask
from gpt2.evaluate.tasks.task import Task

TITLES = {
    "gpt2": "paper (GPT-2)",
    "gpt3": "paper (GPT-3)",
    "harness": "harness",
    "own": "own",
}
WORDS = {"zero": 0, "one": 1}  # and "few": the paper's number for the task


@dataclass(frozen=True)
class Job:
    """One task, asked in one way, with so many examples."""

    task: Task
    protocol: str
    shots: int

    @property
    def ask(self) -> Ask:
        """GPT-3 asks LAMBADA in another way where there are examples."""
        few = self.task.asks.get(f"{self.protocol}_few")
        return few if self.shots and few else self.task.asks[self.protocol]

    @property
    def name(self) -> str:
        return f"{self.task.name}-{self.protocol}-{self.shots}"

    @property
    def title(self) -> str:
        shots = f", {self.shots}-shot" if self.shots else ""
        return f"{self.task.title}, {TITLES[self.protocol]}{shots}"


def jobs_of(
    task: Task, protocols: Sequence[str], shots: Sequence[str] = (), default: Sequence[str] = ("zero",)
) -> list[Job]:
    """Every way of asking that was chosen and that the task has, each once.

    Where no numbers of examples are chosen, GPT-2's paper has one for each task, and so has a user's own; the harness
    shows none.
    """
    usual: dict[str, Sequence[str]] = {"gpt2": ("few",), "own": ("few",), "harness": ("zero",)}
    jobs = [
        Job(task, protocol, number)
        for protocol in protocols
        if protocol in task.asks
        for number in counts(task, protocol, shots or usual.get(protocol, default))
    ]
    return list({job.name: job for job in jobs}.values())


def why_none(task: Task, protocols: Sequence[str]) -> str:
    """Why `jobs_of` gives none for this task."""
    if any(protocol in task.asks for protocol in protocols):
        return f"{task.name}: a text that is read on takes no examples; ask for --shots zero"
    known = " and ".join(TITLES[protocol] for protocol in task.asks if protocol in TITLES)
    asked = " or ".join(TITLES[protocol] for protocol in protocols)
    return f"{task.name}: has no way of asking in the protocol {asked}; there is {known}"


def counts(task: Task, protocol: str, shots: Sequence[str]) -> list[int]:
    """Numbers of examples: words and numbers as numbers; of a text that is read on, 0 only."""
    if protocol == "harness" and "few" in shots:
        raise UserError("--shots few: is a paper's number, the harness has none; say a number, or --protocol paper")
    most = paper_shots(task, protocol)
    numbers = [most if word == "few" else WORDS[word] if word in WORDS else count(word) for word in shots]
    return [number for number in numbers if number == 0 or hasattr(task.asks[protocol], "shots")]


def paper_shots(task: Task, protocol: str) -> int:
    ask: Any = task.asks.get(f"{protocol}_few", task.asks[protocol])
    found = getattr(ask, "shots", None)
    return found.k if found else 0


def count(word: str) -> int:
    if not word.isdigit():
        raise UserError(f"--shots {word}: must be zero, one, few (the paper's number for each task) or a number")
    return int(word)


def chosen(protocol: str, paper: str) -> list[str]:
    """What --protocol says, for a suite of this paper."""
    names = {"paper": [paper], "harness": ["harness"], "both": [paper, "harness"]}
    if protocol not in names:
        raise UserError(f"--protocol {protocol}: must be paper, harness or both")
    return names[protocol]
