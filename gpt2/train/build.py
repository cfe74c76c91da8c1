"""A run's ingredients: settings resolved for this machine and these tokens, then weights, optimizer and data."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch

from gpt2.checkpoint.hf_config import read_config
from gpt2.checkpoint.native import load_module
from gpt2.distributed.float8 import check_float8
from gpt2.distributed.launch import Place
from gpt2.distributed.mesh import MeshSizes, check_model, mesh_sizes
from gpt2.distributed.parallelize import parallelize
from gpt2.errors import UserError
from gpt2.kernels.float8 import SIDE
from gpt2.kernels.peak import device_peak
from gpt2.model.config import GPTConfig
from gpt2.model.gpt import GPT
from gpt2.runtime import Runtime, say, seed_everything
from gpt2.tokenizer.files import load_tokenizer
from gpt2.train import plan
from gpt2.train.batches import open_batches
from gpt2.train.compiled import compile_blocks, worth_it
from gpt2.train.config import FROM_DATA, TrainConfig
from gpt2.train.corpus import Corpus
from gpt2.train.first_weights import Fill, Source, drawn, filler, skeleton, stored, unset
from gpt2.train.fused_weights import make_optimizer, make_weights
from gpt2.train.guard import Guard
from gpt2.train.loop import Run, TrainState
from gpt2.train.mesh_weights import MeshWeights
from gpt2.train.settings import RunSettings
from gpt2.train.weights import Weights


def sizes_of(config: TrainConfig, world_size: int) -> MeshSizes:
    """The mesh that the settings ask of so many processes."""
    return mesh_sizes(world_size, config.dp_replicate, config.dp_shard, config.tp)


def resolve_shape(config: TrainConfig, corpus: Corpus, runtime: Runtime) -> TrainConfig:
    """Device, number format, mesh and the model's shape, checked together; the same in all processes."""
    model = resolve_model(config, corpus)
    config = replace(config, device=runtime.device, dtype=runtime.dtype, model=model)
    config.check_rows()
    sizes = sizes_of(config, runtime.world_size)
    check_layout(config, sizes)
    return replace(config, dp_shard=sizes.dp_shard)


def check_layout(config: TrainConfig, sizes: MeshSizes) -> None:
    """What this device and a mesh cannot do with this model and these batches."""
    check_model(sizes, config.model)
    if config.fp8:
        check_float8(config.device, config.dtype, sizes.tp, config.model)
        if config.short_length and config.short_length % SIDE:
            raise UserError(f"--fp8: short_length = {config.short_length} is no multiple of {SIDE}; change it")
    if config.batch_rows % sizes.data_size:
        raise UserError(
            f"batch_tokens = {config.batch_tokens}: {config.batch_rows} rows of {config.model.context_length} tokens "
            f"cannot be dealt out evenly to {sizes.data_size} groups of processes; make them a multiple of it"
        )


def fit_rows(config: TrainConfig, place: Place) -> TrainConfig:
    """Decide how many rows are taken at a time; all processes take as many."""
    ranks = place.ranks
    if config.micro_batch_size is not None:
        check_rows(config, place, config.micro_batch_size, its_share(plan.known_memory(place.device), place))
    free = its_share(plan.free_memory(place.device), place)
    rows = config.batch_rows // ranks.data_size
    rows = plan.decide_micro_batch(config, free, rows, sizes_of(config, ranks.world_size))
    return replace(config, micro_batch_size=min(ranks.collect(rows)))


def its_share(free: int, place: Place) -> int:
    """Of a machine's memory, which the processes on it share."""
    return free // int(os.environ.get("LOCAL_WORLD_SIZE", 1)) if place.device == "cpu" else free


