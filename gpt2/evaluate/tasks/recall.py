"""Questions that are answered from memory: TriviaQA, Natural Questions, WebQuestions."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from gpt2.evaluate.asked import FROM_MEMORY, GREEDY, Writing
from gpt2.evaluate.data import Fields, Form, Hub
from gpt2.evaluate.measures import Shots, Write
from gpt2.evaluate.rows import Row, objects, open_text, parse_object
from gpt2.evaluate.tasks.comparing import BEAMS, by_aliases, by_exact
from gpt2.evaluate.tasks.task import Task


def trivia_rows(paths: Sequence[Path]) -> Iterator[Row]:
    yield from objects(paths, "Data")


def trivia(row: Row) -> Fields:
    answer = row.row("Answer")
    return closed(row.text("Question"), answer.text("Value"), answer.texts("Aliases"))


def trivia_hub(row: Row) -> Fields:
    answer = row.row("answer")
    return closed(row.text("question"), answer.text("value"), answer.texts("aliases"))


def trivia_foundry(row: Row) -> Fields:
    question = row.text("context").removeprefix("Question: ").removesuffix("\nAnswer:")
    return closed(question, row.text("answer"), row.texts("aliases"))


def closed(question: str, answer: str, aliases: Sequence[str]) -> Fields:
    """The answer is right, and so is any alias; each once."""
    return {"question": question, "answers": list(dict.fromkeys([answer, *aliases])), "aliases": list(aliases)}


def natural(row: Row) -> Fields:
    question = row.text("question").strip()
    shown = question[:1].upper() + question[1:].removesuffix("?") + "?"
    return {"question": shown, "answers": row.texts("answer")}


def web_rows(paths: Sequence[Path]) -> Iterator[Row]:
    """A list of objects, which is no object itself."""
    for path in paths:
        wrapped = parse_object(f'{{"list": {open_text(path)}}}', str(path))
        for number, row in enumerate(Row(wrapped, str(path)).rows("list")):
            yield Row(row, f"{path} [{number}]")


def web(row: Row) -> Fields:
    """Answers are written as Lisp: (list (description "x") (description y))."""
    found = re.findall(r'\(description (?:"((?:[^"\\]|\\.)*)"|([^()"]+))\)', row.text("targetValue"))
    if not found:
        row.refuse("targetValue", "(list (description ...))")
    answers = [(quoted or bare).replace('\\"', '"').strip() for quoted, bare in found]
    return {"question": row.text("utterance"), "answers": answers}


def web_hub(row: Row) -> Fields:
    return {"question": row.text("question"), "answers": row.texts("answers")}


def closed_book(name: str, title: str, forms: tuple[Form, ...], hub: Hub, **more: Any) -> Task:
    """GPT-3's figure G.34: exact match after normalising, any alias counts."""
    ask = Write("Q: {question}\n\nA:", by_exact, writing=BEAMS, shots=Shots(k=64))
    return Task(name, title, forms, {"gpt3": ask, **more.pop("asks", {})}, hub, **more)


HARNESS = Write("Question: {question}?\nAnswer:", by_aliases, writing=Writing(256, ("\n", ".", ",")), clean=str.lstrip)
TASKS = (
    closed_book(
        "triviaqa",
        "TriviaQA",
        (
            Form(
                ("triviaqa-unfiltered/unfiltered-web-dev.json",),
                trivia,
                trivia_rows,
                ("triviaqa-unfiltered/unfiltered-web-train.json",),
            ),
            Form(("qa/wikipedia-dev.json",), trivia, trivia_rows, ("qa/wikipedia-train.json",)),
            Form(("triviaqa*.jsonl",), trivia_foundry),
        ),
        Hub("mandarjoshi/trivia_qa", trivia_hub, "rc.nocontext"),
        asks={"harness": HARNESS},
    ),
    closed_book(
        "nq",
        "Natural Questions",
        (
            Form(("NQ-open.dev.jsonl",), natural, train=("NQ-open.train.jsonl",)),
            Form(("NQ-open*dev*.jsonl",), natural, train=("NQ-open*train*.jsonl",)),
        ),
        Hub("google-research-datasets/nq_open", natural),
        asks={"gpt2": Write(FROM_MEMORY, by_exact, writing=GREEDY, shots=Shots("\n", k=5))},
        notes={
            "gpt2": "GPT-2's paper seeds the context with example pairs and says neither how many nor which: "
            "5 were chosen."
        },
    ),
    closed_book(
        "webqs",
        "WebQuestions",
        (Form(("webquestions.examples.test.json",), web, web_rows, ("webquestions.examples.train.json",), "test"),),
        Hub("stanfordnlp/web_questions", web_hub, split="test"),
    ),
)
