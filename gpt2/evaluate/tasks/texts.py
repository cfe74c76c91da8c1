"""GPT-2's Table 3: a word to guess (LAMBADA, CBT), and texts to read on (WikiText, PTB, enwik8, text8, 1BW)."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

from gpt2.errors import UserError
from gpt2.evaluate import detokenize
from gpt2.evaluate.data import Fields, Form, Hub
from gpt2.evaluate.measures import Choose, Document, LastWord, ReadOn, Shots
from gpt2.evaluate.rows import Row, numbered, open_text, plain_lines
from gpt2.evaluate.tasks.stop_words import STOP_WORDS
from gpt2.evaluate.tasks.task import Task

EXCERPT = 1000  # characters that count as one record of a text without lines
LAST = 5_000_000  # bytes of enwik8, characters of text8: the usual test set


def lambada(row: Row) -> Fields:
    """OpenAI's file: text as it was printed."""
    before, _, word = row.text("text").rpartition(" ")
    if not before:
        row.refuse("text", "several words")
    return {"before": before, "word": word}


def lambada_plain(row: Row) -> Fields:
    """The published file: lower case, tokenised."""
    before, _, word = row.text("text").strip().rpartition(" ")
    return {"before": detokenize.LAMBADA.forward(before), "word": word}


def cloze(paths: Sequence[Path]) -> Iterator[Row]:
    """CBT: 20 numbered lines, then `21 question with XXXXX<tab>answer<tab><tab>candidates|...`, then an empty line."""
    lines: list[str] = []
    for path in paths:
        for where, line in numbered(path):
            number, _, text = line.partition(" ")
            if number == "21":
                parts = text.split("\t")
                if len(parts) < 4 or "XXXXX" not in parts[0]:
                    raise UserError(f"{where}: expected question with XXXXX, answer and candidates, parted by tabs")
                yield Row({"story": lines, "question": parts[0], "answer": parts[1], "options": parts[-1]}, where)
                lines = []
            elif line.strip():
                if not number.isdigit():
                    raise UserError(f"{where}: expected a line that begins with its number, 1 to 21")
                lines.append(text)


def cbt(row: Row) -> Fields:
    """Each candidate's context ends before it, so that the candidate and the rest of the sentence are scored."""
    forward = detokenize.CBT.forward
    options = row.text("options").strip().split("|")
    story = " ".join(map(forward, row.texts("story")))
    rest = [forward(row.text("question").replace("XXXXX", option)) for option in options]
    before, _, _ = row.text("question").partition("XXXXX")
    shared = forward(before.strip())
    common = shared if all(text.startswith(shared) for text in rest) else ""
    return {
        "before": f"{story} {common}".strip(),
        "options": [text[len(common) :] if common else f" {text}" for text in rest],
        "gold": row.place("answer", options),
    }


def lines_of(row: Row) -> Fields:
    return {"text": row.text("text")}


def hub_line(row: Row) -> Fields:
    """The hub's rows have nothing where WikiText has an empty line."""
    return {"text": row.text("text") or " \n"}


def excerpts(last: int) -> Callable[[Sequence[Path]], Iterator[Row]]:
    """The last bytes of a file, in records of EXCERPT characters; a character that is cut in two is left out."""

    def read(paths: Sequence[Path]) -> Iterator[Row]:
        data = paths[0].read_bytes()[-last:]
        while data and data[0] & 0xC0 == 0x80:
            data = data[1:]
        try:
            text = data.decode("utf-8")
        except UnicodeDecodeError as error:
            raise UserError(f"{paths[0]}: not UTF-8, {len(data) - error.start:,} bytes before its end") from None
        for start in range(0, len(text), EXCERPT):
            yield Row({"text": text[start : start + EXCERPT]}, f"{paths[0]} character {start}")

    return read


def whole(style: detokenize.Style | None) -> Callable[[Sequence[Fields]], list[Document]]:
    """One document of all lines: read as people write it, counted as published."""

    def canonical(items: Sequence[Fields]) -> list[Document]:
        published = "".join(item["text"] for item in items)
        return [Document(style.text(published) if style else published, units_of(published))]

    return canonical


