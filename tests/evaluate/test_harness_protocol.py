"""The protocol `harness` gives what lm-evaluation-harness gives, with the same model and files."""

from __future__ import annotations

import importlib
import importlib.util
import json
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from tiny_models import TINY, make, write_model

from gpt2.evaluate.rows import Row
from gpt2.evaluate.tasks import CATALOGUE
from gpt2.evaluate.tasks.choices import winograd_harness, wsc273
from gpt2.evaluate.tasks.letters import as_harness
from gpt2.evaluate.tasks.superglue import copa
from gpt2.evaluate.tasks.texts import articles, harness_document, harness_wikitext, page_of, pages

lm_eval = pytest.importorskip("lm_eval", reason="lm-evaluation-harness is not installed: pip install 'gpt2[eval]'")
pytest.importorskip("datasets")

ITEMS = 20
THEIRS = {  # our task: theirs, our metrics: theirs
    "lambada": ("local_lambada", {"ppl": "perplexity", "acc": "acc"}),
    "piqa": ("local_piqa", {"acc": "acc", "acc_norm": "acc_norm"}),
    "copa": ("local_copa", {"acc": "acc"}),
    "winogrande": ("local_winogrande", {"acc": "acc"}),
    "arc_easy": ("local_arc_easy", {"acc": "acc", "acc_norm": "acc_norm"}),
}


@pytest.fixture
def folder(tmp_path: Path, assets: Path) -> Path:
    from gpt2.tokenizer.train import train_bpe

    text = (assets / "text" / "tinyshakespeare.txt").read_text(encoding="utf-8")[:200_000]
    tokenizer = train_bpe([text], 400)
    config = replace(TINY, vocab_size=tokenizer.vocab_size, context_length=256)
    return write_model(tmp_path / "model", make(config, scale=5.0), tokenizer)


