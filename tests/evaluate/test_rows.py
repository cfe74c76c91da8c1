"""What is wrong with a data file is told with file and line."""

from __future__ import annotations

import gzip
import sys
import types
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from official_files import SETS

from gpt2.errors import UserError
from gpt2.evaluate.data import Form, Hub, NoData, find, load, read
from gpt2.evaluate.rows import Row, jsonl, labelled, parallel, plain_lines, table
from gpt2.evaluate.tasks import CATALOGUE
from gpt2.evaluate.tasks.choices import race
from gpt2.evaluate.tasks.passages import coqa


def refused(task: str, folder: Path, *files: tuple[str, str]) -> str:
    for name, text in files:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text, encoding="utf-8")
    with pytest.raises(UserError) as caught:
        load(task, CATALOGUE[task].forms, None, [folder])
    assert "\n" not in str(caught.value)
    return str(caught.value)


GOOD = '{"query": "q", "choices": ["a", "b"], "gold": 0}\n'


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "piqa.jsonl: empty"),
        ("\n \n", "piqa.jsonl: empty"),
        (GOOD + GOOD + '{"query": "q", "choices"\n', "piqa.jsonl line 3: not JSON"),
        (GOOD + "[1]\n", "piqa.jsonl line 2: [1]; expected an object"),
        (
            GOOD + "\n" + '{"query": "q", "choice": ["a"], "gold": 0}\n',
            "line 3: no column 'choices' (did you mean 'choice'?)",
        ),
        (GOOD + '{"query": 3, "choices": [], "gold": 0}\n', "line 2: column 'query' is 3; expected text"),
        (GOOD + '{"query": "q", "choices": "ab", "gold": 0}\n', "line 2: column 'choices' is \"ab\"; expected a list"),
        (GOOD + '{"query": "q", "choices": [], "gold": 0}\n', "line 2: options []; expected some"),
        (GOOD + '{"query": "q", "choices": ["a", ""], "gold": 0}\n', 'line 2: options ["a", ""]; expected some'),
        (GOOD + '{"query": "q", "choices": ["a", "  "], "gold": 0}\n', 'piqa.jsonl line 2: options ["a", "  "]'),
        (GOOD + '{"query": "q", "choices": ["a", "b"], "gold": 2}\n', "line 2: the right one is 2, but there are 2"),
        (GOOD + '{"query": "q", "choices": ["a", "b"], "gold": -1}\n', "line 2: the right one is -1, but there are 2"),
        (GOOD + '{"query": "q", "choices": ["a"], "gold": "x"}\n', "line 2: column 'gold' is \"x\"; expected a whole"),
    ],
)
def test_a_wrong_file_is_named_with_its_line(tmp_path: Path, text: str, message: str) -> None:
    assert message in refused("piqa", tmp_path, ("piqa.jsonl", text))


def test_an_empty_label_is_none_of_those_known() -> None:
    with pytest.raises(UserError, match="expected one of 1, 2"):
        Row({"answer": ""}, "f line 1").place("answer", "12")
    assert Row({"answer": 2}, "f line 1").place("answer", "12") == 1


def test_as_many_answers_as_questions() -> None:
    article = {"article": "A.", "questions": ["Q?"], "options": [["a", "b"]], "answers": ["A"]}
    assert race(Row(article, "f"))[0]["gold"] == 0
    for wrong in ({"options": []}, {"answers": ["A", "B"]}, {"answers": [""]}, {"answers": ["AB"]}, {"options": 3}):
        with pytest.raises(UserError, match=r"^f: column"):
            race(Row(article | wrong, "f"))
    turn = [{"input_text": "x"}]
    story = {"story": "S", "questions": turn, "answers": turn, "additional_answers": {"0": turn * 2}}
    with pytest.raises(UserError, match="its 1 questions have another number of answers"):
        coqa(Row(story, "f"))


def test_labels_belong_to_items_line_by_line(tmp_path: Path) -> None:
    item = '{"goal": "g", "sol1": "a", "sol2": "b"}\n'
    assert "valid-labels.lst: 1 labels" in refused(
        "piqa", tmp_path, ("piqa/valid.jsonl", item * 2), ("piqa/valid-labels.lst", "0\n")
    )
    (tmp_path / "piqa" / "valid-labels.lst").write_text("0\n1\n1\n")
    with pytest.raises(UserError, match="3 labels for the 2 items"):
        list(labelled([tmp_path / "piqa" / "valid.jsonl", tmp_path / "piqa" / "valid-labels.lst"]))


