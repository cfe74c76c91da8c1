"""What training holds in memory, term by term: arithmetic on shapes, no torch. Tests hold it to what is measured.

On a processor it is this one that is asked about: whether float32 has kernels depends on it.

N tokens of a micro-batch  C n_embd  A attention width  F n_inner  V rows of the vocabulary in memory
"""

from __future__ import annotations

import functools
import math
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal

from gpt2.kernels.blocks import EVALUATED_ROWS, GPU_HEAD_ROWS, HEAD_ROWS, STORED_ATTENTION
from gpt2.kernels.chosen import by_floats
from gpt2.model.config import GPTConfig
from gpt2.model.sizes import BYTES, block_parameters, kernel_numbers

Recompute = Literal["none", "selective", "full"]
RECOMPUTE: tuple[Recompute, ...] = ("none", "selective", "full")

MB = 10**6
# A process before it holds a model: interpreter, torch, and on a processor numba with the compiled kernels; on a GPU
# what CUDA's context and cuBLAS take beside torch's allocator.
BASE = {"float32": 430 * MB, "bfloat16": 450 * MB, "float16": 430 * MB}
FLOAT_KERNELS = 65 * MB  # what float32's add to that, where they are taken
CUDA_BASE = 900 * MB
NCCL = 1500 * MB  # its buffers, where there are several processes
HEAP = 1.10  # freed tensors of a few megabytes leave gaps in a processor's heap
TILE = {
    "bfloat16": 64,
    "float32": 16,
}  # columns of a tile of a processor's attention (kernels/flash.py)
EVAL_TOKENS = {"cpu": 4_096, "cuda": 16_384}  # of one batch of an evaluation (train/validate.py)


@dataclass(frozen=True)
class Pass:
    """One forward and backward pass as a process does it: `rows` of `length` tokens; 0 tokens: the context."""

    rows: int
    length: int = 0
    dtype: str = "bfloat16"
    device: str = "cpu"
    recompute: Recompute = "none"
    tp: int = 1
    micro_steps: int = 1  # passes whose gradients are summed before the optimizer's step
    mesh: bool = False  # whether the process is one of a mesh

    @property
    def size(self) -> int:
        """Bytes of a number."""
        return BYTES[self.dtype]

    @property
    def fused(self) -> bool:
        """Whether the processor's kernels do it."""
        return self.device == "cpu" and (self.dtype == "bfloat16" or (self.dtype == "float32" and by_floats()))

    def tiled(self, config: GPTConfig) -> bool:
        """Whether heads are of a width that the processor's attention has tiles for."""
        return self.fused and config.head_dim % TILE[self.dtype] == 0

    @property
    def spares(self) -> bool:
        """Whether blocks make their norms' and GELU's outputs again (kernels/parts.py)."""
        return self.fused and not self.mesh


@dataclass(frozen=True)
class Held:
    """Numbers (not bytes) of the parameters that one process holds, and of those it sees whole for a moment."""

    hidden: int  # the blocks' matrices, which Muon steps
    other: int
    block: int = 0  # on a mesh: one block's, gathered; tensor parallelism leaves a process its part
    root: int = 0  # on a mesh: embeddings, last norm and head, gathered
    sharded: bool = False  # whether blocks are gathered and let go one by one

    @property
    def all(self) -> int:
        return self.hidden + self.other


@dataclass(frozen=True)
class TrainingBytes:
    """What one process holds when it holds most. `activations` wait for the backward pass; `working` is what the
    largest moment takes beside them, `gathered` the whole parameters of a mesh's units, `saving` a checkpoint's copy.
    """

    base: int
    weights: int
    gradients: int
    optimizer: int
    gathered: int
    activations: int
    working: int
    saving: int

    @property
    def total(self) -> int:
        return sum(vars(self).values())


def whole(config: GPTConfig) -> Held:
    """All of a model, as one process holds it: padding rows too."""
    hidden = config.n_layer * kernel_numbers(config)
    blocks = config.n_layer * block_parameters(config)
    return Held(hidden, blocks - hidden + root_numbers(config))


def root_numbers(config: GPTConfig) -> int:
    """Embeddings, last norm and head as memory holds them, padding rows too."""
    head = 0 if config.tie_head else config.padded_vocab_size * config.n_embd
    bias = config.padded_vocab_size if config.head_bias else 0
    norm = config.n_embd * (2 if config.bias else 1)
    return (config.padded_vocab_size + config.context_length) * config.n_embd + norm + head + bias


