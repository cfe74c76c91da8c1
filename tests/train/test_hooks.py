"""What happens beside the steps."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from gpt2.checkpoint.find import find_folder, follow
from gpt2.checkpoint.hf_config import read_config
from gpt2.checkpoint.native import load_module
from gpt2.checkpoint.train_state import newest_good_step, steps
from gpt2.data.shards import open_split
from gpt2.distributed.ranks import ALONE, Ranks
from gpt2.errors import UserError
from gpt2.model.config import GPTConfig
from gpt2.model.gpt import GPT
from gpt2.train.config import TrainConfig, compose
from gpt2.train.hooks import Evaluate, Stretch
from gpt2.train.loop import Run, StepResult
from gpt2.train.pretrain import Finished, pretrain, resume
from gpt2.train.validate import score, validate


def test_positions_that_were_never_trained_start_as_copies(
    tiny: Callable[..., TrainConfig], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[int, torch.Tensor]] = []
    original = Stretch.__call__

    def spy(self: Stretch, run: Run, result: StepResult) -> None:
        original(self, run, result)
        seen.append((result.length, run.weights.worker.wpe.weight.detach().clone()))

    monkeypatch.setattr(Stretch, "__call__", spy)
    pretrain(tiny(short_length=4, short_fraction=0.5, dtype="bfloat16"), quiet=True)
    lengths = [length for length, _ in seen]
    assert lengths == [4] * 6 + [16] * 6
    stretched = seen[5][1]
    assert all(torch.equal(stretched[:4], stretched[start : start + 4]) for start in (4, 8, 12))
    assert not torch.equal(seen[4][1][:4], seen[4][1][4:8])


def test_best_and_last_name_whole_model_folders_and_old_steps_go(tiny: Callable[..., TrainConfig]) -> None:
    finished: Finished = pretrain(tiny(save_every=2, eval_every=2, keep_last=2), quiet=True)
    run = finished.folder
    kept = [path.name for path in steps(run)]
    assert kept[-2:] == ["step_00000010", "step_00000012"]
    assert len(kept) <= 3
    assert find_folder(run).name == f"step_{finished.state.best_step:08d}"
    config = read_config(run / "last")
    load_module(run / "last", config)
    assert "data:image/svg+xml;base64," in (run / "report.html").read_text(encoding="utf-8")
    assert (run / "loss.png").read_bytes().startswith(b"\x89PNG")


def test_the_last_evaluation_scores_every_held_out_token_once(tiny: Callable[..., TrainConfig]) -> None:
    finished = pretrain(tiny(), quiet=True)
    assert finished.validation is not None
    assert finished.validation.targets == 900
    assert finished.validation.text_bytes == 1800
    lines = [json.loads(line) for line in (finished.folder / "metrics.jsonl").read_text().splitlines()]
    assert [line["val_targets"] for line in lines if "val/loss" in line][-1] == 900


def test_who_is_asked_to_end_does_not_wait_for_the_last_evaluation(
    tiny: Callable[..., TrainConfig], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    original = Evaluate.measure

    def asked_meanwhile(self: Evaluate, run: Run, *rest: Any) -> None:
        run.asked = run.state.step == run.max_steps
        original(self, run, *rest)

    with monkeypatch.context() as patch:
        patch.setattr(Evaluate, "measure", asked_meanwhile)
        finished = pretrain(tiny(eval_every=100))
    said = capsys.readouterr().err
    assert finished.validation is None and "validation broken off" in said
    assert "trained, but not validated; make up for it with: gpt2 train --resume" in said
    assert list(steps(finished.folder))[-1].name == f"step_{finished.state.step:08d}", "what was trained is saved"
    assert not (finished.folder / "best").exists()
    again = resume(finished.folder, quiet=True)
    assert again.validation is not None and again.validation.targets == 900
    assert follow(finished.folder / "best") == list(steps(finished.folder))[-1].resolve()
    assert resume(finished.folder, quiet=True).validation is None, "it was made up for"


def test_a_model_that_is_trained_is_saved_before_it_is_validated_and_its_card_has_the_verdict(
    tiny: Callable[..., TrainConfig], monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(self: Evaluate, run: Run) -> None:
        raise ZeroDivisionError

    config = tiny(save_every=5, eval_every=100)
    with monkeypatch.context() as patch:
        patch.setattr(Evaluate, "finish", killed)
        with pytest.raises(ZeroDivisionError):
            pretrain(config, quiet=True)
    newest = newest_good_step(Path(config.out))
    assert newest is not None and newest.name == "step_00000012"
    found = resume(config.out, quiet=True).validation
    assert found is not None and f"{found.loss:.4f} nats" in (newest / "README.md").read_text()


def test_documents_that_do_not_see_each_other_in_training_do_not_in_validation() -> None:
    torch.manual_seed(0)
    model = GPT(GPTConfig(n_layer=2, n_head=2, n_embd=32, context_length=16, vocab_size=50))
    inputs, targets = torch.randint(1, 50, (2, 16)), torch.randint(1, 50, (2, 16))
    inputs[0, 5] = inputs[0, 11] = inputs[1, 0] = 7
    cuts = [(0, 0, 5), (0, 5, 11), (0, 11, 16), (1, 0, 16)]
    with torch.no_grad():
        alone = [model(inputs[[row], begin:end], targets[[row], begin:end]) for row, begin, end in cuts]
    loss, count = score(model, inputs, targets, 7, ALONE)
    assert loss == pytest.approx(float(sum(part[0] for part in alone)), rel=1e-6) and count == 32
    assert score(model, inputs, targets, None, ALONE)[0] != pytest.approx(loss, rel=1e-4)


def test_a_masked_run_is_validated_with_its_mask(
    tiny: Callable[..., TrainConfig], tokens: Path, tmp_path: Path
) -> None:
    ends = tmp_path / "ends"
    shutil.copytree(tokens, ends)
    (ends / "meta.json").write_text((ends / "meta.json").read_text().replace('"eot_id": null', '"eot_id": 7'))
    finished = pretrain(tiny(data=str(ends), pack="masked", max_steps=2), quiet=True)
    model, found = load_module(finished.folder / "last", read_config(finished.folder / "last")), finished.validation
    val = open_split(str(ends), "val")
    assert found is not None
    assert found.loss == pytest.approx(validate(model, val, "cpu", eot_id=7).loss, rel=1e-6)
    assert found.loss != pytest.approx(validate(model, val, "cpu").loss, rel=1e-5)


def test_a_validation_that_is_too_much_for_the_memory_goes_on_with_fewer_windows() -> None:
    torch.manual_seed(0)
    model = GPT(GPTConfig(n_layer=1, n_head=2, n_embd=32, context_length=8, vocab_size=50))
    inputs, targets = torch.randint(50, (5, 8)), torch.randint(50, (5, 8))
    expected, sizes = score(model, inputs, targets, None, ALONE), []
    original = model.forward

    def forward(inputs: torch.Tensor, *rest: Any) -> Any:
        sizes.append(len(inputs))
        if len(inputs) > 2:
            raise torch.OutOfMemoryError
        return original(inputs, *rest)

    model.forward = forward  # type: ignore[method-assign]
    assert score(model, inputs, targets, None, ALONE) == (pytest.approx(expected[0], rel=1e-6), expected[1])
    assert sizes == [5, 2, 3, 1, 2]
    with pytest.raises(torch.OutOfMemoryError):
        score(model, inputs, targets, None, Ranks(world_size=2))


def test_a_full_disk_leaves_the_last_checkpoint_and_says_so(
    tiny: Callable[..., TrainConfig], monkeypatch: pytest.MonkeyPatch
) -> None:
    import gpt2.checkpoint.train_state as train_state

    original = torch.save

    def save(value: object, file: object) -> None:
        if len(list(steps(out))) == 2:
            raise OSError(28, "No space left on device")
        original(value, file)

    config = tiny(save_every=3)
    out = train_state.Path(config.out)
    monkeypatch.setattr(torch, "save", save)
    with pytest.raises(UserError, match=r"step 9: the disk is full .*; the last good checkpoint is .*00006"):
        pretrain(config, quiet=True)
    assert not list(out.glob(".step_*"))
    assert train_state.newest_good_step(out) == out / "step_00000006"


def test_without_a_tokenizer_no_sample_is_asked_for(tiny: Callable[..., TrainConfig]) -> None:
    def refuse(model: object, tokenizer: object) -> str:
        raise AssertionError("asked for a sample")

    finished = pretrain(tiny(), sampler=refuse, quiet=True)
    assert "sample" not in (finished.folder / "metrics.jsonl").read_text()


def test_settings_by_name_make_the_same_run_as_a_config(tiny: Callable[..., TrainConfig], tokens: Path) -> None:
    config = tiny(max_steps=2)
    names = {"n_layer": 2, "n_head": 2, "n_embd": 32, "context_length": 16, "dtype": "float32", "device": "cpu"}
    settings = {"data": str(tokens), "out": config.out, "max_steps": 2, "batch_tokens": 128}
    assert compose(**settings, **names) == config
    with pytest.raises(UserError, match="unknown key 'n_layers'"):
        compose(n_layers=3)
    with pytest.raises(UserError, match="not both"):
        pretrain(config, max_steps=3)


def test_a_model_that_goes_on_keeps_the_positions_it_has_learned(
    tiny: Callable[..., TrainConfig], tokens: Path, tmp_path: Path
) -> None:
    first = pretrain(tiny(max_steps=2), quiet=True).folder
    second = str(tmp_path / "second")
    still = {"learning_rate": 1e-12, "muon_lr": 1e-12}
    pretrain(
        data=str(tokens), out=second, init=str(first), short_length=4, max_steps=4, batch_tokens=64, quiet=True, **still
    )
    before, after = (load_module(find_folder(f), read_config(find_folder(f))).wpe.weight for f in (first, Path(second)))
    assert torch.allclose(before, after, atol=1e-6)


def test_a_start_that_fails_leaves_no_run_behind(tiny: Callable[..., TrainConfig], tmp_path: Path) -> None:
    config = tiny(max_steps=1)
    (tmp_path / "broken").mkdir()
    with pytest.raises(UserError):
        pretrain(data=config.data, out=config.out, init=str(tmp_path / "broken"), max_steps=1)
    assert not Path(config.out).exists()
    assert pretrain(config, quiet=True).state.step == 1


def test_a_token_past_the_vocabulary_is_named(tiny: Callable[..., TrainConfig], tokens: Path, tmp_path: Path) -> None:
    data = Path(shutil.copytree(tokens, tmp_path / "data"))
    meta = json.loads((data / "meta.json").read_text())
    (data / "meta.json").write_text(json.dumps(meta | {"vocab_size": 30}))
    with pytest.raises(UserError, match=r"holds token \d+, but the vocabulary ends at 29"):
        pretrain(tiny(data=str(data)), quiet=True)
