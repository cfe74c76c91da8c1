r"""A user's own tasks, in a TOML file: items in JSON lines with a template, or a text to read on.

tasks = ["lambada", "piqa"]          # of the catalogue

[[task]]
name = "capitals"
data = "capitals.jsonl"              # {"country": "France", "capital": "Paris"}
template = "The capital of {country} is"
answer = "capital"                   # written greedily up to a line end, and compared by `metric`
metric = "exact"                     # exact, f1, bleu, rouge; or "likelihood": perplexity and greedy accuracy
examples = "more.jsonl"              # what the k examples are drawn from; else the other items
k = 4

[[task]]
name = "grammar"
data = "pairs.jsonl"                 # {"options": ["He goes", "He go"], "right": 0}
template = ""
choices = "options"
answer = "right"                     # a place, or one of the options
compare = "sum"                      # sum (the default), token or character

[[task]]
name = "book"
text = "book.txt"                    # perplexity per `unit`: word, token (words and line ends), character, byte
unit = "word"
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Mapping
from glob import escape
from pathlib import Path
from typing import Any

from gpt2.errors import UserError, did_you_mean
from gpt2.evaluate.asked import Writing
from gpt2.evaluate.data import Fields, Form
from gpt2.evaluate.measures import Ask, Choose, LastWord, ReadOn, Score, Shots, Write, mean
from gpt2.evaluate.metrics import exact, f1
from gpt2.evaluate.prompts import Template
from gpt2.evaluate.rows import Row, plain_lines
from gpt2.evaluate.tasks.comparing import by_bleu, by_rouge
from gpt2.evaluate.tasks.task import Task
from gpt2.evaluate.tasks.texts import whole

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

KEYS = {
    "text": {"name", "text", "unit"},
    "choices": {"name", "data", "template", "choices", "answer", "compare", "examples", "k", "separator"},
    "data": {"name", "data", "template", "answer", "metric", "examples", "k", "separator", "max_new_tokens", "stop"},
}
UNITS = ("word", "token", "character", "byte")
WAYS = ("sum", "token", "character")


def read_suite(path: Path) -> tuple[list[str], list[Task]]:
    """Names of tasks of the catalogue, and the tasks that the file describes; UserError for what it gets wrong."""
    try:
        whole_file = tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: not TOML: {error}") from None
    for key in whole_file.keys() - {"tasks", "task"}:
        raise UserError(f"{path}: '{key}' is unknown{did_you_mean(key, ('tasks', 'task'))}; see docs/evaluation.md")
    names, tables = whole_file.get("tasks", []), whole_file.get("task", [])
    if not isinstance(names, list) or not isinstance(tables, list):
        raise UserError(f'{path}: tasks is a list of names, and each own task begins with a line "[[task]]"')
    tasks = [own_task(table, path, n) for n, table in enumerate(tables, 1)]
    for number, task in enumerate(tasks, 1):
        if any(other.name == task.name for other in tasks[: number - 1]):
            raise UserError(f"{path} task {number}: a task before it is named '{task.name}' too")
    return [str(name) for name in names], tasks


def own_task(table: Mapping[str, Any], path: Path, number: int) -> Task:
    where = f"{path} task {number}"
    kind = next((key for key in KEYS if key in table), "")
    if not kind:
        raise UserError(f"{where}: needs data (JSON lines with a template) or text (to read on)")
    for key in table.keys() - KEYS[kind]:
        raise UserError(f"{where}: '{key}' is unknown here{did_you_mean(key, KEYS[kind])}")
    name = wanted(table, "name", where)
    ask: Ask
    if kind == "text":
        file, ask = existing(path, table, "text", where), reading(table, where)
        form = Form((escape(file.name),), lambda row: {"text": row.text("text")}, plain_lines, split="own")
    else:
        file = existing(path, table, "data", where)
        template = Template(table["template"]) if table.get("template") else None
        fields, ask = (choosing if kind == "choices" else writing)(table, template, where)
        others = existing(path, table, "examples", where) if "examples" in table else None
        train = (escape(os.path.relpath(others, file.parent)),) if others else ()
        form = Form((escape(file.name),), fields, train=train, split="own")
    return Task(name, name, (form,), {"own": ask}, folder=file.parent, table=dict(table))


def existing(path: Path, table: Mapping[str, Any], key: str, where: str) -> Path:
    """A file that is named as seen from the suite's."""
    file = path.parent / Path(wanted(table, key, where)).expanduser()
    if not file.is_file():
        raise UserError(f"{where}: {key} = '{table[key]}': no such file beside {path.name}")
    return file