def training_bytes(
    config: GPTConfig, step: Pass, optimizer: str = "adamw", held: Held | None = None, saving: bool = False
) -> TrainingBytes:
    """The peak of one process. `held` is its part of a mesh, else all of the model; `saving`: a checkpoint is written
    beside the steps (a GPU's copy lies in main memory and is not counted).
    """
    mesh, held = held is not None, held or whole(config)
    copies = 0 if mesh or step.dtype == "float32" else step.size * held.all
    moments = 4 * held.hidden + 8 * held.other if optimizer == "muon" else 8 * held.all
    kernels = FLOAT_KERNELS if step.fused and step.dtype == "float32" else 0
    fixed = BASE[step.dtype] + kernels if step.device == "cpu" else CUDA_BASE + (NCCL if mesh else 0)
    # A copy of masters and optimizer, and the model's matrices as its folder has them, transposed.
    snapshot = 4 * held.all + moments + 4 * held.hidden if saving and step.device == "cpu" else 0
    moment = largest_moment(config, step, optimizer, held, mesh, snapshot)
    kept = min(activation_bytes(config, step), moment.rest)
    return TrainingBytes(
        base=fixed,
        weights=4 * held.all + copies,
        gradients=moment.gradients,
        optimizer=moments,
        gathered=gathered_bytes(config, step, held) if mesh else 0,
        activations=kept,
        working=moment.rest - kept,
        saving=snapshot,
    )


def gathered_bytes(config: GPTConfig, step: Pass, held: Held) -> int:
    """Whole parameters in the passes' number format, as FSDP holds them: the root unit all along, and two blocks (the
    one at work and the one fetched ahead), or every block where blocks are not let go.
    """
    blocks = min(2, config.n_layer) if held.sharded else config.n_layer
    return step.size * (held.root + blocks * held.block)


@dataclass(frozen=True)
class Moment:
    """What there is beside weights and optimizer at one moment of a step: gradients, and all the rest."""

    gradients: int
    rest: int


def largest_moment(config: GPTConfig, step: Pass, optimizer: str, held: Held, mesh: bool, saving: int) -> Moment:
    """The moment of a step, or of an evaluation, at which a process holds most beside a checkpoint's copy."""
    head = head_bytes(config, step)
    kept = activation_bytes(config, step)
    body = kept - head.kept
    block = max(backward_block_bytes(one, step) for one, _ in kinds(config))
    unit = held.block * (step.size + 4) if mesh else 0  # a block's whole gradient, and as it is sent
    # The token embedding's gradient, beside the tied head's: their sum is new, or sent in float32.
    table = config.padded_vocab_size * config.n_embd * (step.size + (4 if mesh else step.size))
    # Beside float32 sums, one process has gradients in the passes' format; if the kernels do it, those alone will do,
    # and in float32 they are the sums.
    alone = step.fused and not mesh and (step.micro_steps == 1 or step.dtype == "float32")
    short = step.size * held.all if not mesh and (alone or step.dtype != "float32") else 0
    sums = 0 if alone else 4 * held.all
    muon = muon_bytes(config, step, held, mesh) if optimizer == "muon" else 0
    # Muon reads float32: where gradients are short and were never summed, it gets copies of them.
    muon += 4 * held.hidden if muon and not sums and step.dtype != "float32" else 0
    moments = [
        Moment(sums, body + head.kept + max(head.forward, head.backward)),
        Moment(sums + head.gradient, body + block + unit),
        Moment(sums + short, block + table + unit),
        Moment(max(sums, short), muon),
    ]
    if step.fused and not mesh:
        # Nothing that was freed goes back to the system there (kernels/allocator.py), and what stays cuts it up: a
        # step's gradients find no room among its activations, nor Muon's stacks.
        together = max(m.rest for m in moments[:3]) + moments[3].rest + evaluations_apart(config, step, saving)
        return Moment(sums + short, together + head.always)
    moments.append(Moment(sums, evaluation_bytes(config, step)))
    moments = [Moment(m.gradients, _heap(step, m.rest) + head.always) for m in moments]
    return max(moments, key=lambda m: m.gradients + m.rest)


def activation_bytes(config: GPTConfig, step: Pass) -> int:
    """What forward keeps for backward: the blocks', the last norm's input, the head's."""
    body = sum(count * kept_block_bytes(one, step, step.recompute) for one, count in kinds(config))
    return body + _tokens(config, step) * config.n_embd * step.size + head_bytes(config, step).kept


