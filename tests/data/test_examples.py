"""From a file to tokens: what is learned, what is cut, what is held out, what is refused."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tiny_models import BYTES

from gpt2.data import example_tokens
from gpt2.data.examples import (
    Encoded,
    Encodings,
    ExampleSet,
    Pairs,
    ReadOptions,
    preview,
    read_examples,
    split_examples,
)
from gpt2.errors import UserError
from gpt2.tokenizer.added import add_tokens
from gpt2.tokenizer.bpe import Tokenizer
from gpt2.tokenizer.chat_template import DEFAULT_TEMPLATE
from gpt2.tokenizer.files import load_tokenizer

EOT = "<|endoftext|>"
TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
FILLED = TEXT.filter(str.strip)


def made(path: Path, rows: Any, context: int = 64, tokenizer: Tokenizer = BYTES, **options: Any) -> ExampleSet:
    """A set out of rows (as JSON lines) or of a text as it stands."""
    text = rows if isinstance(rows, str) else "".join(json.dumps(row) + "\n" for row in rows)
    path = path / "made" if path.is_dir() else path
    path.write_text(text, encoding="utf-8", newline="")
    return read_examples(path, tokenizer, context, ReadOptions(**options))


def shown(example: Encoded, tokenizer: Tokenizer = BYTES) -> list[tuple[str, bool]]:
    """An example as text, in stretches that are learned and that are not."""
    found = ExampleSet("completion", "", as_set([example]), np.zeros(1, np.uint64))
    return preview(found, tokenizer)


def as_set(examples: list[Encoded]) -> Encodings:
    lengths = np.array([len(example.ids) for example in examples])
    ends = np.cumsum(lengths)
    ids = np.concatenate([example.ids for example in examples])
    wanted = np.concatenate([example.wanted for example in examples])
    return Encodings(ids, wanted, ends - lengths, ends, np.array([example.label for example in examples], np.int32))


def single(examples: ExampleSet) -> list[Encoded]:
    assert isinstance(examples.examples, Encodings)
    return list(examples.examples)


@given(st.lists(st.tuples(TEXT, FILLED), min_size=1, max_size=5))
def test_a_prompt_has_the_tokens_that_a_user_gives_it(
    tmp_path_factory: pytest.TempPathFactory, rows: list[tuple[str, str]]
) -> None:
    path = tmp_path_factory.getbasetemp() / "made.jsonl"
    found = single(made(path, [{"prompt": prompt, "completion": text} for prompt, text in rows]))
    for (prompt, text), example in zip(rows, found, strict=True):
        before = BYTES.encode(prompt) or [BYTES.eot_id]
        joins = prompt != "" and not prompt[-1].isspace() and not text[0].isspace()
        assert example.ids.tolist() == [*before, *BYTES.encode(" " * joins + text), BYTES.eot_id]
        assert example.wanted.tolist() == [False] * len(before) + [True] * (len(example.ids) - len(before))


def test_real_prompts_and_completions_are_encoded_apart(assets: Path) -> None:
    tokenizer = load_tokenizer(assets / "gpt2-vocab")
    path = assets / "finetune" / "e2e_valid.txt"
    found = single(read_examples(path, tokenizer, 1024))
    for line, example in zip(path.read_text().splitlines()[::97], found[::97], strict=True):
        prompt, text = (side.strip() for side in line.split("||"))
        before, after = tokenizer.encode(prompt), tokenizer.encode(" " + text)
        assert example.ids.tolist() == [*before, *after, tokenizer.eot_id]
        assert example.wanted.sum() == len(after) + 1 and not example.wanted[: len(before)].any()


def test_each_kind_as_the_model_sees_it(tmp_path: Path) -> None:
    assert preview(made(tmp_path, "One.\nTwo.\n"), BYTES) == [(EOT, False), (f"One.\nTwo.{EOT}", True)]
    assert preview(made(tmp_path, "a ||  b \n"), BYTES) == [("a", False), (f" b{EOT}", True)]
    rows = [{"text": "fine", "label": "good"}, {"text": "oh", "label": "bad"}]
    labelled = made(tmp_path, rows)
    assert (labelled.kind, labelled.labels) == ("label", ("bad", "good"))
    assert [example.label for example in single(labelled)] == [1, 0]
    assert preview(labelled, BYTES) == [("f", False), (f"ine{EOT}", True)]
    pairs = made(tmp_path, [{"prompt": "Q", "chosen": "yes", "rejected": " no"}])
    assert isinstance(pairs.examples, Pairs) and pairs.kind == "preference"
    assert shown(pairs.examples[0].chosen) == [("Q", False), (f" yes{EOT}", True)] == preview(pairs, BYTES)
    assert shown(pairs.examples[0].rejected) == [("Q", False), (f" no{EOT}", True)]
    assert pairs.examples.positions.tolist() == [len("Q yes") + len("Q no")]


def test_instructions_are_asked_as_a_chat_is(tmp_path: Path) -> None:
    rows = [{"instruction": "Add.", "input": "1 2", "output": "3"}, {"instruction": "Sing.", "output": "La"}]
    found = made(tmp_path, rows, context=200)
    assert found.chat_template == DEFAULT_TEMPLATE
    assert found.format == "JSON lines with instruction, input, output, written by the default chat template"
    assert shown(single(found)[0]) == [("### User:\nAdd.\n\n1 2\n\n### Assistant:\n", False), (f"3{EOT}", True)]
    assert shown(single(found)[1]) == [("### User:\nSing.\n\n### Assistant:\n", False), (f"La{EOT}", True)]
    own = made(tmp_path, rows, context=200, template="{instruction} ({input}) =")
    assert shown(single(own)[0]) == [("Add. (1 2) =", False), (f" 3{EOT}", True)]
    assert own.chat_template is None
    backwards = single(made(tmp_path, rows[::-1], context=200))
    assert shown(backwards[1]) == shown(single(found)[0]), "an input is read though the first row has none"


def test_rows_of_another_kind_than_the_first_are_refused_and_other_fields_counted(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"made line 2: has label, the first example has not"):
        made(tmp_path, [{"text": "a"}, {"text": "b", "label": "c"}])
    assert len(made(tmp_path, [{"text": "a"}, {"text": "b", "label": "c"}], columns={"text": "text"})) == 2
    found = made(tmp_path, [{"text": "a"}, {"text": "b", "id": 1}, {"text": "b", "id": 2}])
    assert found.notes == ("examples with a field 'id', not read as the first one has none: 2",)


def test_ends_that_other_tools_spell_are_the_token(tmp_path: Path) -> None:
    marked = made(tmp_path, f"<|startoftext|>One\n.{EOT}\n<|startoftext|>Two{EOT} \n")
    assert [shown(example) for example in single(marked)] == [
        [(EOT, False), (f"One\n.{EOT}", True)],
        [(EOT, False), (f"Two{EOT}", True)],
    ]
    assert all((example.ids == BYTES.eot_id).sum() == 2 for example in single(marked))
    (pair,) = single(made(tmp_path, [{"prompt": "a", "completion": f"b{EOT}\n"}]))
    assert pair.ids.tolist() == [97, 32, 98, BYTES.eot_id]
    spelled = made(tmp_path, [{"text": f"a {EOT} b"}])
    assert spelled.notes == (f"texts with {EOT} inside, learned as the letters that it is: 1",)


def test_a_template_is_that_of_the_verbs(tmp_path: Path) -> None:
    """Braces are doubled, and a space at its end belongs to what is learned."""
    asked = made(tmp_path, [{"prompt": "x", "completion": "y"}], template='{{"q": "{prompt}"}} A: ')
    assert shown(single(asked)[0]) == [('{"q": "x"} A:', False), (f" y{EOT}", True)]
    with pytest.raises(UserError, match=r"for a brace itself write \{\{ or \}\}"):
        made(tmp_path, [{"prompt": "x", "completion": "y"}], template='{"q": {prompt}}')


def test_of_messages_only_the_answers_are_learned(tmp_path: Path) -> None:
    said = [
        ("system", "Be brief."),
        ("user", f"Hi {EOT}"),
        ("assistant", "Yes?"),
        ("user", "Bye"),
        ("assistant", "So."),
    ]
    messages = [{"role": role, "content": content} for role, content in said]
    (found,) = single(made(tmp_path, [{"messages": messages}], context=300))
    assert shown(found) == [
        (f"### System:\nBe brief.\n\n### User:\nHi {EOT}\n\n### Assistant:\n", False),
        (f"Yes?{EOT}", True),
        ("\n\n### User:\nBye\n\n### Assistant:\n", False),
        (f"So.{EOT}", True),
    ]
    assert (found.ids == BYTES.eot_id).sum() == 2, "one that a user spells is text"
    unanswered = made(tmp_path, [{"messages": messages[:-1]}], context=300)
    assert unanswered.notes == ("conversations cut behind their last answer: 1",)


def said(*contents: str) -> list[dict[str, str]]:
    """Messages of user and assistant in turns."""
    return [{"role": ("user", "assistant")[n % 2], "content": content} for n, content in enumerate(contents)]


def test_preferences_may_be_conversations(tmp_path: Path) -> None:
    talk = said("Hi", "Yes?", "Sing")
    rows: list[dict[str, Any]] = [
        {"prompt": talk, "chosen": [{"role": "assistant", "content": answer}], "rejected": said("", "No")[1:]}
        for answer in ("La", "No")
    ]
    rows += [
        {"prompt": "Sing", "chosen": said("Hi", "Yes?", "Sing", "La"), "rejected": said("Hi", "Yes?", "Sing", "No")}
    ]
    found = made(tmp_path, rows, context=300)
    first, second = found.examples
    before = "### User:\nHi\n\n### Assistant:\nYes?" + EOT + "\n\n### User:\nSing\n\n### Assistant:\n"
    assert shown(first.chosen) == [(before, False), (f"La{EOT}", True)] == shown(second.chosen)
    assert shown(first.rejected) == [(before, False), (f"No{EOT}", True)]
    assert found.chat_template == DEFAULT_TEMPLATE and found.notes == ("pairs of equal texts, left out: 1",)
    rows = [{"prompt": "", "chosen": said("a", "b"), "rejected": said("c", "d")}]
    with pytest.raises(UserError, match="line 1: expected chosen and rejected to differ in their last answer alone"):
        made(tmp_path, rows)
    with pytest.raises(UserError, match="line 1: --template does not go with messages"):
        made(tmp_path, rows, template="{prompt}")


def test_a_loss_on_all_learns_all_but_the_first_token(tmp_path: Path) -> None:
    (found,) = single(made(tmp_path, "ab||c\n", loss="all"))
    assert shown(found) == [("a", False), (f"b c{EOT}", True)]


@given(st.integers(1, 200), st.integers(2, 20))
def test_a_long_text_goes_on_in_the_next_example_and_loses_nothing(
    tmp_path_factory: pytest.TempPathFactory, length: int, context: int
) -> None:
    text = "".join(chr(97 + n % 26) for n in range(length))
    found = single(made(tmp_path_factory.getbasetemp() / "made", text, context))
    assert all(1 <= example.positions <= context for example in found)
    learned = [example.ids[1:] for example in found]
    assert BYTES.decode(np.concatenate(learned)) == text + EOT
    assert all(example.wanted[1:].all() for example in found)
    for before, after in pairwise(found):
        assert before.ids[-1] == after.ids[0]


def test_a_short_text_of_several_is_an_example_of_its_own(tmp_path: Path) -> None:
    found = made(tmp_path, f"abc\n{EOT}\ndefghi\n", context=5)
    assert [BYTES.decode(example.ids) for example in single(found)] == [f"{EOT}abc{EOT}", f"{EOT}defgh", f"hi{EOT}"]
    assert len(set(found.keys.tolist())) == 2 and "1 of 2 texts (the longest, on line 3" in found.notes[0]


LONG = [
    {"prompt": "p" * 4, "completion": "c"},
    {"prompt": "0123456789", "completion": "abc"},
    {"prompt": "0123456789", "completion": "abcdefghijklm"},
]


def test_too_long_is_refused_cut_or_skipped_with_counts(tmp_path: Path) -> None:
    said = "longer than the context of 8 tokens: 2 of 3 examples (the longest, on line 3: 24)"
    with pytest.raises(UserError) as error:
        made(tmp_path, LONG, context=8)
    assert str(error.value) == f"{tmp_path / 'made'}: {said}; choose --too-long cut or skip"
    skipped = made(tmp_path, LONG, context=8, too_long="skip")
    assert len(skipped) == len(skipped.keys) == 1 and skipped.notes == (f"{said}; left out",)
    cut = made(tmp_path, LONG, context=8, too_long="cut")
    assert [BYTES.decode(example.ids) for example in single(cut)] == [f"pppp c{EOT}", f"6789 abc{EOT}", "9 abcdefg"]
    assert cut.notes == (f"{said}; cut",)
    with pytest.raises(UserError, match="nothing is left to learn"):
        made(tmp_path, LONG[1:], context=8, too_long="skip")


def test_a_pair_that_is_cut_keeps_one_prompt(tmp_path: Path) -> None:
    rows = [{"prompt": "0123456789", "chosen": "a", "rejected": "abcd"}]
    found = made(tmp_path, rows, context=8, too_long="cut")
    (pair,) = found.examples
    assert shown(pair.chosen) == [("789", False), (f" a{EOT}", True)]
    assert shown(pair.rejected) == [("789", False), (f" abcd{EOT}", True)]


def test_a_labelled_text_that_is_cut_keeps_its_beginning(tmp_path: Path) -> None:
    rows = [{"text": "0123456789", "label": "a"}, {"text": "b", "label": "b"}]
    found = single(made(tmp_path, rows, context=4, too_long="cut"))
    assert BYTES.decode(found[0].ids[:-1]) == "0123"


def test_a_conversation_that_is_cut_keeps_its_end(tmp_path: Path) -> None:
    said = [("user", "u" * 30), ("assistant", "first"), ("user", "v"), ("assistant", "last")]
    rows = [{"messages": [{"role": role, "content": content} for role, content in said]}]
    (found,) = single(made(tmp_path, rows, context=40, too_long="cut"))
    assert BYTES.decode(found.ids).endswith(f"### Assistant:\nlast{EOT}") and found.positions == 40


def test_labels_are_numbered_by_declaration_value_or_alphabet(tmp_path: Path) -> None:
    rows = [{"text": "x", "label": label} for label in (10, 9, 10)]
    found = made(tmp_path, rows)
    assert found.labels == ("9", "10") and [example.label for example in single(found)] == [1, 0, 1]
    assert made(tmp_path, rows, labels=("10", "8", "9")).labels == ("10", "8", "9")
    with pytest.raises(UserError, match=r"made line 2: label '9'.*; expected one of 10, 8"):
        made(tmp_path, rows, labels=("10", "8"))
    with pytest.raises(UserError, match="all texts have the label '9'"):
        made(tmp_path, rows[1:2])


@pytest.mark.parametrize(
    ("rows", "options", "expected"),
    [
        ([{"prompt": "a", "completion": "b"}, {"prompt": "a"}], {}, "line 2: expected text in field 'completion'"),
        (
            [{"prompt": "a", "completion": " "}],
            {},
            "line 1: expected text in field 'completion' (completion), found it",
        ),
        ("a||\n", {}, "line 1: expected text in field 'completion'"),
        ([{"prompt": "a", "completion": ["b"]}], {}, "line 1: expected text in field 'completion', found list"),
        ([{"prompt": None, "completion": "b"}], {}, "line 1: expected text in field 'prompt', found nothing"),
        ([{"text": "a", "label": None}], {}, "line 1: expected text in field 'label'"),
        ([{"prompt": "a", "chosen": "b", "rejected": ""}], {}, "line 1: expected text in field 'rejected'"),
        ([{"instruction": "a", "output": ""}], {}, "line 1: expected text in field 'output'"),
        ([{"messages": "a"}], {}, "line 1: expected a list of messages (messages), found str"),
        ([{"messages": [{"role": "user"}]}], {}, "line 1: expected text as the content of the user's message"),
        ([{"messages": ["a"]}], {}, "line 1: expected a message with role and content"),
        ([{"messages": [{"role": "user", "content": "a"}]}], {}, "line 1: expected a message of the assistant"),
        ([{"messages": [{"role": "assistant", "content": ""}]}], {}, "line 1: expected text in each message"),
        ([{"question": "a"}], {}, "line 1: expected fields text; text, label;"),
        ([{"text": " "}], {}, "nothing is left to learn (texts without any text, left out: 1)"),
        ("a||b\n", {"labels": ("a", "b")}, "--labels was given, but no example has one"),
        ("a||b\n", {"labels": ("a", "a")}, "--labels a,a: expected at least two"),
        ("a||b\n", {"loss": "al"}, "--loss al: unknown (did you mean 'all'?)"),
        ("a||b\n", {"too_long": "drop"}, "--too-long drop: unknown"),
        ("a||b\n", {"format": "xml"}, "--format xml: unknown"),
        ("a||b\n", {"template": "Q:"}, "--template 'Q:': expected {prompt} in it"),
        ("a||b\n", {"template": "{instruction}"}, "expected {prompt} in it"),
        ("abc\n", {"template": "{text}"}, "--template: text examples have none"),
        ([{"prompt": "a", "chosen": "b", "rejected": "c"}], {"loss": "all"}, "--loss all does not go with preference"),
        ("[]", {}, "no example in it"),
    ],
)
def test_what_cannot_be_learned_is_refused_in_one_line(
    tmp_path: Path, rows: Any, options: dict[str, Any], expected: str
) -> None:
    with pytest.raises(UserError) as error:
        made(tmp_path, rows, **options)
    assert expected in str(error.value) and "\n" not in str(error.value)


def test_what_is_not_read_is_said(tmp_path: Path) -> None:
    found = made(tmp_path, [{"id": 1, "prompt": "a", "completion": "b", "source": "x"}])
    assert found.notes == ("not read: id, source",)
    rows = [{"prompt": "a", "chosen": "b", "rejected": side} for side in ("b", "c")]
    assert made(tmp_path, rows).notes == ("pairs of equal texts, left out: 1",)
    characters = Tokenizer.from_characters("ab |\n")
    found = made(tmp_path, "a||b\n", tokenizer=characters)
    assert "no end-of-text token" in found.notes[0]
    assert shown(single(found)[0], characters) == [("a", False), (" b", True)]


def test_labelled_texts_of_a_vocabulary_without_end_of_text_still_read_their_last_token(tmp_path: Path) -> None:
    characters = Tokenizer.from_characters("abc")
    rows = [{"text": "abc", "label": "x"}, {"text": "b", "label": "y"}]
    first = single(made(tmp_path, rows, tokenizer=characters))[0]
    assert characters.decode(first.ids[:-1]) == "abc" and not first.wanted[-1]


def test_own_names_of_columns_and_forced_forms(tmp_path: Path) -> None:
    table = "q,a,text\nWhy?,So.,t\n"
    assert made(tmp_path, table).kind == "text"
    found = made(tmp_path, table, columns={"prompt": "q", "completion": "a"}, template="{prompt}\n")
    assert preview(found, BYTES) == [("Why?\n", False), (f"So.{EOT}", True)]
    assert found.format == "CSV with prompt (its q), completion (its a)"
    assert len(made(tmp_path, "a||b\nc||d\n", format="lines")) == 2


def test_new_tokens_are_one_id_in_examples(tmp_path: Path) -> None:
    grown = add_tokens(BYTES, ["<sep>"])
    (found,) = single(made(tmp_path, [{"prompt": "a<sep>", "completion": "b"}], tokenizer=grown))
    assert found.ids.tolist() == [97, 257, 32, 98, 256]


def test_batches_and_threads_change_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [{"prompt": f"p{n}", "completion": "c" * (n % 7 + 1)} for n in range(50)]
    whole = made(tmp_path, rows)
    monkeypatch.setattr(example_tokens, "BATCH_RECORDS", 3)
    parts = made(tmp_path, rows)
    assert [example.ids.tolist() for example in single(whole)] == [example.ids.tolist() for example in single(parts)]
    assert whole.keys.tolist() == parts.keys.tolist() and whole.hash == parts.hash
    assert whole.hash != made(tmp_path, rows, loss="all").hash
    assert whole.hash != made(tmp_path, rows[1:]).hash


@given(st.lists(st.integers(0, 9), min_size=2, max_size=40), st.integers(0, 3), st.floats(0.01, 0.99))
def test_a_split_parts_no_prompt_and_loses_no_example(
    tmp_path_factory: pytest.TempPathFactory, prompts: list[int], seed: int, share: float
) -> None:
    path = tmp_path_factory.getbasetemp() / "made"
    examples = made(path, [{"prompt": f"p{prompt}", "completion": f"{n}"} for n, prompt in enumerate(prompts)])
    train, held = split_examples(examples, share, seed)
    assert len(train) and len(held) and len(train) + len(held) == len(examples)
    assert len(set(prompts)) == 1 or not set(train.keys.tolist()) & set(held.keys.tolist())
    smallest = min(map(prompts.count, prompts)) if len(set(prompts)) > 1 else 1
    assert len(held) <= max(1, round(share * len(examples)), smallest)
    texts = [BYTES.decode(example.ids) for part in (train, held) for example in single(part)]
    assert sorted(texts) == sorted(BYTES.decode(example.ids) for example in single(examples))


def test_a_split_does_not_depend_on_the_order_of_the_file(tmp_path: Path) -> None:
    rows = [{"prompt": f"p{n}", "completion": "c"} for n in range(40)]
    held = [set(split_examples(made(tmp_path, order), 0.25, 1)[1].keys.tolist()) for order in (rows, rows[::-1])]
    assert held[0] == held[1] and len(held[0]) == 10
    assert held[0] != set(split_examples(made(tmp_path, rows), 0.25, 2)[1].keys.tolist())


def test_a_split_goes_by_examples_where_one_prompt_has_most_of_them(tmp_path: Path) -> None:
    rows = [{"prompt": "", "completion": f"c{n}"} for n in range(90)]
    train, held = split_examples(made(tmp_path, rows), 0.1, 0)
    assert (len(train), len(held)) == (81, 9)
    rows = [{"prompt": "p" * (n >= 90), "completion": f"c{n}"} for n in range(95)]
    rows += [{"prompt": f"q{n}", "completion": "c"} for n in range(5)]
    for seed in range(5):
        assert len(split_examples(made(tmp_path, rows), 0.1, seed)[1]) == 10
    with pytest.raises(UserError, match="all examples are the same: none can be held out"):
        split_examples(made(tmp_path, [{"prompt": "p", "completion": "c"}] * 3), 0.1, 0)


def test_of_a_book_the_end_is_held_out(tmp_path: Path) -> None:
    train, held = split_examples(made(tmp_path, "word " * 100, context=10), 0.1, 0)
    assert (len(train), len(held)) == (46, 5)
    assert single(held)[-1].ids[-1] == BYTES.eot_id
    with pytest.raises(UserError, match="fills one example only"):
        split_examples(made(tmp_path, "word"), 0.1, 0)
