"""A fine-tuning's ingredients: what is chosen for these examples and this machine, then weights, optimizer, batches."""

from __future__ import annotations

import functools
import os
import time
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from gpt2.checkpoint.adapters import write_adapter
from gpt2.checkpoint.classifier import read_head, write_classifier, write_classifier_adapter
from gpt2.checkpoint.hf_config import read_config
from gpt2.checkpoint.native import load_module
from gpt2.data.examples import ExampleSet, Pairs
from gpt2.distributed.estimate import shares
from gpt2.distributed.float8 import check_float8
from gpt2.distributed.launch import Place
from gpt2.distributed.mesh import MeshSizes, check_model, mesh_sizes
from gpt2.errors import UserError
from gpt2.model.frozen import quantise_base
from gpt2.model.gpt import GPT
from gpt2.model.grow import grow_vocabulary
from gpt2.model.lora import apply_lora
from gpt2.model.memory import Pass, micro_batch
from gpt2.runtime import say, seed_everything
from gpt2.train import plan
from gpt2.train.build import change_worker, lay_out, seed_dropout
from gpt2.train.classify import build_classifier
from gpt2.train.completion import CompletionLoss
from gpt2.train.example_batches import GRAIN, ExampleBatches, Rows, choose_room, validation_batches
from gpt2.train.first_weights import Fill, filler, skeleton, stored
from gpt2.train.fused_weights import make_optimizer
from gpt2.train.guard import Guard
from gpt2.train.lessons import Lessons, base_hash
from gpt2.train.loop import Batch, Objective, Run, TokenLoss, TrainState
from gpt2.train.lora_weights import LoRAWeights, ReplicatedWeights
from gpt2.train.preference import PreferenceLoss, kept_reference, reference_margins
from gpt2.train.save import ModelWriter, whole_model
from gpt2.train.tune_config import EVALUATIONS, TuneConfig, decide_rhythm, fit_to_data
from gpt2.train.weights import Weights

LORA_TOKENS = 2_048  # at a time on a processor: more are no faster, as there are no gradients of all weights to sum


def mesh_of(config: TuneConfig, lessons: Lessons, world_size: int) -> MeshSizes:
    """How so many processes are laid out. UserError for a layout that this kind of training does not have."""
    sizes = mesh_sizes(world_size, config.dp_replicate, config.dp_shard, config.tp)
    check_model(sizes, lessons.shape)
    if config.fp8:
        check_float8(config.device, config.dtype, sizes.tp, lessons.shape)
        if lessons.kind == "preference":
            raise UserError("--fp8: preferences are held against the base's own numbers, to more digits; leave it out")
    if replicated(config, lessons):
        if config.tp > 1 or (config.dp_shard or 1) > 1:
            raise UserError(
                f"--tp {config.tp} --dp_shard {config.dp_shard or 1}: adapters, labels and preferences are trained "
                "with a whole model in each process; leave both out"
            )
        return MeshSizes(dp_replicate=world_size)
    return sizes


def replicated(config: TuneConfig, lessons: Lessons) -> bool:
    """Whether each of several processes holds all of the model, outside a mesh."""
    return config.method == "lora" or lessons.kind in ("label", "preference")


def resolve(config: TuneConfig, lessons: Lessons, place: Place) -> TuneConfig:
    """Decide everything that depends on the examples and this machine, once; the main process's word counts."""
    config = fit_to_data(config, lessons.shape, len(lessons.train), lessons.tokens, lessons.kind)
    config = fit_rows(config, lessons, place)
    return decide_rhythm(config, place.ranks.share(decide_steps(config, lessons, place)))


def fit_rows(config: TuneConfig, lessons: Lessons, place: Place) -> TuneConfig:
    """Decide how many rows are taken at a time; all processes take as many."""
    return replace(config, micro_batch_size=min(place.ranks.collect(decide_micro_batch(config, lessons, place))))


