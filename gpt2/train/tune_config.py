"""The settings of one fine-tuning. Resolved before step 1, written to RUN/config.toml, never changed afterwards."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from gpt2 import config as settings
from gpt2.config import setting
from gpt2.errors import UserError
from gpt2.model.config import GPTConfig
from gpt2.model.lora_config import LoRAConfig
from gpt2.train.config import OptimConfig
from gpt2.train.ramp import Ramp
from gpt2.train.schedule import ScheduleConfig, rate_factor

if TYPE_CHECKING:
    from gpt2.data.examples import Kind, ReadOptions

POSITIVE = (  # where they are given
    *("epochs", "max_steps", "max_seconds", "batch_examples", "micro_batch_size", "learning_rate", "beta", "rank"),
    *("alpha", "outlier_z", "log_every", "eval_every", "eval_examples", "save_every", "keep_last", "dp_replicate"),
    *("dp_shard", "tp"),
)
FEWEST, MOST = 8, 64  # examples of a step that is chosen by their count
LORA_SHARE = 4  # an adapter learns more by that many times as many steps (docs/log.md)
BATCH_TOKENS = 32_768  # of such a step, about
EPOCHS = ((1_000, 5.0), (50_000, 3.0), (500_000, 2.0))  # (below so many examples, passes over them); else 1
HELD_OUT, MOST_HELD_OUT = 0.1, 2_000  # share of the examples, and the most of them
FULL_RATE, LORA_TIMES, RATE_WIDTH = 1e-4, 10.0, 768  # of all weights, an adapter's over it, at this width
NARROWER = {"full": (3, 20.0), "lora": (2, 10.0)}  # power of RATE_WIDTH / width, and the most of it (docs/log.md)
CAREFUL = (1, 4.0)  # the same for labels and preferences
PREFERENCE_TIMES = 0.2  # of preferences over that of other examples: held-out pairs gain more by it
EVALUATIONS = 10  # of a run
WRITTEN = ("text", "completion")  # kinds that teach a model what to write


@dataclass(frozen=True)
class TuneConfig:
    """What `gpt2 finetune` needs to know. None means: chosen before step 1, by the rule in the field's line."""

    command: ClassVar[str] = "finetune"

    model: str = setting("", "what to start from: a model folder, a run, or a hub id")
    data: str = setting("", "the examples: a file of any known form, recognised by its content")
    out: str = setting("", "the run's folder; RUN/best is the model or the adapter")
    method: Literal["full", "lora"] = setting("full", "full: all weights; lora: small products beside frozen ones")
    val: str | None = setting(None, "a file of held-out examples; else --val_share of the data")
    val_share: float | None = setting(None, "share of the examples to hold out, 0 for none; else a tenth, 2000 at most")
    format: str = setting("auto", "the layout: text, paragraphs, lines, pairs (input||output), jsonl, json, csv or tsv")
    columns: tuple[str, ...] = setting((), "ROLE=NAME,...: what the data's fields are called (prompt=question)")
    template: str | None = setting(None, 'what stands around a prompt: "Q: {prompt}\\nA:"')
    labels: tuple[str, ...] | None = setting(None, "the labels there may be; else those in the data")
    loss: Literal["completion", "all"] = setting("completion", "which tokens are learned")
    too_long: Literal["error", "cut", "skip"] = setting("error", "an example that the context cannot hold")
    add_tokens: tuple[str, ...] = setting((), "new tokens for the vocabulary; other rows stay as they are")
    base_weights: Literal["float", "int8", "int4"] = setting("float", "lora: how the frozen weights are kept")
    rank: int = setting(16, "lora: rank of the products")
    alpha: float = setting(32.0, "lora: they count alpha / rank")
    lora_dropout: float = setting(0.0, "lora: dropout of what goes into them")
    targets: tuple[str, ...] = setting(LoRAConfig().target_modules, "lora: the matrices that get one")
    beta: float = setting(0.1, "preferences: how dear it is to leave the reference")
    lm_weight: float = setting(0.5, "labels: weight of the language model's own loss beside theirs")
    dropout: float = setting(0.0, "of the model while it is trained")
    seed: int = setting(1337, "of the split, the order of examples, adapters and dropout")
    device: str = setting("auto", "auto, cpu, cuda, cuda:N or mps")
    dtype: str = setting("auto", "auto, float32 (a GPU multiplies it as TF32), bfloat16 or float16")
    epochs: float | None = setting(None, "passes over the examples; else 5 to 1, the fewer the more examples")
    max_steps: int | None = setting(None, "optimizer steps; else by max_seconds or epochs")
    max_seconds: float | None = setting(None, "time to fit into: measured over a few steps, then turned into max_steps")
    patience: int = setting(3, "evaluations without a better one that end the run; 0: it is never ended")
    batch_examples: int | None = setting(
        None, "examples of a step; else 8 to 64, the more the more examples; lora a quarter, 8 at least"
    )
    micro_batch_size: int | None = setting(None, "rows of a full context at a time; else by free memory")
    learning_rate: float | None = setting(
        None, "else 1e-4 at GPT-2's width of 768, lora 1e-3; larger for narrower models; preferences / 5"
    )
    schedule: Literal["linear", "cosine", "constant"] = setting("linear", "how the rate falls after the warm-up")
    warmup_fraction: float = setting(0.06, "share of the run that is warm-up")
    betas: tuple[float, ...] = setting((0.9, 0.99), "AdamW's two averages")
    weight_decay: float = setting(0.01, "decay of matrices, times the rate")
    grad_clip: float = setting(1.0, "largest gradient norm; 0: any")
    on_outlier: Literal["keep", "skip", "stop"] = setting("keep", "what to do with a step whose loss or gradient leaps")
    outlier_z: float = setting(6.0, "deviations above the running mean that make a leap")
    fp8: bool = setting(False, "the blocks' products in 8-bit floats, on GPUs that have them (Ada, Hopper and later)")
    recompute: Literal["none", "selective", "full"] = setting("none", "activations computed again instead of kept")
    compile: Literal["auto", "on", "off"] = setting("off", "torch.compile")
    dp_replicate: int = setting(1, "groups of processes that hold the model each")
    dp_shard: int | None = setting(None, "processes that share a model's parameters; else all that are left")
    tp: int = setting(1, "processes that share each layer's heads and columns")
    log_every: int = setting(1, "steps between lines of metrics.jsonl")
    eval_every: int | None = setting(None, "steps between evaluations; else a tenth of the run")
    eval_examples: int = setting(1_000, "held-out examples that an evaluation reads, the same each time")
    save_every: int | None = setting(None, "steps between checkpoints; else as eval_every")
    keep_last: int = setting(1, "checkpoints to keep beside the best")
    async_save: bool = setting(True, "write checkpoints beside training")
    tensorboard: bool = setting(False, "metrics for TensorBoard as well")
    wandb: str | None = setting(None, "metrics to this Weights & Biases project as well")

    def __post_init__(self) -> None:
        for name in POSITIVE:
            value = getattr(self, name)
            if value is not None and value <= 0:
                raise UserError(f"{name} = {value}: must be above 0")
        for name in ("val_share", "dropout", "lora_dropout", "warmup_fraction"):
            value = getattr(self, name)
            if value is not None and not 0.0 <= value < 1.0:
                raise UserError(f"{name} = {value}: must be at least 0 and below 1")
        for name in ("patience", "lm_weight", "weight_decay", "grad_clip", "seed"):
            if getattr(self, name) < 0:
                raise UserError(f"{name} = {getattr(self, name)}: must not be negative")
        if self.seed >= 2**63:
            raise UserError(f"seed = {self.seed}: must be below 2^63")
        if self.val is not None and self.val_share is not None:
            raise UserError("--val and --val_share: held-out examples come from a file or from the data; choose one")
        self.check_method()

    def check_method(self) -> None:
        """What one method alone can do is not silently left out with the other."""
        if self.method == "lora":
            if self.add_tokens:
                raise UserError("--add_tokens: an adapter leaves the vocabulary as it is; use --method full")
            if self.fp8:
                raise UserError("--fp8: an adapter's frozen matrices have formats of their own (--base_weights)")
            return
        for name in ("base_weights", "rank", "alpha", "lora_dropout", "targets"):
            if getattr(self, name) != getattr(TuneConfig, name):
                raise UserError(f"--{name}: full fine-tuning has no adapter; add --method lora")

    @property
    def lora(self) -> LoRAConfig:
        return LoRAConfig(self.rank, self.alpha, self.lora_dropout, self.targets)

    @property
    def optim(self) -> OptimConfig:
        """AdamW over everything that is trained; the rate must be known."""
        assert self.learning_rate is not None
        rate, decay = self.learning_rate, self.weight_decay
        return OptimConfig("adamw", learning_rate=rate, betas=self.betas, weight_decay=decay)

    @property
    def read_options(self) -> ReadOptions:
        columns: dict[str, str] = {}
        for pair in self.columns:
            role, found, name = pair.partition("=")
            if not found or not role or not name:
                raise UserError(f"--columns {pair}: give ROLE=NAME, such as prompt=question")
            columns[role] = name
        from gpt2.data.examples import ReadOptions  # not for --help, as it brings numpy

        return ReadOptions(self.loss, self.too_long, self.format, columns, self.template, self.labels)

    @cached_property
    def _steps(self) -> Ramp:
        return Ramp(1, 1)  # the schedule counts tokens; here each step is one

    def rate_at(self, step: int) -> float:
        """Share of the full learning rate in this step of a run whose length is known."""
        assert self.max_steps is not None
        warm = self.warmup_fraction
        if self.schedule == "linear":
            shape = ScheduleConfig("trapezoid", warmup_fraction=warm, decay_fraction=1.0)
        else:
            shape = ScheduleConfig(self.schedule, warmup_fraction=warm)
        return rate_factor(shape, step, self.max_steps, self._steps)


