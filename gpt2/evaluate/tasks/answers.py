"""Tasks that are answered in words: from memory (TriviaQA, ...), about a passage (CoQA, ...), in another language."""

from __future__ import annotations

import html
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from gpt2.errors import UserError
from gpt2.evaluate.data import Fields, Form, Hub
from gpt2.evaluate.measures import Shots, Write, mean
from gpt2.evaluate.metrics import (
    bleu_sums,
    drop_scores,
    exact,
    f1,
    first_sentences,
    left_out,
    rouge,
)
from gpt2.evaluate.rows import Row, json_object, open_text, parallel, parse_object
from gpt2.evaluate.tasks.task import Task
from gpt2.evaluate.writing import Writing

Scored = dict[str, tuple[str, tuple[float, ...]]]

BEAMS = Writing(32, ("\n",), beams=4)
GREEDY = Writing(32, ("\n",))
UNANSWERABLE = "unanswerable"


def by_exact(text: str, item: Fields) -> Scored:
    return {"em": mean(exact(text, item["answers"]))}


def by_f1(text: str, item: Fields) -> Scored:
    return {"f1": mean(f1(text, item["answers"])), "em": mean(exact(text, item["answers"]))}


def by_f1_left_out(text: str, item: Fields) -> Scored:
    """Each reference in turn stands for a person who is compared with the others."""
    return {"f1": mean(left_out(f1, text, item["answers"])), "em": mean(left_out(exact, text, item["answers"]))}


def by_drop(text: str, item: Fields) -> Scored:
    matched, overlap = drop_scores(text, item["spans"])
    return {"f1": mean(overlap), "em": mean(matched)}


def by_bleu(tokenize: str) -> Callable[[str, Fields], Scored]:
    def score(text: str, item: Fields) -> Scored:
        return {"bleu": ("bleu", bleu_sums(text, item["answers"], tokenize))}

    return score


def by_rouge(text: str, item: Fields) -> Scored:
    found = rouge(first_sentences(text, 3), item["answers"][0])
    found = {"rouge_average": sum(found.values()) / 3, **found}
    return {name: mean(value) for name, value in found.items()}


# --- from memory ---------------------------------------------------------------------------------------------------


def trivia_rows(paths: Sequence[Path]) -> Iterator[Row]:
    yield from objects(paths, "Data")


def objects(paths: Sequence[Path], name: str) -> Iterator[Row]:
    """The objects of a list that a JSON file has under this name; each knows its place."""
    for path in paths:
        for number, row in enumerate(json_object(path).rows(name), 1):
            yield Row(row, f"{path} {name}[{number - 1}]")


def trivia(row: Row) -> Fields:
    answer = row.row("Answer")
    aliases = [answer.text("Value"), *answer.texts("Aliases")]
    return {"question": row.text("Question"), "answers": list(dict.fromkeys(aliases))}


def trivia_hub(row: Row) -> Fields:
    answer = row.row("answer")
    return {
        "question": row.text("question"),
        "answers": list(dict.fromkeys([answer.text("value"), *answer.texts("aliases")])),
    }


def trivia_foundry(row: Row) -> Fields:
    question = row.text("context").removeprefix("Question: ").removesuffix("\nAnswer:")
    return {"question": question, "answers": list(dict.fromkeys([row.text("answer"), *row.texts("aliases")]))}


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


# --- about a passage -----------------------------------------------------------------------------------------------


def coqa_rows(paths: Sequence[Path]) -> Iterator[Row]:
    yield from objects(paths, "data")