def test_files_of_other_kinds_say_where_too(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text('x,y\n1,2\n"a,b",3\n4\n')
    with pytest.raises(UserError, match=r"a.csv line 4: 1 columns, expected 2: x, y"):
        list(table(",")([tmp_path / "a.csv"]))
    (tmp_path / "b.txt").write_bytes(b"one\ntwo\n\xff\n")
    with pytest.raises(UserError, match=r"b.txt line 3: not UTF-8: byte 0xff"):
        list(plain_lines([tmp_path / "b.txt"]))
    (tmp_path / "c.jsonl.gz").write_bytes(gzip.compress(b'{"a": 1}\n')[:-9])
    with pytest.raises(UserError, match=r"c.jsonl.gz: not a whole gzip file"):
        list(jsonl([tmp_path / "c.jsonl.gz"]))
    packed = bytearray(gzip.compress(b"".join(b'{"a": %d}\n' % n for n in range(99))))
    packed[len(packed) // 2 : len(packed) // 2 + 9] = b"\xff" * 9
    (tmp_path / "c.jsonl.gz").write_bytes(packed)
    with pytest.raises(UserError, match=r"c.jsonl.gz: not a whole gzip file: .*; fetch it again"):
        list(jsonl([tmp_path / "c.jsonl.gz"]))
    (tmp_path / "d").write_text("a\nb\n")
    (tmp_path / "e").write_text("a\n")
    with pytest.raises(UserError, match="belong line to line"):
        list(parallel([tmp_path / "d", tmp_path / "e"]))
    assert "coqa-dev-v1.0.json line 2: not JSON" in refused("coqa", tmp_path, ("coqa-dev-v1.0.json", '{"data":\n]}'))
    assert "schema" in refused(
        "winograd", tmp_path, ("WSCollection.xml", "<c><schema><correctAnswer>C</correctAnswer></schema></c>")
    )
    assert "line 1: not XML" in refused("winograd", tmp_path, ("WSCollection.xml", "<c"))
    assert "line 2: expected a line that begins with its number" in refused(
        "cbt_cn", tmp_path, ("cbtest_CN_valid_2000ex.txt", "1 a\nb\n")
    )


def test_no_data_names_all_files_that_were_looked_for(tmp_path: Path) -> None:
    with pytest.raises(NoData, match=r"piqa: no data; looked for piqa/valid.jsonl with .* or .* in .*"):
        load("piqa", CATALOGUE["piqa"].forms, None, [tmp_path])
    with pytest.raises(NoData, match="name one with --data"):
        load("piqa", CATALOGUE["piqa"].forms, None, [])


def test_data_lies_below_the_folder_or_in_one_named_after_the_task(tmp_path: Path) -> None:
    for place in (tmp_path / "BoolQ", tmp_path / "boolq"):
        place.mkdir()
        (place / "val.jsonl").write_text("x")
        assert find(tmp_path, "boolq", ["BoolQ/val.jsonl"]) == [place / "val.jsonl"]
        (place / "val.jsonl").unlink()
    (tmp_path / "val.jsonl").write_text("x")
    assert find(tmp_path, "boolq", ["BoolQ/val.jsonl"]) is None


@pytest.mark.parametrize(
    "name", ["ptb", "one_billion", "arc_easy", "arc_challenge", "drop", "wmt14_en_fr", "wmt16_ro_en"]
)
def test_an_archive_is_read_as_it_unpacks_and_without_its_folder(name: str, tmp_path: Path) -> None:
    task = CATALOGUE[name]
    folder = task.forms[0].archive
    for place, top in {"unpacked": "", "moved": f"{folder}/"}.items():
        for file, text in SETS[name][0].items():
            assert file.startswith(f"{folder}/")
            path = tmp_path / place / file.removeprefix(top)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")
    unpacked, moved = (load(name, task.forms, None, [tmp_path / place]) for place in ("unpacked", "moved"))
    assert unpacked == moved and unpacked.test.items
    assert (unpacked.train is not None) == (name == "arc_easy"), "training files lie beside the test file"


def test_a_pattern_that_several_files_fit_is_refused_unless_one_has_the_plain_name(tmp_path: Path) -> None:
    for name in ("arc_easy_first400.jsonl", "arc_easy_old.jsonl"):
        (tmp_path / name).write_text(GOOD)
    files = CATALOGUE["arc_easy"].forms[1].files
    with pytest.raises(UserError, match=r"arc_easy\*.jsonl is to be one file, but arc_easy_first400.jsonl, arc_easy_o"):
        find(tmp_path, "arc_easy", files)
    (tmp_path / "arc_easy.jsonl").write_text(GOOD)
    assert find(tmp_path, "arc_easy", files) == [tmp_path / "arc_easy.jsonl"]
    for name in ("NQ-open.dev.jsonl", "NQ-open.efficientqa.dev.1.1.jsonl"):
        (tmp_path / name).write_text('{"question": "who", "answer": ["Ann"]}\n')
    assert load("nq", CATALOGUE["nq"].forms, None, [tmp_path]).test.names == ["NQ-open.dev.jsonl"]


def test_a_set_of_one_file_an_article_has_many(tmp_path: Path) -> None:
    form = CATALOGUE["race_middle"].forms[0]
    (tmp_path / "RACE/test/middle").mkdir(parents=True)
    for name in "21":
        (tmp_path / f"RACE/test/middle/{name}.txt").write_text("{}")
    assert [path.name for path in find(tmp_path, "race_middle", form.files, form.many) or ()] == ["1.txt", "2.txt"]


def test_a_part_of_a_set_is_called_a_part(tmp_path: Path) -> None:
    (tmp_path / "lambada_first1000.jsonl").write_text('{"text": "He went to Tom"}\n' * 3)
    assert load("lambada", CATALOGUE["lambada"].forms, None, [tmp_path]).test.split == "test, 3 of 5,153"
    (tmp_path / "lambada_test.jsonl").write_text('{"text": "He went to Tom"}\n' * 3)
    assert load("lambada", CATALOGUE["lambada"].forms, None, [tmp_path]).test.split == "test"


def test_the_hash_is_of_all_files_that_belong_together(tmp_path: Path) -> None:
    form = Form(("a", "b"), dict, parallel)
    (tmp_path / "a").write_text("1\n")
    hashes = set()
    for text in ("2\n", "3\n"):
        (tmp_path / "b").write_text(text)
        hashes.add(read(form, [tmp_path / "a", tmp_path / "b"], "test").sha256)
    assert len(hashes) == 2


def test_the_hub_is_asked_where_no_file_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = {"validation": [{"q": "a"}, {"q": "b"}], "train": [{"q": "c"}]}
    fake = types.ModuleType("datasets")
    fake.load_dataset = lambda id, config: rows if id == "right" else 1 / 0  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "datasets", fake)
    found = load("t", (), Hub("right", lambda row: {"q": row.text("q")}), [tmp_path])
    assert found.test.items == [{"q": "a"}, {"q": "b"}] and found.train and found.train.items == [{"q": "c"}]
    with pytest.raises(UserError, match="right validation row 1: no column 'z'"):
        load("t", (), Hub("right", lambda row: {"q": row.text("z")}), [tmp_path])
    with pytest.raises(NoData, match="wrong cannot be fetched: division by zero"):
        load("t", (), Hub("wrong", dict), [tmp_path])
    with pytest.raises(NoData, match="no split 'test', it has validation, train"):
        load("t", (), Hub("right", dict, split="test"), [tmp_path])


class Rows(list[Any]):
    """As `datasets` gives a split; it knows how often it was read."""

    times = 0

    def __iter__(self) -> Any:
        self.times += 1
        return super().__iter__()


def test_without_examples_no_training_set_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    test, train = Rows([{"q": "a"}]), Rows([{"q": "c"}])
    fake = types.ModuleType("datasets")
    fake.load_dataset = lambda id, config: {"validation": test, "train": train}  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "datasets", fake)
    hub = Hub("some/set", lambda row: {"q": row.text("q")})
    assert load("t", (), hub, [tmp_path], examples=False).train is None and train.times == 0
    found = load("t", (), hub, [tmp_path])
    assert found.train and found.train.items == [{"q": "c"}] and (test.times, train.times) == (2, 1)
    test[0] = {"q": "a", "of": "another revision"}
    assert load("t", (), hub, [tmp_path]).test.sha256 != found.test.sha256 != found.train.sha256
    (tmp_path / "a.jsonl").write_text('{"q": "a"}\n')
    (tmp_path / "b.jsonl").write_text("not read\n")
    forms = (Form(("a.jsonl",), hub.fields, train=("b.jsonl",)),)
    assert load("t", forms, None, [tmp_path], examples=False).train is None