def compose(path: str | Path | None = None, flags: Sequence[str] = (), **changes: Any) -> TuneConfig:
    """Defaults <- TOML file <- command-line flags <- keyword arguments."""
    file_tree = settings.load_toml(path) if path else {}
    layers: list[Mapping[str, Any]] = [file_tree, settings.parse_flags(TuneConfig, flags), changes]
    return settings.build(TuneConfig, *layers, origin=str(path or "settings"))


def fit_to_data(config: TuneConfig, model: GPTConfig, examples: int, tokens: int, kind: Kind) -> TuneConfig:
    """Fill in batch, epochs and rate for so many examples of so many tokens together, and a model of this shape."""
    batch = config.batch_examples or choose_batch(examples, tokens, config.method, kind)
    epochs = config.epochs or next((passes for below, passes in EPOCHS if examples < below), 1.0)
    rate = choose_rate(config.method, kind, model.n_embd)
    return replace(
        config,
        batch_examples=min(batch, examples),
        epochs=epochs,
        learning_rate=config.learning_rate or float(f"{rate:.1e}"),
    )


def choose_rate(method: str, kind: Kind, width: int) -> float:
    """The full learning rate for a model of this width."""
    power, most = NARROWER[method] if kind in WRITTEN else CAREFUL
    rate = FULL_RATE * min(most, (RATE_WIDTH / width) ** power)
    rate *= LORA_TIMES if method == "lora" else 1.0
    return rate * (PREFERENCE_TIMES if kind == "preference" else 1.0)


