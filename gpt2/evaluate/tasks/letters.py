"""GPT-3's own sets, made by program and published by OpenAI: ten of arithmetic, five of scrambled words."""

from __future__ import annotations

from gpt2.evaluate.asked import Writing
from gpt2.evaluate.data import Fields, Form, Hub
from gpt2.evaluate.measures import Ask, LastWord, Shots, Write, mean
from gpt2.evaluate.metrics import verbatim
from gpt2.evaluate.rows import Row
from gpt2.evaluate.tasks.task import Task


def completion(row: Row) -> Fields:
    """The context without the line ends that set it apart from what precedes it."""
    context, answer = row.text("context").lstrip("\n"), row.text("completion").strip()
    return {"question": context, "word": answer, "answers": [answer], "harness": as_harness(context)}


def as_harness(context: str) -> str:
    """What lm-evaluation-harness makes of `Q: What is 98 plus 45?\n\nA:`."""
    return context.strip().replace("\n\n", "\n").replace("Q:", "Question:").replace("A:", "Answer:")


def score(text: str, item: Fields) -> dict[str, tuple[str, tuple[float, ...]]]:
    return {"acc": mean(verbatim(text, item["answers"]))}


BEAMS = Writing(max_new_tokens=16, beams=4)


def arithmetic(name: str, title: str, file: str) -> Task:
    ask = Write("{question}", score, writing=BEAMS, shots=Shots(k=50))
    asks: dict[str, Ask] = {"gpt3": ask, "harness": LastWord("{harness}", main="acc")}
    return Task(name, title, (Form((f"{file}.jsonl",), completion, split="all"),), asks)


def scrambled(name: str, title: str, file: str) -> Task:
    instruction = "Please unscramble the letters into a word, and write that word:"
    ask = Write("{question}", score, writing=BEAMS, shots=Shots("\n", instruction, True, 100))
    forms = (Form((f"{file}.jsonl.gz",), completion, split="all"), Form((f"{file}.jsonl",), completion, split="all"))
    return Task(name, title, forms, {"gpt3": ask}, Hub("EleutherAI/unscramble", completion, file))


TASKS = (
    arithmetic("add_2", "2 digits +", "two_digit_addition"),
    arithmetic("subtract_2", "2 digits −", "two_digit_subtraction"),
    arithmetic("add_3", "3 digits +", "three_digit_addition"),
    arithmetic("subtract_3", "3 digits −", "three_digit_subtraction"),
    arithmetic("add_4", "4 digits +", "four_digit_addition"),
    arithmetic("subtract_4", "4 digits −", "four_digit_subtraction"),
    arithmetic("add_5", "5 digits +", "five_digit_addition"),
    arithmetic("subtract_5", "5 digits −", "five_digit_subtraction"),
    arithmetic("multiply_2", "2 digits ×", "two_digit_multiplication"),
    arithmetic("three_ops", "1 digit, 3 operations", "single_digit_three_ops"),
    scrambled("cycle_letters", "Cycled letters", "cycle_letters_in_word"),
    scrambled("anagrams_1", "Anagrams 1", "mid_word_1_anagrams"),
    scrambled("anagrams_2", "Anagrams 2", "mid_word_2_anagrams"),
    scrambled("random_insertion", "Random insertion", "random_insertion_in_word"),
    scrambled("reversed_words", "Reversed words", "reversed_words"),
)
