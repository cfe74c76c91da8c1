"""Whole runs: resumed after kill -9 they end with the same bytes; the report says what was measured and how."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tiny_models import TINY, make, write_model

from gpt2.evaluate import metrics, runs
from gpt2.evaluate.data import NoData
from gpt2.evaluate.published import nearest, of_one, tables
from gpt2.evaluate.report import write_report

ROOT = Path(__file__).resolve().parents[2]
SUMS = "".join(
    json.dumps({"context": f"\n\nQ: What is {n} plus 1?\n\nA:", "completion": f" {n + 1}"}) + "\n" for n in range(12)
)
PIQA = "".join(
    json.dumps({"query": f"Question: goal {n}\n", "choices": [f"do {n}", "or not"], "gold": n % 2}) + "\n"
    for n in range(12)
)
LAMBADA = "".join(json.dumps({"text": f"It was the sea and {n} men sang of it"}) + "\n" for n in range(12))
WIKITEXT = " \n = A = \n \n It is blue , and 7 @.@ 5 cm long . \n" * 3


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("model") / "tiny", make(TINY, context_length=128))


@pytest.fixture
def data(tmp_path: Path) -> Path:
    folder = tmp_path / "data"
    folder.mkdir()
    (folder / "piqa.jsonl").write_text(PIQA)
    (folder / "lambada_test.jsonl").write_text(LAMBADA)
    (folder / "two_digit_addition.jsonl").write_text(SUMS)
    (folder / "wikitext-2").mkdir()
    (folder / "wikitext-2" / "wiki.test.tokens").write_text(WIKITEXT)
    (folder / "wikitext-2-raw").mkdir()
    (folder / "wikitext-2-raw" / "wiki.test.raw").write_text(WIKITEXT)
    return folder


def words(model: Path, data: Path, out: Path, *more: str) -> list[str]:
    return ["evaluate", "--model", str(model), "--data", str(data), "--out", str(out), *more]


def test_a_run_that_is_killed_goes_on_and_ends_with_the_same_bytes(
    model: Path, data: Path, tmp_path: Path, gpt2: Callable[..., Any]
) -> None:
    more = ("--tasks", "piqa,lambada,wikitext2,add_2", "--protocol", "both")
    whole = gpt2(*words(model, data, tmp_path / "whole", *more))
    assert whole.code == 0, whole.err
    out = tmp_path / "killed"
    command = [sys.executable, "-m", "gpt2", *words(model, data, out, *more)]
    child = subprocess.Popen(command, env=os.environ | {"PYTHONPATH": str(ROOT)}, stderr=subprocess.DEVNULL)
    until = time.monotonic() + 100
    while len(list((out / "tasks").glob("*.json"))) < 2 and time.monotonic() < until and child.poll() is None:
        time.sleep(0.005)
    child.send_signal(signal.SIGKILL)
    assert child.wait() == -signal.SIGKILL, "it was done before it could be killed"
    done = {path.name: path.stat().st_mtime_ns for path in (out / "tasks").glob("*.json")}
    assert 2 <= len(done) < len(list((tmp_path / "whole" / "tasks").glob("*.json")))
    again = gpt2(*words(model, data, out, *more))
    assert again.err.count("done before") == len(done)
    assert {name: (out / "tasks" / name).stat().st_mtime_ns for name in done} == done
    for name in ("results.json", "report.md", "report.html"):
        assert (out / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    assert again.out == whole.out


def test_results_name_protocol_data_model_and_versions(
    model: Path, data: Path, tmp_path: Path, gpt2: Callable[..., Any]
) -> None:
    ran = gpt2(*words(model, data, tmp_path / "out", "--limit", "5", "--stride", "64"))
    assert ran.code == 0, ran.err
    found = json.loads((tmp_path / "out" / "results.json").read_text(encoding="utf-8"))
    assert len(found["model"]["sha256"]) == 64 and found["model"]["weights"] == "float32"
    assert found["seed"] == 0 and {"python", "numpy"} <= found["versions"].keys()
    by_name = {(each["task"], each["protocol"]): each for each in found["results"]}
    text = by_name["wikitext2", "gpt2"]
    assert text["how"]["stride"] == 64 and text["how"]["window"] == 128
    assert text["how"]["denominators"] == "words of the published file and one line end a line"
    assert text["how"]["units"]["token"] == 14 + 5 and text["limit"] == 5
    lambada = by_name["lambada", "gpt2"]
    assert lambada["how"]["predicted"] == "the last token" and lambada["items"] == 5
    assert next(iter(lambada["metrics"])) == "ppl" and lambada["metrics"]["ppl"]["stderr"] > 0
    assert len(lambada["data"]["sha256"]) == 64
    assert set(found["without_data"]) == {
        f"{n}-gpt3-0" for n in ("copa", "winogrande", "arc_easy", "triviaqa", "add_3", "anagrams_2")
    }
    assert "left out: copa: no data; looked for COPA/val.jsonl" in ran.err
    assert ran.out.splitlines()[0].split() == ["task", "protocol", "K", "metric", "ours", "published", "difference"]


def test_items_and_figures_do_not_depend_on_the_other_tasks(
    model: Path, data: Path, tmp_path: Path, gpt2: Callable[..., Any]
) -> None:
    gpt2(*words(model, data, tmp_path / "a", "--tasks", "piqa,add_2"))
    gpt2(*words(model, data, tmp_path / "b", "--tasks", "piqa"))
    a, b = (json.loads((tmp_path / x / "tasks" / "piqa-gpt3-0.json").read_text()) for x in "ab")
    assert a == b and len(a["items"]["acc"]) == 12


def test_another_model_or_setting_is_never_mixed_in(
    model: Path, data: Path, tmp_path: Path, gpt2: Callable[..., Any]
) -> None:
    out = tmp_path / "out"
    assert gpt2(*words(model, data, out, "--tasks", "piqa")).code == 0
    other = write_model(tmp_path / "other", make(TINY, seed=5, context_length=128))
    ran = gpt2(*words(other, data, out, "--tasks", "piqa"))
    assert ran.code == 2 and "holds results of" in ran.err and "--out" in ran.err
    assert "done before" in gpt2(*words(model, data, out, "--tasks", "piqa")).err
    assert "done before" not in gpt2(*words(model, data, out, "--tasks", "piqa", "--seed", "1")).err
    (data / "piqa.jsonl").write_text(PIQA.replace("goal 3", "aim 3"))
    assert "done before" not in gpt2(*words(model, data, out, "--tasks", "piqa", "--seed", "1")).err
    (out / "tasks" / "piqa-gpt3-0.json").write_text("{")
    assert gpt2(*words(model, data, out, "--tasks", "piqa")).code == 0


def test_few_shot_runs_say_how_many_examples_fitted(
    model: Path, data: Path, tmp_path: Path, gpt2: Callable[..., Any]
) -> None:
    ran = gpt2(*words(model, data, tmp_path / "out", "--tasks", "piqa", "--shots", "zero,one,few"))
    assert ran.code == 0, ran.err
    found = json.loads((tmp_path / "out" / "results.json").read_text(encoding="utf-8"))["results"]
    assert [each["shots"] for each in found] == [0, 1, 50]
    assert found[1]["how"]["shots_used"] == 1 and 1 < found[2]["how"]["shots_used"] < 11
    assert found[2]["examples"] == "the other items of the set"
    page = (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    assert "Against the number of examples" in page
    assert "here are only 11 examples to draw from, where 50 were asked for, and " in page
    assert f"and {found[2]['how']['shots_used']:g} of them fitted the context of 128 tokens" in page


def test_examples_of_the_harness_say_that_we_drew_them(
    model: Path, data: Path, tmp_path: Path, gpt2: Callable[..., Any]
) -> None:
    more = ("--tasks", "piqa", "--protocol", "harness", "--shots", "0,2")
    assert gpt2(*words(model, data, tmp_path / "out", *more)).code == 0
    plain, shown = json.loads((tmp_path / "out" / "results.json").read_text(encoding="utf-8"))["results"]
    assert "draw" not in plain and shown["draw"].startswith("by our generator, not lm-evaluation-harness's")
    report = (tmp_path / "out" / "report.md").read_text(encoding="utf-8")
    assert report.count("; examples drawn by our generator, not lm-evaluation-harness's") == 1


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--suite", "nine"], "--suite nine: no such file, and no suite; there are quick"),
        (["--suite", "gpt2-papers"], "did you mean 'gpt2-paper'"),
        (["--tasks", "piqua"], "no task 'piqua' (did you mean 'piqa'?)"),
        (["--protocol", "x"], "--protocol x: must be paper, harness or both"),
        (["--shots", "many", "--tasks", "piqa"], "--shots many: must be zero, one, few"),
        (["--limit", "-1"], "--limit -1: must be at least 0"),
        (["--data", "nowhere"], "--data nowhere: no such folder"),
        (["--tasks", "boolq"], "boolq: no data; looked for BoolQ/val.jsonl"),
        (["--tokenizer", "gpt2"], "only a model behind a URL"),
        (["--tasks", "wikitext2", "--stride", "999"], "1 <= stride <= window <= 128"),
        (["--tasks", "piqa,wikitext2", "--window", "999"], "1 <= stride <= window <= 128"),
        (["--seed", "-1"], "--seed -1: must be at least 0"),
        (["--tasks", "anagrams_2", "--protocol", "harness"], "--tasks anagrams_2: has no way of asking"),
        (["--tasks", "piqa", "--beside", "README.md"], "--beside README.md: not a results.json"),
    ],
)
def test_what_cannot_be_run_is_refused_in_one_line(
    model: Path,
    data: Path,
    tmp_path: Path,
    gpt2: Callable[..., Any],
    monkeypatch: pytest.MonkeyPatch,
    more: list[str],
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "README.md").write_text("x")
    ran = gpt2(*words(model, data, tmp_path / "out", *more))
    assert (ran.code, ran.out) == (2, "") and message in ran.err
    assert len([line for line in ran.err.splitlines() if line.startswith("gpt2:")]) == 1
    assert not (tmp_path / "out" / "tasks").exists(), "it was scored first"


def test_what_a_suite_does_not_ask_stands_in_its_report(
    model: Path, data: Path, tmp_path: Path, gpt2: Callable[..., Any]
) -> None:
    ran = gpt2(*words(model, data, tmp_path / "out", "--protocol", "harness"))
    assert ran.code == 0 and "left out: anagrams_2: has no way of asking in the protocol harness" in ran.err
    found = json.loads((tmp_path / "out" / "results.json").read_text(encoding="utf-8"))
    assert set(found["left_out"]) == {"anagrams_2"}
    assert "anagrams_2: has no way" in (tmp_path / "out" / "report.md").read_text(encoding="utf-8")


def test_a_result_of_an_earlier_run_keeps_its_versions(
    model: Path, data: Path, tmp_path: Path, gpt2: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    now = runs.versions()
    monkeypatch.setattr(runs, "versions", lambda: {**now, "numpy": "0.1"})
    assert gpt2(*words(model, data, tmp_path / "out", "--tasks", "piqa")).code == 0
    monkeypatch.setattr(runs, "versions", lambda: now)
    assert "done before" in gpt2(*words(model, data, tmp_path / "out", "--tasks", "piqa,add_2")).err
    found = json.loads((tmp_path / "out" / "results.json").read_text(encoding="utf-8"))
    assert [each["versions"]["numpy"] for each in found["results"]] == ["0.1", now["numpy"]]
    assert found["versions"] == now
    report = (tmp_path / "out" / "report.md").read_text(encoding="utf-8")
    assert report.count("; measured with numpy 0.1\n") == 1


def test_another_set_than_the_published_figure_s_is_named(
    model: Path, data: Path, tmp_path: Path, gpt2: Callable[..., Any]
) -> None:
    (data / "wikitext-2" / "wiki.test.tokens").rename(data / "wikitext-2" / "wiki.valid.tokens")
    (data / "lambada_test.jsonl").rename(data / "lambada_first.jsonl")
    ran = gpt2(*words(model, data, tmp_path / "out", "--tasks", "wikitext2,lambada"))
    assert ran.code == 0 and "WikiText-2 (validation)" in ran.out and "LAMBADA (test, 12 of 5,153)" in ran.out
    report = (tmp_path / "out" / "report.md").read_text(encoding="utf-8")
    assert "what was asked is validation, the published figure's is test" in report.lower()
    assert "what was asked is test, 12 of 5,153, the published figure's is test" in report.lower()
    assert "test set is the usual one" not in report


def take_away(monkeypatch: pytest.MonkeyPatch, *libraries: str) -> None:
    """As if they were not installed."""
    metrics.rouge_scorer.cache_clear()
    for name in libraries:
        monkeypatch.setitem(sys.modules, name, None)


def test_a_missing_library_is_told_before_anything_is_scored(
    model: Path, data: Path, tmp_path: Path, gpt2: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    take_away(monkeypatch, "rouge_score", "rouge_score.rouge_scorer", "datasets")
    (data / "cnn_dm").mkdir()
    for name in ("source", "target"):
        (data / "cnn_dm" / f"test.{name}").write_text("A story.\n")
    for what in (("--tasks", "piqa,cnn_dm"), ("--suite", "gpt2-paper")):
        ran = gpt2(*words(model, data, tmp_path / "out", *what))
        assert ran.code == 2 and not (tmp_path / "out" / "tasks").exists()
        assert "cnn_dm: ROUGE needs rouge-score: pip install 'gpt2[eval]', or leave it out with --tasks" in ran.err
    (data / "cnn_dm" / "test.source").unlink()
    ran = gpt2(*words(model, data, tmp_path / "out", "--suite", "gpt2-paper"))
    assert ran.code == 0 and "left out: cnn_dm: no data" in ran.err, "what has no data needs no library"


def test_a_suite_leaves_out_what_only_the_hub_might_have_and_no_library_compares(
    model: Path, data: Path, tmp_path: Path, gpt2: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    take_away(monkeypatch, "rouge_score", "rouge_score.rouge_scorer", "sacrebleu")
    monkeypatch.setattr("gpt2.evaluate.data.opened", lambda hub, missing: raise_no_data(missing))
    monkeypatch.setattr("gpt2.evaluate.data.importlib.util.find_spec", lambda name: object())  # as if it were installed
    ran = gpt2(*words(model, data, tmp_path / "out", "--suite", "gpt2-paper"))
    (said,) = (line for line in ran.err.splitlines() if line.startswith("left out: cnn_dm"))
    assert ran.code == 0 and "ROUGE needs rouge-score: pip install 'gpt2[eval]'" in said


def raise_no_data(missing: str) -> Any:
    raise NoData(missing)


def test_a_finished_result_stays_where_its_data_cannot_be_reached_any_more(
    model: Path, data: Path, tmp_path: Path, gpt2: Callable[..., Any]
) -> None:
    asked = words(model, data, tmp_path / "out", "--tasks", "piqa,add_2")
    assert gpt2(*asked).code == 0
    before = (tmp_path / "out" / "results.json").read_bytes()
    for path in data.glob("piqa*"):
        path.rename(path.with_suffix(".away"))
    ran = gpt2(*asked)
    assert ran.code == 0 and "its data cannot be reached now" in ran.err
    assert (tmp_path / "out" / "results.json").read_bytes() == before
    ran = gpt2(*asked, "--limit", "1")
    assert ran.code == 2 and "piqa: no data" in ran.err, "another question has no answer yet"


def test_a_wrong_file_stops_the_run_with_its_line(
    model: Path, data: Path, tmp_path: Path, gpt2: Callable[..., Any]
) -> None:
    (data / "piqa.jsonl").write_text(PIQA + "{\n")
    ran = gpt2(*words(model, data, tmp_path / "out"))
    assert ran.code == 2 and "piqa.jsonl line 13: not JSON" in ran.err


def test_own_tasks_in_a_file(model: Path, data: Path, tmp_path: Path, gpt2: Callable[..., Any]) -> None:
    (tmp_path / "capitals.jsonl").write_text('{"country": "France", "capital": "Paris"}\n' * 3)
    (tmp_path / "pairs.jsonl").write_text(
        '{"o": ["He goes", "He go"], "right": "He go"}\n{"o": ["a", "b"], "right": 1}\n'
    )
    (tmp_path / "book.txt").write_text("It was a dark\nand stormy night\n")
    (tmp_path / "my.toml").write_text(
        'tasks = ["piqa"]\n'
        '[[task]]\nname = "capitals"\ndata = "capitals.jsonl"\ntemplate = "The capital of {country} is"\n'
        'answer = "capital"\nmetric = "likelihood"\n'
        '[[task]]\nname = "written"\ndata = "capitals.jsonl"\ntemplate = "{country}:"\nanswer = "capital"\n'
        'examples = "capitals.jsonl"\nmax_new_tokens = 4\n'
        '[[task]]\nname = "grammar"\ndata = "pairs.jsonl"\nchoices = "o"\nanswer = "right"\ncompare = "token"\n'
        '[[task]]\nname = "book"\ntext = "book.txt"\nunit = "word"\n'
    )
    ran = gpt2(*words(model, data, tmp_path / "out", "--suite", str(tmp_path / "my.toml")))
    assert ran.code == 0, ran.err
    found = json.loads((tmp_path / "out" / "results.json").read_text(encoding="utf-8"))["results"]
    assert [each["task"] for each in found] == ["piqa", "capitals", "written", "grammar", "book"]
    assert [next(iter(each["metrics"])) for each in found] == ["acc", "ppl", "exact", "acc", "ppl"]
    assert found[4]["how"]["units"] == {"word": 7, "byte": 31}
    assert found[2]["task_table"]["template"] == "{country}:"


def test_an_own_task_that_says_something_else_is_asked_anew(
    model: Path, data: Path, tmp_path: Path, gpt2: Callable[..., Any]
) -> None:
    (tmp_path / "capitals.jsonl").write_text('{"country": "France", "capital": "Paris"}\n' * 3)
    table = '[[task]]\nname = "capitals"\ndata = "capitals.jsonl"\nanswer = "capital"\n'
    suite = ("--suite", str(tmp_path / "my.toml"))
    for template, known in (("In {country}:", False), ("{country} =", False), ("{country} =", True)):
        (tmp_path / "my.toml").write_text(f'{table}template = "{template}"\n')
        ran = gpt2(*words(model, data, tmp_path / "out", *suite))
        assert ran.code == 0 and ("done before" in ran.err) == known
    (tmp_path / "my.toml").write_text(f'{table}template = "{{country}}"\n' * 2)
    ran = gpt2(*words(model, data, tmp_path / "out", *suite))
    assert ran.code == 2 and "task 2: a task before it is named 'capitals' too" in ran.err


def test_a_limit_that_leaves_no_word_is_refused(
    model: Path, data: Path, tmp_path: Path, gpt2: Callable[..., Any]
) -> None:
    ran = gpt2(*words(model, data, tmp_path / "out", "--tasks", "wikitext2", "--limit", "1"))
    assert ran.code == 2 and "too short to be measured" in ran.err


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("tasks = 1", "tasks is a list of names"),
        ("x = 1", "'x' is unknown"),
        ("[[task]]\nname = 'a'", "task 1: needs data (JSON lines with a template) or text"),
        ("[[task]]\nname = 'a'\ndata = 'no.jsonl'\ntemplate = '{x}'\nanswer = 'y'", "no.jsonl': no such file"),
        ("[[task]]\nname = 'a'\ndata = 'd.jsonl'\nanswer = 'y'", "needs 'template'"),
        (
            "[[task]]\nname = 'a'\ndata = 'd.jsonl'\ntemplate = '{x}'\nanswer = 'y'\nmetrik = 'f1'",
            "did you mean 'metric'?",
        ),
        (
            "[[task]]\nname = 'a'\ndata = 'd.jsonl'\ntemplate = '{x}'\nanswer = 'y'\nmetric = 'f2'",
            "must be one of exact",
        ),
        ("[[task]]\nname = 'a'\ndata = 'd.jsonl'\ntemplate = '{x}'\nanswer = 'y'", "d.jsonl line 1: no field 'x'"),
        ("[[task]]\nname = 'a'\ntext = 'd.jsonl'\nunit = 'page'", "unit = 'page'"),
        ("= =", "not TOML"),
    ],
)
def test_a_wrong_suite_file_is_refused(
    model: Path, data: Path, tmp_path: Path, gpt2: Callable[..., Any], text: str, message: str
) -> None:
    (tmp_path / "d.jsonl").write_text('{"y": "z"}\n')
    (tmp_path / "my.toml").write_text(text)
    ran = gpt2(*words(model, data, tmp_path / "out", "--suite", str(tmp_path / "my.toml")))
    assert ran.code == 2 and message in ran.err


def figure(value: float, stderr: float, percent: bool = True) -> dict[str, Any]:
    return {"value": value, "stderr": stderr, "percent": percent, "kind": "mean"}


def result(task: str, metrics: dict[str, Any], **more: Any) -> dict[str, Any]:
    plain = {"task": task, "title": task.upper(), "protocol": "gpt2", "protocol_title": "paper (GPT-2)", "shots": 0}
    rest = {
        "items": 9,
        "limit": None,
        "split": "test",
        "data": {"files": ["f"], "sha256": "0" * 64},
        "how": {},
        "note": "",
    }
    return plain | rest | {"metrics": metrics} | more


def test_the_nearest_size_of_the_same_protocol_is_set_beside() -> None:
    lambada = result("lambada", {"ppl": figure(40.0, 2.0, False), "acc": figure(0.45, 0.01)})
    row = nearest(lambada, "acc", 120e6)
    assert row and row.name == "117M" and row.value == pytest.approx(0.4599) and "Table 3" in row.source
    assert (row := nearest(lambada, "ppl", 700e6)) and row.value == 10.87
    for shots, value in ((0, 0.427), (15, 0.22)):
        row = nearest(lambada | {"protocol": "gpt3", "shots": shots}, "acc", 120e6)
        assert row and row.name == "Small" and row.value == pytest.approx(value)
    assert nearest(lambada | {"protocol": "own"}, "acc", 120e6) is None
    row = nearest(lambada | {"protocol": "gpt3", "shots": 1, "paper_shots": 15}, "acc", 120e6)
    assert row and (row.name, row.value) == ("175B", pytest.approx(0.725)) and "one-shot" in row.source
    assert nearest(lambada | {"shots": 3, "paper_shots": 0}, "acc", 120e6) is None, "the paper showed no examples"
    assert len(tables()) > 5


def test_a_figure_that_was_measured_otherwise_says_so_beside_ours() -> None:
    """nanochat asks PIQA and ARC with 10 examples and compares mean losses per token; GPT-3's BLEU is multi-bleu."""
    model = {"context_length": 1024}
    hellaswag = result("hellaswag", {"acc_norm": figure(0.5, 0.01)}, protocol="harness")
    row = nearest(hellaswag, "acc_norm", 124e6)
    assert row and row.source.endswith(
        "(CORE), by nanochat's own prompts, and of options by the lowest mean loss per token"
    )
    assert of_one(hellaswag, "acc_norm", row, model)[0].startswith(
        "The published figure was measured by nanochat's own"
    )
    piqa = result("piqa", {"acc": figure(0.5, 0.01)}, protocol="harness", paper_shots=0)
    assert nearest(piqa, "acc", 124e6) is nearest(piqa | {"shots": 5}, "acc", 124e6) is None
    shown = piqa | {"shots": 10, "how": {"shots_used": 10}}
    row = nearest(shown, "acc", 124e6)
    assert row and "by 10 examples in nanochat's own prompts" in row.source
    assert not any("the paper had" in reason for reason in of_one(shown, "acc", row, model))
    wmt = result("wmt14_fr_en", {"bleu": figure(0.3, 0.01)}, protocol="gpt3", shots=64, paper_shots=64)
    row = nearest(wmt, "bleu", 124e6)
    assert row and row.source == "GPT-3 paper, Table 3.4, few-shot, by multi-bleu in XLM's tokens"
    assert any("was measured by multi-bleu" in reason for reason in of_one(wmt, "bleu", row, model))