def choose_batch(examples: int, tokens: int, method: str, kind: Kind) -> int:
    """Examples of a step: about half the root of their number, a power of two, and no more than fit BATCH_TOKENS.

    An adapter that learns to write gets a quarter as many.
    """
    wanted = min(MOST, 2 ** round(math.log2(max(1.0, math.sqrt(examples) / 2))))
    if method == "lora" and kind in WRITTEN:
        wanted //= LORA_SHARE
    fitting = BATCH_TOKENS * examples // max(1, tokens)
    return max(1, min(max(FEWEST, wanted), fitting))


def held_out_share(config: TuneConfig, examples: int) -> float:
    """The share of the examples that is held out from training."""
    if config.val_share is not None:
        return config.val_share
    return min(HELD_OUT, MOST_HELD_OUT / max(1, examples))


def decide_rhythm(config: TuneConfig, max_steps: int) -> TuneConfig:
    """Fill in how often to evaluate; a checkpoint goes with each evaluation, so that the best one is there."""
    every = config.eval_every or max(1, math.ceil(max_steps / EVALUATIONS))
    save_every = config.save_every or every
    if every % save_every:
        raise UserError(
            f"save_every = {save_every} does not divide eval_every = {every}: the best step would not be there; "
            "change the one or the other"
        )
    return replace(config, max_steps=max_steps, eval_every=every, save_every=save_every)


def what_was_chosen(config: TuneConfig, kind: Kind, examples: int) -> str:
    """The run over so many examples in a line, for a person."""
    assert config.max_steps is not None and config.batch_examples is not None
    epochs = config.max_steps * config.batch_examples / examples
    what = {"text": "text", "completion": "completions", "label": "labels", "preference": "preferences"}[kind]
    how = f"LoRA of rank {config.rank}" if config.method == "lora" else "all weights"
    return (
        f"{what}, {how}: {config.max_steps:,} steps of {config.batch_examples} examples ({epochs:.3g} epochs), "
        f"learning rate {config.learning_rate:g}, {config.schedule}, evaluated every {config.eval_every:,} steps"
    )
