"""Pre-training: from shards of tokens and a config to a run folder. Builds the loop's ingredients and hands them over.

RUN/ holds config.toml (resolved), metrics.jsonl, report.html, loss.png, step_00001000/ (model folders with
train_state/), and `best` and `last`, which name one of these.
"""

from __future__ import annotations

import signal
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from shlex import quote
from typing import Any

import torch

from gpt2 import hardware
from gpt2.checkpoint.find import find_folder
from gpt2.checkpoint.hf_config import read_config
from gpt2.checkpoint.native import load_module
from gpt2.checkpoint.train_state import read_run_config
from gpt2.data.loader import Loader
from gpt2.errors import UserError
from gpt2.model.config import GPTConfig
from gpt2.model.gpt import GPT
from gpt2.model.sizes import parameters
from gpt2.runtime import Runtime, say, seed_everything
from gpt2.tokenizer.bpe import Tokenizer
from gpt2.tokenizer.files import load_tokenizer
from gpt2.train import plan
from gpt2.train.batches import LoaderBatches
from gpt2.train.config import FROM_DATA, TrainConfig, compose
from gpt2.train.corpus import Corpus, open_corpus
from gpt2.train.faults import disk_error, last_good
from gpt2.train.hooks import Evaluate, Log, Sample, Stretch
from gpt2.train.live import Live
from gpt2.train.loop import NonFiniteLoss, Run, TrainState, fit
from gpt2.train.metrics import MetricsFile
from gpt2.train.optim import Optimizer
from gpt2.train.report import write_report
from gpt2.train.restore import find_step, identity, restore
from gpt2.train.save import Save, write_settings
from gpt2.train.schedule import rate_factor
from gpt2.train.stop import stopping_on_signals
from gpt2.train.validate import Validation
from gpt2.train.weights import Weights

Sampler = Callable[[GPT, Tokenizer], str]


@dataclass(frozen=True)
class Finished:
    """How a run ended: its folder, where it stands, the last validation, the signal that stopped it early if any."""

    folder: Path
    state: TrainState
    validation: Validation | None
    stopped_by: signal.Signals | None = None


def pretrain(
    config: TrainConfig | None = None, sampler: Sampler | None = None, quiet: bool = False, **changes: Any
) -> Finished:
    """Start a run, from a config or from settings by name: `pretrain(data="data", out="runs/my", max_steps=100)`.

    `sampler` writes a text with the model now and then. Errors that the user can mend are UserErrors.
    """
    if config is None:
        config = compose(**changes)
    elif changes:
        raise UserError(f"{sorted(changes)[0]}: give a whole config or settings by name, not both")
    if not config.out or not config.data:
        raise UserError("name the tokens with --data DIR and the run's folder with --out RUN")
    out = Path(config.out).expanduser()
    if (out / "config.toml").exists():
        raise UserError(f"{out}: holds a run already; go on with it by --resume {out}, or choose another --out")
    init = config.init and str(find_folder(config.init).resolve())
    config = replace(config, data=str(Path(config.data).expanduser().resolve()), out=str(out), init=init)
    corpus = open_corpus(config)
    config = resolve(config, corpus)
    run = build_run(config, corpus)  # before anything is written: a start that fails leaves no run behind
    write_settings(out, config)
    return train_run(config, corpus, run, sampler, quiet)


def resume(out: str | Path, sampler: Sampler | None = None, quiet: bool = False) -> Finished:
    """Go on with a run from its newest whole checkpoint, with the same bits as if it had never stopped."""
    out = Path(out)
    config = compose(read_run_config(out), out=str(out))
    detect_runtime(config)
    corpus = open_corpus(config)
    if corpus.train.meta.vocab_size > config.model.vocab_size:
        raise UserError(f"{config.data}: made with another vocabulary since {out} began; prepare it as it was")
    step = find_step(out)
    run = build_run(config if step is None else replace(config, init=None), corpus)
    if step is not None:
        restore(run, corpus, config, step)
        say(f"resuming {out} after step {run.state.step} of {run.max_steps}")
    else:
        say(f"{out}: no checkpoint yet; starting from step 0")
    return train_run(config, corpus, run, sampler, quiet)


def resolve(config: TrainConfig, corpus: Corpus) -> TrainConfig:
    """Decide everything that depends on this machine and these tokens, once."""
    runtime = detect_runtime(config)
    model = resolve_model(config, corpus)
    config = replace(config, device=runtime.device, dtype=runtime.dtype, model=model)
    config.check_rows()
    config = replace(config, micro_batch_size=plan.decide_micro_batch(config, plan.free_memory(runtime.device)))
    epoch = Loader(corpus.train, model.context_length, config.seed).tokens_per_epoch

    def measure() -> float:
        say(f"measuring this machine for a run of {config.max_seconds:,.0f} s")
        return plan.seconds_per_step(build_run(replace(config, max_steps=1000), corpus), config)

    return plan.decide_rhythm(config, plan.decide_steps(config, epoch, measure))


