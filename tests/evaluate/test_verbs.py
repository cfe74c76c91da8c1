"""Prompts of the verbs: in the papers' words or in turns, with examples, and of long texts what fits."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tiny_models import BYTES

from gpt2.errors import UserError
from gpt2.evaluate.prompts import Example
from gpt2.evaluate.tasks import CATALOGUE
from gpt2.evaluate.verbs import (
    ANSWER,
    CLOSED_BOOK,
    SUMMARIZE,
    WRITE,
    Asker,
    Long,
    classify,
    own_sentences,
    read_shots,
    translate,
)
from gpt2.tokenizer.chat_template import DEFAULT_TEMPLATE, ChatTemplate

FRENCH = translate("en", "fr")
CHAT = ChatTemplate(DEFAULT_TEMPLATE, BYTES)


def asker(verb: object = SUMMARIZE, context: int = 400, room: int = 20, **more: object) -> Asker:
    return Asker(verb, BYTES, context, room, **more)  # type: ignore[arg-type]


def shots(path: Path, *items: object) -> Path:
    path.write_text("".join(json.dumps(item) + "\n" for item in items), encoding="utf-8")
    return path


def test_prompts_are_those_of_the_tasks_that_the_papers_measured() -> None:
    (summary,) = asker().prompts({"article": "A long day."})
    assert summary.text == "A long day.\nTL;DR:" and SUMMARIZE.writing == CATALOGUE["cnn_dm"].asks["gpt2"].writing  # type: ignore[attr-defined]
    (line,) = asker(FRENCH, examples=[Example("One =", " Un")]).prompts({"source": "Two"})
    assert line.text == "One = Un\nTwo =" and FRENCH.writing == CATALOGUE["wmt14_en_fr"].asks["gpt2"].writing  # type: ignore[attr-defined]
    story = {"story": "It rained.", "questions": [{"input_text": "When?"}], "answers": [{"input_text": "Now"}]}
    from gpt2.evaluate.rows import Row
    from gpt2.evaluate.tasks.passages import coqa

    (answer,) = asker(ANSWER).prompts({"context": "It rained.", "question": "When?"})
    assert answer.text == coqa(Row(story, "x"))[0]["question"]
    (known,) = asker(CLOSED_BOOK).prompts({"question": "Who?"})
    assert known.text == "Q: Who?\nA:"
    (chosen,) = asker(classify(["a", "b{}", "c"])).prompts({"text": "{x}"})
    assert chosen.text == "{x}\nquestion: a, b{}, or c?\nanswer:"


def test_answers_end_and_are_cleaned_as_published() -> None:
    assert SUMMARIZE.clean(" One. Two!\nThree? Four.") == "One. Two! Three?"
    assert FRENCH.clean(" Un. Deux.") == "Un." and ANSWER.clean(" yes \n") == "yes"
    assert SUMMARIZE.ends([]) == () and SUMMARIZE.ends([Example("a", "b")]) == ("\n\n",)
    assert ANSWER.ends([]) == ("\n",) and WRITE.ends([Example("a", " b")]) == ("\n\n",)
    assert WRITE.in_turns().ends([Example("a", " b")]) == ()


def test_examples_are_read_by_the_verb_s_names_or_by_those_of_any_file(tmp_path: Path) -> None:
    path = shots(tmp_path / "x", {"en": "sea", "fr": "mer"}, {"input": "cat", "output": "chat"})
    _, found = read_shots(path, FRENCH)
    assert found == [Example("sea =", " mer"), Example("cat =", " chat")]
    path = shots(tmp_path / "x", {"text": "T", "summary": "S"}, {"prompt": "P", "completion": "C"})
    assert [one.text for one in read_shots(path, SUMMARIZE)[1]] == ["T\nTL;DR: S", "P\nTL;DR: C"]


def test_tables_and_lines_of_pairs_are_examples_too(tmp_path: Path) -> None:
    for text in ("en,fr\nsea,mer\n", "sea||mer\n", '[{"en": "sea", "fr": "mer"}]'):
        (tmp_path / "x").write_text(text)
        assert read_shots(tmp_path / "x", FRENCH)[1] == [Example("sea =", " mer")]


def test_questions_are_asked_about_the_same_text_or_each_about_its_own(tmp_path: Path) -> None:
    item = {"context": "Rain.", "question": "What?"}
    verb, same = read_shots(shots(tmp_path / "x", {"question": "Wet?", "answer": "yes"}), ANSWER)
    assert asker(verb, examples=same).prompts(item)[0].text == "Rain.\n\nQ: Wet?\n\nA: yes\n\nQ: What?\n\nA:"
    own = {"context": "Sun.", "question": "Wet?", "answer": "no"}
    verb, found = read_shots(shots(tmp_path / "x", own), ANSWER)
    text = "Sun.\n\nQ: Wet?\n\nA: no\n\nRain.\n\nQ: What?\n\nA:"
    assert asker(verb, examples=found).prompts(item)[0].text == text
    with pytest.raises(UserError, match="x line 2: no 'context', which other examples have"):
        read_shots(shots(tmp_path / "x", own, {"question": "Wet?", "answer": "yes"}), ANSWER)


@pytest.mark.parametrize(
    ("items", "message"),
    [
        ([], "x: empty; expected examples"),
        ([{"en": "sea"}], "x line 1: has none of fr, target, output, completion; an example needs one of them. It has"),
        ([{"en": "a", "source": "b", "fr": "c"}], "x line 1: has both 'en' and 'source'"),
        ([{"en": "a", "fr": "b"}, 3], "x line 2: expected a JSON object with named fields, found 3"),
        ([{"en": ["a"], "fr": "b"}], "x line 1: field 'source' is"),
    ],
)
def test_an_example_that_cannot_be_used_is_named(tmp_path: Path, items: list[object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        read_shots(shots(tmp_path / "x", *items), FRENCH)


def test_a_label_that_is_none_of_those_asked_for_is_named(tmp_path: Path) -> None:
    path = shots(tmp_path / "x", {"text": "T", "label": "a"}, {"text": "T", "label": "c"})
    with pytest.raises(UserError, match="x line 2: 'c' is none of a, b"):
        read_shots(path, classify(["a", "b"]))


def test_own_sentences_are_in_four_languages() -> None:
    assert all(len(own_sentences(a, b)) == 5 for a in ("en", "fr", "de", "es") for b in ("EN", "fr", "de", "es"))
    assert own_sentences("en", "fr")[0] == Example(
        "The train leaves at eight o'clock. =", " Le train part \u00e0 huit heures."
    )
    assert own_sentences("en", "it") == []


words = st.lists(st.sampled_from(["sea", "a", "b.", "d\u00e9but", "\n"]), max_size=40).map(" ".join)


@given(words, words, st.integers(60, 160), st.integers(1, 20), st.sampled_from(["cut", "walk"]), st.booleans())
def test_prompts_leave_room_hold_the_question_and_walked_ones_the_whole_text(
    text: str, shown: str, context: int, room: int, long: Long, turns: bool
) -> None:
    verb = ANSWER.in_turns() if turns else ANSWER
    examples = [Example("Q: Who?\n\nA:", f" {shown}")]
    made = asker(verb, context, room, examples=examples, long=long, chat=CHAT if turns else None)
    item = {"context": f"It {text}", "question": "Why so?"}
    try:
        prompts = made.prompts(item)
    except UserError as error:
        assert "has no room for a text" in str(error)
        return
    assert all(len(prompt.ids) + room <= context for prompt in prompts)
    assert all("Why so?" in prompt.text for prompt in prompts)
    assert long == "walk" or len(prompts) == 1
    if long == "walk" and not turns:
        read = [
            prompt.text.removesuffix("\n\nQ: Why so?\n\nA:").removesuffix(f"\n\n{examples[0].text}")
            for prompt in prompts
        ]
        assert "".join("".join(read).split()) == "".join(f"It{text}".split())


def test_a_long_text_is_cut_at_a_pause_and_shares_the_context_with_examples() -> None:
    item = {"article": "One two three. " * 40}
    (alone,) = asker(context=100).prompts(item)
    assert alone.text == ("One two three. " * 4).strip() + "\nTL;DR:"
    (beside,) = asker(context=100, examples=[Example("Short\nTL;DR:", " S.")]).prompts(item)
    assert beside.text == "Short\nTL;DR: S.\n\n" + ("One two three. " * 2).strip() + "\nTL;DR:"
    with pytest.raises(
        UserError, match="607 tokens with its prompt and 20 for the answer pass the model's context of 100"
    ):
        asker(context=100, long="error").prompts(item)


def test_a_tuned_model_is_asked_in_turns_as_it_was_tuned() -> None:
    verb = translate("en", "fr").in_turns()
    made = asker(verb, examples=[Example("Two", " Deux")], chat=CHAT)
    (prompt,) = made.prompts({"source": "One <|endoftext|>"})
    asked = "Translate this from English to French:\n\nOne <|endoftext|>"
    said = [("user", "Two"), ("assistant", "Deux"), ("user", asked)]
    messages = [{"role": role, "content": text} for role, text in said]
    assert prompt.text == CHAT.render(messages, add_generation_prompt=True)
    assert prompt.ids == [
        *CHAT.turn([], messages[0]),
        *BYTES.encode("Deux"),
        *CHAT.turn(messages[:2], messages[2]),
    ]
    assert prompt.ids.count(256) == 1  # behind the answer; what the user spells is letters
    assert prompt.ids[-15:] == BYTES.encode("### Assistant:\n")


def test_what_stands_before_all_is_said_in_the_first_turn() -> None:
    made = asker(ANSWER.in_turns(), examples=[Example("Wet?", " yes")], chat=CHAT)
    (prompt,) = made.prompts({"context": "Rain.", "question": "What?"})
    assert prompt.text.index("Rain.\n\nWet?") < prompt.text.index("yes") < prompt.text.index("What?")


def test_other_words_take_the_place_of_the_paper_s() -> None:
    verb = SUMMARIZE.worded("Text: {input}\nShort:")
    assert asker(verb).prompts({"article": "A"})[0].text == "Text: A\nShort:"
    about = ANSWER.worded("{context} | {prompt} |")
    assert asker(about).prompts({"context": "C", "question": "Q"})[0].text == "C | Q |"
    assert replace(about, before="x").template == "{context} | {question} |"
    with pytest.raises(UserError, match="no field 'body' here; there are input"):
        SUMMARIZE.worded("{body} {input}")
    with pytest.raises(UserError, match="names no field"):
        SUMMARIZE.worded("nothing")