def units_of(published: str) -> dict[str, int]:
    """Words, words and one line end a line ("tokens", as language models of words count), characters, bytes."""
    words = len(published.split())
    ends = published.count("\n")
    counts = {"word": words, "token": words + ends, "character": len(published)}
    return counts | {"byte": len(published.encode("utf-8"))}


def pages(paths: Sequence[Path]) -> Iterator[Row]:
    """The articles of a file, cut before each title as lm-evaluation-harness's set of them is."""
    for path in paths:
        lines = open_text(path).replace("\r\n", "\n").split("\n")
        titles = [number for number, line in enumerate(lines) if number and is_title(line)]
        for start, end in pairwise([0, *titles, len(lines)]):
            page = "\n".join(lines[start:end])
            if page.strip():
                yield Row({"page": page}, f"{path} line {start + 1}")


def is_title(line: str) -> bool:
    """Of an article; those of its sections have more signs."""
    line = line.replace("= = =", "===").replace("= =", "==").strip()
    return line.startswith("= ") and line.endswith(" =")


def page_of(row: Row) -> Fields:
    return {"page": row.text("page")}


def articles(items: Sequence[Fields]) -> list[Document]:
    """lm-evaluation-harness's `wikitext`: each article by itself, de-tokenised its way, words counted its way."""
    return [harness_document(item["page"]) for item in items]


def harness_document(page: str) -> Document:
    return Document(harness_wikitext(page), {"word": len(re.split(r"\s+", page)), "byte": len(page.encode("utf-8"))})


HARNESS_WIKITEXT = (
    (r"s '", "s'"),
    (r" @-@ ", "-"),
    (r" @,@ ", ","),
    (r" @\.@ ", "."),
    *((f" {re.escape(mark)} ", f"{mark} ") for mark in ":;.!?,"),
    (r"\(\s*([^\)]*?)\s*\)", r"(\1)"),
    (r"\[\s*([^\]]*?)\s*\]", r"[\1]"),
    (r"{\s*([^}]*?)\s*}", r"{\1}"),
    (r"\"\s*([^\"]*?)\s*\"", r'"\1"'),
    (r"'\s*([^']*?)\s*'", r"'\1'"),
    (r"= = = =", "===="),
    (r"= = =", "==="),
    (r"= =", "=="),
    (" \N{DEGREE SIGN} ", "\N{DEGREE SIGN}"),
    (r" \n", "\n"),
    (r"\n ", "\n"),
    (r" N ", " 1 "),
    (r" 's", "'s"),
)


def harness_wikitext(page: str) -> str:
    """The harness's own de-tokenizer, which cannot be undone; its order of steps matters."""
    for pattern, replacement in HARNESS_WIKITEXT:
        page = re.sub(pattern, replacement, page)
    return page


PER_TOKEN = {"ppl": ("perplexity", "token"), "ppl_word": ("perplexity", "word"), "bits_per_byte": ("bits", "byte")}
HARNESS = {
    "word_perplexity": ("perplexity", "word"),
    "byte_perplexity": ("perplexity", "byte"),
    "bits_per_byte": ("bits", "byte"),
}
WORDS_AND_ENDS = "words of the published file and one line end a line"
OPEN = "The paper names neither the part that was read, nor the window's stride, nor its de-tokenizer."


def wikitext(name: str, title: str, folder: str) -> Task:
    forms = (
        Form((f"{folder}/wiki.test.tokens",), lines_of, plain_lines, split="test"),
        Form((f"{folder}/wiki.valid.tokens",), lines_of, plain_lines),
    )
    ask = ReadOn(whole(detokenize.WIKITEXT), PER_TOKEN, WORDS_AND_ENDS)
    hub = Hub("Salesforce/wikitext", hub_line, f"{folder}-v1", "test")
    return Task(name, title, forms, {"gpt2": ask}, hub, OPEN)