def test_a_large_training_set_is_read_no_further_than_its_first_rows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    folder = tmp_path / "set" / "data"
    folder.mkdir(parents=True)
    for name, texts in {"test": "ab", "train-0": "cde", "train-1": "f"}.items():
        (folder / f"{name}.jsonl").write_text("".join(f'{{"q": "{text}"}}\n' for text in texts))
    whole = (folder / "train-1.jsonl").read_text()
    (folder / "train-1.jsonl").write_text("{ not JSON: nobody may read it\n")
    hub = Hub(str(tmp_path / "set"), lambda row: {"q": row.text("q")}, split="test", first=2)
    assert load("t", (), hub, [tmp_path], examples=False).train is None
    found = load("t", (), hub, [tmp_path])
    assert found.test.items == [{"q": "a"}, {"q": "b"}] and found.train
    assert found.train.items == [{"q": "c"}, {"q": "d"}] and found.train.split == "train, the first 2 rows"
    with pytest.raises(NoData, match="cannot be fetched: "):
        load("t", (), replace(hub, first=4), [tmp_path])
    (folder / "train-1.jsonl").write_text(whole)
    datasets.load_dataset(hub.id)
    monkeypatch.setattr(datasets.DatasetBuilder, "as_streaming_dataset", None)  # what is in the cache is read there
    assert load("t", (), hub, [tmp_path]) == found


def test_objects_of_lists_are_lists_of_objects() -> None:
    row = Row({"a": {"x": [1, 2], "y": ["b", "c"]}, "b": {"x": 1}}, "here")
    assert row.rows("a") == [{"x": 1, "y": "b"}, {"x": 2, "y": "c"}]
    with pytest.raises(UserError, match="here: column 'b'"):
        row.rows("b")
