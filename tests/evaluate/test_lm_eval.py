"""Our model inside lm-evaluation-harness: each item as its own Hugging Face backend has it, on tasks of local files."""

from __future__ import annotations

import json
import os
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tiny_models import TINY, make, write_model

from gpt2.errors import UserError

pytest.importorskip("lm_eval", reason="lm-evaluation-harness is not installed: pip install 'gpt2[eval]'")
pytest.importorskip("datasets")
pytest.importorskip(
    "accelerate", reason="the harness's Hugging Face backend is not installed: pip install 'lm-eval[hf]'"
)
from gpt2.evaluate.harness import TASKS, write_tasks

ITEMS = 6
SETTINGS: dict[str, Any] = {"bootstrap_iters": 0, "verbosity": "ERROR", "limit": ITEMS}
VALUES = {"acc", "acc_norm", "perplexity", "word_perplexity", "exact_match"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, assets: Path) -> Path:
    """A small random model that looks at its prompt, with a small vocabulary of English."""
    from gpt2.tokenizer.train import train_bpe

    text = (assets / "text" / "tinyshakespeare.txt").read_text(encoding="utf-8")[:200_000]
    tokenizer = train_bpe([text], 400)
    config = replace(TINY, vocab_size=tokenizer.vocab_size, context_length=256)
    return write_model(tmp_path_factory.mktemp("model"), make(config, scale=5.0), tokenizer)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory, assets: Path) -> Path:
    """The first items of each file, and one short article."""
    few = tmp_path_factory.mktemp("data")
    for path in (assets / "benchmarks").glob("*.jsonl"):
        (few / path.name).write_text("".join(path.open(encoding="utf-8").readlines()[:ITEMS]), encoding="utf-8")
    lines = (assets / "benchmarks" / "wikitext2_valid.txt").read_text(encoding="utf-8").splitlines(keepends=True)
    (few / "wikitext2_valid.txt").write_text("".join(lines[:12]), encoding="utf-8")
    return few


@pytest.fixture(scope="module")
def both(folder: Path, data: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], dict[str, Any]]:
    """What the harness makes of its own backend, and of ours in float32."""
    os.environ["HF_DATASETS_CACHE"] = str(tmp_path_factory.mktemp("datasets"))
    import datasets
    import lm_eval
    from lm_eval.tasks import TaskManager

    import gpt2.evaluate.lm_eval  # noqa: F401

    datasets.config.HF_DATASETS_CACHE = Path(os.environ["HF_DATASETS_CACHE"])
    datasets.disable_progress_bars()
    tasks = tmp_path_factory.mktemp("tasks")
    names = write_tasks(data, tasks)
    manager = TaskManager(include_path=str(tasks), include_defaults=False)
    theirs = {"model": "hf", "model_args": {"pretrained": str(folder), "dtype": "float32"}, "batch_size": 4}
    ours = {"model": "gpt2", "model_args": {"path": str(folder), "weights": "float32"}}
    found = [
        lm_eval.simple_evaluate(tasks=names, task_manager=manager, device="cpu", **SETTINGS, **each)
        for each in (theirs, ours)
    ]
    return found[0], found[1]


@pytest.mark.parametrize("task", TASKS)
def test_every_item_is_as_the_harness_has_it(both: tuple[dict[str, Any], dict[str, Any]], task: str) -> None:
    theirs, ours = (sorted(each["samples"][task], key=lambda item: item["doc_id"]) for each in both)
    assert len(theirs) == len(ours) == (1 if task == "local_wikitext" else ITEMS)
    for one, other in zip(theirs, ours, strict=True):
        assert one["arguments"] == other["arguments"]
        if task == "local_triviaqa":
            assert one["filtered_resps"] == other["filtered_resps"]
        else:
            flat = [
                [value for response in each["filtered_resps"] for value in numbers(response)] for each in (one, other)
            ]
            assert flat[0] == pytest.approx(flat[1], rel=1e-5, abs=1e-3)
        for name in {"acc", "acc_norm", "exact_match"} & one.keys():
            assert one[name] == other[name]


