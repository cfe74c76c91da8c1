"""A small file of each official form, by its official name: task -> {file: text}. Shapes are the publishers'."""

from __future__ import annotations

import json
from typing import Any


def lines(*rows: Any) -> str:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


STEM = {"stem": "Which is hot?", "choices": [{"text": "ice", "label": "A"}, {"text": "fire", "label": "B"}]}
ARC = lines({"id": "1", "question": STEM, "answerKey": "B"}, {"id": "2", "question": STEM, "answerKey": "A"})
CLOZE = "".join(f"{n} The fox said `` go '' to line {n} .\n" for n in range(1, 21)) + (
    "21 `` I ca n't , '' said the XXXXX , and ran .\tfox\t\tfox|hen|-LRB-dog\n\n"
)
PASSAGE = {
    "title": "The_Blitz",
    "paragraphs": [
        {
            "context": "It rained in March.",
            "qas": [
                {
                    "id": "1",
                    "question": "When?",
                    "answers": [{"text": "March", "answer_start": 13}],
                    "is_impossible": False,
                },
                {"id": "2", "question": "Who?", "answers": [], "is_impossible": True},
            ],
        }
    ],
}
QUAC = {
    "title": "Perry",
    "section_title": "Career",
    "paragraphs": [
        {
            "context": "He played. CANNOTANSWER",
            "qas": [
                {"question": "what?", "answers": [{"text": "He played"}], "orig_answer": {"text": "He played"}},
                {"question": "why?", "answers": [{"text": "CANNOTANSWER"}], "orig_answer": {"text": "CANNOTANSWER"}},
            ],
        }
    ],
}
COQA = {
    "story": "Tom sat.",
    "questions": [{"input_text": "Who?", "turn_id": 1}, {"input_text": "Did what?", "turn_id": 2}],
    "answers": [{"input_text": "Tom", "turn_id": 1}, {"input_text": "sat", "turn_id": 2}],
    "additional_answers": {"0": [{"input_text": "Tommy", "turn_id": 1}, {"input_text": "He sat", "turn_id": 2}]},
}
DROP = {
    "passage": "3 dogs, 2 cats.",
    "qa_pairs": [
        {
            "question": "How many dogs?",
            "answer": {"number": "3", "date": {"day": "", "month": "", "year": ""}, "spans": []},
            "query_id": "q",
            "validated_answers": [{"number": "", "date": {}, "spans": ["three", "dogs"]}],
        },
        {
            "question": "When?",
            "answer": {"number": "", "date": {"day": "5", "month": "May", "year": "1900"}, "spans": []},
        },
    ],
}
TRIVIA = {"Question": "Who?", "Answer": {"Value": "Ann", "Aliases": ["Ann", "Anna"], "NormalizedAliases": ["ann"]}}
RECORD = {
    "source": "CNN",
    "passage": {
        "text": "Rabin met Trump\n@highlight\n\nRabin spoke",
        "entities": [{"start": 0, "end": 4}, {"start": 10, "end": 14}, {"start": 28, "end": 32}],
    },
    "idx": 0,
    "qas": [{"query": "So @placeholder spoke.", "answers": [{"start": 0, "end": 4, "text": "Rabin"}], "idx": 0}],
}
MULTIRC = {
    "idx": 0,
    "passage": {
        "text": "A text.",
        "questions": [
            {
                "question": "What?",
                "idx": 0,
                "answers": [{"text": "a", "idx": 0, "label": 1}, {"text": "b", "idx": 1, "label": 0}],
            }
        ],
    },
}
SCHEMA = """<?xml version="1.0"?><collection><schema><text><txt1>The cup was too big for</txt1><pron>it</pron>
<txt2>was small.</txt2></text><answers><answer>The cup</answer><answer>The box</answer></answers>
<correctAnswer>B.</correctAnswer><source>x</source></schema></collection>"""
STORY = "InputStoryid,InputSentence1,InputSentence2,InputSentence3,InputSentence4," + (
    "RandomFifthSentenceQuiz1,RandomFifthSentenceQuiz2,AnswerRightEnding\n"
    'x,One.,"Two, too.",Three.,Four.,"He said ""hi"".",Bad.,1\n'
)
HELLA = {
    "ind": 4,
    "activity_label": "Cooking",
    "ctx_a": "A man cooks.",
    "ctx_b": "he",
    "ctx": "A man cooks. he",
    "endings": ["eats. [title] Done", "flies.", "sits.", "runs."],
    "label": 0,
    "split": "val",
}
PHYSICAL, AI2 = "physicaliqa-train-dev", "ARC-V1-Feb2018-2"
BILLION = "1-billion-word-language-modeling-benchmark-r13output"
HELD_OUT = "heldout-monolingual.tokenized.shuffled"
WMT = {14: "test-full", 16: "test"}  # the folders that the archives of a year's test sets unpack into
PIQA = {"goal": "To dry", "sol1": "use a towel", "sol2": "use water"}
GRANDE = {
    "qID": "1",
    "sentence": "The cup fits the box since the _ is big.",
    "option1": "cup",
    "option2": "box",
    "answer": "2",
}
COPA = {
    "premise": "It rained.",
    "choice1": "I got wet.",
    "choice2": "I sang.",
    "question": "effect",
    "label": 0,
    "idx": 0,
}
ANLI = lines(*({"uid": "x", "context": "A.", "hypothesis": "B.", "label": label, "reason": ""} for label in "enc"))
RACE = {
    "answers": ["B", "A"],
    "options": [["x", "y", "z", "w"], ["p", "q", "r", "s"]],
    "questions": ["Which?", "They saw _ ."],
    "article": "An article.",
    "id": "high1.txt",
}
BOOLQ = {"question": "is it so", "passage": "It is -- so.", "idx": 0, "label": True}
CB = {"premise": "P.", "hypothesis": "H", "label": "contradiction", "idx": 0}
WIC = {
    "word": "boot",
    "sentence1": "A boot.",
    "sentence2": "To boot.",
    "idx": 0,
    "label": False,
    "start1": 2,
    "end1": 6,
}
WEB = [{"url": "u", "targetValue": '(list (description "Arts School") (description Yale))', "utterance": "what school"}]
SUM = lines(*({"context": f"\n\nQ: What is {n} plus 1?\n\nA:", "completion": f" {n + 1}"} for n in (4, 7)))
WORDS = lines({"context": "\nskicts =", "completion": " sticks"}, {"context": "\nopt =", "completion": " top"})


