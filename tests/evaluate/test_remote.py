"""A model behind /v1/completions is scored as the same model here."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_models import BYTES, TINY, make, write_model

import gpt2 as package
from gpt2.errors import UserError
from gpt2.evaluate import remote
from gpt2.evaluate.asked import Writing
from gpt2.evaluate.measures import LastWord, ReadOn, Setting
from gpt2.evaluate.remote import Refused, RemoteScorer, scored
from gpt2.evaluate.runs import probed_apart
from gpt2.evaluate.score import Scorer
from gpt2.evaluate.tasks.texts import whole
from gpt2.evaluate.writing import write
from gpt2.model.gpt import GPT


class Completions(BaseHTTPRequestHandler):
    """As OpenAI's completions: echo with logprobs, and greedy writing; from a module, one forward a token."""

    module: GPT

    def log_message(self, *_: Any) -> None: ...

    def do_GET(self) -> None:
        self.reply({"data": [{"id": "tiny", "max_model_len": TINY.context_length}]})

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if body["model"] != "tiny":
            self.send_error(404)
            return
        self.reply({"choices": [self.one(ids, body) | {"index": n} for n, ids in enumerate(body["prompt"])][::-1]})

    def one(self, ids: list[int], body: dict[str, Any]) -> dict[str, Any]:
        start = len(ids)
        for _ in range(body["max_tokens"] if start < TINY.context_length else 0):
            ids = [*ids, int(self.logits(ids)[-1].argmax())]
            if body.get("stop") and any(mark in BYTES.decode(ids[start:]) for mark in body["stop"]):
                break
        kept = ids if body.get("echo") else ids[start:]
        found: dict[str, Any] = {"text": BYTES.decode(kept)}
        if body.get("logprobs"):
            table = torch.log_softmax(self.logits(ids[:-1]), -1)
            values = [None, *(float(row[token]) for row, token in zip(table, ids[1:], strict=True))]
            tops: list[Any] = [None]
            for row in table:
                best = row.topk(min(body["logprobs"], 256))
                tops.append({chr(int(i)): float(v) for v, i in zip(best.values, best.indices, strict=True)})
            found["logprobs"] = {"token_logprobs": values[-len(kept) :], "top_logprobs": tops[-len(kept) :]}
        return found

    def logits(self, ids: list[int]) -> torch.Tensor:
        with torch.no_grad():
            return self.module(torch.tensor([ids]))[0, :, : TINY.vocab_size]

    def reply(self, value: dict[str, Any]) -> None:
        self.send_response(200)
        self.end_headers()
        self.wfile.write(json.dumps(value).encode())


@pytest.fixture(scope="module")
def served() -> Iterator[tuple[str, GPT]]:
    module = make(scale=4.0)
    handler = type("Handler", (Completions,), {"module": module})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_address[1]}", module
    server.shutdown()


@pytest.fixture
def both(served: tuple[str, GPT], tmp_path: Path) -> tuple[RemoteScorer, Scorer]:
    url, module = served
    local = Scorer(package.load(write_model(tmp_path / "model", module), weights="float32"))
    return RemoteScorer(url, "tiny", BYTES, TINY.context_length - 2), local


def test_scores_through_a_server_are_those_of_the_model(both: tuple[RemoteScorer, Scorer]) -> None:
    remote, local = both
    pairs = [(BYTES.encode(a), BYTES.encode(b)) for a, b in (("the sea", " sang"), ("a", "b"), ("x" * 30, "y" * 20))]
    for far, near in zip(remote.continuations(pairs), local.continuations(pairs), strict=True):
        assert far.log_likelihood == pytest.approx(near.log_likelihood, abs=1e-3)
        assert (far.greedy, far.tokens) == (near.greedy, near.tokens)


def test_tasks_run_through_a_server_as_here(both: tuple[RemoteScorer, Scorer]) -> None:
    remote, local = both
    items = [{"before": "it was the", "word": word} for word in ("sea", "land")]
    ask = LastWord(token=True, stop_words=frozenset("e"))
    text = ReadOn(whole(None), {"ppl": ("perplexity", "byte")}, "")
    for measure, given in ((ask, items), (text, [{"text": "so it was\n" * 9}])):
        far = measure.measure(remote, given, [], Setting(window=60))
        near = measure.measure(local, given, [], Setting(window=60))
        for name, column in near.columns.items():
            assert far.columns[name].value == pytest.approx(column.value, rel=1e-3), name
    prompts = [BYTES.encode("the sea"), BYTES.encode("a ship")]
    assert write(remote, prompts, Writing(6)) == write(local, prompts, Writing(6))
    rolled, near_rolled = (each.rolling([BYTES.encode("so it was, " * 9)], 60, 30) for each in both)
    assert rolled[0].log_likelihood == pytest.approx(near_rolled[0].log_likelihood, rel=1e-4)
    with pytest.raises(UserError, match="a server writes greedily only"):
        write(remote, prompts, Writing(6, beams=4))