def numbers(response: Any) -> list[float]:
    """A log-likelihood, and maybe whether it is greedy."""
    return [float(value) for value in response] if isinstance(response, (list, tuple)) else [float(response)]


def test_perplexities_and_accuracies_are_the_harnesss(both: tuple[dict[str, Any], dict[str, Any]]) -> None:
    compared = set()
    for task, theirs in both[0]["results"].items():
        for key, value in theirs.items():
            metric = key.partition(",")[0]
            if metric in VALUES:
                assert both[1]["results"][task][key] == pytest.approx(value, rel=1e-4), (task, key)
                compared.add((task, metric))
    assert len({task for task, _ in compared}) == len(TASKS) == 8 and {metric for _, metric in compared} == VALUES


def test_int8_is_what_writes_by_default(folder: Path) -> None:
    from gpt2.evaluate.lm_eval import GPT2LM

    lm = GPT2LM(path=str(folder), device="cpu")
    assert lm.get_model_info()["weights"] == "auto" and lm.max_length == 256
    assert lm.scorer.runner.model.weights == "int8"  # type: ignore[attr-defined]


def test_settings_of_a_task_are_ours_or_refused(folder: Path) -> None:
    from gpt2.evaluate.lm_eval import GPT2LM

    lm = GPT2LM(pretrained=str(folder), max_gen_toks=7)
    plain = lm._params({"until": ["\n", ""], "do_sample": False, "temperature": 0.7})
    assert plain.greedy and plain.stop == ("\n",) and plain.max_new_tokens == 7
    drawn = lm._params({"until": "a", "do_sample": True, "top_k": 5, "max_tokens": 3, "max_gen_toks": 9})
    assert (drawn.temperature, drawn.top_k, drawn.stop, drawn.max_new_tokens) == (1.0, 5, ("a",), 9)
    warm = lm._params({"until": "a", "temperature": 0.7, "top_p": 0.9})  # the harness samples then
    assert (warm.temperature, warm.top_p, warm.greedy) == (0.7, 0.9, False)
    assert lm._params({"temperature": 0.0}).greedy and lm._params({}).greedy
    penalised = lm._params({"do_sample": False, "temperature": 0.7, "top_p": 0.9, "repetition_penalty": 1.3})
    assert (penalised.temperature, penalised.top_p, penalised.repetition_penalty) == (0.0, 1.0, 1.3)
    with pytest.raises(UserError, match=r"generation_kwargs top_q: .*did you mean 'top_p'|top_k"):
        lm._params({"top_q": 1})
    with pytest.raises(UserError, match="path=FOLDER"):
        GPT2LM()


@pytest.mark.slow  # the harness reads the names of all of its thousands of tasks
def test_the_harnesss_command_line_knows_the_model(
    folder: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from gpt2.evaluate.lm_eval import main

    write_tasks(data, tmp_path / "tasks")
    words = ["lm_eval", "--model", "gpt2", "--model_args", f"path={folder}", "--include_path", tmp_path / "tasks",
             "--tasks", "local_copa", "--limit", "3", "--output_path", tmp_path / "out"]  # fmt: skip
    monkeypatch.setattr(sys, "argv", [str(word) for word in words])
    main()
    (written,) = (tmp_path / "out").rglob("results*.json")
    assert "acc,none" in json.loads(written.read_text())["results"]["local_copa"]


def test_tasks_are_written_for_the_files_that_are_there(tmp_path: Path) -> None:
    (tmp_path / "copa.jsonl").write_text("{}\n")
    assert write_tasks(tmp_path, tmp_path / "yaml") == ["local_copa"]
    (tmp_path / "none").mkdir()
    with pytest.raises(UserError, match=r"holds no file of these tasks: lambada\*"):
        write_tasks(tmp_path / "none", tmp_path / "yaml")
