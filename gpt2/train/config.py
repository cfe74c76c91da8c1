"""The settings of one training run. Resolved before step 1, written to RUN/config.toml, never changed afterwards."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, Literal

from gpt2 import config as settings
from gpt2.config import setting
from gpt2.errors import UserError
from gpt2.model.config import GPTConfig
from gpt2.model.presets import PRESETS, preset_tree
from gpt2.train.ramp import Ramp
from gpt2.train.schedule import ScheduleConfig, rate_factor

FROM_DATA = 1  # a vocab_size that nobody has: the data's
POSITIVE = (  # where they are given
    *("max_steps", "max_tokens", "max_seconds", "epochs", "batch_tokens", "batch_ramp_from", "micro_batch_size"),
    *("short_length", "outlier_z", "dp_replicate", "dp_shard", "tp"),
    *("log_every", "eval_every", "eval_tokens", "save_every", "sample_every", "keep_last"),
)


@dataclass(frozen=True)
class OptimConfig:
    """Rates are those at a schedule factor of 1. Decay is on matrices only, embeddings included."""

    optimizer: Literal["muon", "adamw"] = setting("muon", "muon: hidden matrices by Muon, the rest by AdamW")
    learning_rate: float = setting(5e-3, "AdamW's rate (under muon: of norms and biases, and of what follows)")
    embedding_lr: float | None = setting(None, "of token and position embeddings; else learning_rate")
    head_lr: float | None = setting(None, "of an untied head; else learning_rate")
    muon_lr: float = setting(0.02, "Muon's rate")
    muon_momentum: float = setting(0.95, "Muon's momentum, reached from 0.85 over the first tenth of the run")
    betas: tuple[float, ...] = setting((0.9, 0.95), "AdamW's two averages")
    eps: float = setting(1e-8, "AdamW's epsilon")
    weight_decay: float = setting(0.1, "decay of matrices, times their rate")

    def __post_init__(self) -> None:
        if len(self.betas) != 2 or not all(0.0 <= beta < 1.0 for beta in self.betas):
            raise UserError(f"betas = {self.betas}: two numbers of at least 0 and below 1")
        for name in ("learning_rate", "embedding_lr", "head_lr", "muon_lr"):
            value = getattr(self, name)
            if value is not None and value <= 0:
                raise UserError(f"{name} = {value}: must be above 0")
        if self.weight_decay < 0:
            raise UserError(f"weight_decay = {self.weight_decay}: must not be negative")


@dataclass(frozen=True)
class TrainConfig:
    """What `gpt2 train` needs to know. None means: chosen before step 1, by the rule in the field's line."""

    command: ClassVar[str] = "train"

    data: str = setting("", "a folder made by gpt2 prepare, or nanoGPT's train.bin and val.bin")
    mixture: tuple[str, ...] = setting((), "train on FOLDER=WEIGHT,... instead; --data still gives val and tokenizer")
    pack: Literal["stream", "masked"] = setting(
        "stream", "stream: windows run over documents' ends; masked: no document sees another"
    )
    out: str = setting("", "the run's folder")
    init: str | None = setting(None, "continue from this model (folder or hub id) instead of random weights")
    preset: str = setting("small", "shape to start from: " + ", ".join(PRESETS))
    seed: int = setting(1337, "of weights, data order and dropout")
    device: str = setting("auto", "auto, cpu, cuda, cuda:N or mps")
    dtype: str = setting("auto", "auto, float32 (a GPU multiplies it as TF32), bfloat16 or float16")
    max_steps: int | None = setting(None, "optimizer steps; else by max_tokens, max_seconds or epochs, in this order")
    max_tokens: int | None = setting(None, "tokens to train on, turned into max_steps")
    max_seconds: float | None = setting(None, "time to fit into: measured over a few steps, then turned into max_steps")
    epochs: float = setting(1.0, "passes over the training tokens")
    batch_tokens: int = setting(8192, "tokens of one optimizer step, over all ranks and micro-steps")
    batch_ramp_tokens: int = setting(
        0, "the batch grows to batch_tokens over the first so many tokens (GPT-3: 4B to 12B)"
    )
    batch_ramp_from: int = setting(32_768, "tokens of the first step of a growing batch")
    micro_batch_size: int | None = setting(None, "rows at a time; else by free memory")
    short_length: int | None = setting(None, "train the first part of the run on rows cut to this length")
    short_fraction: float = setting(0.6, "how much of the run that part is")
    grad_clip: float = setting(1.0, "largest gradient norm; 0: any")
    on_outlier: Literal["keep", "skip", "stop"] = setting("keep", "what to do with a step whose loss or gradient leaps")
    outlier_z: float = setting(6.0, "deviations above the running mean that make a leap")
    fp8: bool = setting(False, "the blocks' products in 8-bit floats, on GPUs that have them (Ada, Hopper and later)")
    recompute: Literal["none", "selective", "full"] = setting("none", "activations computed again instead of kept")
    compile: Literal["auto", "on", "off"] = setting(
        "auto", "torch.compile; auto: where the run is long enough to repay it"
    )
    dp_replicate: int = setting(1, "groups of processes that hold the model each")
    dp_shard: int | None = setting(None, "processes that share a model's parameters; else all that are left")
    tp: int = setting(1, "processes that share each layer's heads and columns")
    log_every: int = setting(1, "steps between lines of metrics.jsonl")
    eval_every: int | None = setting(None, "steps between evaluations; else a tenth of the run")
    eval_tokens: int = setting(100_000, "held-out tokens an evaluation reads; the last one reads more")
    save_every: int | None = setting(None, "steps between checkpoints; else as eval_every")
    sample_every: int | None = setting(None, "steps between samples; else a quarter of the run")
    keep_last: int = setting(2, "checkpoints to keep beside the best")
    async_save: bool = setting(True, "write checkpoints beside training")
    tensorboard: bool = setting(False, "metrics for TensorBoard as well")
    wandb: str | None = setting(None, "metrics to this Weights & Biases project as well")
    model: GPTConfig = field(default_factory=GPTConfig, metadata={"whose": "preset's"})
    optim: OptimConfig = field(default_factory=OptimConfig)
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)

    def __post_init__(self) -> None:
        for name in POSITIVE:
            value = getattr(self, name)
            if value is not None and value <= 0:
                raise UserError(f"{name} = {value}: must be above 0")
        for name in ("batch_ramp_tokens", "grad_clip", "seed"):
            if getattr(self, name) < 0:
                raise UserError(f"{name} = {getattr(self, name)}: must not be negative")
        if not 0.0 <= self.short_fraction <= 1.0:
            raise UserError(f"short_fraction = {self.short_fraction}: must be between 0 and 1")

    def check_rows(self) -> None:
        """What can only be checked when the model is known: with `init` it is read from a folder."""
        if self.short_length and self.model.context_length % self.short_length:
            raise UserError(
                f"short_length = {self.short_length} must divide context_length = {self.model.context_length}"
            )
        if self.batch_tokens < self.model.context_length:
            raise UserError(
                f"batch_tokens = {self.batch_tokens} holds no row of context_length = {self.model.context_length}; "
                "raise the one or lower the other"
            )
        if self.batch_ramp_tokens and not self.model.context_length <= self.batch_ramp_from <= self.batch_tokens:
            raise UserError(
                f"batch_ramp_from = {self.batch_ramp_from}: a growing batch starts with a row at least "
                f"(context_length = {self.model.context_length}) and with batch_tokens = {self.batch_tokens} at most"
            )

    @property
    def batch_rows(self) -> int:
        """Rows of one optimizer step, over all ranks; with a growing batch, of the largest."""
        return self.batch_tokens // self.model.context_length

    @cached_property
    def ramp(self) -> Ramp:
        """Rows and tokens of every step."""
        length = self.model.context_length
        first = self.batch_ramp_from // length if self.batch_ramp_tokens else 0
        return Ramp(self.batch_rows, length, first, self.batch_ramp_tokens)

    def rate_at(self, step: int) -> float:
        """Share of the full learning rate in this step of a run whose length is known."""
        assert self.max_steps is not None
        return rate_factor(self.schedule, step, self.max_steps, self.ramp)

    def length_at(self, step: int) -> int:
        """Tokens of a row in this step: the context, or less in the first part of a run with `short_length`."""
        if self.short_length is None or self.max_steps is None or step >= self.short_fraction * self.max_steps:
            return self.model.context_length
        return self.short_length