def wanted(table: Mapping[str, Any], key: str, where: str) -> str:
    if not isinstance(table.get(key), str) or not table[key]:
        raise UserError(f"{where}: needs '{key}', a text")
    return str(table[key])


def one_of(table: Mapping[str, Any], key: str, known: tuple[str, ...], where: str) -> str:
    value = str(table.get(key, known[0]))
    if value not in known:
        raise UserError(f"{where}: {key} = '{value}'{did_you_mean(value, known)}; must be one of {', '.join(known)}")
    return value


def whole_number(table: Mapping[str, Any], key: str, default: int, where: str) -> int:
    value = table.get(key, default)
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise UserError(f"{where}: {key} = {value!r}: must be a whole number of at least 0")
    return value


def reading(table: Mapping[str, Any], where: str) -> ReadOn:
    unit = one_of(table, "unit", UNITS, where)
    metrics = {"ppl": ("perplexity", unit), "bits_per_byte": ("bits", "byte")}
    return ReadOn(whole(None), metrics, f"{unit}s of the file")


def shots(table: Mapping[str, Any], where: str) -> Shots:
    separator = table.get("separator", "\n\n")
    if not isinstance(separator, str):
        raise UserError(f"{where}: separator = {separator!r}: must be a text")
    return Shots(separator, k=whole_number(table, "k", 0, where))


def choosing(table: Mapping[str, Any], template: Template | None, where: str) -> tuple[Callable[[Row], Fields], Ask]:
    choices, answer = wanted(table, "choices", where), wanted(table, "answer", where)

    def fields(row: Row) -> Fields:
        options, right = row.texts(choices), row[answer]
        gold = right if isinstance(right, int) else options.index(right) if right in options else -1
        if not 0 <= gold < len(options):
            row.refuse(answer, f"one of the {len(options)} options, or its place from 0")
        return {"question": template.context(row, row.where) if template else "", "options": options, "gold": gold}

    way = one_of(table, "compare", WAYS, where)
    joint = template.joint if template else ""
    return fields, Choose("{question}", joint + "{option}", {"acc": way}, shots=shots(table, where))


def writing(table: Mapping[str, Any], template: Template | None, where: str) -> tuple[Callable[[Row], Fields], Ask]:
    if template is None:
        raise UserError(f"{where}: needs 'template', such as 'English: {{input}}\\nFrench:'")
    answer, how = wanted(table, "answer", where), one_of(table, "metric", (*METRICS, "likelihood"), where)

    def fields(row: Row) -> Fields:
        answers = row.texts(answer) if isinstance(row[answer], list) else [str(row[answer])]
        if not answers or not all(answers):
            row.refuse(answer, "a text, or a list of texts that are all right")
        return {"question": template.context(row, row.where), "answers": answers, "word": answers[0]}

    if how == "likelihood":
        return fields, LastWord("{question}", template.joint + "{word}", shots=shots(table, where))
    stop = table.get("stop", ["\n"])
    if not isinstance(stop, list) or not all(isinstance(mark, str) and mark for mark in stop):
        raise UserError(f"{where}: stop = {stop!r}: must be a list of texts")
    written = Writing(whole_number(table, "max_new_tokens", 32, where) or 1, tuple(stop))
    return fields, Write("{question}", METRICS[how], template.joint + "{shown}", written, shots(table, where))


METRICS: dict[str, Score] = {
    "exact": lambda text, item: {"exact": mean(exact(text, item["answers"]))},
    "f1": lambda text, item: {"f1": mean(f1(text, item["answers"])), "exact": mean(exact(text, item["answers"]))},
    "bleu": by_bleu("13a"),
    "rouge": by_rouge,
}