def decide_micro_batch(config: TuneConfig, lessons: Lessons, place: Place) -> int:
    """Rows of a full context that one pass reads at most; a step has no more tokens than that would be."""
    assert config.batch_examples is not None
    if config.micro_batch_size is not None:
        return config.micro_batch_size
    context = lessons.shape.context_length
    longest = int(lessons.train.examples.positions.max())
    rows = 1 + -(-config.batch_examples * min(longest, context) // (context * place.ranks.data_size))
    free = plan.free_memory(place.device)
    device = "cuda" if place.device.startswith("cuda") else "cpu"
    if device == "cpu":
        free //= int(os.environ.get("LOCAL_WORLD_SIZE", 1))  # processes of one machine share it
        if config.method == "lora":
            rows = min(rows, max(1, LORA_TOKENS // context))
    sizes, held = mesh_of(config, lessons, place.ranks.world_size), None
    if sizes.world_size > 1 and not replicated(config, lessons):
        held = shares(lessons.shape, sizes)
    step = Pass(1, 0, config.dtype, device, config.recompute, sizes.tp, mesh=held is not None)
    return micro_batch(lessons.shape, step, "adamw", rows, int(free * plan.MEMORY_SHARE), config.async_save, held)


def decide_steps(config: TuneConfig, lessons: Lessons, place: Place) -> int:
    """max_steps as given, else by the clock or by passes over the examples."""
    assert config.batch_examples is not None and config.epochs is not None
    if config.max_steps is not None:
        return config.max_steps
    if config.max_seconds is None:
        return max(1, round(config.epochs * len(lessons.train) / config.batch_examples))
    say(f"measuring this machine for a run of {config.max_seconds:,.0f} s")
    begin = time.perf_counter()
    seconds = max(place.ranks.collect(plan.time_steps(build_run(replace(config, max_steps=1000), lessons, place), 0)))
    held_out = min(config.eval_examples, len(lessons.val or ()))
    evaluations = EVALUATIONS * held_out * seconds / config.batch_examples / 3  # forward only
    left = config.max_seconds * plan.SAFETY - (time.perf_counter() - begin) - evaluations
    return max(1, int(left / seconds))


def build_run(config: TuneConfig, lessons: Lessons, place: Place) -> Run:
    """The base with what is trained of it, optimizer and batches, at step 0."""
    assert config.max_steps is not None and config.micro_batch_size is not None and config.batch_examples is not None
    seed_everything(config.seed)
    weights, objective = build_weights(config, lessons, place)
    untrained = lessons.folder.parent != Path(config.out)  # not a checkpoint of this run
    rows = rows_of(lessons.train, config, lessons, weights if untrained else None, place)
    seed_dropout(config.seed, place.ranks.data_rank)
    on_gpu = place.device.startswith("cuda")
    return Run(
        weights=weights,
        optimizer=make_optimizer(weights, config.optim, torch.float32),
        batches=ExampleBatches(rows, config.batch_examples, config.seed, place.ranks, pin=on_gpu),
        state=TrainState(),
        rate=config.rate_at,
        max_steps=config.max_steps,
        micro_batch_size=config.micro_batch_size,
        grad_clip=config.grad_clip,
        device=place.device,
        ranks=place.ranks,
        guard=Guard(config.on_outlier, config.outlier_z),
        objective=objective,
    )


def build_weights(config: TuneConfig, lessons: Lessons, place: Place) -> tuple[Weights, Objective]:
    """The model of these settings with the head that its examples ask for, and what it is to make small."""
    dtype: torch.dtype = getattr(torch, config.dtype)
    tokens = config.max_steps * lessons.tokens / len(lessons.train) * config.batch_examples  # type: ignore[operator]
    if place.mesh is not None and not replicated(config, lessons):
        return lay_out(skeleton(lessons.shape), config, place, tokens, first_weights(config, lessons)), TokenLoss()
    model = load_base(config, lessons)
    if config.method == "lora":
        model = with_adapter(model.to(place.device), config, dtype)
        objective = objective_of(config, lessons, model)  # a head is hung on when all else is frozen
        return change_worker(LoRAWeights(model, dtype, place.ranks), config, place, tokens), objective
    objective = objective_of(config, lessons, model)
    if place.mesh is not None:
        weights = ReplicatedWeights(model.to(place.device), dtype, place.ranks)
        return change_worker(weights, config, place, tokens), objective
    return lay_out(model, config, place, tokens), objective


def objective_of(config: TuneConfig, lessons: Lessons, model: GPT) -> Objective:
    """What is to be made small; the model gets the head that it asks for."""
    if lessons.kind == "label":
        return build_classifier(model, lessons.train, config.lm_weight, read_head(lessons.folder))
    if lessons.kind == "preference":
        return PreferenceLoss(config.beta)
    return CompletionLoss()


def load_base(config: TuneConfig, lessons: Lessons) -> GPT:
    """The base's weights in float32, its vocabulary grown to the tokenizer's."""
    model = load_module(lessons.folder, replace(read_config(lessons.folder), dropout=config.dropout))
    grow_vocabulary(model, lessons.shape.vocab_size, config.seed)
    return model


def first_weights(config: TuneConfig, lessons: Lessons) -> Fill:
    """The same for a model that no process holds whole."""
    source = stored(lessons.folder, read_config(lessons.folder), lessons.shape.vocab_size, config.seed)
    return filler(lessons.shape, source)


def with_adapter(model: GPT, config: TuneConfig, dtype: torch.dtype) -> GPT:
    """The base frozen, in short or quantised numbers, with products beside its matrices."""
    if config.base_weights != "float":
        quantise_base(model, config.base_weights)
    model.to(dtype)
    apply_lora(model, config.lora)
    return model


def rows_of(examples: ExampleSet, config: TuneConfig, lessons: Lessons, base: Weights | None, place: Place) -> Rows:
    """How these examples become rows; of pairs with what the model thinks of them while it is not yet trained.

    `base` is None where it is: then that has to be known already.
    """
    room = choose_room(examples.examples, lessons.shape.context_length)
    reference: NDArray[np.float32] | None = None
    if isinstance(examples.examples, Pairs):
        reference = reference_of(examples, examples.examples, config, lessons, base, place)
    # A GPU's attention is made for each length of rows: there all are alike.
    return Rows(examples.examples, room, room if place.device.startswith("cuda") else GRAIN, reference)


def reference_of(
    examples: ExampleSet, pairs: Pairs, config: TuneConfig, lessons: Lessons, base: Weights | None, place: Place
) -> NDArray[np.float32]:
    """The base's margins, from a file beside the run if they have been computed before; the main process does it."""
    name = "reference" if examples is lessons.train else "reference_val"
    what = (
        f"{examples.hash} {config.val_share} {config.seed} {len(examples)} {base_hash(lessons.folder)} {config.dtype} "
        f"{config.method} {config.base_weights}"
    )

    path = Path(config.out) / f"{name}.safetensors"

    def compute() -> NDArray[np.float32]:
        if base is None:
            raise UserError(f"{path}: gone, or of other pairs; what the base thought is not known now: start a new run")
        say(f"{len(examples):,} pairs: what the base thinks of them is computed once")
        return reference_margins(base.worker, pairs, place.device)

    mine = kept_reference(path, what, compute) if place.ranks.is_main else np.empty(0, np.float32)
    return place.ranks.share(mine)


def held_out(config: TuneConfig, lessons: Lessons, run: Run, place: Place) -> Callable[[], Iterable[Batch]] | None:
    """Makes the held-out batches, the same each time; None where nothing is held out."""
    if lessons.val is None:
        return None
    rows = rows_of(lessons.val, config, lessons, run.weights if run.state.step == 0 else None, place)
    return functools.partial(validation_batches, rows, config.eval_examples, place.device, place.ranks)


def writer_of(config: TuneConfig, lessons: Lessons) -> ModelWriter:
    """What makes a checkpoint a folder to use: a model, one with labels, or an adapter that names its base."""
    if config.method == "lora" and lessons.kind == "label":
        return lambda folder, state, notes: write_classifier_adapter(
            folder, config.lora, state, lessons.train.labels, config.model, lessons.tokenizer, notes
        )
    if config.method == "lora":
        return lambda folder, state, notes: write_adapter(
            folder, config.lora, state, config.model, lessons.tokenizer, notes
        )
    if lessons.kind == "label":
        return lambda folder, state, notes: write_classifier(
            folder, lessons.shape, state, lessons.train.labels, lessons.tokenizer, notes
        )
    return whole_model(lessons.shape, lessons.tokenizer)