def detect_runtime(config: TrainConfig) -> Runtime:
    """Device and number format that are here, or a UserError; one process only, so far."""
    runtime = Runtime.detect(config.device, config.dtype)
    if runtime.world_size > 1:
        raise UserError(f"{runtime.world_size} processes were started; training runs in one process so far: start one")
    return runtime


def resolve_model(config: TrainConfig, corpus: Corpus) -> GPTConfig:
    """The model's shape: the corpus' vocabulary, or all of the model that the run continues from."""
    vocabulary = corpus.train.meta.vocab_size
    if config.init is None:
        if config.model.vocab_size not in (FROM_DATA, vocabulary):
            raise UserError(
                f"vocab_size = {config.model.vocab_size}, but {config.data} was made with {vocabulary} tokens; "
                "leave vocab_size out, or prepare the text with another --tokenizer"
            )
        return replace(config.model, vocab_size=vocabulary)
    folder = Path(config.init)
    model = read_config(folder)
    theirs = corpus.train.meta.tokenizer_hash
    if vocabulary > model.vocab_size or (theirs is not None and theirs != load_tokenizer(folder).hash):
        raise UserError(
            f"{config.data} was made with another vocabulary ({vocabulary} tokens) than {config.init} reads "
            f"({model.vocab_size}); prepare the text again with --tokenizer {folder}"
        )
    return replace(model, dropout=config.model.dropout)


def build_run(config: TrainConfig, corpus: Corpus) -> Run:
    """Seeded weights (or those to continue from), optimizer and data, at step 0."""
    assert config.max_steps is not None and config.micro_batch_size is not None
    seed_everything(config.seed)
    if config.init is None:
        model = GPT(config.model)
    else:
        model = load_module(Path(config.init), config.model)
    weights = Weights(model.to(config.device), getattr(torch, config.dtype))
    loader = Loader(corpus.train, config.model.context_length, config.seed)
    max_steps = config.max_steps
    return Run(
        weights=weights,
        optimizer=Optimizer(weights.master, config.optim, newton_schulz_dtype(weights.dtype)),
        batches=LoaderBatches(loader, config),
        state=TrainState(),
        rate=lambda step: rate_factor(config.schedule, step, max_steps, config.batch_tokens),
        max_steps=max_steps,
        micro_batch_size=config.micro_batch_size,
        grad_clip=config.grad_clip,
        device=config.device,
    )


def newton_schulz_dtype(dtype: torch.dtype) -> torch.dtype:
    """Muon's iteration needs range more than digits: bfloat16 where the run is short, float32 where it is not."""
    return torch.bfloat16 if dtype == torch.bfloat16 else torch.float32


def train_run(config: TrainConfig, corpus: Corpus, run: Run, sampler: Sampler | None, quiet: bool) -> Finished:
    """Run the loop with its hooks; whatever ends it, the folder says how to go on."""
    out = Path(config.out)
    describe(config, run, corpus, quiet)
    metrics = MetricsFile(out, run.state.step)
    peak = hardware.device_peak(config.device, config.dtype)
    with Live(run, peak, quiet) as live, stopping_on_signals(run) as request:
        evaluate = Evaluate(corpus.val, metrics, live, config.eval_every or run.max_steps, config.eval_tokens)
        save = Save(out, config, corpus.tokenizer, evaluate, {"Trained on": config.data}, identity(corpus))
        hooks: list[Any] = [live, Stretch(config), Log(metrics, live, config.log_every), evaluate]
        if sampler and corpus.tokenizer:
            tokenizer = corpus.tokenizer
            every = config.sample_every or run.max_steps
            hooks.append(Sample(lambda model: sampler(model, tokenizer), metrics, live, every))
        try:
            with save:
                fit(run, [*hooks, save])
        except NonFiniteLoss as error:
            raise NonFiniteLoss(f"{error}; training stopped; {last_good(out)}") from error
        except OSError as error:
            raise UserError(f"step {run.state.step}: {disk_error(error)}; {last_good(out)}") from error
        finally:
            metrics.close()
    if run.state.step < run.max_steps:
        say(
            f"stopped after step {run.state.step} of {run.max_steps}; go on with: gpt2 train --resume {quote(str(out))}"
        )
    write_report(out, config)
    return Finished(out, run.state, evaluate.latest, request.signal)


def describe(config: TrainConfig, run: Run, corpus: Corpus, quiet: bool) -> None:
    """Two lines that say what is about to happen."""
    if quiet:
        return
    model = config.model
    micro_steps = -(-config.batch_rows // run.micro_batch_size)
    say(
        f"{parameters(model) / 1e6:.1f}M parameters ({model.n_layer} layers of {model.n_embd}, context "
        f"{model.context_length}, vocabulary {model.vocab_size:,}) on {config.device} in {config.dtype}"
    )
    epochs = run.max_steps * config.batch_rows * model.context_length / max(1, len(corpus.train))
    say(
        f"{run.max_steps:,} steps of {config.batch_rows * model.context_length:,} tokens "
        f"({epochs:.2f} epochs; {micro_steps} micro-step{'s' * (micro_steps > 1)}) into {config.out}"
    )
