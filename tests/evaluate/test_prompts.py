"""K-shot prompts: drawn with a seed, never the item itself, never cut, as many as fit."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpt2.errors import UserError
from gpt2.evaluate.prompts import Example, Form, Prompt, PromptBuilder, Template, read_examples, shuffled
from gpt2.tokenizer.bpe import Tokenizer
from gpt2.tokenizer.train import train_bpe

BYTES = Tokenizer.bytes_only()
FRENCH = Template("English: {input}\nFrench:")

words = st.text("ab \n\u00e9", max_size=12)
examples = st.lists(st.builds(Example, words, words, st.none() | st.integers(0, 3)), max_size=12)
forms = st.builds(
    Form,
    st.none() | st.integers(0, 6),
    st.sampled_from(["\n", "\n\n"]),
    st.sampled_from(["", "Translate."]),
    st.booleans(),
)


def tokens(form: Form, shots: Sequence[Example], item: Example) -> int:
    return len((form.write(shots, item) + item.answer).encode())


@given(examples, st.builds(Example, words, words, st.integers(0, 3)), forms, st.integers(0, 120), st.integers(0, 9))
def test_no_example_is_the_item_or_cut_and_as_many_stand_there_as_fit(
    pool: list[Example], item: Example, form: Form, context: int, room: int
) -> None:
    builder = PromptBuilder(form, pool, BYTES, context, room, seed=3)
    others = [example for example in pool if not example.same(item)]
    possible = [example for example in others if tokens(form, [example], item) + room <= context]
    try:
        prompt = builder.build(item, number=5)
    except UserError:
        assert tokens(form, [], item) + room > context and (form.k == 0 or not possible)
        return
    assert prompt.text == form.write(prompt.shots, item) and prompt.text.endswith(item.context)
    assert prompt.ids == BYTES.encode(prompt.text)
    assert len(prompt.ids) + len(item.answer.encode()) + room <= context
    assert all(shot in possible for shot in prompt.shots)
    drawn = [pool[n] for n in shuffled(len(pool), random.Random("3 5")) if pool[n] in possible]
    assert list(prompt.shots) == drawn[: prompt.shots_used]
    if prompt.shots_used < min(len(drawn), len(pool) if form.k is None else form.k):
        assert tokens(form, drawn[: prompt.shots_used + 1], item) + room > context
    assert form.k is None or prompt.shots_used <= form.k


class Counted:
    """A tokenizer that counts what it encodes."""

    def __init__(self) -> None:
        self.texts = 0

    def encode(self, text: str) -> list[int]:
        self.texts += 1
        return BYTES.encode(text)


def test_a_pool_of_which_nothing_fits_is_encoded_once_and_not_for_each_item() -> None:
    pool = [Example(f"{n:0200}:", " yes") for n in range(300)]
    counted = Counted()
    builder = PromptBuilder(Form(5), pool, counted, 250)
    prompts = [builder.build(Example(f"{n:0100}:"), n) for n in range(20)]
    assert [prompt.shots for prompt in prompts] == [()] * 20
    assert counted.texts <= 300 + 20 * 8


def test_what_is_too_long_for_certain_is_not_tried_in_a_prompt() -> None:
    pool = [Example(f"{n:0200}:", " yes") for n in range(300)] + [Example("short:", " yes")]
    counted = Counted()
    builder = PromptBuilder(Form(5), pool, counted, 250)
    for number in range(20):
        assert builder.build(Example(f"{number:0100}:"), number).shots == (pool[-1],)
    assert counted.texts <= 301 + 20 * 12


def test_where_tokens_merge_at_the_joints_the_same_examples_stand_there() -> None:
    """Joints of "aa" between texts of a and b: whole prompts have fewer tokens than their parts together."""
    tokenizer = train_bpe(["aaaaaaaa bbbbbbbb " * 200], 263)
    dice = random.Random(5)
    pool = [Example("a" * dice.randint(1, 60), "b" * dice.randint(1, 30)) for _ in range(40)]
    merged = 0
    for number in range(40):
        item, context = Example("a" * dice.randint(1, 20)), dice.randint(8, 40)
        form = Form(None, "aa")

        def fits(shots: Sequence[Example], item: Example = item, context: int = context, form: Form = form) -> bool:
            return len(tokenizer.encode(form.write(shots, item))) <= context

        order = [pool[n] for n in shuffled(len(pool), random.Random(f"0 {number}"))]
        drawn = [shot for shot in order if not shot.same(item) and fits([shot])]
        whole = PromptBuilder(form, pool, tokenizer, context).build(item, number) if fits([]) else None
        if whole:
            assert list(whole.shots) == drawn[: whole.shots_used] and fits(whole.shots)
            assert whole.shots_used == len(drawn) or not fits(drawn[: whole.shots_used + 1])
            parts = [*(shot.text for shot in whole.shots), item.text]
            merged += len(whole.ids) < sum(
                len(tokenizer.encode(part)) for part in ["aa".join([""] * len(parts)), *parts]
            )
    assert merged


@given(st.integers(0, 40), st.integers())
def test_a_shuffle_has_every_number_once(count: int, seed: int) -> None:
    assert sorted(shuffled(count, random.Random(seed))) == list(range(count))


POOL = [Example(f"Q: {n}?\nA:", f" {n + 1}") for n in range(50)]


def build(k: int | None = None, number: int = 0, seed: int = 0, context: int = 200, **form: object) -> Prompt:
    return PromptBuilder(Form(k, **form), POOL, BYTES, context, 10, seed).build(Example("Q: 7?\nA:"), number)  # type: ignore[arg-type]


def test_seed_and_number_decide_what_is_drawn() -> None:
    assert build(number=1) == build(number=1)
    assert len({build(number=n).text for n in range(5)} | {build(seed=s).text for s in range(5)}) == 9


def test_an_example_s_place_is_drawn_evenly() -> None:
    firsts = [build(1, number=n).shots[0] for n in range(2000)]
    counts = [firsts.count(example) for example in POOL]
    assert counts[7] == 0  # the item itself
    assert all(15 <= count <= 75 for count in counts[:7] + counts[8:])  # 40.8 expected


def test_zero_one_and_few_shots_with_an_instruction() -> None:
    order = "Add one."
    assert build(0, instruction=order).text == "Add one.\n\nQ: 7?\nA:"
    assert build(0).text == "Q: 7?\nA:"
    one = build(1, instruction=order)
    assert one.text == f"{one.shots[0].text}\n\nQ: 7?\nA:"
    few = build(3, instruction=order, instruct_shots=True, separator="\n")
    assert few.text == "\n".join(["Add one.", *(shot.text for shot in few.shots), "Q: 7?\nA:"])
    assert few.shots_used == 3


def test_all_options_of_an_item_get_the_same_examples_as_the_longest_has_room_for() -> None:
    builder = PromptBuilder(Form(), POOL, BYTES, 100)
    short, long = Example("Q: 7?\nA:", " 8"), Example("Q: 7?\nA:", " eight, I should say")
    prompts = builder.build_options([short, long])
    assert prompts[0].shots == prompts[1].shots == builder.build(long).shots
    assert prompts[0].shots_used < builder.build(short).shots_used
    winograd = builder.build_options([Example("The cup, since the cup"), Example("The cup, since the ball")])
    assert [prompt.text[-4:] for prompt in winograd] == [" cup", "ball"] and winograd[0].shots == winograd[1].shots


def test_an_example_of_the_same_id_or_the_same_context_is_the_item() -> None:
    pool = [Example("a", "1", id=4), Example("b", "2", id=5), Example("c", "3")]
    shots = PromptBuilder(Form(), pool, BYTES, 99).build(Example("c", id=4)).shots
    assert shots == (pool[1],)


def test_an_example_too_long_for_any_prompt_is_passed_over_and_an_item_too_long_is_refused() -> None:
    pool = [Example("x" * 300, "y"), *POOL[:2]]
    for number in range(6):
        assert set(PromptBuilder(Form(), pool, BYTES, 99).build(Example("Q:"), number).shots) == set(POOL[:2])
    with pytest.raises(UserError, match="an item of 300 tokens with its answer and room for 10 more do not fit"):
        PromptBuilder(Form(), POOL, BYTES, 300, room=10).build(Example("x" * 290, "y" * 10))


@pytest.mark.parametrize(
    ("pattern", "context", "answer"),
    [
        ("English: {input}\nFrench:", "English: sea\nFrench:", " mer"),
        ("English: {input}\nFrench: ", "English: sea\nFrench:", " mer"),  # the space is the answer's
        ("{input} =>", "sea =>", " mer"),
        ("{input}\n", "sea\n", "mer"),
        ("{{{input}}}:", "{sea}:", " mer"),
    ],
)
def test_a_template_leaves_the_space_to_the_answer(pattern: str, context: str, answer: str) -> None:
    item = {"input": "sea", "output": "mer"}
    assert Template(pattern).example(item) == Example(context, answer)


def test_a_field_s_own_braces_and_spaces_stay() -> None:
    assert FRENCH.example({"input": "{x} ", "completion": 3}) == Example("English: {x} \nFrench:", " 3")
    assert Template("{a} {b} {a}", answer="c").example({"a": 1, "b": 2.5, "c": "d", "id": 9}) == Example(
        "1 2.5 1", " d", 9
    )


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"inputs": "a", "output": "b"}', r"shots.jsonl line 2: no field 'input' \(did you mean 'inputs'\?\)"),
        ('{"input": "a"}', "shots.jsonl line 2: has no answer in a field 'output'; say which field is the answer"),
        ('{"input": "a", "output": "b", "completion": "c"}', "line 2: has both 'output' and 'completion'"),
        ('{"input": null, "output": "b"}', "line 2: field 'input' is null; expected text or a number"),
        ('{"input": true, "output": "b"}', "line 2: field 'input' is true"),
        ('["input"]', r'line 2: \["input"\]; expected an object'),
        ("{", "line 2: not JSON"),
    ],
)
def test_what_is_wrong_with_a_line_is_said_with_file_line_and_field(tmp_path: Path, line: str, message: str) -> None:
    path = tmp_path / "shots.jsonl"
    path.write_text(f'\n{line}\n{{"input": "a", "output": "b"}}\n')
    with pytest.raises(UserError, match=message):
        read_examples(path, FRENCH)


def test_a_file_is_read_with_empty_lines_left_out(tmp_path: Path) -> None:
    path = tmp_path / "shots.jsonl"
    path.write_text("\n".join([json.dumps({"input": "s\u00e9a", "output": "mer"}), "", " "]))
    assert read_examples(path, FRENCH) == [Example("English: s\u00e9a\nFrench:", " mer")]


@pytest.mark.parametrize("pattern", ["no field", "{0}", "{a.b}", "{a[0]}", "{a!r}", "{a:>3}", "{", "}", "{}"])
def test_a_pattern_that_is_none_is_refused(pattern: str) -> None:
    with pytest.raises(UserError, match="the task "):
        Template(pattern)