def limited(served: tuple[str, GPT], most: int) -> Any:
    """The same, but it refuses to give more than so many log-probabilities, as vLLM does; `asked` counts requests."""
    asked: list[int] = []

    class Limited(Completions):
        module = served[1]

        def do_POST(self) -> None:
            body = self.rfile.peek()[: int(self.headers["Content-Length"])]
            asked.append(json.loads(body).get("logprobs", 0))
            if asked[-1] > most:
                self.send_error(400)
            else:
                super().do_POST()

    return Limited, asked


@contextmanager
def serving(handler: Any) -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()


def test_a_server_that_gives_fewer_likeliest_tokens_is_asked_for_fewer(served: tuple[str, GPT]) -> None:
    handler, asked = limited(served, 20)
    items = [{"before": "it was the", "word": word} for word in ("sea", "land")]
    with serving(handler) as url:
        remote = RemoteScorer(url, "tiny", BYTES, TINY.context_length - 2)
        measured = LastWord(token=True, stop_words=frozenset("e")).measure(remote, items, [], Setting())
        assert measured.facts["likeliest_looked_at"] <= 20
        assert [count for count in asked if count > 1] == [200, 20]
        assert len(remote.likeliest([BYTES.encode("a")], 200)[0]) <= 20 and asked[-1] == 20  # it is remembered
    handler, asked = limited(served, 0)
    with serving(handler) as url, pytest.raises(Refused, match="400"):
        RemoteScorer(url, "tiny", BYTES, 60).likeliest([BYTES.encode("a")], 200)
    assert asked == [200, 20, 5]


def failing(served: tuple[str, GPT], *ways: int | str) -> Any:
    """The same, but its first answers fail in these ways: a status, or what befalls a connection. And those to come."""
    left: list[int | str] = list(ways)

    class Failing(Completions):
        module = served[1]

        def do_POST(self) -> None:
            way = left.pop(0) if left else ""
            if not way:
                super().do_POST()
            elif isinstance(way, int):
                self.send_error(way)
            elif way == "cut":
                self.wfile.write(b"HTTP/1.0 200 OK\r\nContent-Length: 99\r\n\r\n{")
            elif way == "noise":
                self.wfile.write(b"noise\r\n\r\n")

    return Failing, left


