"""Signals end a run between two micro-batches; which of them end it at once, and which are not for it at all."""

from __future__ import annotations

import signal
from types import SimpleNamespace
from typing import Any

import pytest

from gpt2.train import stop
from gpt2.train.stop import stopping_on_signals

hangup = pytest.mark.skipif(not hasattr(signal, "SIGHUP"), reason="no SIGHUP here")


@pytest.fixture
def run() -> Any:
    return SimpleNamespace(asked=False)


def test_a_second_sigterm_does_not_cost_the_checkpoint(run: Any) -> None:
    with stopping_on_signals(run) as request:
        for _ in range(3):
            signal.raise_signal(signal.SIGTERM)
    assert run.asked and request.signal == signal.SIGTERM


def test_a_second_ctrl_c_ends_it_at_once(run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    with stopping_on_signals(run):
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)  # the same request: a launcher hands on what the terminal has sent
        monkeypatch.setattr(stop, "PATIENCE", -1.0)
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)


@hangup
def test_what_nohup_has_told_it_to_ignore_stays_ignored(run: Any) -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with stopping_on_signals(run):
            signal.raise_signal(signal.SIGHUP)
        assert not run.asked and signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


def test_handlers_are_put_back(run: Any) -> None:
    before = [signal.getsignal(number) for number in stop.SIGNALS]
    with stopping_on_signals(run):
        pass
    assert [signal.getsignal(number) for number in stop.SIGNALS] == before