def coqa(row: Row) -> list[Fields]:
    """Each question after the passage and the true answers to those before it."""
    asked, found = row.text("story").strip(), []
    more = [Row({"list": part}, row.where).rows("list") for part in row.get("additional_answers", {}).values()]
    for turn, (question, answer) in enumerate(zip(row.rows("questions"), row.rows("answers"), strict=True)):
        asked += f"\n\nQ: {question.text('input_text')}\n\nA:"
        golds = [answer.text("input_text"), *(part[turn].text("input_text") for part in more)]
        found.append({"question": asked, "answers": golds})
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
    return {"passage": passage, "question": pair.text("question"), "answers": shown, "spans": spans}


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
            asked += f"\n\nQ: {pair.text('question').strip()}\n\nA:"
            answers = [answer.text("text") for answer in pair.rows("answers")] or [UNANSWERABLE]
            found.append({"question": asked, "answers": answers})
            asked += f" {answers[0]}"
    return found


def squad_hub(row: Row) -> Fields:
    """A row for each question: those before it on the same paragraph are not shown."""
    asked = f"Title: {row.text('title').replace('_', ' ')}\n\nBackground: {row.text('context')}"
    answers = row.row("answers").texts("text") or [UNANSWERABLE]
    return {"question": f"{asked}\n\nQ: {row.text('question').strip()}\n\nA:", "answers": answers}


def by_squad(text: str, item: Fields) -> Scored:
    """No answer, or the word for it, is right where people gave none."""
    if item["answers"] == [UNANSWERABLE]:
        right = float(text.strip().lower().rstrip(".") in ("", UNANSWERABLE))
        return {"f1": mean(right), "em": mean(right)}
    return by_f1(text, item)


def quac(row: Row) -> list[Fields]:
    """Each question after its section and the true answers to those before it."""
    found = []
    for paragraph in row.rows("paragraphs"):
        passage = paragraph.text("context").removesuffix(" CANNOTANSWER")
        asked = f"TITLE: {row.text('title')} - {row.text('section_title')}\nPARAGRAPH: {passage}"
        for pair in paragraph.rows("qas"):
            asked += f"\n\nQ: {pair.text('question').strip()}\n\nA:"
            answers = [answer.text("text") for answer in pair.rows("answers")]
            found.append({"question": asked, "answers": answers})
            asked += f" {pair.row('orig_answer').text('text')}"
    return found


# --- in another language, and in fewer words -----------------------------------------------------------------------


def segments(paths: Sequence[Path]) -> Iterator[Row]:
    """WMT's SGML: <seg id="1">text</seg>, the source in one file and the reference in another."""
    sides = []
    for path in paths[:2]:
        found = re.findall(r"<seg[^>]*>(.*?)</seg>", open_text(path), re.DOTALL)
        if not found:
            raise UserError(f"{path}: no <seg> in it; expected WMT's SGML")
        sides.append([html.unescape(text).strip() for text in found])
    if len(sides[0]) != len(sides[1]):
        raise UserError(f"{paths[0]} has {len(sides[0]):,} segments, {paths[1]} {len(sides[1]):,}")
    for number, (source, target) in enumerate(zip(*sides, strict=True), 1):
        yield Row({"source": source, "target": target}, f"{paths[0]} segment {number}")


def translation(year: int, source: str, target: str) -> Task:
    """WMT 2014 (French) or 2016; SacreBLEU with its own tokens, as the paper's Table H.2 has both ways."""
    names = {"en": "English", "fr": "French", "de": "German", "ro": "Romanian"}

    def pair(row: Row) -> Fields:
        return {"source": row.text("source"), "answers": [row.text("target")], "language": names[target]}

    def hub(row: Row) -> Fields:
        both = row.row("translation")
        return {"source": both.text(source), "answers": [both.text(target)], "language": names[target]}

    other = source if source != "en" else target
    set_name = f"newstest20{year}"
    sgml = (f"{set_name}-{source}{target}-src.{source}.sgm", f"{set_name}-{source}{target}-ref.{target}.sgm")
    forms = (
        Form(sgml, pair, segments, split="test"),
        Form(
            (f"{set_name}-{other}en-src.{source}.sgm", f"{set_name}-{other}en-ref.{target}.sgm"),
            pair,
            segments,
            split="test",
        ),
        Form((f"{set_name}.{source}", f"{set_name}.{target}"), pair, parallel, split="test"),
    )
    long = Writing(200, ("\n",))
    zero = "Q: What is the {language} translation of {source}\nA:"
    beams = Writing(200, ("\n",), beams=4)
    gpt3 = Write("{source} =", by_bleu("13a"), writing=beams, shots=Shots("\n", k=64), zero_shot=zero)
    asks: dict[str, Any] = {"gpt3": gpt3}
    if year == 14:
        asks["gpt2"] = Write(
            "{source} =",
            by_bleu("13a"),
            writing=long,
            shots=Shots("\n", k=5),
            clean=lambda text: first_sentences(text, 1),
        )
    config = f"{other}-en"
    note = "How many example pairs GPT-2 was shown is not stated: 5 were chosen. BLEU is SacreBLEU's, of one reference."
    title = f"WMT'{year} {names[source][:2]}→{names[target][:2]}"
    return Task(f"wmt{year}_{source}_{target}", title, forms, asks, Hub(f"wmt/wmt{year}", hub, config, "test"), note)


