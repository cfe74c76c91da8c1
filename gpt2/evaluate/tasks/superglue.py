"""SuperGLUE's tasks of GPT-3's paper, from its own files (BoolQ/val.jsonl, ...) or the hub's rows."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from gpt2.evaluate.data import Fields, Form, Hub, Translate
from gpt2.evaluate.measures import Ask, Choose, Shots
from gpt2.evaluate.rows import Row, jsonl
from gpt2.evaluate.tasks.task import Task

SUM = {"acc": "sum"}


def flag(row: Row) -> int:
    """A label that is true or false, or 1 or 0."""
    return int(row["label"]) if isinstance(row["label"], (bool, int)) else row.refuse("label", "true or false")


def label(row: Row, names: Sequence[str]) -> int:
    """By name in the files; by number on the hub."""
    return row.number("label") if isinstance(row["label"], int) else row.place("label", names)


def boolq(row: Row) -> Fields:
    question = row.text("question").removesuffix("?")
    return {"passage": row.text("passage"), "question": question, "options": ["no", "yes"], "gold": flag(row)}


def three_ways(row: Row) -> Fields:
    names = ("entailment", "contradiction", "neutral")
    options = ["true", "false", "neither"]
    hypothesis = row.text("hypothesis").removesuffix(".")
    return {"premise": row.text("premise"), "hypothesis": hypothesis, "options": options, "gold": label(row, names)}


def two_ways(row: Row) -> Fields:
    gold = label(row, ("entailment", "not_entailment"))
    return {
        "premise": row.text("premise"),
        "hypothesis": row.text("hypothesis"),
        "options": ["True", "False"],
        "gold": gold,
    }


def same_word(row: Row) -> Fields:
    return {
        "first": row.text("sentence1"),
        "second": row.text("sentence2"),
        "word": row.text("word"),
        "options": ["no", "yes"],
        "gold": flag(row),
    }


def copa(row: Row) -> Fields:
    """`gap`: lm-evaluation-harness begins an option with a space, and sets it behind another one."""
    joint = ("because", "therefore")[row.place("question", ("cause", "effect"))]
    options = [text[:1].lower() + text[1:] for text in (row.text("choice1"), row.text("choice2"))]
    question = f"{row.text('premise').strip()[:-1]} {joint}"
    return {"question": question, "options": options, "gold": row.number("label"), "gap": " "}


def copa_foundry(row: Row) -> Fields:
    question = row.text("query").strip()
    return {"question": question, "options": row.texts("choices"), "gold": row.number("gold"), "gap": ""}


def answers(row: Row) -> list[Fields]:
    """MultiRC: each answer of each question of a passage, to be called true or false."""
    passage, found = row.row("passage"), []
    for question in passage.rows("questions"):
        for answer in question.rows("answers"):
            group = f"{row['idx']} {question['idx']}"
            found.append(multirc(passage.text("text"), question.text("question"), answer, group, "text"))
    return found


def multirc_hub(row: Row) -> Fields:
    place = row.row("idx")
    group = f"{place['paragraph']} {place['question']}"
    return multirc(row.text("paragraph"), row.text("question"), row, group, "answer")


def multirc(passage: str, question: str, answer: Row, group: str, name: str) -> Fields:
    values = {"passage": passage, "question": question, "answer": answer.text(name), "group": group, "id": passage}
    return values | {"options": ["False", "True"], "gold": flag(answer)}


def record_rows(paths: Sequence[Path]) -> Iterator[Row]:
    """One row for each query of a passage, as the hub has them."""
    for row in jsonl(paths):
        passage = row.row("passage")
        text = passage.text("text")
        entities = [text[each.number("start") : each.number("end") + 1] for each in passage.rows("entities")]
        for query in row.rows("qas"):
            gold = [answer.text("text") for answer in query.rows("answers")]
            yield Row({"passage": text, "query": query.text("query"), "entities": entities, "answers": gold}, row.where)


def record(row: Row) -> Fields:
    """Options are the passage's entities, each once; of these all are right that people gave."""
    article, *highlights = row.text("passage").strip().split("\n@highlight\n")
    passage = article.strip() + "".join(f"\n- {line.strip()}" for line in highlights)
    before, _, after = row.text("query").partition("@placeholder")
    options = sorted(set(row.texts("entities")))
    gold = [place for place, option in enumerate(options) if option in set(row.texts("answers"))]
    if not gold:
        row.refuse("answers", "one of the entities")
    return {"passage": passage, "before": before, "after": after, "options": options, "gold": gold}


def task(
    name: str,
    title: str,
    fields: Translate,
    gpt3: Ask,
    harness: Ask | None = None,
    more: tuple[Form, ...] = (),
    read: Callable[[Sequence[Path]], Iterator[Row]] = jsonl,
    hub: Translate | None = None,
    note: str = "",
) -> Task:
    """The folder in SuperGLUE's archive is the title, the configuration on the hub the name."""
    forms = (Form((f"{title}/val.jsonl",), fields, read, (f"{title}/train.jsonl",)), *more)
    asks = {"gpt3": gpt3} | ({"harness": harness} if harness else {})
    return Task(name, title, forms, asks, Hub("aps/super_glue", hub or fields, name), note)


SHOTS = Shots(k=32)
TASKS = (
    task(
        "boolq",
        "BoolQ",
        boolq,
        Choose("{passage}\nquestion: {question}?\nanswer:", shots=SHOTS),
        Choose("{passage}\nQuestion: {question}?\nAnswer:", by=SUM),
    ),
    task(
        "cb",
        "CB",
        three_ways,
        Choose("{premise}\nquestion: {hypothesis}. true, false, or neither?\nanswer:", shots=SHOTS, also=("macro_f1",)),
    ),
    task(
        "copa",
        "COPA",
        copa,
        Choose("{question}", shots=Shots("\n", k=32)),
        Choose("{question}", " {gap}{option}", by=SUM),
        (Form(("copa*.jsonl",), copa_foundry, whole=100),),
    ),
    task(
        "rte",
        "RTE",
        two_ways,
        Choose("{premise}\nquestion: {hypothesis} True or False?\nanswer:", shots=SHOTS),
        Choose("{premise}\nQuestion: {hypothesis} True or False?\nAnswer:", by=SUM),
    ),
    task(
        "wic",
        "WiC",
        same_word,
        Choose(
            "{first}\n{second}\n"
            "question: Is the word '{word}' used in the same way in the two sentences above?\nanswer:",
            shots=SHOTS,
        ),
    ),
    task(
        "multirc",
        "MultiRC",
        answers,
        Choose(
            "{passage}\n\n{question}\n-",
            " [{option}] {answer}",
            {"acc": "sum"},
            shots=Shots(instruction="READING COMPREHENSION ANSWER KEY", always=True, k=32),
            also=("group",),
        ),
        hub=multirc_hub,
        note="The paper's examples are questions with all their answers; here each example has one answer.",
    ),
    task(
        "record",
        "ReCoRD",
        record,
        Choose("{passage}\n-", " {before}{option}{after}", shots=SHOTS, also=("answer_f1",)),
        read=record_rows,
    ),
)
