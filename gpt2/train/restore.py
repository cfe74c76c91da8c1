"""From a checkpoint back to a run that goes on as if nothing had happened."""

from __future__ import annotations

from pathlib import Path

import torch

from gpt2.checkpoint.native import load_module
from gpt2.checkpoint.train_state import load_step
from gpt2.data.loader import Loader
from gpt2.runtime import say
from gpt2.train.batches import LoaderBatches
from gpt2.train.config import TrainConfig
from gpt2.train.corpus import Corpus
from gpt2.train.loop import Run, TrainState


def restore(run: Run, corpus: Corpus, config: TrainConfig, step: Path) -> None:
    """Put a checkpoint's weights, optimizer, random numbers and data cursor into a fresh run."""
    numbers, objects = load_step(step)
    saved = load_module(step, run.weights.master.config)
    run.weights.master.load_state_dict(saved.state_dict())
    run.weights.loss_scale, run.weights.good_steps = numbers["loss_scale"], numbers["good_steps"]
    run.weights.publish()
    run.optimizer.load_state_dict(objects["optimizer"])
    run.state = TrainState(**numbers["state"])
    loader = Loader(corpus.train, config.model.context_length, config.seed, state=numbers["cursor"])
    run.batches = LoaderBatches(loader, config)
    torch.set_rng_state(objects["rng"]["torch"])
    if "cuda" in objects["rng"]:
        torch.cuda.set_rng_state(objects["rng"]["cuda"], run.device)
    if numbers["threads"] != torch.get_num_threads():
        say(f"{numbers['threads']} threads before, {torch.get_num_threads()} now: the last bits may differ")
