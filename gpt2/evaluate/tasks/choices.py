"""Tasks with a choice: common sense, science, pronouns, stories, inference."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from gpt2.errors import UserError
from gpt2.evaluate.data import Fields, Form, Hub
from gpt2.evaluate.measures import Choose, Shots
from gpt2.evaluate.rows import Row, json_object, labelled, open_text, table
from gpt2.evaluate.tasks.task import Task

LETTERS = "ABCDEFGH"
HARNESS = {"acc": "sum", "acc_norm": "character"}
LINES = "\n"  # between examples of one line each


def llm_foundry(row: Row) -> Fields:
    """The few-shot form of mosaicml/llm-foundry: `query`, `choices`, `gold`."""
    query = row.text("query").strip().removeprefix("Question: ")
    return {"question": query, "options": row.texts("choices"), "gold": row.number("gold")}


def piqa(row: Row) -> Fields:
    return {"question": row.text("goal"), "options": [row.text("sol1"), row.text("sol2")], "gold": row.number("label")}


def piqa_form(folder: str, name: str) -> Form:
    """Items and labels, as PIQA's own page has them (`valid`), or AI2's archive (`dev`)."""
    test = (f"{folder}/{name}.jsonl", f"{folder}/{name}-labels.lst")
    return Form(test, piqa, labelled, (f"{folder}/train.jsonl", f"{folder}/train-labels.lst"))


def hellaswag(row: Row) -> Fields:
    """WikiHow's part has marks in brackets, which are taken out as lm-evaluation-harness does."""
    context = f"{row.text('activity_label')}: {row.text('ctx_a')} {row.text('ctx_b').capitalize()}"
    endings = [without_brackets(ending) for ending in row.texts("endings")]
    return {"question": without_brackets(context), "options": endings, "gold": row.number("label")}


def without_brackets(text: str) -> str:
    return re.sub(r"\[.*?\]", "", text.strip().replace(" [title]", ". ")).replace("  ", " ")


def arc(row: Row) -> Fields:
    """Of the Allen Institute's files (the question is an object) or of the hub's rows (it is text)."""
    nested = isinstance(row.get("question"), dict)
    inner = row.row("question") if nested else row
    choices = inner.rows("choices")
    stem = inner.text("stem") if nested else row.text("question" if "question" in row else "question_stem")
    labels = [choice.text("label") for choice in choices]
    options = [choice.text("text") for choice in choices]
    return {"question": stem, "options": options, "gold": row.place("answerKey", labels)}


def winogrande(row: Row) -> Fields:
    before, blank, after = row.text("sentence").partition("_")
    if not blank:
        row.refuse("sentence", "a sentence with a blank, '_'")
    options = [row.text("option1"), row.text("option2")]
    return {"before": before, "options": options, "after": after.strip(), "gold": row.place("answer", "12")}


def winogrande_foundry(row: Row) -> Fields:
    options = row.texts("context_options")
    return {"before": "", "options": options, "after": row.text("continuation"), "gold": row.number("gold")}


def winograd_xml(paths: Sequence[Path]) -> Iterator[Row]:
    """Levesque's collection: a sentence around a pronoun, and what it may stand for."""
    try:
        root = ElementTree.fromstring(open_text(paths[0]))
    except ElementTree.ParseError as error:
        raise UserError(f"{paths[0]} line {error.position[0]}: not XML: {error}") from None
    for number, schema in enumerate(root.iter("schema"), 1):
        values = {name: squeezed(schema.findtext(f"text/{name}") or "") for name in ("txt1", "pron", "txt2")}
        answers = [squeezed(answer.text or "") for answer in schema.iterfind("answers/answer")]
        correct = squeezed(schema.findtext("correctAnswer") or "").rstrip(".")
        yield Row({**values, "answers": answers, "correct": correct}, f"{paths[0]} schema {number}")


def squeezed(text: str) -> str:
    return " ".join(text.split())


def winograd(row: Row) -> Fields:
    """The pronoun is replaced by either answer, as Trinh and Le 2018 do: in lower case inside a sentence."""
    before, pronoun = row.text("txt1"), row.text("pron")
    options = [as_pronoun(answer, pronoun, before) for answer in row.texts("answers")]
    gap = " " if before else ""
    return {
        "before": before + gap,
        "options": options,
        "after": row.text("txt2"),
        "gold": row.place("correct", LETTERS[: len(options)]),
    }


def winograd_hub(row: Row) -> Fields:
    text, place = row.text("text"), row.number("pronoun_loc")
    before, after = text[:place].rstrip(), text[place + len(row.text("pronoun")) :].strip()
    options = [as_pronoun(option, row.text("pronoun"), before) for option in row.texts("options")]
    return {"before": before + " " * bool(before), "options": options, "after": after, "gold": row.number("label")}


def as_pronoun(answer: str, pronoun: str, before: str) -> str:
    if pronoun.lower() in ("my", "his", "her", "our", "their", "its") and not answer.endswith("'s"):
        answer += "'s"
    first = answer.split()[0] if answer.split() else ""
    inside = bool(before) and before[-1] not in ".!?"
    return answer[0].lower() + answer[1:] if inside and first in DETERMINERS else answer


