"""Pre-training: from shards of tokens and a config to a run folder. Builds the loop's ingredients and hands them over.

RUN/ holds config.toml (resolved), metrics.jsonl, report.html, loss.png, step_00001000/ (model folders with
train_state/), and `best` and `last`, which name one of these.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from gpt2.checkpoint.find import find_folder
from gpt2.checkpoint.train_state import read_run_config
from gpt2.distributed.launch import job, joined, restarted, take_place
from gpt2.errors import UserError
from gpt2.kernels.peak import device_peak
from gpt2.model.gpt import GPT
from gpt2.model.sizes import parameters
from gpt2.runtime import Runtime, say
from gpt2.tokenizer.bpe import Tokenizer
from gpt2.train.begun import begin, goes_on, refuse_a_run, rewrite
from gpt2.train.build import (
    build_run,
    check_layout,
    check_rows,
    fit_rows,
    its_share,
    resolve,
    resolve_shape,
    sizes_of,
)
from gpt2.train.config import TrainConfig, compose
from gpt2.train.corpus import Corpus, absolute, open_corpus
from gpt2.train.drive import Finished, drive
from gpt2.train.hooks import Evaluate, Log, Sample, Stretch
from gpt2.train.live import Live
from gpt2.train.lock import alone_in
from gpt2.train.loop import Hook, Run
from gpt2.train.plan import known_memory
from gpt2.train.report import write_report
from gpt2.train.restore import find_step, identity, restore
from gpt2.train.save import Save, whole_model
from gpt2.train.shortage import fit_noted
from gpt2.train.trackers import check_trackers, open_metrics

# What a resumed run may be told anew: how the same steps are laid out, and what becomes of a leap that stopped it.
CHANGEABLE = (
    *("dp_replicate", "dp_shard", "tp", "micro_batch_size", "recompute", "compile", "fp8", "device"),
    *("on_outlier", "outlier_z"),
)

IN_8_BITS = ", the blocks' products in 8 bits (peak: bfloat16's)"
LEAVING = 30.0  # seconds that processes which torchrun replaces may take to end

Sampler = Callable[[GPT, Tokenizer], str]


def pretrain(
    config: TrainConfig | None = None, sampler: Sampler | None = None, quiet: bool = False, **changes: Any
) -> Finished:
    """Start a run, from a config or from settings by name: `pretrain(data="data", out="runs/my", max_steps=100)`.

    `sampler` writes a text with the model now and then. Errors that the user can mend are UserErrors. Under torchrun
    all processes call it alike; those that it starts anew after a failure go on with the run that the first began.
    """
    if config is not None and changes:
        raise UserError(f"{sorted(changes)[0]}: give a whole config or settings by name, not both")
    wanted = compose(**changes) if config is None else config
    with joined() as peers:
        if goes_on(peers, Path(wanted.out).expanduser(), wanted):
            return resume(Path(wanted.out).expanduser(), sampler, quiet)
        runtime, config, corpus = peers.attempt(lambda: prepare(wanted))
        place = take_place(runtime, sizes_of(config, runtime.world_size))
        config = resolve(config, corpus, place)
        run = build_run(config, corpus, place)  # before anything is written: a start that fails leaves no run behind
        out = Path(config.out)
        with alone_in(out, place.ranks):
            place.ranks.attempt(lambda: begin(out, config, wanted) if place.ranks.is_main else None)
            return train_run(config, corpus, run, sampler, quiet)


def prepare(config: TrainConfig) -> tuple[Runtime, TrainConfig, Corpus]:
    """What can be checked of a new run before anything is built."""
    if not config.out or not config.data:
        raise UserError("name the tokens with --data DIR and the run's folder with --out RUN")
    out = Path(config.out).expanduser()
    refuse_a_run(out)
    check_trackers(config)
    init = config.init and str(find_folder(config.init).resolve())
    config = replace(absolute(config), out=str(out), init=init)
    runtime = Runtime.detect(config.device, config.dtype)
    corpus = open_corpus(config)
    return runtime, resolve_shape(config, corpus, runtime), corpus


def resume(
    out: str | Path, sampler: Sampler | None = None, quiet: bool = False, changes: Mapping[str, Any] | None = None
) -> Finished:
    """Go on with a run from its newest whole checkpoint, with the same bits as if it had never stopped.

    `changes` may lay the work out anew, on another mesh or with another micro-batch (CHANGEABLE has all names); they
    are the run's settings from then on.
    """
    with joined() as peers:
        runtime, config, corpus = peers.attempt(lambda: reopen(Path(out), changes or {}))
        place = take_place(runtime, sizes_of(config, runtime.world_size))
        again = restarted(place.ranks)
        with alone_in(Path(out), place.ranks, LEAVING if again or job() else 0.0):
            step = find_step(Path(out), place.ranks)
            free = its_share(known_memory(place.device), place)
            config = config if config.micro_batch_size else fit_rows(config, place)
            run = build_run(config if step is None else replace(config, init=None), corpus, place, anew=step is None)
            if step is None:
                say(f"{out}: no checkpoint yet; starting from step 0")
            else:
                restore(run, identity(corpus), config, step)
                say(f"resuming {out} after step {run.state.step} of {run.max_steps}")
            fit_noted(run, config, chosen="micro_batch_size" in (changes or {}) and not again)
            check_rows(config, place, max(1, run.micro_batch_size >> run.state.halvings), free)
            if changes:
                place.ranks.attempt(lambda: rewrite(Path(out), config) if place.ranks.is_main else None)
            return train_run(config, corpus, run, sampler, quiet)


def reopen(out: Path, changes: Mapping[str, Any]) -> tuple[Runtime, TrainConfig, Corpus]:
    """The settings and the tokens of a run that goes on."""
    if others := sorted(set(changes) - set(CHANGEABLE)):
        name = others[0] if not isinstance(changes[others[0]], dict) else next(iter(changes[others[0]]))
        raise UserError(f"--{name}: a resumed run keeps its settings; to change them start anew with --init {out}")
    # How many share the parameters was what the first start left over; these may be other processes.
    config = compose(read_run_config(out), out=str(out), **{"dp_shard": None, **changes})
    check_trackers(config)
    runtime = Runtime.detect(config.device, config.dtype)
    sizes = sizes_of(config, runtime.world_size)
    config = replace(config, dp_shard=sizes.dp_shard, device=runtime.device)
    check_layout(config, sizes)
    corpus = open_corpus(config)
    if corpus.train.meta.vocab_size > config.model.vocab_size:
        raise UserError(f"{config.data}: made with another vocabulary since {out} began; prepare it as it was")
    return runtime, config, corpus


def train_run(config: TrainConfig, corpus: Corpus, run: Run, sampler: Sampler | None, quiet: bool) -> Finished:
    """Run the loop with its hooks; whatever ends it, the folder says how to go on."""
    out = Path(config.out)
    describe(config, run, corpus, quiet)
    metrics = open_metrics(config, run.state.step, run.ranks)
    peak = device_peak(config.device, config.dtype)
    live = Live(run, peak, quiet, config.ramp.tokens_before)
    eot_id = corpus.train.meta.eot_id if config.pack == "masked" else None
    evaluate = Evaluate(corpus.val, metrics, live, config.eval_every or run.max_steps, config.eval_tokens, eot_id)
    hooks: list[Hook] = [live, Stretch(config), Log(metrics, live, config.log_every), evaluate]
    if sampler and corpus.tokenizer:
        tokenizer = corpus.tokenizer
        every = config.sample_every or run.max_steps
        hooks.append(Sample(lambda model: sampler(model, tokenizer), metrics, live, every))
    writer = whole_model(run.weights.master.config, corpus.tokenizer)
    save = Save(out, config, writer, evaluate, {"Trained on": config.data}, identity(corpus))
    stopped_by = drive(run, config, live, hooks, save, metrics, evaluate.finish)
    if run.ranks.is_main:
        write_report(out, config)
    return Finished(out, run.state, evaluate.latest, stopped_by)


def describe(config: TrainConfig, run: Run, corpus: Corpus, quiet: bool) -> None:
    """Two lines that say what is about to happen."""
    if quiet:
        return
    model = config.model
    say(
        f"{parameters(model) / 1e6:.1f}M parameters ({model.n_layer} layers of {model.n_embd}, context "
        f"{model.context_length}, vocabulary {model.vocab_size:,}) on {config.device} in {config.dtype}"
        f"{IN_8_BITS * config.fp8}"
    )
    if run.ranks.world_size > 1:
        sizes = sizes_of(config, run.ranks.world_size)
        mesh = f"dp_replicate {sizes.dp_replicate} x dp_shard {sizes.dp_shard} x tp {sizes.tp}"
        say(f"{sizes.world_size} processes: {mesh}")
    rows = max(1, run.micro_batch_size >> run.state.halvings) * run.ranks.data_size
    micro_steps = -(-config.batch_rows // rows)
    tokens = config.ramp.tokens_before(run.max_steps)
    say(
        f"{run.max_steps:,} steps, {tokens:,} tokens ({corpus.describe_epochs(tokens)}; "
        f"{micro_steps} micro-step{'s' * (micro_steps > 1)}) into {config.out}"
    )
