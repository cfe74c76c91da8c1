"""Ways of asking, on a model whose sums are done by hand."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
from fake_scores import FakeScores

from gpt2.errors import UserError
from gpt2.evaluate.asked import Writing
from gpt2.evaluate.detokenize import WIKITEXT
from gpt2.evaluate.measures import Choose, LastWord, ReadOn, Setting, Shots, Write, base, mean
from gpt2.evaluate.measures.choose import compared
from gpt2.evaluate.metrics import exact
from gpt2.evaluate.prompts import Example
from gpt2.evaluate.score import Scored
from gpt2.evaluate.tasks.texts import WORDS_AND_ENDS, articles, page_of, pages, units_of, whole

FIVE_LINES = [" \n", " = Lobster = \n", " \n", " It is blue , and 7 @.@ 5 cm long . \n", " Nobody eats it \n"]


def figures(measured: Any) -> dict[str, float]:
    return {name: column.value for name, column in measured.columns.items()}


def test_perplexity_of_five_lines_as_by_hand() -> None:
    """17 words and 5 line ends as published; 58 bytes as the model reads them, each with probability 1/4."""
    scores = FakeScores()
    scores.probability = lambda before, token: 0.25  # type: ignore[method-assign]
    items = [{"text": line} for line in FIVE_LINES]
    read = "\n= Lobster =\n\nIt is blue, and 7.5 cm long.\nNobody eats it\n"
    assert WIKITEXT.text("".join(FIVE_LINES)) == read and len(read) == 58
    nats, words = 58 * math.log(4), 3 + 11 + 3
    measure = ReadOn(whole(WIKITEXT), {"ppl": ("perplexity", "token"), "ppl_word": ("perplexity", "word")}, "")
    found = measure.measure(scores, items, [], Setting())
    assert figures(found)["ppl"] == pytest.approx(math.exp(nats / (words + 5)), rel=1e-12)
    assert figures(found)["ppl_word"] == pytest.approx(math.exp(nats / words), rel=1e-12)
    assert found.facts["units"] == {"token": words + 5, "word": words} == {"token": 22, "word": 17}


def test_window_and_stride_change_what_is_read_and_stand_in_the_result() -> None:
    items = [{"text": "abcdefghij\n"}]
    measure = ReadOn(whole(None), {"ppl": ("perplexity", "byte")}, "bytes")
    for window, stride in ((4, 4), (4, 2), (8, 1)):
        scores = FakeScores()
        found = measure.measure(scores, items, [], Setting(window=window, stride=stride))
        assert (found.facts["window"], found.facts["stride"], found.facts["tokens"]) == (window, stride, 11)
        assert b"".join(bytes(after) for _, after in scores.read) == b"abcdefghij\n"  # each token once
        later = [len(context) + len(after) for context, after in scores.read[1:]]
        assert all(length == window + 1 for length in later)
    with pytest.raises(UserError, match="1 <= stride <= window <= 4096"):
        measure.measure(FakeScores(), items, [], Setting(window=4, stride=5))


def test_units_are_the_published_file_s() -> None:
    text = "the <unk> 's traders ' $ N \nnaïve \n"
    assert units_of(text) == {"word": 8, "token": 10, "character": 35, "byte": 36}


def test_harness_reads_each_article_by_itself(tmp_path: Path) -> None:
    lines = [
        " \n",
        " = One = \n",
        " \n",
        " Text , here . \n",
        " = = Part = = \n",
        " More \n",
        " = Two = \n",
        " End . \n",
    ]
    (tmp_path / "wiki.test.raw").write_text("".join(lines))
    found = articles([page_of(row) for row in pages([tmp_path / "wiki.test.raw"])])
    assert [document.text for document in found] == [
        " = One =\n\nText, here.\n== Part ==\nMore ",
        " = Two =\nEnd.\n",
    ]
    assert [document.units["word"] for document in found] == [15, 7]  # with an empty one at each end


@pytest.mark.parametrize(("way", "guessed"), [("sum", 0), ("token", 1), ("character", 1)])
def test_ways_to_compare_options(way: str, guessed: int) -> None:
    """ "x" has 0.3; "yyy" 0.2 and then 0.9 twice: less as a whole, more for each token."""
    scores = FakeScores({" ": {"x": 0.3, "y": 0.2}, "y": {"y": 0.9}})
    items = [{"options": ["x", "yyy"], "gold": guessed}]
    assert figures(Choose("Q:", by={"acc": way}).measure(scores, items, [], Setting())) == {"acc": 1.0}


def test_an_option_s_own_spaces_count_as_its_characters() -> None:
    """As lm-evaluation-harness divides: by len(choice), which is 1 and 4 here, not 1 twice."""
    scores = FakeScores({" ": {" ": 0.9, "x": 0.05}})
    items = [{"options": ["x", "   x"], "gold": 1}]
    summed, each = (Choose("Q:", by={"acc": way}).measure(scores, items, [], Setting()) for way in ("sum", "character"))
    alone, spaced = math.log(0.05), 3 * math.log(0.9) + math.log(0.05)
    assert figures(summed) == {"acc": float(spaced > alone)} == {"acc": 0.0}
    assert figures(each) == {"acc": float(spaced / 4 > alone)} == {"acc": 1.0}
    assert compared("character", [Scored(-6.0, False, 1)], [], [Example("", "  x ")]) == [-2.0]


@pytest.mark.parametrize("shots", [0, 2])
def test_items_are_scored_some_at_a_time_with_the_same_figures(monkeypatch: pytest.MonkeyPatch, shots: int) -> None:
    items = [
        {"options": [f"x{n}", "y"], "gold": n % 2, "before": f"b{n}", "word": "at", "answers": ["a"]} for n in range(8)
    ]
    shown = [item | {"before": f"other {n}"} for n, item in enumerate(items)]
    asks = (
        Choose("Q {before}:", by={"acc": "sum", "acc_free": "free"}, shots=Shots()),
        LastWord(token=True, stop_words=frozenset("t"), shots=Shots()),
        Write("{before}:", lambda text, item: {"em": mean(exact(text, item["answers"]))}, shots=Shots()),
    )
    for ask in asks:
        found, calls = [], []
        for chunk in (512, 3):
            monkeypatch.setattr(base, "CHUNK", chunk)
            scores = Calls()
            measured = ask.measure(scores, items, shown, Setting(shots, progress=scores.tell))
            found.append(({name: column.rows for name, column in measured.columns.items()}, measured.facts))
            calls.append(scores.sizes)
            assert all(0 <= done <= total for done, total in scores.told) and scores.told
        assert found[0] == found[1]
        assert sum(calls[0]) == sum(calls[1]) and max(calls[1], default=0) <= 3 * 4
        assert not calls[0] or len(calls[1]) == 3 * len(calls[0])


class Calls(FakeScores):
    """How many pairs are scored at a time."""

    def __init__(self) -> None:
        super().__init__({"a": {"t": 0.5, "z": 0.3}, ":": {"y": 0.3}})
        self.sizes: list[int] = []
        self.told: list[tuple[int, int]] = []

    def tell(self, done: int, total: int) -> None:
        self.told.append((done, total))

    def continuations(self, pairs: Any, progress: Any = None) -> Any:
        self.sizes.append(len(pairs))
        if progress:
            progress(len(pairs), len(pairs))
        return super().continuations(pairs)


def test_windows_of_a_text_are_read_some_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    ask = ReadOn(whole(None), {"ppl": ("perplexity", "byte")}, "bytes")
    found = []
    for chunk in (512, 3):
        monkeypatch.setattr(base, "CHUNK", chunk)
        scores = Calls()
        found.append(ask.measure(scores, [{"text": "abcdefghij\n"}], [], Setting(window=4, stride=1)))
        assert max(scores.sizes) <= chunk and sum(scores.sizes) == 8
    assert figures(found[0]) == figures(found[1])


def test_an_answer_that_is_likely_anyway_counts_for_less() -> None:
    """With no space in front: "x" has 0.4 after Q and 0.5 after A, "y" 0.3 and 0.1."""
    scores = FakeScores({"Q": {"x": 0.4, "y": 0.3}, "A": {"x": 0.5, "y": 0.1}})
    ask = Choose("Q", "{option}", by={"acc": "free", "acc_sum": "sum"}, free="A")
    found = figures(ask.measure(scores, [{"options": ["x", "y"], "gold": 1}], [], Setting()))
    assert found == {"acc": 1.0, "acc_sum": 0.0}


def test_classes_and_groups_have_figures_of_their_own() -> None:
    scores = FakeScores({" ": {"y": 0.9}})
    items = [
        {"options": ["n", "y"], "gold": gold, "group": group}
        for gold, group in ((1, "a"), (0, "a"), (1, "b"), (1, "b"))
    ]
    found = figures(Choose("?", by={"acc": "sum"}, also=("macro_f1", "group")).measure(scores, items, [], Setting()))
    assert found["acc"] == 0.75
    assert found["f1"] == pytest.approx((0 + 2 * 3 / (4 + 3)) / 2)  # "n" is never guessed
    assert found["all_right"] == 0.5 and found["f1a"] == pytest.approx(2 * 3 / (4 + 3))


def test_an_answer_longer_than_the_context_is_read_in_parts() -> None:
    scores = FakeScores()
    scores.context_length = 8
    items = [{"options": ["x" * 30, "y"], "gold": 1}]
    assert figures(Choose("Q", by={"acc": "sum"}).measure(scores, items, [], Setting())) == {"acc": 1.0}
    assert max(len(after) for _, after in scores.read) < 8
    assert sum(len(after) for _, after in scores.read) == 31 + 2


def test_the_last_word_with_and_without_stop_words() -> None:
    """After "a" comes most likely "t", a stop word here; then "z"."""
    scores = FakeScores({"a": {"t": 0.5, "z": 0.3}})
    items = [{"before": "b", "word": "az"}, {"before": "b", "word": "at"}]
    ask = LastWord(token=True, stop_words=frozenset("t"))
    found = figures(ask.measure(scores, items, [], Setting()))
    assert found["ppl"] == pytest.approx(math.exp(-(math.log(0.3) + math.log(0.5)) / 2))
    assert found["acc_any"] == 0.5 and found["acc"] == 0.5
    alone = figures(ask.measure(scores, items[:1], [], Setting()))
    assert (alone["acc"], alone["acc_any"]) == (1.0, 0.0)
    whole_word = figures(LastWord().measure(scores, items[:1], [], Setting()))
    assert whole_word["ppl"] > found["ppl"] and whole_word["acc"] == 0.0


def test_examples_stand_before_an_item_and_never_the_item_itself() -> None:
    items = [{"question": name, "answers": [name.upper()]} for name in ("one", "two", "three")]
    scores = FakeScores(texts={"Q: two\nA:": " TWO "})
    ask = Write(
        "Q: {question}\nA:",
        lambda text, item: {"em": mean(exact(text, item["answers"]))},
        writing=Writing(5),
        shots=Shots("\n", "Answer.", True, k=9),
    )
    found = ask.measure(scores, items, items, Setting(shots=2, seed=1))
    assert figures(found) == {"em": pytest.approx(1 / 3)}
    assert found.facts == {"shots_used": 2, "max_new_tokens": 5}
    for item, prompt in zip(items, scores.prompts, strict=True):
        assert prompt.startswith("Answer.\nQ: ") and prompt.endswith(f"Q: {item['question']}\nA:")
        assert prompt.count("Q: ") == 3 and prompt.count(f"Q: {item['question']}\n") == 1
    again = FakeScores()
    ask.measure(again, items, items, Setting(shots=2, seed=1))
    assert again.prompts == scores.prompts


def test_what_does_not_fit_is_counted() -> None:
    scores = FakeScores()
    scores.context_length = 24
    items = [{"options": ["x", "y"], "gold": 0, "question": "q" * n} for n in (2, 40)]
    found = Choose("{question}:", shots=Shots("\n")).measure(scores, items, items[:1] * 9, Setting(shots=5))
    assert found.facts == {"shots_used": 0.0, "items_cut": 1}  # the item's own copies are no examples
    others = [{"options": ["x", "y"], "gold": 0, "question": "r"}] * 9
    found = Choose("{question}:", shots=Shots("\n")).measure(scores, items, others, Setting(shots=5))
    assert found.facts["shots_used"] == 1.5 and found.facts["items_cut"] == 1


def test_a_long_passage_is_cut_at_its_end_where_the_task_says_so() -> None:
    scores = FakeScores()
    scores.context_length = 60
    ask = Write("{article}\nTL;DR:", lambda text, item: {}, writing=Writing(10, ()), trim="article")
    ask.measure(scores, [{"article": "begin" + "x" * 99, "answers": ["-"]}], [], Setting())
    (prompt,) = scores.prompts
    assert prompt.startswith("beginx") and prompt.endswith("x\nTL;DR:") and len(prompt) <= 50


def test_a_text_takes_no_examples() -> None:
    with pytest.raises(UserError, match="takes no examples"):
        ReadOn(whole(None), {}, WORDS_AND_ENDS).measure(FakeScores(), [], [], Setting(shots=1))