DETERMINERS = ("A", "An", "The", "My", "His", "Her", "Their", "She", "He", "It", "They")


def wsc273(paths: Sequence[Path]) -> Iterator[Row]:
    """The collection's first 273 schemas as the hub's set of this name has them, which is made of them."""
    for row in islice(winograd_xml(paths), 273):
        before, pronoun = row.text("txt1"), row.text("pron")
        options = row.texts("answers")
        values = {
            "text": " ".join([before, pronoun, row.text("txt2")]).strip(),
            "pronoun": pronoun,
            "pronoun_loc": len(before) + bool(before),
            "options": options,
            "label": row.place("correct", LETTERS[: len(options)]),
        }
        yield Row(values, row.where)


def winograd_harness(row: Row) -> Fields:
    """As lm-evaluation-harness's `wsc273` reads a schema: its places are of the text before double spaces go, and what
    follows the pronoun keeps its space, before which the harness sets another one."""
    text, pronoun, place = row.text("text").replace("  ", " "), row.text("pronoun"), row.number("pronoun_loc")
    if not 0 <= place < len(text):
        row.refuse("pronoun_loc", "a place in the text")
    begins = text[place - 2 : place - 1] == "."
    options = [harness_option(option, pronoun, begins) for option in row.texts("options")]
    after, gold = text[place + len(pronoun) :], row.number("label")
    return {"before": text[:place], "options": options, "after": after, "gold": gold}


def harness_option(option: str, pronoun: str, begins: bool) -> str:
    """An answer in the pronoun's place: always with 's for a possessive one, small unless it begins a sentence."""
    option += "'s" if pronoun.lower() in ("my", "his", "her", "our", "their") else ""
    first = option.split()[0] if option.split() else ""
    return option.replace(first, first.lower()) if first in DETERMINERS and not begins else option


def story(row: Row) -> Fields:
    context = " ".join(row.text(f"InputSentence{n}") for n in range(1, 5))
    options = [row.text(f"RandomFifthSentenceQuiz{n}") for n in (1, 2)]
    return {"question": context, "options": options, "gold": row.place("AnswerRightEnding", "12")}


def anli(number: int) -> Callable[[Row], Fields]:
    """Round `number`; labels are letters in the files, numbers on the hub."""

    def fields(row: Row) -> Fields:
        premise = row.text("context" if "context" in row else "premise")
        gold = row.place("label", "012" if isinstance(row["label"], int) else "enc")
        options = ["True", "Neither", "False"]
        return {"n": number, "premise": premise, "hypothesis": row.text("hypothesis"), "options": options, "gold": gold}

    return fields


def race_files(paths: Sequence[Path]) -> Iterator[Row]:
    """One article a file."""
    for path in paths:
        yield json_object(path)


def race(row: Row) -> list[Fields]:
    """Each question, with those before it on the same article answered."""
    asked, found = f"Article:\n{row.text('article').strip()}", []
    questions, letters, choices = row.texts("questions"), row.texts("answers"), row["options"]
    if not isinstance(choices, list) or not len(questions) == len(letters) == len(choices):
        row.refuse("options", f"a list for each of the {len(questions)} questions, and as many answers")
    for question, options, letter in zip(questions, choices, letters, strict=True):
        if letter not in list(LETTERS[: len(options)]):
            row.refuse("answers", "letters of options")
        asked += f"\n\nQ: {question}\n\nA:"
        gold = LETTERS.index(letter)
        found.append({"question": asked, "options": list(options), "gold": gold, "id": row["article"]})
        asked += f" {options[gold]}"
    return found


def science(
    name: str,
    title: str,
    files: tuple[str, str],
    whole: int,
    context: str,
    k: int,
    hub: tuple[str, str],
    archive: str = "",
) -> Task:
    """ARC and OpenBookQA: normalised by the answer's probability after "Answer:" alone."""
    test, train = files
    forms = (
        Form((test,), arc, train=(train,), split="test", archive=archive),
        Form((f"{name}*.jsonl",), llm_foundry, split="test", whole=whole),
    )
    asks = {
        "gpt3": Choose(context, by={"acc": "free", "acc_token": "token"}, shots=Shots(k=k)),
        "harness": Choose(context, by=HARNESS),
    }
    return Task(name, title, forms, asks, Hub(hub[0], arc, hub[1], "test"))


def inference_round(number: int) -> Task:
    folder = f"anli_v1.0/R{number}"
    forms = (Form((f"{folder}/test.jsonl",), anli(number), train=(f"{folder}/train.jsonl",), split="test"),)
    asks = {
        "gpt3": Choose(
            "anli {n}: anli {n}: {premise}\nQuestion: {hypothesis} True, False, or Neither?", shots=Shots(k=50)
        ),
        "harness": Choose("{premise}\nQuestion: {hypothesis} True, False, or Neither?\nAnswer:", by={"acc": "sum"}),
    }
    hub = Hub("facebook/anli", anli(number), split=f"test_r{number}", train=f"train_r{number}")
    return Task(f"anli_r{number}", f"ANLI R{number}", forms, asks, hub)