def sgml(kind: str, *segments: str) -> str:
    inner = "\n".join(f'<seg id="{n}"> {text} </seg>' for n, text in enumerate(segments, 1))
    return f'<{kind}set setid="newstest2014"><doc docid="a">\n{inner}\n</doc></{kind}set>'


def sgm(year: int, source: str, target: str, pair: str) -> dict[str, str]:
    name = f"{WMT[year]}/newstest20{year}-{pair}"
    return {
        f"{name}-src.{source}.sgm": sgml("src", "Fish &amp; chips", "Yes"),
        f"{name}-ref.{target}.sgm": sgml("ref", "Poisson et frites", "Oui"),
    }


SETS: dict[str, list[dict[str, str]]] = {
    "lambada": [
        {"lambada_test.jsonl": lines({"text": 'He said "go" to Tom'}, {"text": "And so she did"})},
        {"lambada_test_plain_text.txt": "he said `` go '' , did n't he , tom\nand so she did\n"},
    ],
    "cbt_cn": [{"CBTest/data/cbtest_CN_valid_2000ex.txt": CLOZE}],
    "cbt_ne": [{"CBTest/data/cbtest_NE_valid_2000ex.txt": CLOZE}],
    "wikitext2": [
        {
            "wikitext-2/wiki.test.tokens": " \n = A = \n \n It <unk> , so . \n",
            "wikitext-2-raw/wiki.test.raw": " \n = A = \n \n It is , so . \n",
        }
    ],
    "wikitext103": [{"wikitext-103/wiki.test.tokens": " \n = A = \n \n It is , so . \n"}],
    "ptb": [
        {"simple-examples/data/ptb.test.txt": " no it was n't black monday \n but <unk> lost $ N \n"},
        {"simple-examples/data/ptb.valid.txt": " so it was \n"},
    ],
    "enwik8": [{"enwik8": "<mediawiki>\n naïve " * 100}],
    "text8": [{"text8": " anarchism originated as " * 100}],
    "one_billion": [{f"{BILLION}/{HELD_OUT}/news.en.heldout-00000-of-00050": 'It was " so , " he said .\n'}],
    "piqa": [
        {"piqa/valid.jsonl": lines(PIQA, PIQA), "piqa/valid-labels.lst": "0\n1\n"},
        {f"{PHYSICAL}/dev.jsonl": lines(PIQA, PIQA), f"{PHYSICAL}/dev-labels.lst": "0\n1\n"},
    ],
    "hellaswag": [{"hellaswag_val.jsonl": lines(HELLA, HELLA)}],
    "storycloze": [
        {"cloze_test_test__spring2016 - cloze_test_ALL_test.csv": STORY},
        {"cloze_test_val__spring2016 - cloze_test_ALL_val.csv": STORY},
    ],
    "arc_easy": [{f"{AI2}/ARC-Easy/ARC-Easy-Test.jsonl": ARC, f"{AI2}/ARC-Easy/ARC-Easy-Train.jsonl": ARC}],
    "arc_challenge": [{f"{AI2}/ARC-Challenge/ARC-Challenge-Test.jsonl": ARC}],
    "openbookqa": [{"OpenBookQA-V1-Sep2018/Data/Main/test.jsonl": ARC}],
    "winogrande": [{"winogrande_1.1/dev.jsonl": lines(GRANDE, GRANDE)}],
    "winograd": [{"WSCollection.xml": SCHEMA}],
    "anli_r1": [{"anli_v1.0/R1/test.jsonl": ANLI}],
    "anli_r2": [{"anli_v1.0/R2/test.jsonl": ANLI}],
    "anli_r3": [{"anli_v1.0/R3/test.jsonl": ANLI}],
    "race_high": [{"RACE/test/high/1.txt": json.dumps(RACE), "RACE/test/high/2.txt": json.dumps(RACE)}],
    "race_middle": [{"RACE/test/middle/1.txt": json.dumps(RACE)}],
    "boolq": [{"BoolQ/val.jsonl": lines(BOOLQ, BOOLQ | {"label": False})}],
    "cb": [{"CB/val.jsonl": lines(CB, CB | {"label": "entailment"}, CB | {"label": "neutral"})}],
    "copa": [{"COPA/val.jsonl": lines(COPA, COPA | {"question": "cause"})}],
    "rte": [{"RTE/val.jsonl": lines(CB | {"label": "entailment"}, CB | {"label": "not_entailment"})}],
    "wic": [{"WiC/val.jsonl": lines(WIC, WIC | {"label": True})}],
    "multirc": [{"MultiRC/val.jsonl": lines(MULTIRC)}],
    "record": [{"ReCoRD/val.jsonl": lines(RECORD)}],
    "triviaqa": [
        {"triviaqa-unfiltered/unfiltered-web-dev.json": json.dumps({"Data": [TRIVIA, TRIVIA]})},
        {"qa/wikipedia-dev.json": json.dumps({"Data": [TRIVIA]})},
    ],
    "nq": [{"NQ-open.dev.jsonl": lines({"question": "who was it", "answer": ["Ann", "Anna"]})}],
    "webqs": [{"webquestions.examples.test.json": json.dumps(WEB)}],
    "coqa": [{"coqa-dev-v1.0.json": json.dumps({"version": "1.0", "data": [COQA]})}],
    "drop": [{"drop_dataset/drop_dataset_dev.json": json.dumps({"nfl_1": DROP})}],
    "quac": [{"val_v0.2.json": json.dumps({"data": [QUAC]})}],
    "squad2": [{"dev-v2.0.json": json.dumps({"version": "v2.0", "data": [PASSAGE]})}],
    "wmt14_en_fr": [
        sgm(14, "en", "fr", "enfr"),
        sgm(14, "en", "fr", "fren"),
        {"newstest2014.en": "Fish\nYes\n", "newstest2014.fr": "Poisson\nOui\n"},
    ],
    "wmt14_fr_en": [sgm(14, "fr", "en", "fren")],
    "wmt16_en_de": [sgm(16, "en", "de", "ende")],
    "wmt16_de_en": [sgm(16, "de", "en", "deen")],
    "wmt16_en_ro": [sgm(16, "en", "ro", "enro")],
    "wmt16_ro_en": [sgm(16, "ro", "en", "roen")],
    "cnn_dm": [
        {"cnn_dm/test.source": "A long story.\n", "cnn_dm/test.target": "A story.\n"},
        {"cnn_dm/0a.story": "A long story.\n\nMore.\n\n@highlight\n\nA story\n\n@highlight\n\nMore\n"},
    ],
}
for name, file in {
    "add_2": "two_digit_addition",
    "subtract_2": "two_digit_subtraction",
    "add_3": "three_digit_addition",
    "subtract_3": "three_digit_subtraction",
    "add_4": "four_digit_addition",
    "subtract_4": "four_digit_subtraction",
    "add_5": "five_digit_addition",
    "subtract_5": "five_digit_subtraction",
    "multiply_2": "two_digit_multiplication",
    "three_ops": "single_digit_three_ops",
}.items():
    SETS[name] = [{f"{file}.jsonl": SUM}]
for name, file in {
    "cycle_letters": "cycle_letters_in_word",
    "anagrams_1": "mid_word_1_anagrams",
    "anagrams_2": "mid_word_2_anagrams",
    "random_insertion": "random_insertion_in_word",
    "reversed_words": "reversed_words",
}.items():
    SETS[name] = [{f"{file}.jsonl": WORDS}]