@functools.lru_cache(maxsize=8)
def kinds(config: GPTConfig) -> list[tuple[GPTConfig, int]]:
    """The model as if all of its layers were of one kind, for each of its kinds; and how many are of it."""
    pattern = Counter(config.attention_kind(layer) for layer in range(config.n_layer))
    return [
        (
            replace(
                config,
                attention_pattern=(kind,),
                band_width=config.band_width if kind == "banded" else 0,
                attention_stride=config.attention_stride if kind == "strided" else 0,
            ),
            count,
        )
        for kind, count in pattern.items()
    ]


def kept_block_bytes(config: GPTConfig, step: Pass, recompute: Recompute = "none") -> int:
    """One block's: inputs of its norms (2 C) and of its linear layers (2 C + A + F), q, k, v (3 A), GELU's input (F).

    `selective` keeps the outputs of products and attention instead (3 A + A + C + F + C) and its own input (C), `full`
    that input only. The processor's kernels keep neither what norms nor what the tanh GELU make (2 C + 4 A + F), with
    `selective` too. Tensor parallelism divides A and F. `config` has layers of one kind (see `kinds`).
    """
    c, a, f = config.n_embd, config.attention_width // step.tp, config.n_inner // step.tp
    tokens, heads = _tokens(config, step), config.n_head // step.tp
    numbers = {"none": 4 * c + 4 * a + 2 * f, "selective": 3 * c + 4 * a + f, "full": c}[recompute]
    if step.spares and recompute != "full":
        numbers = 2 * c + 4 * a + f + (0 if config.activation == "gelu_tanh" else c + f)
    kept = tokens * numbers * step.size
    if recompute == "full":
        return kept
    if stores_attention(config, step):
        return kept + tokens * heads * row_length(config, step) * step.size * (recompute == "none")
    if config.stride(0) > 1 and not step.tiled(config):  # what attention gave, before its rows are put together again
        kept += tokens * a * step.size * (recompute == "none")
    norms = 4 * 4 * (recompute == "none" and not step.spares)  # mean and spread of two
    return kept + tokens * (4 * heads + norms) + dropout_bytes(config, step)


def stores_attention(config: GPTConfig, step: Pass) -> bool:
    """Whether T x T probabilities are kept: on a processor in bfloat16, short rows of heads that no tile fits."""
    length = row_length(config, step)
    short = length <= STORED_ATTENTION and not 0 < config.window(0) < length
    return step.fused and step.size == 2 and config.dropout == 0.0 and short and not step.tiled(config)