def test_figures_are_the_harness_s_own(
    folder: Path, assets: Path, tmp_path: Path, gpt2: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    from lm_eval.tasks import TaskManager

    importlib.import_module("gpt2.evaluate.lm_eval")  # makes our model known there
    from gpt2.evaluate.harness import write_tasks

    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    write_tasks(assets / "benchmarks", tmp_path / "yaml")
    found = lm_eval.simple_evaluate(
        model="gpt2",
        model_args={"path": str(folder), "weights": "float32"},
        tasks=[theirs for theirs, _ in THEIRS.values()],
        task_manager=TaskManager(include_path=str(tmp_path / "yaml"), include_defaults=False),
        limit=ITEMS,
        bootstrap_iters=0,
        verbosity="ERROR",
    )["results"]
    ran = gpt2(
        *("evaluate", "--model", folder, "--weights", "float32", "--data", assets / "benchmarks", "--limit", ITEMS),
        *("--protocol", "harness", "--tasks", ",".join(THEIRS), "--out", tmp_path / "out"),
    )
    assert ran.code == 0, ran.err
    ours = json.loads((tmp_path / "out" / "results.json").read_text(encoding="utf-8"))["results"]
    for result in ours:
        name, metrics = THEIRS[result["task"]]
        for our, their in metrics.items():
            assert result["metrics"][our]["value"] == pytest.approx(found[name][f"{their},none"], rel=1e-4), (name, our)
    assert len(ours) == len(THEIRS)


def theirs(*parts: str) -> ModuleType:
    """A module of theirs that lies beside a task and cannot be imported by name."""
    path = Path(os.path.dirname(lm_eval.__file__), "tasks", *parts)  # noqa: PTH120
    spec = importlib.util.spec_from_file_location("theirs", path)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_wikitext_is_de_tokenised_and_counted_as_theirs(assets: Path) -> None:
    module = theirs("wikitext", "preprocess_wikitext.py")
    text = (assets / "benchmarks" / "wikitext2_valid.txt").read_text(encoding="utf-8")
    documents = articles([page_of(row) for row in pages([assets / "benchmarks" / "wikitext2_valid.txt"])])
    assert len(documents) == 60
    page = text[: text.index(" = Craig ")] if " = Craig " in text else text[:50_000]
    assert harness_wikitext(page) == module.wikitext_detokenizer({"page": page})
    assert harness_wikitext(text) == module.wikitext_detokenizer({"page": text})
    counted = module.process_results({"page": page}, (-1.0,))

    assert harness_document(page).units == {
        "word": counted["word_perplexity"][1],
        "byte": counted["byte_perplexity"][1],
    }


def test_copa_s_official_form_is_asked_as_theirs() -> None:
    module = theirs("super_glue", "copa", "utils.py")
    doc = {"premise": "It rained. ", "choice1": "I got wet.", "choice2": "We sang.", "question": "effect", "label": 1}
    ask: Any = CATALOGUE["copa"].asks["harness"]
    options = ask.options(copa(Row(doc, "x")))
    assert {option.context for option in options} == {module.doc_to_text(doc)}
    assert [option.answer for option in options] == [f" {choice}" for choice in module.doc_to_choice(doc)]


SCHEMAS = (  # before, pronoun, after, answers, right
    ("The city councilmen refused the demonstrators a permit because", "they", "feared violence.", "AB", "A."),
    ("The man  lifted the boy. Then", "his", "back hurt.", ("The man", "The boy's"), " B "),
    ("Ann called!", "She", "was out , though.", ("Ann", "The other The"), "A"),
    ("", "My", "cup fell.", ("The cook", "His guest"), "B."),
    ("They asked.", "Its", "end came.", ("The war", "It"), "A."),
)


def test_winograd_s_schemas_are_asked_as_theirs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets
    from lm_eval.tasks import TaskManager

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    parts = "".join(
        f"<schema><text><txt1>{before}\n</txt1><pron> {pronoun} </pron><txt2>{after}</txt2></text><answers>"
        f"{''.join(f'<answer>{answer}</answer>' for answer in answers)}</answers>"
        f"<correctAnswer>{right}</correctAnswer></schema>"
        for before, pronoun, after, answers, right in SCHEMAS
    )
    (tmp_path / "WSCollection.xml").write_text(f"<collection>{parts * 60}</collection>")
    rows = list(wsc273([tmp_path / "WSCollection.xml"]))
    assert len(rows) == 273 and rows[0]["text"][rows[0]["pronoun_loc"] :].startswith("they feared")
    rows = [*rows[:5], Row({**rows[1], "text": "The man lifted the boy.  Then  his  back hurt."}, "x")]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "yaml").mkdir()
    (tmp_path / "yaml" / "wsc.yaml").write_text(
        f"include: {Path(os.path.dirname(lm_eval.__file__), 'tasks', 'wsc273', 'default.yaml')}\n"  # noqa: PTH120
        f"task: local_wsc\ndataset_path: json\ndataset_name: null\n"
        f"dataset_kwargs: {{data_files: {{test: {tmp_path / 'rows.jsonl'}}}}}\n"
    )
    manager = TaskManager(include_path=str(tmp_path / "yaml"), include_defaults=False)
    task = manager.load_task_or_group(["local_wsc"])["local_wsc"]
    task.build_all_requests(rank=0, world_size=1)
    ask: Any = CATALOGUE["winograd"].asks["harness"]
    items = [winograd_harness(row) for row in rows]
    ours = [(option.context, option.answer) for item in items for option in ask.options(item)]
    assert ours == [instance.args for instance in task.instances]
    assert ours[0][1] == "  feared violence.", "the harness sets a space before the sentence's own"
    assert [item["gold"] for item in items] == [row["label"] for row in rows] == [0, 1, 0, 1, 0, 1]


def test_sums_are_written_as_theirs() -> None:
    module = theirs("arithmetic", "utils.py")
    doc = {"context": "\n\nQ: What is 98 plus 45?\n\nA:", "completion": " 143"}

    class Rows(list[Any]):
        def map(self, change: Callable[[Any], Any]) -> list[Any]:
            return [change(row) for row in self]

    assert module.process_docs(Rows([doc]))[0]["context"] == as_harness(doc["context"].lstrip("\n"))
