"""Fine-tuning from end to end: what is learned, what is kept, and that nothing is lost."""

from __future__ import annotations

import json
import random
import shutil
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from forked_commands import Commands
from killed_runs import failing_at, kill_once_on_its_way, trace
from tiny_models import make, write_model

from gpt2.checkpoint.adapters import Adapter, read_adapter
from gpt2.checkpoint.classifier import read_classifier
from gpt2.checkpoint.find import find_folder, follow, point
from gpt2.checkpoint.hf_config import read_config
from gpt2.checkpoint.native import load_module
from gpt2.checkpoint.train_state import prune
from gpt2.errors import UserError
from gpt2.model.gpt import GPT
from gpt2.model.lora import apply_lora, load_lora
from gpt2.model.sizes import parameters
from gpt2.tokenizer.added import add_tokens
from gpt2.tokenizer.bpe import Tokenizer
from gpt2.tokenizer.files import load_tokenizer, save_tokenizer
from gpt2.train import report
from gpt2.train.finetune import Tuned, finetune, resume
from gpt2.train.metrics import read_metrics
from gpt2.train.runs import read_run

COLOURS = ["red", "blue", "green", "grey", "white", "black", "pink", "brown"]
Settings = Callable[..., dict[str, Any]]


@pytest.fixture(scope="session")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that knows nothing yet."""
    return write_model(tmp_path_factory.mktemp("base") / "model", make(n_embd=64, head_dim=32, n_inner=256))


@pytest.fixture(autouse=True)
def no_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Reports take longer than these runs."""
    monkeypatch.setattr("gpt2.train.finetune.write_report", lambda *anything: None)


