"""`gpt2 train` as a user types it: what it makes, and what it says to wrong input."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tiny_models import make, write_model

from gpt2.tokenizer.bpe import Tokenizer

TINY = ["--n_layer", "1", "--n_head", "2", "--n_embd", "32", "--context_length", "16", "--batch_tokens", "64"]
TEXT = "It is a truth universally acknowledged, that a single man must be in want of a wife. " * 40


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from gpt2.data.prepare import prepare

    folder = tmp_path_factory.mktemp("train")
    (folder / "text.txt").write_text(TEXT, encoding="utf-8")
    prepare([folder / "text.txt"], folder / "data", tokenizer="byte")
    return folder / "data"


def test_text_becomes_a_model_that_writes(gpt2: Callable[..., Any], data: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    ran = gpt2("train", "--data", data, "--out", run, *TINY, "--max-steps", "6", "--sample_every=2")
    assert ran.code == 0
    assert ran.out == ""  # stdout is data, and there is none
    assert {path.name for path in run.iterdir()} >= {"config.toml", "metrics.jsonl", "report.html", "best", "last"}
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [line["step"] for line in lines if "sample" in line] == [2, 4]
    wrote = gpt2("generate", "--model", run, "It is", "--max-new-tokens", "5", "--temperature", "0")
    assert wrote.code == 0


def test_a_file_is_overruled_by_flags_and_the_run_keeps_what_was_resolved(
    gpt2: Callable[..., Any], data: Path, tmp_path: Path
) -> None:
    config = tmp_path / "my.toml"
    config.write_text('max_steps = 9\ndtype = "float32"\n[optim]\noptimizer = "adamw"\n', encoding="utf-8")
    run = tmp_path / "run"
    assert gpt2("train", config, "--data", data, "--out", run, *TINY, "--max_steps", "2").code == 0
    resolved = (run / "config.toml").read_text(encoding="utf-8")
    for line in ("max_steps = 2", 'dtype = "float32"', 'optimizer = "adamw"', "vocab_size = 257", "eval_every = 1"):
        assert line in resolved


@pytest.mark.parametrize("way", ["flags", "file"])
def test_layers_alternate_as_gpt3s_by_flags_or_by_a_file(
    gpt2: Callable[..., Any], data: Path, tmp_path: Path, way: str
) -> None:
    run, config = tmp_path / "run", tmp_path / "my.toml"
    config.write_text('[model]\nn_layer = 2\nattention_pattern = ["dense", "banded"]\nband_width = 8\n')
    words = {"flags": ["--n_layer", "2", "--attention_pattern", "dense,banded", "--band_width", "8"], "file": [config]}
    first, rest = (words[way], TINY[2:]) if way == "file" else ([], words[way] + TINY[2:])
    ran = gpt2("train", *first, "--data", data, "--out", run, *rest, "--max_steps", "2")
    assert ran.code == 0, ran.err
    folder = next(path.parent for path in run.rglob("weights.safetensors"))
    values = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    assert values["attention_pattern"] == ["dense", "banded"] and values["band_width"] == 8
    assert "banded (8 tokens), repeated" in (folder / "README.md").read_text(encoding="utf-8")
    assert 'attention_pattern = ["dense", "banded"]' in (run / "config.toml").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--n_layers", "2"], "--n_layers: unknown setting (did you mean 'n_layer'?)"),
        (["--max_steps", "many"], "max_steps = 'many': expected a whole number"),
        (["--max_steps", "0"], "max_steps = 0: must be above 0"),
        (["--n_head", "5"], "n_embd = 32 is not a multiple of n_head = 5"),
        (["--context_length", "9000", "--batch_tokens", "9000"], "fewer than the 9,001 of one window"),
        (["--batch_tokens", "8"], "holds no row of context_length"),
        (["--attention_pattern", "dense,banded"], "band_width = 0: attention_pattern has banded layers"),
        (["--data", "nowhere"], "nowhere: no such data folder"),
        (["--init", "nowhere/at/all"], "--context_length: a run that continues from --init keeps"),
        (["--preset", "gpt2-123m"], "--preset gpt2-123m: unknown (did you mean 'gpt2-124m'?)"),
        (["--vocab_size", "300"], "leave vocab_size out"),
        (["--device", "tpu"], "--device tpu: unknown"),
        (["--resume", "nowhere"], "a resumed run keeps its settings"),
        (["missing.toml"], "unexpected argument 'missing.toml'"),
    ],
)
def test_wrong_input_is_one_line_and_exit_code_2(
    gpt2: Callable[..., Any], data: Path, tmp_path: Path, words: list[str], message: str
) -> None:
    ran = gpt2("train", "--data", data, "--out", tmp_path / "run", *TINY, "--max_steps", "1", *words)
    assert ran.code == 2
    last = ran.err.splitlines()[-1]
    assert message in last
    assert last.startswith("gpt2: ")
    assert "Traceback" not in ran.err


def test_an_unknown_key_of_a_file_names_the_file_and_the_nearest_key(
    gpt2: Callable[..., Any], data: Path, tmp_path: Path
) -> None:
    config = tmp_path / "my.toml"
    config.write_text("[optim]\nlearning_rat = 0.1\n", encoding="utf-8")
    ran = gpt2("train", config, "--data", data, "--out", tmp_path / "run")
    assert ran.code == 2
    assert f"{config}: unknown key 'learning_rat' (did you mean 'learning_rate'?)" in ran.err


def test_a_run_goes_on_from_a_model_of_the_same_vocabulary_only(
    gpt2: Callable[..., Any], data: Path, tmp_path: Path
) -> None:
    same = write_model(tmp_path / "same")
    words = ["train", "--data", data, "--max_steps", "1", "--batch_tokens", "128", "--init"]
    assert gpt2(*words, same, "--out", tmp_path / "run").code == 0
    other = write_model(tmp_path / "other", make(vocab_size=2), Tokenizer.from_characters(["a", "b"]))
    ran = gpt2(*words, other, "--out", tmp_path / "run2")
    assert ran.code == 2
    assert "was made with another vocabulary (257 tokens)" in ran.err
    assert f"prepare the text again with --tokenizer {other}" in ran.err


def test_weights_of_the_wrong_shape_are_named(gpt2: Callable[..., Any], data: Path, tmp_path: Path) -> None:
    broken = write_model(tmp_path / "broken")
    config = json.loads((broken / "config.json").read_text(encoding="utf-8"))
    (broken / "config.json").write_text(json.dumps(config | {"n_embd": 64}), encoding="utf-8")
    ran = gpt2("train", "--data", data, "--out", tmp_path / "run", "--init", broken, "--max_steps", "1")
    assert ran.code == 2
    assert "the weights do not fit config.json: wrong shape transformer." in ran.err
    assert "(96, 32) instead of (192, 64)" in ran.err


@pytest.mark.slow
def test_sigterm_saves_and_says_how_to_go_on(data: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    command = [sys.executable, "-m", "gpt2", "train", "--data", str(data), "--out", str(run), *TINY]
    for sign, code in ((signal.SIGINT, 130), (signal.SIGTERM, 0)):
        out = run / sign.name
        process = subprocess.Popen(
            [*command, "--out", str(out), "--max_steps", "100000"], stderr=subprocess.PIPE, text=True
        )
        while not (out / "metrics.jsonl").exists() or (out / "metrics.jsonl").stat().st_size == 0:
            assert process.poll() is None
            time.sleep(0.02)
        process.send_signal(sign)
        _, err = process.communicate(timeout=60)
        assert process.returncode == code
        assert f"go on with: gpt2 train --resume {out}" in err
        assert (out / "last" / "model.safetensors").exists()