def stories(paths: Sequence[Path]) -> Iterator[Row]:
    """CNN/Daily Mail as it was published: an article, then its highlights, each after a line @highlight."""
    for path in paths:
        article, *highlights = open_text(path).split("\n@highlight\n")
        if not highlights:
            raise UserError(f"{path}: no line '@highlight' in it")
        yield Row({"article": article.strip(), "highlights": "\n".join(map(str.strip, highlights))}, str(path))


def summary(row: Row) -> Fields:
    return {"article": " ".join(row.text("article").split()), "answers": [row.text("highlights")]}


def summary_pair(row: Row) -> Fields:
    return {"article": row.text("source"), "answers": [row.text("target")]}


PASSAGE = Shots(k=5)
TASKS = (
    closed_book(
        "triviaqa",
        "TriviaQA",
        (
            Form(("*unfiltered-web-dev.json",), trivia, trivia_rows, ("*unfiltered-web-train.json",)),
            Form(("qa/wikipedia-dev.json",), trivia, trivia_rows, ("qa/wikipedia-train.json",)),
            Form(("triviaqa*.jsonl",), trivia_foundry),
        ),
        Hub("mandarjoshi/trivia_qa", trivia_hub, "rc.nocontext"),
        asks={"harness": Write("Question: {question}?\nAnswer:", by_exact, writing=Writing(256, ("\n", ".", ",")))},
    ),
    closed_book(
        "nq",
        "Natural Questions",
        (Form(("NQ-open*dev*.jsonl",), natural, train=("NQ-open*train*.jsonl",)),),
        Hub("google-research-datasets/nq_open", natural),
        asks={"gpt2": Write("Q: {question}\nA:", by_exact, writing=GREEDY, shots=Shots("\n", k=5))},
        note="GPT-2's paper seeds the context with example pairs and says neither how many nor which: 5 were chosen.",
    ),
    closed_book(
        "webqs",
        "WebQuestions",
        (Form(("webquestions.examples.test.json",), web, web_rows, ("webquestions.examples.train.json",), "test"),),
        Hub("stanfordnlp/web_questions", web_hub, split="test"),
    ),
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
        (Form(("drop_dataset_dev.json",), drop, drop_rows, ("drop_dataset_train.json",)),),
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
    translation(14, "en", "fr"),
    translation(14, "fr", "en"),
    translation(16, "en", "de"),
    translation(16, "de", "en"),
    translation(16, "en", "ro"),
    translation(16, "ro", "en"),
    Task(
        "cnn_dm",
        "CNN/Daily Mail",
        (
            Form(("cnn_dm/test.source", "cnn_dm/test.target"), summary_pair, parallel, split="test"),
            Form(("cnn_dm/*.story",), summary, stories, split="test"),
        ),
        {"gpt2": Write("{article}\nTL;DR:", by_rouge, writing=Writing(100, (), top_k=2), trim="article")},
        Hub("abisee/cnn_dailymail", summary, "3.0.0", "test"),
        "Of an article that is too long the end is cut; the paper does not say which part was read.",
    ),
)
