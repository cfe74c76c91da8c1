"""Questions about a passage: CoQA, DROP, QuAC, SQuAD 2.0.

An item's `id` is its passage, so that no example has the same one, in which the item's own answer may stand.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from gpt2.errors import UserError
from gpt2.evaluate.asked import GREEDY, TURN
from gpt2.evaluate.data import Fields, Form, Hub
from gpt2.evaluate.measures import Shots, Write
from gpt2.evaluate.rows import Row, json_object, objects
from gpt2.evaluate.tasks.comparing import (
    BEAMS,
    UNANSWERABLE,
    by_drop,
    by_f1_left_out,
    by_squad,
)
from gpt2.evaluate.tasks.task import Task


def coqa_rows(paths: Sequence[Path]) -> Iterator[Row]:
    yield from objects(paths, "data")


def coqa(row: Row) -> list[Fields]:
    """Each question after the passage and the true answers to those before it."""
    asked, found = row.text("story").strip(), []
    questions, answers = row.rows("questions"), row.rows("answers")
    more = [Row({"list": part}, row.where).rows("list") for part in row.get("additional_answers", {}).values()]
    if any(len(each) != len(questions) for each in (answers, *more)):
        raise UserError(f"{row.where}: its {len(questions)} questions have another number of answers")
    for turn, (question, answer) in enumerate(zip(questions, answers, strict=True)):
        asked += "\n\n" + TURN.format(question=question.text("input_text"))
        golds = [answer.text("input_text"), *(part[turn].text("input_text") for part in more)]
        found.append({"question": asked, "answers": golds, "id": row["story"]})
        asked += f" {golds[0]}"
    return found


def coqa_hub(row: Row) -> list[Fields]:
    """The hub's rows have one answer a question: lists of texts."""
    answers = [{"input_text": text} for text in row.row("answers").texts("input_text")]
    questions = [{"input_text": text} for text in row.texts("questions")]
    return coqa(Row({"story": row.text("story"), "questions": questions, "answers": answers}, row.where))


def drop_rows(paths: Sequence[Path]) -> Iterator[Row]:
    for path in paths:
        whole = json_object(path)
        for name in whole:
            yield Row(whole.row(name), f"{path} {name}")


def drop(row: Row) -> list[Fields]:
    return [drop_item(row.text("passage"), pair) for pair in row.rows("qa_pairs")]


def drop_item(passage: str, pair: Row) -> Fields:
    answers = [pair.row("answer"), *(pair.rows("validated_answers") if "validated_answers" in pair else [])]
    spans = [found for answer in answers if (found := drop_answer(answer)) and any(found)]
    if not spans:
        pair.refuse("answer", "a number, a date or spans")
    shown = [", ".join(found) for found in spans]
    return {"passage": passage, "question": pair.text("question"), "answers": shown, "spans": spans, "id": passage}


def drop_answer(answer: Row) -> list[str]:
    if answer.get("number"):
        return [str(answer["number"])]
    if answer.get("spans"):
        return answer.texts("spans")
    date = answer.get("date") or {}
    return [" ".join(str(date[part]) for part in ("day", "month", "year") if date.get(part))]


def squad_rows(paths: Sequence[Path]) -> Iterator[Row]:
    yield from objects(paths, "data")


def squad(row: Row) -> list[Fields]:
    """Each question after its paragraph and the true answers to those before it, as the paper's figure G.28."""
    found = []
    for paragraph in row.rows("paragraphs"):
        asked = f"Title: {row.text('title').replace('_', ' ')}\n\nBackground: {paragraph.text('context')}"
        for pair in paragraph.rows("qas"):
            asked += "\n\n" + TURN.format(question=pair.text("question").strip())
            answers = [answer.text("text") for answer in pair.rows("answers")] or [UNANSWERABLE]
            found.append({"question": asked, "answers": answers, "id": paragraph["context"]})
            asked += f" {answers[0]}"
    return found


def squad_hub(row: Row) -> Fields:
    """A row for each question: those before it on the same paragraph are not shown."""
    asked = f"Title: {row.text('title').replace('_', ' ')}\n\nBackground: {row.text('context')}"
    answers = row.row("answers").texts("text") or [UNANSWERABLE]
    question = f"{asked}\n\nQ: {row.text('question').strip()}\n\nA:"
    return {"question": question, "answers": answers, "id": row["context"]}


def quac(row: Row) -> list[Fields]:
    """Each question after its section and the true answers to those before it."""
    found = []
    for paragraph in row.rows("paragraphs"):
        passage = paragraph.text("context").removesuffix(" CANNOTANSWER")
        asked = f"TITLE: {row.text('title')} - {row.text('section_title')}\nPARAGRAPH: {passage}"
        for pair in paragraph.rows("qas"):
            asked += "\n\n" + TURN.format(question=pair.text("question").strip())
            answers = [answer.text("text") for answer in pair.rows("answers")]
            found.append({"question": asked, "answers": answers, "id": paragraph["context"]})
            asked += f" {pair.row('orig_answer').text('text')}"
    return found


PASSAGE = Shots(k=5)
TASKS = (
    Task(
        "coqa",
        "CoQA",
        (Form(("coqa-dev-v1.0.json",), coqa, coqa_rows, ("coqa-train-v1.0.json",)),),
        {
            "gpt2": Write("{question}", by_f1_left_out, writing=GREEDY),
            "gpt3": Write("{question}", by_f1_left_out, writing=BEAMS, shots=PASSAGE),
        },
        Hub("stanfordnlp/coqa", coqa_hub),
        "The history holds the true answers; the papers do not say whether it held the model's own.",
    ),
    Task(
        "drop",
        "DROP",
        (Form(("drop_dataset_dev.json",), drop, drop_rows, ("drop_dataset_train.json",), archive="drop_dataset"),),
        {"gpt3": Write("Passage: {passage}\nQuestion: {question}\nAnswer:", by_drop, writing=BEAMS, shots=Shots(k=20))},
    ),
    Task(
        "quac",
        "QuAC",
        (Form(("val_v0.2.json",), quac, squad_rows, ("train_v0.2.json",)),),
        {"gpt3": Write("{question}", by_f1_left_out, writing=BEAMS, shots=PASSAGE)},
        note="Without QuAC's rule that leaves out questions on which people disagree.",
    ),
    Task(
        "squad2",
        "SQuAD 2.0",
        (Form(("dev-v2.0.json",), squad, squad_rows, ("train-v2.0.json",)),),
        {"gpt3": Write("{question}", by_squad, writing=BEAMS, shots=Shots(k=16))},
        Hub("rajpurkar/squad_v2", squad_hub),
        f"How questions without an answer were shown is not stated: the answer is then '{UNANSWERABLE}'.",
    ),
)
