"""Every task reads its official files and is asked by each of its protocols; some prompts letter by letter."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from fake_scores import FakeScores
from official_files import SETS

from gpt2.errors import UserError
from gpt2.evaluate.asked import Writing
from gpt2.evaluate.data import Data, load
from gpt2.evaluate.measures import Choose, LastWord, ReadOn, Setting, Write
from gpt2.evaluate.prompts import Example
from gpt2.evaluate.protocols import Job, jobs_of
from gpt2.evaluate.published import tables
from gpt2.evaluate.rows import Row
from gpt2.evaluate.suites import SUITES, find_jobs
from gpt2.evaluate.tasks import CATALOGUE
from gpt2.evaluate.tasks.recall import closed

FORMS = [(name, place) for name, forms in SETS.items() for place in range(len(forms))]
NEEDS_LIBRARIES = {"wmt", "cnn"}


def data_of(name: str, folder: Path, place: int = 0, protocol: str = "") -> Data:
    for file, text in SETS[name][place].items():
        (folder / file).parent.mkdir(parents=True, exist_ok=True)
        (folder / file).write_text(text, encoding="utf-8")
    forms, _ = CATALOGUE[name].source(protocol)
    return load(name, forms, None, [folder])


def test_every_task_has_its_official_files_here() -> None:
    assert SETS.keys() == CATALOGUE.keys()
    assert all(task.asks for task in CATALOGUE.values())


@pytest.mark.parametrize(("name", "place"), FORMS, ids=lambda value: str(value))
def test_official_files_are_read_and_asked(name: str, place: int, tmp_path: Path) -> None:
    if name[:3] in NEEDS_LIBRARIES:
        pytest.importorskip("sacrebleu")
        pytest.importorskip("rouge_score")
    data = data_of(name, tmp_path, place)
    assert data.test.items and len(data.test.sha256) == 64
    for job in jobs_of(CATALOGUE[name], ["gpt2", "gpt3", "harness"], ["zero", "2"]):
        ask: Any = job.ask
        data = data_of(name, tmp_path, place, job.protocol)
        if isinstance(ask, Write) and ask.writing.beams + ask.writing.top_k > 2:
            found = written(ask, data, job)
        else:
            found = ask.measure(FakeScores(), data.test.items, data.test.items, Setting(job.shots))
        assert found.items and all(column.rows for column in found.columns.values())
        for column in found.columns.values():
            assert (column.standard_error(0) or 0) >= 0
            assert column.value >= 0


def written(ask: Any, data: Data, job: Job) -> Any:
    """Beams and draws need a real model (tests of runs have one): here only what they are asked is made."""
    plain = replace(ask, writing=Writing(ask.writing.max_new_tokens, ask.writing.stop))
    return plain.measure(FakeScores(), data.test.items, data.test.items, Setting(job.shots))


def prompt(name: str, protocol: str, folder: Path, item: int = 0, shots: int = 0) -> list[Example]:
    """What is asked of one item: contexts with answers."""
    job = Job(CATALOGUE[name], protocol, shots)
    ask, values = job.ask, data_of(name, folder).test.items[item]
    if isinstance(ask, Choose):
        return ask.options(values)
    if isinstance(ask, LastWord):
        return [ask.example(values)]
    assert isinstance(ask, Write)
    return [ask.example(values, Setting(shots))]


G = {  # GPT-3's figures G.1 to G.51, with our small items in them
    "race_high": "Article:\nAn article.\n\nQ: Which?\n\nA:",
    "anli_r2": "anli 2: anli 2: A.\nQuestion: B. True, False, or Neither?",
    "piqa": "To dry",
    "copa": "It rained therefore",
    "record": "Rabin met Trump\n- Rabin spoke\n-",
    "hellaswag": "Cooking: A man cooks. He",
    "arc_easy": "Question: Which is hot?\nAnswer:",
    "openbookqa": "Which is hot?",
    "winograd": "The cup was too big for the cup",
    "winogrande": "The cup fits the box since the cup",
    "multirc": "A text.\n\nWhat?\n-",
    "storycloze": "One. Two, too. Three. Four.",
    "coqa": "Tom sat.\n\nQ: Who?\n\nA:",
    "drop": "Passage: 3 dogs, 2 cats.\nQuestion: How many dogs?\nAnswer:",
    "nq": "Q: Who was it?\n\nA:",
    "quac": "TITLE: Perry - Career\nPARAGRAPH: He played.\n\nQ: what?\n\nA:",
    "squad2": "Title: The Blitz\n\nBackground: It rained in March.\n\nQ: When?\n\nA:",
    "boolq": "It is -- so.\nquestion: is it so?\nanswer:",
    "cb": "P.\nquestion: H. true, false, or neither?\nanswer:",
    "rte": "P.\nquestion: H True or False?\nanswer:",
    "wic": "A boot.\nTo boot.\nquestion: Is the word 'boot' used in the same way in the two sentences above?\nanswer:",
    "triviaqa": "Q: Who?\n\nA:",
    "webqs": "Q: what school\n\nA:",
    "wmt16_de_en": "Q: What is the English translation of Fish & chips\nA:",
    "add_2": "Q: What is 4 plus 1?\n\nA:",
    "anagrams_1": "skicts =",
}


@pytest.mark.parametrize("name", G)
def test_gpt3_prompts_are_the_paper_s(name: str, tmp_path: Path) -> None:
    assert prompt(name, "gpt3", tmp_path)[0].context == G[name]


def test_answers_stand_behind_prompts_with_their_space(tmp_path: Path) -> None:
    answers = {
        "record": " So Rabin spoke.",
        "multirc": " [False] a",
        "winogrande": " is big.",
        "drop": " 3",
        "webqs": " Arts School",
    }
    for name, answer in answers.items():
        assert prompt(name, "gpt3", tmp_path / name)[0].answer == answer
    assert [option.answer for option in prompt("cb", "gpt3", tmp_path / "cb")] == [" true", " false", " neither"]
    assert prompt("lambada", "gpt3", tmp_path / "a", shots=3)[0] == Example('He said "go" to ____. ->', " Tom")
    assert prompt("wmt14_en_fr", "gpt3", tmp_path / "b", shots=3)[0].context == "Fish & chips ="
    assert prompt("lambada", "gpt2", tmp_path / "c")[0] == Example('He said "go" to', " Tom")


def test_earlier_questions_on_a_passage_are_answered(tmp_path: Path) -> None:
    assert prompt("coqa", "gpt2", tmp_path, 1)[0].context == "Tom sat.\n\nQ: Who?\n\nA: Tom\n\nQ: Did what?\n\nA:"
    assert prompt("race_high", "gpt3", tmp_path, 1)[0].context.endswith("Q: Which?\n\nA: y\n\nQ: They saw _ .\n\nA:")
    assert prompt("squad2", "gpt3", tmp_path, 1)[0].context.endswith("Q: When?\n\nA: March\n\nQ: Who?\n\nA:")


HARNESS = {
    "piqa": "Question: To dry\nAnswer:",
    "add_2": "Question: What is 4 plus 1?\nAnswer:",
    "triviaqa": "Question: Who??\nAnswer:",  # theirs: the question's own mark stays
    "boolq": "It is -- so.\nQuestion: is it so?\nAnswer:",
    "anli_r1": "A.\nQuestion: B. True, False, or Neither?\nAnswer:",
}


@pytest.mark.parametrize("name", HARNESS)
def test_harness_prompts_are_the_harness_s(name: str, tmp_path: Path) -> None:
    assert prompt(name, "harness", tmp_path)[0].context == HARNESS[name]


def test_harness_sets_copa_s_options_behind_two_spaces(tmp_path: Path) -> None:
    for protocol, answers in {"harness": ["  i got wet.", "  i sang."], "gpt3": [" i got wet.", " i sang."]}.items():
        assert [option.answer for option in prompt("copa", protocol, tmp_path)] == answers


def test_harness_reads_wikitext_in_its_raw_form(tmp_path: Path) -> None:
    paper, harness = (data_of("wikitext2", tmp_path, 0, protocol).test for protocol in ("gpt2", "harness"))
    assert harness.items == [{"page": " = A = \n \n It is , so . \n"}] and harness.names == ["wiki.test.raw"]
    assert "".join(item["text"] for item in paper.items).split()[3:5] == ["It", "<unk>"]
    _, hub = CATALOGUE["wikitext2"].source("harness")
    assert hub and (hub.id, hub.config) == ("EleutherAI/wikitext_document_level", "wikitext-2-raw-v1")
    assert "harness" not in CATALOGUE["wikitext103"].asks  # it has no task of this set


def test_triviaqa_in_the_harness_ignores_case_and_punctuation_alone() -> None:
    ask: Any = CATALOGUE["triviaqa"].asks["harness"]
    item = closed("Who?", "J. Lennon", ["Beatles", "The Fab Four!"])
    for text, right in {" beatles": 1, " the Beatles": 0, "J. Lennon": 0, " The fab four": 1}.items():
        assert ask.score(ask.clean(text), item)["em"][1] == (right, 1)


def test_no_example_is_about_the_items_own_passage(tmp_path: Path) -> None:
    for name in ("coqa", "squad2", "quac", "race_high", "multirc"):
        for item in data_of(name, tmp_path / name).test.items:
            ask: Any = Job(CATALOGUE[name], "gpt3", 2).ask
            if isinstance(ask, Write):
                ask = replace(ask, writing=Writing())
            found = ask.measure(FakeScores(), [item], [item | {"question": "another"}] * 3, Setting(2))
            assert found.facts["shots_used"] == 0, name


def test_cbt_scores_candidate_and_rest_of_sentence(tmp_path: Path) -> None:
    options = prompt("cbt_cn", "gpt2", tmp_path)
    assert options[0].context.endswith('The fox said "go" to line 20. "I can\'t," said the')
    assert [option.answer for option in options][:2] == [" fox, and ran.", " hen, and ran."]


def test_harness_asks_the_273_schemas_its_own_way(tmp_path: Path) -> None:
    forms, hub = CATALOGUE["winograd"].source("harness")
    (tmp_path / "WSCollection.xml").write_text(
        SETS["winograd"][0]["WSCollection.xml"].replace("it</pron>", "His</pron>")
    )
    ask: Any = CATALOGUE["winograd"].asks["harness"]
    (item,) = load("winograd", forms, None, [tmp_path]).test.items
    assert [(each.context, each.answer) for each in ask.options(item)] == [
        ("The cup was too big for the cup's", "  was small."),
        ("The cup was too big for the box's", "  was small."),
    ]
    assert hub and hub.fields is forms[0].fields and item["gold"] == 1
    with pytest.raises(UserError, match="column 'pronoun_loc' is 9; expected a place in the text"):
        hub.fields(Row({"text": "it was", "pronoun": "it", "pronoun_loc": 9, "options": ["a", "b"], "label": 0}, "f"))


def test_winograd_puts_the_answer_in_the_pronoun_s_place(tmp_path: Path) -> None:
    found = prompt("winograd", "gpt2", tmp_path)
    assert [each.context for each in found] == ["The cup was too big for the cup", "The cup was too big for the box"]
    assert {each.answer for each in found} == {" was small."}


def test_published_figures_are_of_tasks_and_metrics_that_there_are(tmp_path: Path) -> None:
    pytest.importorskip("sacrebleu")
    pytest.importorskip("rouge_score")
    seen: dict[tuple[str, str], set[str]] = {}
    for table in tables():
        for key, values in table["values"].items():
            task, metric = key.split(".")
            assert len(values) == len(table["names"]) == len(table["parameters"])
            ask: Any = CATALOGUE[task].asks[table["protocol"]]
            if (task, table["protocol"]) not in seen:
                data = data_of(task, tmp_path / task)
                run = ask.measure if not isinstance(ask, Write) else None
                found = (
                    run(FakeScores(), data.test.items, [], Setting())
                    if run
                    else written(ask, data, Job(CATALOGUE[task], table["protocol"], 0))
                )
                seen[task, table["protocol"]] = set(found.columns)
            assert metric in seen[task, table["protocol"]], key


def test_translations_are_compared_in_the_tokens_of_each_paper() -> None:
    pytest.importorskip("sacrebleu")
    told = {protocol: ask.settings()["compared_by"] for protocol, ask in CATALOGUE["wmt14_en_fr"].asks.items()}
    assert told == {"gpt2": "sacrebleu, tokens 13a", "gpt3": "sacrebleu, tokens intl"}
    item = {"answers": ["Le prix : 5€ “net”"]}  # the two part signs otherwise
    scores = [ask.score("Le prix : 5 € “ net ”", item)["bleu"] for ask in CATALOGUE["wmt14_en_fr"].asks.values()]
    assert scores[0] != scores[1]


def test_a_task_that_is_not_asked_says_why() -> None:
    plan = find_jobs("quick", "harness", [], [])
    assert set(plan.skipped) == {"anagrams_2"} and "anagrams_2" not in {job.task.name for job in plan.jobs}
    assert plan.skipped["anagrams_2"].endswith("in the protocol harness; there is paper (GPT-3)")
    plan = find_jobs("quick", "paper", ["5"], [])
    assert set(plan.skipped) == {"wikitext2"} and "takes no examples" in plan.skipped["wikitext2"]
    assert find_jobs("quick", "both", [], []).skipped == {}
    for protocol, shots, name in (("harness", [], "anagrams_2"), ("paper", ["5"], "wikitext2")):
        with pytest.raises(UserError, match=rf"--tasks {name}: "):
            find_jobs("quick", protocol, shots, ["piqa", name])


def test_the_harness_has_no_few_examples_of_its_own() -> None:
    for protocol in ("harness", "both"):
        with pytest.raises(UserError, match="--shots few: is a paper's number, the harness has none; say a number"):
            find_jobs("quick", protocol, ["few"], [])
    both = find_jobs("gpt3-paper", "both", [], []).jobs
    assert {job.shots for job in both if job.protocol == "harness"} == {0}, "a suite's examples are the paper's"
    assert {job.shots for job in both if job.name.startswith("piqa-gpt3")} == {0, 50}
    assert {job.shots for job in find_jobs("quick", "harness", ["5"], ["piqa"]).jobs} == {5}


def test_a_remark_is_of_its_own_protocol() -> None:
    for name in ("lambada", "nq", "wmt14_en_fr"):
        said = {protocol: CATALOGUE[name].remark(protocol) for protocol in ("gpt2", "gpt3", "harness")}
        assert "GPT-2" in said["gpt2"] and "GPT-2" not in said["gpt3"] and not said["harness"], name
    assert CATALOGUE["coqa"].remark("gpt2") == CATALOGUE["coqa"].remark("gpt3") != ""


def test_suites_take_the_papers_numbers_of_examples() -> None:
    jobs, strict, _ = find_jobs("gpt3-paper", "paper", [], [])
    shots = {(job.task.name, job.shots) for job in jobs}
    assert not strict and {job.protocol for job in jobs} == {"gpt3"}
    assert {("hellaswag", 20), ("lambada", 15), ("storycloze", 70), ("openbookqa", 100), ("winograd", 7)} <= shots
    assert ("ptb", 0) in shots and len([name for name, _ in shots if name == "ptb"]) == 1
    gpt2 = find_jobs("gpt2-paper", "both", [], []).jobs
    assert {job.name for job in gpt2} >= {"lambada-gpt2-0", "lambada-harness-0", "nq-gpt2-5", "wikitext2-harness-0"}
    quick = find_jobs("quick", "paper", [], []).jobs
    assert len(quick) == len(SUITES["quick"]) and all(isinstance(job, Job) for job in quick)
    assert isinstance(CATALOGUE["text8"].asks["gpt2"], ReadOn)
