"""The line that a person sees of a run."""

from __future__ import annotations

import io
import sys
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest

from gpt2.distributed.ranks import ALONE, Ranks
from gpt2.model.config import GPTConfig
from gpt2.model.sizes import training_flops_per_token
from gpt2.train.live import Live, plain
from gpt2.train.loop import StepResult

MODEL = GPTConfig(n_layer=1, n_head=1, n_embd=8, vocab_size=16, context_length=4)
RESULT = StepResult(loss=2.0, grad_norm=1.0, learning_rate=0.1, tokens=100, length=4, seconds=0.5)


def run_of(ranks: Ranks = ALONE) -> Any:
    weights = SimpleNamespace(master=SimpleNamespace(config=MODEL))
    return SimpleNamespace(ranks=ranks, weights=weights, max_steps=10, state=SimpleNamespace(step=4))


def test_speed_is_of_all_processes_and_its_share_of_all_their_peaks(capsys: pytest.CaptureFixture[str]) -> None:
    flops = 100 * training_flops_per_token(MODEL, 4) / 0.5
    for world_size, share in ((1, 1.0), (4, 0.25)):
        run = run_of(Ranks(world_size=world_size, data_size=world_size))
        live = Live(run, peak_flops=flops)
        live(run, RESULT)
        assert live.tokens_per_second == 200.0
        assert live.mfu == pytest.approx(share)
    assert "step 4/10  loss 2.000  200 tokens/s  100% of peak  0:03 left" in capsys.readouterr().err


def test_the_time_left_counts_the_tokens_of_a_growing_batch(capsys: pytest.CaptureFixture[str]) -> None:
    run = run_of()
    Live(run, 1e9, tokens_before=lambda step: 1000 * step * step)(run, RESULT)
    assert "7:00 left" in capsys.readouterr().err  # 84,000 tokens at 200 a second


def test_only_the_main_process_talks(capsys: pytest.CaptureFixture[str]) -> None:
    run = run_of(Ranks(rank=1, world_size=2))
    with Live(run, 1e9) as live:
        live(run, RESULT)
        live.say("hello")
    assert capsys.readouterr().err == ""


def test_a_step_that_was_not_a_plain_one_is_told_of(capsys: pytest.CaptureFixture[str]) -> None:
    run = run_of()
    live = Live(run, 1e9)
    live(run, replace(RESULT, loss=float("nan"), note="skipped: the loss leapt"))
    assert "step 4: skipped: the loss leapt" in capsys.readouterr().err
    live(run, RESULT)
    assert live.loss == 2.0


class Terminal(io.TextIOWrapper):
    def isatty(self) -> bool:
        return True


class Gone(io.RawIOBase):
    """A terminal that has hung up."""

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        raise OSError(5, "Input/output error")


@pytest.mark.parametrize("terminal", [True, False])
def test_a_console_that_is_not_utf_8_shows_what_it_can(monkeypatch: pytest.MonkeyPatch, terminal: bool) -> None:
    raw = io.BytesIO()
    monkeypatch.setattr(sys, "stderr", (Terminal if terminal else io.TextIOWrapper)(raw, encoding="ascii"))
    run = run_of()
    with Live(run, 1e9) as live:
        live(run, RESULT)
        live.say("sample: caf\u00e9 \u2500\x1b[2J\ud83d")
        sys.stderr.flush()
        shown = raw.getvalue()
        assert b"sample: caf? ??[2J?" in shown
        assert b"tokens/s" in shown or terminal  # a line that moves is drawn when it is due


@pytest.mark.parametrize("kind", [Terminal, io.TextIOWrapper])
def test_a_console_that_has_gone_does_not_end_the_run(monkeypatch: pytest.MonkeyPatch, kind: Any) -> None:
    before, run = sys.stderr, run_of()
    monkeypatch.setattr(sys, "stderr", kind(Gone(), encoding="utf-8", write_through=True))
    with Live(run, 1e9) as live:
        live(run, RESULT)
        live.say("hello")
    assert sys.stderr is not before


def test_steering_characters_are_not_shown() -> None:
    assert plain("a\x1b[31mb\r\n\tc", "utf-8") == "a\ufffd[31mb\ufffd\ufffd\ufffdc"
    assert plain("caf\u00e9", "ascii") == "caf?"