def row_length(config: GPTConfig, step: Pass) -> int:
    """Tokens of a row as attention gets it: a stride folds rows into shorter ones."""
    return -(-(step.length or config.context_length) // config.stride(0))


def dropout_bytes(config: GPTConfig, step: Pass) -> int:
    """Masks: two of C a token; on a processor as wide as the numbers, and attention's own T x T as well."""
    if config.dropout == 0.0:
        return 0
    tokens = _tokens(config, step)
    if step.device != "cpu":
        return 2 * tokens * config.n_embd
    length = step.length or config.context_length
    return tokens * step.size * (2 * config.n_embd + 3 * config.n_head // step.tp * length)


def backward_block_bytes(config: GPTConfig, step: Pass) -> int:
    """What the backward pass of one block takes for itself: gradients on their way, and what it computes again."""
    c, a, f = config.n_embd, config.attention_width // step.tp, config.n_inner // step.tp
    tokens, length = _tokens(config, step), row_length(config, step)
    scores = config.n_head // step.tp * length if stores_attention(config, step) else 0
    if config.window(0) and step.device == "cpu" and not step.tiled(config):
        scores = 4 * a  # blocks of the inputs and of their gradients (kernels/banded.py), one more each
    # The processor's kernels have theirs in a workspace (head_bytes), but for the gradients of x, q, k and v.
    way = tokens * (3 * c + 4 * a + scores if step.spares else 2 * c + max(2 * f, 7 * a + scores)) * step.size
    kept = step.recompute == "none" or (step.recompute == "selective" and step.spares)
    again = 0 if kept else kept_block_bytes(config, step)
    return way + again


@dataclass(frozen=True)
class HeadBytes:
    """What the head and its loss hold: `kept` until backward, `forward` and `backward` at most beside that,
    `gradient` of the head's weights from then on, and `always`, a workspace that is never given back.
    """

    kept: int
    forward: int
    backward: int
    gradient: int
    always: int = 0


def head_bytes(config: GPTConfig, step: Pass) -> HeadBytes:
    """By a processor's kernels and on a GPU the gradient is made in forward, some tokens at a time; else float32
    logits of all tokens exist, log-softmax keeps as much, and its backward pass holds three of them.
    """
    tokens, rows = _tokens(config, step), config.padded_vocab_size
    weights, hidden = rows * config.n_embd, tokens * config.n_embd * step.size
    if step.fused:
        work = step.size * min(tokens, HEAD_ROWS) * (rows + config.n_embd)
        block = step.size * tokens * (2 * config.n_inner + 3 * config.n_embd)  # of an MLP's backward pass, there too
        always = max(work, block) if step.spares else work
        return HeadBytes(hidden + step.size * weights, 0, 0, step.size * weights, always=always)
    if step.device == "cuda" and not config.head_bias:
        work = min(tokens, GPU_HEAD_ROWS) * rows * (step.size + 8) + weights * step.size
        return HeadBytes(hidden + 4 * weights, work, hidden + 4 * weights, step.size * weights)
    logits = tokens * config.vocab_size
    convert = step.size * logits if step.size < 4 else 0
    return HeadBytes(hidden + 4 * logits, 4 * logits + convert, 8 * logits, 2 * step.size * weights)


def muon_bytes(config: GPTConfig, step: Pass, held: Held, mesh: bool) -> int:
    """Matrices of one shape step together: their gradient (float32), the iteration in the passes' format, the step."""
    size = 2 if step.dtype == "bfloat16" else 4
    largest = max(4 * config.attention_width * config.n_embd, config.n_inner * config.n_embd)
    share = held.hidden / (config.n_layer * kernel_numbers(config)) if mesh else 1.0
    exchange = 8 if mesh else 0  # whole matrices on their way to a process and back
    return int(config.n_layer * largest * share) * (4 + 4 + 3 * size + exchange)


def evaluation_bytes(config: GPTConfig, step: Pass) -> int:
    """An evaluation's batch without gradients, in float32 as the last one is: a block at work, or some tokens' logits
    and their log-softmax.
    """
    length = step.length or config.context_length
    tokens = max(1, EVAL_TOKENS[step.device] // length) * length
    rows = min(tokens, EVALUATED_ROWS if step.device == "cpu" else GPU_HEAD_ROWS)
    wide = max(2 * config.n_inner, 4 * config.attention_width)
    return 4 * max(tokens * (2 * config.n_embd + wide), tokens * config.n_embd + 2 * rows * config.vocab_size)


def evaluations_apart(config: GPTConfig, step: Pass, saving: int) -> int:
    """What evaluations add where freed memory is kept: the first, of the short weights, finds no room between a step's
    tensors, and the last, of the masters, none in what the first left; it does in what a checkpoint's copy of `saving`
    bytes left, where that was twice as large.
    """
    last = evaluation_bytes(config, step)
    return last // 2 + max(0, last + min(last, saving) - saving)


def most_rows(fits: Callable[[int], bool], limit: int) -> int:
    """The most rows up to `limit` for which `fits` holds, 0 if none does. What fits stays fitting for fewer rows, but
    for `limit` itself, which may be the one that needs no sums of gradients.
    """
    if limit > 0 and fits(limit):
        return limit
    low, high = 0, max(0, limit - 1)
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if fits(middle) else (low, middle - 1)
    return low


def micro_batch(
    config: GPTConfig,
    step: Pass,
    optimizer: str,
    batch_rows: int,
    room: int,
    saving: bool = True,
    held: Held | None = None,
) -> int:
    """Rows at a time for `room` bytes beside the process itself: the most that fit, evened out over the micro-steps.

    At least 1: a model that does not fit at all is told of elsewhere. `step.rows` plays no part. `held`: see
    training_bytes.
    """

    def fits(rows: int) -> bool:
        passes = replace(step, rows=rows, micro_steps=math.ceil(batch_rows / rows))
        needed = training_bytes(config, passes, optimizer, held, saving)
        return needed.total - needed.base <= room

    most = max(1, most_rows(fits, batch_rows))
    return math.ceil(batch_rows / math.ceil(batch_rows / most))


def _tokens(config: GPTConfig, step: Pass) -> int:
    return step.rows * (step.length or config.context_length)


def _heap(step: Pass, count: int) -> int:
    return int(count * HEAP) if step.device == "cpu" else count