def with_harness(task: Task) -> Task:
    """WikiText-2, which lm-evaluation-harness reads in its raw form: with the words that `<unk>` stands for."""
    raw = (
        Form(("wikitext-2-raw/wiki.test.raw",), page_of, pages, split="test"),
        Form(("wikitext-2-raw/wiki.valid.raw",), page_of, pages),
    )
    hub = Hub("EleutherAI/wikitext_document_level", page_of, "wikitext-2-raw-v1", "test")
    ask = ReadOn(articles, HARNESS, "what white space parts in each article, and bytes, as published")
    short = Form(("wikitext2_valid.txt",), lines_of, plain_lines)
    asks = {**task.asks, "harness": ask}
    return replace(task, forms=(*task.forms, short), asks=asks, sources={"harness": (raw, hub)})


def stream(name: str, title: str, form: tuple[Form, ...], ask: ReadOn, more: str = "", gpt3: bool = False) -> Task:
    return Task(name, title, form, {"gpt2": ask} | ({"gpt3": ask} if gpt3 else {}), None, OPEN + more)


def book(name: str, title: str, kind: str) -> Task:
    file = f"CBTest/data/cbtest_{kind}_valid_2000ex.txt"
    forms = (Form((file,), cbt, cloze), Form((f"cbtest_{kind}_valid_2000ex.txt",), cbt, cloze))
    ask = Choose("{before}", "{option}", by={"acc": "sum"})
    note = "On the validation set, as the paper: a book of the test set is in WebText. Candidate and rest of sentence."
    return Task(name, title, forms, {"gpt2": ask}, None, note)


BLANK = "{before} ____. ->"
TASKS = (
    Task(
        "lambada",
        "LAMBADA",
        (
            Form(("lambada_test.jsonl",), lambada, split="test"),
            Form(
                ("lambada_test_plain_text.txt",),
                lambada_plain,
                plain_lines,
                ("lambada_development_plain_text.txt",),
                "test",
            ),
            Form(("lambada*.jsonl",), lambada, split="test", whole=5153),
        ),
        {
            "gpt2": LastWord(token=True, stop_words=STOP_WORDS),
            "gpt3": LastWord(main="acc"),
            "gpt3_few": LastWord(BLANK, shots=Shots(instruction="Fill in blank:", always=True, k=15), main="acc"),
            "harness": LastWord(),
        },
        Hub("EleutherAI/lambada_openai", lambada, "default", "test"),
        notes={
            "gpt2": "GPT-2's paper does not say what is predicted: OpenAI told later that it is the text's last token. "
            "Its list of stop words is not published; NLTK's English one is used."
        },
    ),
    book("cbt_cn", "CBT (common nouns)", "CN"),
    book("cbt_ne", "CBT (named entities)", "NE"),
    with_harness(wikitext("wikitext2", "WikiText-2", "wikitext-2")),
    wikitext("wikitext103", "WikiText-103", "wikitext-103"),
    stream(
        "ptb",
        "Penn Treebank",
        (
            Form(("ptb.test.txt",), lines_of, plain_lines, split="test", archive="simple-examples/data"),
            Form(("ptb.valid.txt",), lines_of, plain_lines, archive="simple-examples/data"),
        ),
        ReadOn(whole(detokenize.PTB), PER_TOKEN, WORDS_AND_ENDS),
        gpt3=True,
    ),
    stream(
        "enwik8",
        "enwik8",
        (Form(("enwik8",), lines_of, excerpts(LAST), split="last 5,000,000 bytes"),),
        ReadOn(whole(None), {"bits_per_byte": ("bits", "byte")}, "bytes"),
    ),
    stream(
        "text8",
        "text8",
        (Form(("text8",), lines_of, excerpts(LAST), split="last 5,000,000 characters"),),
        ReadOn(whole(None), {"bits_per_character": ("bits", "character")}, "characters"),
    ),
    stream(
        "one_billion",
        "1 Billion Words",
        (
            Form(
                ("heldout-monolingual.tokenized.shuffled/news.en.heldout-00000-of-00050",),
                lines_of,
                plain_lines,
                split="heldout 0 of 50",
                archive="1-billion-word-language-modeling-benchmark-r13output",
            ),
        ),
        ReadOn(whole(detokenize.ONE_BILLION), PER_TOKEN, WORDS_AND_ENDS),
        " Sentences are read as one text, in the file's order.",
    ),
)