def write_lines(path: Path, rows: list[dict[str, str]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def pairs(count: int, seed: int = 0) -> list[dict[str, str]]:
    dice = random.Random(seed)
    return [{"prompt": f"{n}:", "completion": f" {dice.choice(COLOURS)} {dice.choice(COLOURS)}"} for n in range(count)]


@pytest.fixture
def tiny(base: Path, tmp_path: Path) -> Settings:
    """Settings of a run that takes a second or two; keyword arguments change them."""
    data = write_lines(tmp_path / "pairs.jsonl", pairs(40))

    def make_settings(**changes: Any) -> dict[str, Any]:
        settings: dict[str, Any] = {"model": str(base), "data": str(data), "out": str(tmp_path / "run")}
        settings |= {"max_steps": 12, "device": "cpu", "dtype": "float32", "eval_every": 3, "log_every": 1}
        return settings | changes

    return make_settings


def greedy(module: GPT, tokenizer: Tokenizer, prompt: str) -> str:
    from gpt2.inference.generate import generate
    from gpt2.inference.sampling import SamplingParams

    return generate(module, tokenizer, [prompt], SamplingParams(max_new_tokens=20, temperature=0.0))[0].text


def logits(base: Path, adapter: Adapter | None = None) -> torch.Tensor:
    """Of a few fixed tokens, by a model folder with or without an adapter on it."""
    module = load_module(base, read_config(base))
    if adapter:
        apply_lora(module, adapter.config)
        load_lora(module, {name: torch.from_numpy(array) for name, array in adapter.state.items()})
    with torch.no_grad():
        return module(torch.arange(20)[None])


def test_a_tiny_model_learns_fifty_pairs_by_heart_and_writes_a_completion_back(tiny: Settings, tmp_path: Path) -> None:
    lesson = pairs(50, seed=1)
    settings = {"learning_rate": 4e-3, "max_steps": 240, "batch_examples": 16, "val_share": 0.0, "dtype": "auto"}
    data = write_lines(tmp_path / "fifty.jsonl", lesson)
    tuned = finetune(**tiny(data=str(data), eval_every=240, **settings), quiet=True)
    folder = find_folder(tuned.folder)
    module, tokenizer = load_module(folder, read_config(folder)), load_tokenizer(folder)
    right = [greedy(module, tokenizer, row["prompt"]) == row["completion"] for row in lesson[:12]]
    assert sum(right) >= 11


def test_an_adapter_s_folder_holds_what_was_trained_and_names_its_base(tiny: Settings, base: Path) -> None:
    before = (base / "model.safetensors").read_bytes()
    tuned = finetune(**tiny(method="lora", rank=4, targets=("c_attn", "mlp.c_fc"), learning_rate=0.02), quiet=True)
    adapter = read_adapter(find_folder(tuned.folder))
    assert Path(adapter.base) == base.resolve()
    assert (logits(base, adapter) - logits(base)).abs().max() > 0.1
    assert (base / "model.safetensors").read_bytes() == before
    assert sorted({name.split(".", 2)[2].rpartition(".")[0] for name in adapter.state}) == ["attn.c_attn", "mlp.c_fc"]


def test_an_adapter_outlives_its_base_s_going_on(tiny: Settings, tmp_path: Path) -> None:
    first = finetune(**tiny(), quiet=True)
    base = find_folder(first.folder)
    tuned = finetune(**tiny(model=str(first.folder), out=str(tmp_path / "adapter"), method="lora"), quiet=True)
    adapter = read_adapter(find_folder(tuned.folder))
    assert Path(adapter.base) == base.resolve()
    newer = base.with_name("step_00000099")
    shutil.copytree(base, newer)
    point(first.folder / "last", newer)
    point(first.folder / "best", newer)
    prune(first.folder, 1, {newer})
    assert (logits(base, adapter) - logits(base)).abs().max() > 1e-3


@pytest.mark.parametrize("base_weights", ["int8", "int4"])
def test_an_adapter_learns_beside_frozen_whole_numbers(tiny: Settings, base_weights: str) -> None:
    settings = {"method": "lora", "base_weights": base_weights, "learning_rate": 0.01, "val_share": 0.0}
    tuned = finetune(**tiny(max_steps=40, **settings), quiet=True)
    losses = [line["train/loss"] for line in read_metrics(tuned.folder) if "train/loss" in line]
    assert losses[-1] < losses[0] - 0.4
    assert read_adapter(find_folder(tuned.folder)).config.rank == 16


def test_early_stopping_keeps_the_best(tiny: Settings, capsys: pytest.CaptureFixture[str]) -> None:
    settings = {"learning_rate": 0.01, "max_steps": 200, "eval_every": 4, "patience": 2, "keep_last": 1}
    tuned = finetune(**tiny(**settings))
    losses = {line["step"]: line["val/loss"] for line in read_metrics(tuned.folder) if "val/loss" in line}
    best = min((step for step in losses if step), key=losses.__getitem__)
    assert tuned.state.best_step == best
    assert tuned.state.step == best + 2 * 4 < 200
    assert follow(tuned.folder / "best") == (tuned.folder / f"step_{best:08d}").resolve()
    assert "2 evaluations without a better validation loss" in capsys.readouterr().err
    assert read_run(tuned.folder).state == "done"
    again = resume(tuned.folder, quiet=True)
    assert again.state.step == tuned.state.step


METHODS: dict[str, dict[str, Any]] = {
    "full": {},
    "lora": {"method": "lora", "lora_dropout": 0.1, "learning_rate": 0.01},
    "int8": {"method": "lora", "base_weights": "int8"},
}


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_resuming_continues_to_the_bit(
    tiny: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: str, dtype: str
) -> None:
    settings = tiny(dropout=0.1, dtype=dtype, **METHODS[method])
    whole = finetune(**settings | {"out": str(tmp_path / "whole")}, quiet=True)
    broken = tmp_path / "broken"
    with monkeypatch.context() as patch:
        patch.setattr("gpt2.train.hooks.Log.__call__", failing_at(8))
        with pytest.raises(ZeroDivisionError):
            finetune(**settings | {"out": str(broken)}, quiet=True)
    resume(broken, quiet=True)
    assert trace(broken) == trace(whole.folder)
    assert len(trace(broken)) == 12
    names = ("model.safetensors",) if method == "full" else ("adapter_model.safetensors",)
    for name in names:
        assert (find_folder(broken) / name).read_bytes() == (find_folder(whole.folder) / name).read_bytes()


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_what_an_adapter_computes_again_is_what_it_would_have_kept(tiny: Settings, tmp_path: Path, dtype: str) -> None:
    settings = tiny(dtype=dtype, max_steps=4, learning_rate=0.01, method="lora", lora_dropout=0.2)
    kept, again = (
        finetune(**settings | {"out": str(tmp_path / how), "recompute": how}, quiet=True) for how in ("none", "full")
    )
    for one, other in zip(trace(kept.folder), trace(again.folder), strict=True):
        assert one == pytest.approx(other, rel=1e-5)


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="the runs are forked")
@pytest.mark.parametrize("method", ["full", "lora"])
def test_kills_leave_the_trace_of_an_uninterrupted_run(tiny: Settings, tmp_path: Path, method: str) -> None:
    def command(out: Path) -> list[str]:
        rhythm = {"max_steps": 60, "eval_every": 6, "save_every": 3, "patience": 0}
        settings = tiny(out=str(out), dtype="auto", dropout=0.1, method=method, **rhythm)
        return ["finetune", *(word for key, value in settings.items() for word in (f"--{key}", str(value)))]

    whole, broken = tmp_path / "whole", tmp_path / "broken"
    dice, kills, words = random.Random(5), 0, command(broken)
    with Commands() as gpt2:
        gpt2.run(*command(whole))
        for attempt in range(5):
            kills += kill_once_on_its_way(gpt2.start(*words), broken, dice, while_saving=attempt % 2 == 1)
            words = ["finetune", "--resume", str(broken)]
        gpt2.run(*words)
    assert kills >= 4, "the run was too short to be killed five times"
    assert len(trace(whole)) == 60
    assert trace(broken) == trace(whole)


@pytest.mark.parametrize("method", ["full", "lora"])
def test_ctrl_c_leaves_something_usable_and_says_how_to_go_on(
    tiny: Settings, base: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], method: str
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr("gpt2.train.hooks.Log.__call__", failing_at(4, lambda: signal.raise_signal(signal.SIGINT)))
        stopped = finetune(**tiny(method=method))
    assert stopped.stopped_by == signal.SIGINT
    assert 4 <= stopped.state.step < 12
    assert f"go on with: gpt2 finetune --resume {stopped.folder}" in capsys.readouterr().err
    folder = find_folder(stopped.folder)
    if method == "full":
        assert load_module(folder, read_config(folder)).config.n_embd == 64
    else:
        assert (logits(base, read_adapter(folder)) - logits(base)).abs().max() > 1e-3
    assert resume(stopped.folder, quiet=True).state.step == 12


def tune_labels(tiny: Settings, tmp_path: Path, **changes: Any) -> Tuned:
    dice = random.Random(2)
    kinds = {"letters": "abc", "digits": "123"}
    rows = [
        {"text": "".join(dice.choice(kinds[label]) for _ in range(12)), "label": label}
        for _ in range(40)
        for label in kinds
    ]
    data = write_lines(tmp_path / "labels.jsonl", rows)
    settings = {"data": str(data), "max_steps": 40, "eval_every": 10, "learning_rate": 2e-3} | changes
    return finetune(**tiny(**settings), quiet=True)


@pytest.mark.parametrize("method", ["full", "lora"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_labels_are_learned_and_reported_beside_a_bag_of_words(
    tiny: Settings, tmp_path: Path, method: str, dtype: str
) -> None:
    tuned = tune_labels(tiny, tmp_path, method=method, dtype=dtype)
    assert tuned.report is not None
    assert next(iter(tuned.report.rows.values())).accuracy > 0.9
    assert read_classifier(find_folder(tuned.folder)).labels == ("digits", "letters")


def test_a_classifier_goes_on_from_its_head(tiny: Settings, tmp_path: Path) -> None:
    first = find_folder(tune_labels(tiny, tmp_path).folder)
    more = tune_labels(tiny, tmp_path, model=str(first), out=str(tmp_path / "more"), max_steps=1, learning_rate=1e-9)
    assert more.report is not None and next(iter(more.report.rows.values())).accuracy > 0.9


@pytest.mark.parametrize("change", [{"method": "lora"}, {}])
def test_a_tokenizer_larger_than_its_model_gets_rows_that_only_all_weights_keep(
    tiny: Settings, base: Path, tmp_path: Path, change: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    odd = tmp_path / "odd"
    shutil.copytree(base, odd)
    save_tokenizer(add_tokens(load_tokenizer(base), ["[PAD]"]), odd)
    if change:
        with pytest.raises(UserError, match="its tokenizer has 258 tokens, the model 257, and an adapter keeps no new"):
            finetune(**tiny(model=str(odd), max_steps=1, **change), quiet=True)
    else:
        tuned = finetune(**tiny(model=str(odd), max_steps=1), quiet=True)
        assert read_config(find_folder(tuned.folder)).vocab_size == 258
        assert "rows are added" in capsys.readouterr().err


def test_a_run_that_only_got_worse_says_so(tiny: Settings, capsys: pytest.CaptureFixture[str]) -> None:
    finetune(**tiny(learning_rate=5.0, max_steps=6), quiet=True)
    assert "no step has a lower validation loss than the base" in capsys.readouterr().err
    finetune(**tiny(out=tiny()["out"] + "2"), quiet=True)
    assert "no step has" not in capsys.readouterr().err


@pytest.mark.parametrize("method", ["full", "lora"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_preferences_raise_the_margin_of_held_out_pairs(
    tiny: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: str, dtype: str
) -> None:
    rows = [{"prompt": f"{n}:", "chosen": " yes, please", "rejected": " no!"} for n in range(40)]
    data = write_lines(tmp_path / "preferences.jsonl", rows)
    settings = tiny(data=str(data), method=method, dtype=dtype, learning_rate=2e-3, dropout=0.1)
    whole = finetune(**settings | {"out": str(tmp_path / "whole")}, quiet=True)
    verdicts = [line for line in read_metrics(whole.folder) if "val/margin" in line]
    assert verdicts[0]["val/margin"] == pytest.approx(0.0, abs=1e-3)
    assert verdicts[-1]["val/margin"] > 1.0
    assert verdicts[-1]["val/loss"] < verdicts[0]["val/loss"]
    broken = tmp_path / "broken"
    with monkeypatch.context() as patch:
        patch.setattr("gpt2.train.hooks.Log.__call__", failing_at(8))
        with pytest.raises(ZeroDivisionError):
            finetune(**settings | {"out": str(broken)}, quiet=True)
    with monkeypatch.context() as patch:
        patch.setattr("gpt2.train.tune_build.reference_margins", None)  # it is kept, not computed again
        resume(broken, quiet=True)
    assert trace(broken) == trace(whole.folder)


@pytest.mark.parametrize("gone", ["reference", "reference_val"])
def test_what_the_base_thought_of_pairs_is_not_made_up_from_a_trained_model(
    tiny: Settings, tmp_path: Path, gone: str
) -> None:
    rows = [{"prompt": f"{n}:", "chosen": " yes, please", "rejected": " no!"} for n in range(40)]
    tuned = finetune(**tiny(data=str(write_lines(tmp_path / "pairs.jsonl", rows)), max_steps=2), quiet=True)
    (tuned.folder / f"{gone}.safetensors").unlink()
    with pytest.raises(UserError, match=f"{gone}.safetensors: gone, or of other pairs"):
        resume(tuned.folder, quiet=True)


def test_new_tokens_get_rows_and_the_old_ones_keep_theirs(tiny: Settings, base: Path) -> None:
    settings = {"add_tokens": ("<task>", "<end>"), "learning_rate": 1e-9, "weight_decay": 0.0, "max_steps": 3}
    tuned = finetune(**tiny(**settings), quiet=True)
    folder = find_folder(tuned.folder)
    config, tokenizer = read_config(folder), load_tokenizer(folder)
    assert config.vocab_size == 259
    assert tokenizer.encode("a<task>") == [97, 257]
    old, new = load_module(base, read_config(base)), load_module(folder, config)
    assert torch.allclose(old.wte.weight[:257], new.wte.weight[:257], atol=1e-6)
    assert resume(tuned.folder, quiet=True).state.step == 3


def test_a_run_in_which_memory_runs_out_goes_on_with_fewer_rows(
    tiny: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    from gpt2.train.weights import Weights

    original, calls = Weights.backward, []

    def backward(self: Weights, *arguments: Any, **more: Any) -> None:
        calls.append(1)
        if len(calls) == 3:
            raise torch.OutOfMemoryError("CUDA out of memory (as if)")
        original(self, *arguments, **more)

    monkeypatch.setattr(Weights, "backward", backward)
    tuned = finetune(**tiny(method="lora", batch_examples=16, micro_batch_size=4), quiet=True)
    assert tuned.state.halvings == 1
    assert tuned.state.step == 12


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"rank": 4}, "--rank: full fine-tuning has no adapter; add --method lora"),
        ({"method": "lora", "add_tokens": ("<a>",)}, "--add_tokens: an adapter leaves the vocabulary as it is"),
        ({"labels": ("a", "b")}, "labels was given, but"),
        ({"beta": 0.5}, "--beta: .* is for preference examples alone"),
        ({"val": "x", "val_share": 0.1}, "--val and --val_share: .*; choose one"),
        ({"method": "lora", "targets": ("c_nothing",)}, "c_nothing"),
        ({"eval_every": 4, "save_every": 3}, "save_every = 3 does not divide eval_every = 4"),
        ({"model": "/nowhere/at/all"}, "no such folder"),
    ],
)
def test_settings_that_make_no_sense_are_refused_in_one_line(
    tiny: Settings, settings: dict[str, Any], message: str
) -> None:
    with pytest.raises(UserError, match=message) as caught:
        finetune(**tiny(**settings), quiet=True)
    assert "\n" not in str(caught.value)


def test_a_run_is_resumed_with_its_own_data_alone(tiny: Settings, tmp_path: Path) -> None:
    tuned = finetune(**tiny(max_steps=3), quiet=True)
    write_lines(tmp_path / "pairs.jsonl", pairs(41))
    with pytest.raises(UserError, match=r"the training text .*changed since .*start a new run .* with --model"):
        resume(tuned.folder, quiet=True)
    with pytest.raises(UserError, match="a resumed run keeps its settings"):
        resume(tuned.folder, quiet=True, changes={"rank": 3})


def test_the_report_tells_what_was_done(tiny: Settings, base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gpt2.train.finetune.write_report", report.write_report)
    tuned = finetune(**tiny(method="lora", rank=3, max_steps=6), quiet=True)
    page = (tuned.folder / "report.html").read_text(encoding="utf-8")
    for text in (
        "LoRA of rank 3, alpha 32",
        "JSON lines",
        "6 of 6 steps of 8 examples",
        "gpt2 finetune --resume",
        tuned.use,
    ):
        assert text in page
    assert tuned.use == f"gpt2 generate --model {tuned.folder} PROMPT"
    whole = parameters(read_config(base))
    assert read_run(tuned.folder).figures()["parameters"] == whole


def test_time_is_turned_into_steps(tiny: Settings) -> None:
    tuned = finetune(**tiny(max_steps=None, max_seconds=3.5, eval_every=None, patience=0), quiet=True)
    assert tuned.state.step > 40, "more than the passes over forty examples that are taken without a time"
    assert tuned.state.elapsed < 30.0