def test_what_may_pass_is_asked_again(
    served: tuple[str, GPT], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    ways = (503, 429, 408, "cut", "noise", "gone")
    monkeypatch.setattr(remote, "PAUSES", (0.01,) * len(ways))
    pairs = [(BYTES.encode("the sea"), BYTES.encode(" sang"))]
    handler, left = failing(served, *ways)
    with serving(handler) as url:
        found = RemoteScorer(url, "tiny", BYTES, 60).continuations(pairs)
    assert not left and found == RemoteScorer(served[0], "tiny", BYTES, 60).continuations(pairs)
    told = capsys.readouterr().err.splitlines()
    assert len(told) == len(ways) and all(line.endswith("; again in 0.01 s") for line in told)
    assert "503" in told[0] and "IncompleteRead" in told[3]


def test_a_server_that_stays_away_ends_the_run_with_a_way_on(
    served: tuple[str, GPT], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(remote, "PAUSES", (0.01, 0.01))
    for way, said in ((503, "503"), ("cut", "IncompleteRead"), ("noise", "noise")):
        handler, left = failing(served, *[way] * 4)
        with serving(handler) as url, pytest.raises(UserError, match=f"{said}.*the same command goes on from here"):
            RemoteScorer(url, "tiny", BYTES, 60).continuations([([1], [2])])
        assert len(left) == 1
    handler, left = failing(served, 404, 404)
    with serving(handler) as url, pytest.raises(UserError, match="404") as caught:
        RemoteScorer(url, "tiny", BYTES, 60).continuations([([1], [2])])
    assert len(left) == 1 and not isinstance(caught.value, Refused), "what does not pass is not asked again"


def test_a_server_that_is_too_slow_gets_fewer_prompts_at_a_time(
    served: tuple[str, GPT], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    counts: list[int] = []

    class Sluggish(Completions):
        module = served[1]

        def do_POST(self) -> None:
            body = self.rfile.peek()[: int(self.headers["Content-Length"])]
            counts.append(len(json.loads(body)["prompt"]))
            if counts[-1] > most:
                time.sleep(0.5)
            else:
                super().do_POST()

    monkeypatch.setattr(remote, "TIMEOUT", 0.25)
    pairs, most = [(BYTES.encode("the sea"), BYTES.encode(word)) for word in (" sang", " fell", " rose")], 1
    with serving(Sluggish) as url:
        scorer = RemoteScorer(url, "tiny", BYTES, 60)
        found = scorer.continuations(pairs)
        most = 0
        with pytest.raises(UserError, match=r"no answer within 0\.25 s"):
            scorer.continuations(pairs[:1])
    assert counts == [3, 1, 1, 1, 1] and "again with 1 prompts at a time" in capsys.readouterr().err
    assert found == RemoteScorer(served[0], "tiny", BYTES, 60).continuations(pairs)


@pytest.mark.parametrize("text", [None, "", " She", "missing"])
def test_a_server_that_does_not_echo_text_is_not_taken_for_a_foreign_one(
    served: tuple[str, GPT], text: str | None
) -> None:
    class Silent(Completions):
        module = served[1]

        def one(self, ids: list[int], body: dict[str, Any]) -> dict[str, Any]:
            found = super().one(ids, body)
            return {"logprobs": found["logprobs"]} | ({} if text == "missing" else {"text": text})

    with serving(Silent) as url:
        assert len(RemoteScorer(url, "tiny", BYTES, 60).probe()) == 59


def test_a_probe_that_is_refused_says_so_and_one_that_fails_ends_the_run(
    served: tuple[str, GPT], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(remote, "PAUSES", (0.01,))
    handler, _ = failing(served, 400)
    with serving(handler) as url:
        assert RemoteScorer(url, "tiny", BYTES, 60).probe() == []
    assert "nobody can say whether it has the vocabulary" in capsys.readouterr().err
    handler, _ = failing(served, 503, 503)
    with serving(handler) as url, pytest.raises(UserError, match="503"):
        RemoteScorer(url, "tiny", BYTES, 60).probe()


def test_a_busy_server_is_not_one_that_gives_fewer_likeliest_tokens(
    served: tuple[str, GPT], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(remote, "PAUSES", (0.01,))
    handler, left = failing(served, 429)
    with serving(handler) as url:
        asked = RemoteScorer(url, "tiny", BYTES, 60)
        assert len(asked.likeliest([BYTES.encode("a")], 200)[0]) > 20 and asked.tops is None and not left
    handler, left = failing(served, 429, 429, 429)
    with serving(handler) as url, pytest.raises(UserError, match="429"):
        RemoteScorer(url, "tiny", BYTES, 60).likeliest([BYTES.encode("a")], 200)
    assert len(left) == 1
    handler, left = failing(served, 422)
    with serving(handler) as url:
        asked = RemoteScorer(url, "tiny", BYTES, 60)
        assert asked.likeliest([BYTES.encode("a")], 200) and asked.tops == 20


def test_a_server_with_another_vocabulary_is_refused(
    served: tuple[str, GPT], tmp_path: Path, gpt2: Callable[..., Any]
) -> None:
    class Foreign(Completions):
        module = served[1]

        def one(self, ids: list[int], body: dict[str, Any]) -> dict[str, Any]:
            found = super().one(ids, body)
            return found | {"text": found["text"].swapcase()}

    words = write_model(tmp_path / "words")
    common = ("--tokenizer", words, "--data", tmp_path, "--tasks", "copa", "--out", tmp_path / "out")
    with serving(Foreign) as url:
        ran = gpt2("evaluate", "--model", url, *common)
    assert ran.code == 2 and "reads 'iN THE WINTER" in ran.err and "another vocabulary" in ran.err
    assert "--tokenizer" in ran.err and not (tmp_path / "out").exists()


def test_what_a_server_cannot_do_is_left_out_of_the_report(
    served: tuple[str, GPT], tmp_path: Path, gpt2: Callable[..., Any]
) -> None:
    words = write_model(tmp_path / "words")
    (tmp_path / "copa.jsonl").write_text('{"query": "It rained, so", "choices": ["wet", "dry"], "gold": 0}\n' * 2)
    row = {"context": "Question: Who?\nAnswer:", "answer": "Ann", "aliases": ["Ann"]}
    (tmp_path / "triviaqa.jsonl").write_text(json.dumps(row) + "\n")
    common = ("evaluate", "--model", served[0], "--tokenizer", words, "--data", tmp_path, "--out", tmp_path / "out")
    ran = gpt2(*common, "--tasks", "triviaqa,copa")
    assert ran.code == 0, ran.err
    assert "left out: triviaqa-gpt3-0: is written by beams or draws" in ran.err
    found = json.loads((tmp_path / "out" / "results.json").read_text())
    assert [each["task"] for each in found["results"]] == ["copa"] and set(found["left_out"]) == {"triviaqa-gpt3-0"}
    assert "triviaqa-gpt3-0: is written" in (tmp_path / "out" / "report.md").read_text(encoding="utf-8")
    ran = gpt2(*common, "--tasks", "triviaqa")
    assert ran.code == 2 and "no task can be asked: triviaqa-gpt3-0" in ran.err


def test_another_model_of_the_same_name_is_refused(
    served: tuple[str, GPT], tmp_path: Path, gpt2: Callable[..., Any]
) -> None:
    words = write_model(tmp_path / "words")
    (tmp_path / "copa.jsonl").write_text('{"query": "It rained, so", "choices": ["wet", "dry"], "gold": 0}\n' * 2)
    handler: Any = type("Changing", (Completions,), {"module": served[1]})
    with serving(handler) as url:
        common = ("evaluate", "--model", url, "--tokenizer", words, "--data", tmp_path, "--tasks", "copa")
        assert gpt2(*common, "--out", tmp_path / "out").code == 0
        assert "done before" in gpt2(*common, "--out", tmp_path / "out").err
        handler.module = make(scale=4.0, seed=9)
        ran = gpt2(*common, "--out", tmp_path / "out")
        assert ran.code == 2 and "holds results of tiny at" in ran.err


def test_answers_that_differ_by_rounding_are_the_same_model_s() -> None:
    probe = [-3.0, -0.5, -7.25]
    assert not probed_apart({"probe": probe}, {"probe": [value + 0.02 for value in probe]})
    assert probed_apart({"probe": probe}, {"probe": [-3.0, -0.5, -6.25]})
    assert not probed_apart({"probe": []}, {"probe": probe}) and not probed_apart({}, {})


def test_the_command_takes_a_url(
    served: tuple[str, GPT], tmp_path: Path, gpt2: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    words = write_model(tmp_path / "words")
    (tmp_path / "copa.jsonl").write_text('{"query": "It rained, so", "choices": ["wet", "dry"], "gold": 0}\n' * 2)
    monkeypatch.chdir(tmp_path)
    ran = gpt2("evaluate", "--model", served[0], "--tokenizer", words, "--data", tmp_path, "--tasks", "copa")
    assert ran.code == 0, ran.err
    (path,) = Path("evaluations").glob("*/results.json")
    model = json.loads(path.read_text())["model"]
    assert model["name"].startswith("tiny at http://127.0.0.1") and model["sha256"] is None


def test_flags_that_a_server_could_not_heed_are_refused(gpt2: Callable[..., Any]) -> None:
    url = ("evaluate", "--model", "http://127.0.0.1:9", "--tasks", "copa")
    for flag, value in {"weights": "auto", "kv": "int8", "device": "cuda", "dtype": "auto", "adapter": "a"}.items():
        ran = gpt2(*url, f"--{flag}", value)
        assert ran.code == 2 and f"--{flag}: a server reads its model its own way; beside" in ran.err
    ran = gpt2(*url, "--weights", "int8", "--device", "cpu")
    assert ran.code == 2 and "--weights, --device: a server reads" in ran.err


def test_a_server_without_what_is_needed_is_told_so(tmp_path: Path, gpt2: Callable[..., Any]) -> None:
    with pytest.raises(UserError, match="gives no log-probabilities of prompts"):
        scored(None, 2, 1, "http://x")
    with pytest.raises(UserError, match="of 1 tokens where 2"):
        scored({"token_logprobs": [None]}, 3, 2, "http://x")
    for written in ([], [-9.0]):  # what a server adds to the prompt: nothing where end-of-text comes at once
        assert scored({"token_logprobs": [None, -1.0, -2.0, *written]}, 3, 2, "http://x").log_likelihood == -3.0
    words = write_model(tmp_path / "words")
    ran = gpt2("evaluate", "--model", "http://127.0.0.1:9", "--tokenizer", words, "--tasks", "copa")
    assert ran.code == 2 and "http://127.0.0.1:9/v1/models" in ran.err