@pytest.mark.parametrize(
    ("used", "pool", "said"),
    [
        (7.5, 99, "only 7.5 of 15 examples fitted the context of 1024 tokens"),
        (9, 9, "there are only 9 examples to draw from, where 15 were asked for"),
        (8, 9, "there are only 9 examples to draw from, where 15 were asked for, and 8 of them fitted the context"),
        (15, 99, ""),
    ],
)
def test_why_there_were_fewer_examples(used: float, pool: int, said: str) -> None:
    lambada = result("lambada", {"acc": figure(0.9, 0.01)}, protocol="gpt3", shots=15, pool=pool)
    row = nearest(lambada, "acc", 125e6)
    assert row
    reasons = "; ".join(of_one(lambada | {"how": {"shots_used": used}}, "acc", row, {"context_length": 1024}))
    assert (said in reasons.replace("There", "there").replace("Only", "only")) if said else not reasons
    assert ("fitted" in reasons) == ("fitted" in said)


def test_the_report_has_both_figures_the_difference_and_reasons(tmp_path: Path) -> None:
    lambada = result(
        "lambada",
        {"ppl": figure(40.0, 2.0, False), "acc": figure(0.4550, 0.01)},
        limit=500,
        how={"window": 1024, "stride": 512},
        title="<b>LAMBADA",
    )
    model = {
        "name": "a & b",
        "sha256": "1" * 64,
        "parameters": 300e6,
        "context_length": 1024,
        "weights": "int8",
        "device": "cpu",
    }
    found = {
        "model": model,
        "results": [lambada],
        "seed": 0,
        "gpt2": "0",
        "versions": {},
        "without_data": {"x": "x: no data"},
    }
    other = {"model": model | {"parameters": 1e6}, "results": [lambada]}
    page = write_report(tmp_path, found, [other]).read_text(encoding="utf-8")
    text = (tmp_path / "report.md").read_text(encoding="utf-8")
    for part in ("45.50 ± 1.00", "55.48", "-9.98", "345M, GPT-2 paper, Table 3", "x: no data", "paper (GPT-2)"):
        assert part in page and part in text
    assert "a &amp; b" in page and "&lt;b&gt;LAMBADA" in page and "<b>LAMBADA" not in page
    for reason in (
        "another size: 300M parameters, beside published models of 355M",
        "first 500 items",
        "read as int8",
        "stride 512 of 1024",
    ):
        assert reason in page and reason in text
    assert page.count("data:image/svg+xml;base64,") == 1 and "http" not in page.split("base64,")[0]


def test_reasons_stand_with_the_first_figure_that_has_a_published_one_beside_it(tmp_path: Path) -> None:
    metrics = {"acc": figure(0.30, 0.01), "acc_norm": figure(0.31, 0.01)}
    asked = result("hellaswag", metrics, protocol="harness", shots=0, how={}, split="validation")
    model = {"name": "m", "sha256": "1" * 64, "parameters": 124e6, "context_length": 1024, "weights": "float32"}
    found = {"model": model | {"device": "cpu"}, "results": [asked], "seed": 0, "gpt2": "0", "versions": {}}
    write_report(tmp_path, found | {"without_data": {}}, [])
    text = (tmp_path / "report.md").read_text(encoding="utf-8")
    assert "The difference is within 2 standard errors and may be chance; the published figure was measured by" in text