def compose(path: str | Path | None = None, flags: Sequence[str] = (), **changes: Any) -> TrainConfig:
    """Defaults <- preset <- TOML file <- command-line flags <- keyword arguments (`n_layer=4` or `model={...}`)."""
    file_tree = settings.load_toml(path) if path else {}
    flag_tree = settings.parse_flags(TrainConfig, flags)
    layers: list[Mapping[str, Any]] = [file_tree, flag_tree, settings.nest(TrainConfig, changes)]
    init = next((layer["init"] for layer in reversed(layers) if "init" in layer), None)
    if init is not None:
        check_init(layers)
    name = next((layer["preset"] for layer in reversed(layers) if "preset" in layer), TrainConfig.preset)
    model = preset_tree(name) | {"vocab_size": FROM_DATA}
    return settings.build(TrainConfig, {"model": model}, *layers, origin=str(path or "settings"))


def check_init(layers: Sequence[Mapping[str, Any]]) -> None:
    """A model that goes on keeps its shape: only dropout may be set beside `init` (a resolved config says all)."""
    if "head_dim" in layers[0].get("model", {}):  # the file is a run's resolved config
        layers = layers[1:]
    given = {key for layer in layers for key in layer.get("model", {})} - {"dropout"}
    given |= {"preset"} & {key for layer in layers for key in layer}
    if given:
        raise UserError(
            f"--{sorted(given)[0]}: a run that continues from --init keeps that model's shape; leave it out"
        )