def reading(name: str, title: str, level: str) -> Task:
    forms = (Form((f"RACE/test/{level}/*.txt",), race, race_files, (f"RACE/train/{level}/*.txt",), "test", many=True),)
    ask = Choose("{question}", by={"acc": "free", "acc_token": "token"}, free="A:", shots=Shots(k=10))
    return Task(name, title, forms, {"gpt3": ask}, Hub("ehovy/race", race_hub, level, "test"))


def race_hub(row: Row) -> Fields:
    """The hub has a row for each question: those before it on the same article are not shown."""
    asked = f"Article:\n{row.text('article').strip()}\n\nQ: {row.text('question')}\n\nA:"
    return {"question": asked, "options": row.texts("options"), "gold": row.place("answer", LETTERS)}


BLANK: dict[str, Any] = {"context": "{before}{option}", "answer": " {after}", "by": {"acc": "sum"}}

TASKS = (
    Task(
        "piqa",
        "PIQA",
        (
            piqa_form("piqa", "valid"),
            piqa_form("physicaliqa-train-dev", "dev"),
            Form(("piqa*.jsonl",), llm_foundry, whole=1838),
        ),
        {
            "gpt3": Choose("{question}", shots=Shots(LINES, k=50)),
            "harness": Choose("Question: {question}\nAnswer:", by=HARNESS),
        },
        Hub("baber/piqa", piqa),
        "The paper's figure shows goal and solution without what stands between them; a space was chosen.",
    ),
    Task(
        "hellaswag",
        "HellaSwag",
        (Form(("hellaswag_val.jsonl",), hellaswag, train=("hellaswag_train.jsonl",)),),
        {
            "gpt3": Choose("{question}", shots=Shots(LINES, k=20)),
            "harness": Choose("{question}", by=HARNESS),
        },
        Hub("Rowan/hellaswag", hellaswag),
    ),
    Task(
        "storycloze",
        "StoryCloze",
        (
            Form(
                ("cloze_test_test__spring2016*.csv",), story, table(","), ("cloze_test_val__spring2016*.csv",), "test"
            ),
            Form(("cloze_test_val__spring2016*.csv",), story, table(",")),
        ),
        {
            "gpt3": Choose("{question}", shots=Shots(LINES, k=70)),
            "harness": Choose("{question}", by={"acc": "sum"}),
        },
    ),
    science(
        "arc_easy",
        "ARC (easy)",
        ("ARC-Easy/ARC-Easy-Test.jsonl", "ARC-Easy/ARC-Easy-Train.jsonl"),
        2376,
        "Question: {question}\nAnswer:",
        50,
        ("allenai/ai2_arc", "ARC-Easy"),
        "ARC-V1-Feb2018-2",
    ),
    science(
        "arc_challenge",
        "ARC (challenge)",
        ("ARC-Challenge/ARC-Challenge-Test.jsonl", "ARC-Challenge/ARC-Challenge-Train.jsonl"),
        1172,
        "Question: {question}\nAnswer:",
        50,
        ("allenai/ai2_arc", "ARC-Challenge"),
        "ARC-V1-Feb2018-2",
    ),
    science(
        "openbookqa",
        "OpenBookQA",
        ("OpenBookQA-V1-Sep2018/Data/Main/test.jsonl", "OpenBookQA-V1-Sep2018/Data/Main/train.jsonl"),
        500,
        "{question}",
        100,
        ("allenai/openbookqa", "main"),
    ),
    Task(
        "winogrande",
        "WinoGrande",
        (
            Form(("winogrande_1.1/dev.jsonl",), winogrande, train=("winogrande_1.1/train_xl.jsonl",)),
            Form(("winogrande*.jsonl",), winogrande_foundry, whole=1267),
        ),
        {"gpt3": Choose(**BLANK, shots=Shots(LINES, k=50)), "harness": Choose(**BLANK)},
        Hub("allenai/winogrande", winogrande, "winogrande_xl"),
    ),
    Task(
        "winograd",
        "Winograd schemas",
        (Form(("WSCollection.xml",), winograd, winograd_xml, split="all"),),
        {
            "gpt2": Choose(**BLANK),
            "gpt3": Choose(**BLANK, shots=Shots(LINES, k=7)),
            "harness": Choose(**BLANK),
        },
        Hub("lighteval/winograd_wsc", winograd_hub, "wsc273", "test"),
        "The papers score 273 schemas; the collection has grown to 285 since. Scored is the rest of the sentence.",
        sources={
            "harness": (
                (Form(("WSCollection.xml",), winograd_harness, wsc273, split="test"),),
                Hub("lighteval/winograd_wsc", winograd_harness, "wsc273", "test"),
            )
        },
    ),
    inference_round(1),
    inference_round(2),
    inference_round(3),
    reading("race_high", "RACE-h", "high"),
    reading("race_middle", "RACE-m", "middle"),
)