def check_rows(config: TrainConfig, place: Place, rows: int, free: int) -> None:
    """Say so where a number of rows that was chosen may not fit what is free (0: nobody knows)."""
    share = config.batch_rows // place.ranks.data_size
    rows = min(rows, share)
    if free:
        plan.warn_if_tight(config, free, rows, -(-share // rows), sizes_of(config, place.ranks.world_size))


def resolve(config: TrainConfig, corpus: Corpus, place: Place) -> TrainConfig:
    """Decide everything that depends on this machine and these tokens, once; the main process's word counts."""
    ranks, config = place.ranks, settle_compile(fit_rows(config, place), place)
    epoch = corpus.tokens_per_epoch(config)

    def measure() -> float:
        say(f"measuring this machine for a run of {config.max_seconds:,.0f} s")
        run = build_run(replace(config, max_steps=1000), corpus, place)
        return max(ranks.collect(plan.seconds_per_step(run, config)))

    return plan.decide_rhythm(config, ranks.share(plan.decide_steps(config, epoch, measure)))


def settle_compile(config: TrainConfig, place: Place) -> TrainConfig:
    """Where the clock ends the run, it says whether compiling pays: what is measured is then what is trained."""
    by_clock = config.max_steps is None and config.max_tokens is None and config.max_seconds is not None
    if config.compile != "auto" or not by_clock or not place.device.startswith("cuda"):
        return config
    assert config.max_seconds is not None
    return replace(config, compile="on" if worth_it(config.max_seconds) else "off")


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


def build_run(config: TrainConfig, corpus: Corpus, place: Place, anew: bool = True) -> Run:
    """Seeded weights (or those to continue from), optimizer and data, at step 0.

    Not `anew`: `restore` comes next and sets all of it.
    """
    assert config.max_steps is not None and config.micro_batch_size is not None
    seed_everything(config.seed)
    weights = build_weights(config, place, anew)
    seed_dropout(config.seed, place.ranks.data_rank)
    return Run(
        weights=weights,
        optimizer=make_optimizer(weights, config.optim, newton_schulz_dtype(weights.dtype)),
        batches=open_batches(corpus, config, place.ranks),
        state=TrainState(),
        rate=config.rate_at,
        max_steps=config.max_steps,
        micro_batch_size=config.micro_batch_size,
        grad_clip=config.grad_clip,
        device=place.device,
        ranks=place.ranks,
        guard=Guard(config.on_outlier, config.outlier_z),
    )


def build_weights(config: TrainConfig, place: Place, anew: bool = True) -> Weights:
    """The same weights in all processes: new ones, or those to continue from; `anew`: not of a checkpoint to come."""
    tokens = (config.max_steps or 1) * config.batch_tokens
    if place.mesh is None:
        model = GPT(config.model) if config.init is None else load_module(Path(config.init), config.model)
        return lay_out(model, config, place, tokens)
    source: Source = unset
    if anew:
        source = drawn(config.model) if config.init is None else stored(Path(config.init), config.model)
    return lay_out(skeleton(config.model), config, place, tokens, filler(config.model, source))


def lay_out(model: GPT, config: RunSettings, place: Place, tokens: float, fill: Fill | None = None) -> Weights:
    """A model's weights on this process's device, or on the mesh if there is one, for a run over so many tokens.

    A `skeleton` takes them from `fill` (first_weights.py).
    """
    dtype: torch.dtype = getattr(torch, config.dtype)
    if place.mesh is None:
        return change_worker(make_weights(model.to(place.device), dtype), config, place, tokens)
    # FSDP moves each block to the device when it has cut it down: a whole model never lies there.
    compile_model = compiler(config, place, tokens)
    return MeshWeights(parallelize(model, place.mesh, dtype, config.recompute, compile_model, fill, config.fp8), dtype)


def change_worker(weights: Weights, config: RunSettings, place: Place, tokens: float) -> Weights:
    """What a process that holds a whole model changes of the one that makes the passes; returns the same weights."""
    spared = config.recompute == "selective" and weights.fused
    if spared:
        say("recompute = selective: the kernels of this processor keep as little without it; full keeps less")
    recompute = "none" if spared else config.recompute
    parallelize(weights.worker, None, weights.dtype, recompute, compiler(config, place, tokens), fp8=config.fp8)
    return weights


def compiler(config: RunSettings, place: Place, tokens: float) -> Callable[[GPT], None]:
    """Compiles a model's blocks where the settings say so, or where a run over so many tokens repays it."""

    def compile_model(model: GPT) -> None:
        peak = device_peak(place.device, config.dtype)
        compile_blocks(model, config.compile, place.device, peak, tokens / place.ranks.world_size)

    return compile_model


def seed_dropout(seed: int, data_rank: int) -> None:
    """Groups that read different rows draw different masks: group r from seed + r, but for the first, which goes on
    with what drew the weights, as a lone process does. Tensor-parallel peers draw alike, each for its own heads."""
    if data_rank:
        torch.manual_seed(seed + data_rank)


def newton_schulz_dtype(dtype: torch.dtype) -> torch.dtype:
    """Muon's iteration needs range more than digits: bfloat16 where the run is short, float32 where it is not."""
    return torch.bfloat16 if dtype == torch.bfloat16 else torch.float32
