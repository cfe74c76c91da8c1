"""The runner for processors: packed weights, paged keys and values, numba kernels, no torch.

Its numbers do not depend on what else a step reads, on how a prompt is cut into chunks, or on the number of threads.

    T new tokens of a step  C n_embd  V vocabulary
"""

from __future__ import annotations

import os
import threading
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from gpt2.errors import UserError
from gpt2.hardware import cores
from gpt2.inference.choose import Ask, choose_rows
from gpt2.inference.request import PAGE_SIZE, Span
from gpt2.inference.rings import rings_for
from gpt2.inference.runners.low_rank import low_rank_rows
from gpt2.inference.runners.memory import aligned, padded
from gpt2.kernels import features
from gpt2.kernels import plan as at
from gpt2.kernels.lanes import BFLOAT16, FLOAT32, GROUP, INT4, INT8, LANES
from gpt2.kernels.many import ROWS, SLOTS
from gpt2.kernels.survey import BLOCK
from gpt2.kernels.team import Team

if TYPE_CHECKING:
    from gpt2.checkpoint.adapters import Adapter
    from gpt2.checkpoint.packed import PackedModel
    from gpt2.inference.sampling import Choice

KINDS = {"float32": FLOAT32, "bfloat16": BFLOAT16, "int8": INT8, "int4": INT4}
KV_DTYPES = {"float32": np.float32, "bfloat16": np.uint16, "int8": np.int8}
SECOND_CACHE = 512 * 1024  # bytes of activations that a worker goes over again and again


class CpuRunner:
    """A packed model with a pool of `pages`; `kv` is the form of keys and values (None: by the weights').

    Tokens are chosen from the first `vocab_size` (a tokenizer may know fewer than the model; 0: all). `threads` 0 means
    GPT2_THREADS, else every core. `max_span`: new tokens of one text a step where layers are banded (0: see rings.py).
    `adapters` over the model are numbered from 1 on.
    """

    def __init__(
        self,
        model: PackedModel,
        pages: int,
        kv: str | None = None,
        max_tokens: int = 512,
        max_outputs: int = 64,
        threads: int = 0,
        vocab_size: int = 0,
        max_span: int = 0,
        adapters: Sequence[Adapter] = (),
    ) -> None:
        kv = kv or ("float32" if model.weights == "float32" else "bfloat16")
        if kv not in KV_DTYPES:
            raise UserError(f"keys and values in {kv}: choose {', '.join(KV_DTYPES)}")
        self.model, self.config, self.kv = model, model.config, kv
        self.pages, self.max_tokens, self.max_outputs = pages, max_tokens, max_outputs
        self.rings = rings_for(self.config, pages, max_tokens, max_span)
        self.vocab_size = min(vocab_size or self.config.vocab_size, self.config.vocab_size)
        self.threads = min(threads or thread_count(), 64)
        self._kept: list[np.ndarray] = []  # whatever the plan holds addresses of
        self._plan = np.zeros(at.FIELDS, np.int64)
        self.adapters = len(adapters)
        self._describe_model()
        self._describe_adapters(adapters)
        self._make_pool()
        self._make_buffers()
        self._lock = threading.Lock()
        self._team = Team(self._plan, self.threads)

    def step(self, spans: Sequence[Span]) -> None:
        """Read the spans' tokens; see Runner. ValueError if they do not fit what the runner was made for."""
        with self._lock:
            self._describe_step(spans)
            self._team.run()
            self.logits = self._logits[: self._plan[at.OUTPUTS], : self.vocab_size]

    def choose(self, asks: Sequence[Ask]) -> list[Choice]:
        return choose_rows(self._logits[: len(self.logits)], asks, self.vocab_size, self._survey)

    def logprobs(self, targets: Sequence[int], rows: Sequence[int] | None = None) -> list[float]:
        rows = range(len(self.logits)) if rows is None else rows
        if len(rows) != len(targets):
            raise ValueError(f"{len(targets)} targets for {len(rows)} rows of logits")
        at = np.array(rows, np.int64)
        own: list[float] = (self.logits[at, np.array(targets, np.int64)] - self._survey[2][at]).tolist()
        return own

    def copy_pages(self, pairs: Sequence[tuple[int, int]], rings: Sequence[tuple[int, int]] = ()) -> None:
        for memory in (self._pool, self._scales):
            if memory is not None:
                full, ring = self._parts(memory)
                for source, target in pairs:
                    full[:, target] = full[:, source]
                for source, target in rings:
                    ring[:, target] = ring[:, source]

    def close(self) -> None:
        """Let the threads go."""
        self._team.close()

    def _describe_model(self) -> None:
        config, plan = self.config, self._plan
        kinds = {matrix.kind for matrix in self.model.matrices.values()}
        short = INT8 if kinds & {"int8", "int4"} else BFLOAT16 if "bfloat16" in kinds else FLOAT32
        shape = {
            at.LAYERS: config.n_layer,
            at.HEADS: config.n_head,
            at.HEAD_DIM: config.head_dim,
            at.HEAD_PAD: padded(config.head_dim, LANES),
            at.WIDTH: config.n_embd,
            at.WIDTH_PAD: padded(config.n_embd, GROUP),
            at.ATTENTION_PAD: padded(config.attention_width, GROUP),
            at.INNER_PAD: padded(config.n_inner, GROUP),
            at.QKV_STRIDE: padded(3 * config.attention_width, LANES),
            at.LOGIT_STRIDE: padded(config.vocab_size, LANES),
            at.BY_LAYER: config.scale_by_layer,
            at.ERF: config.activation == "gelu_erf",
            at.SHORT: short,
            at.TILE_BYTES: SECOND_CACHE,
        }
        for field, value in shape.items():
            plan[field] = value
        plan[at.EPSILON] = self._keep(np.array([config.norm_eps], np.float32))
        plan[at.ZEROS] = self._keep(np.zeros(LANES, np.float32))
        plan[at.POSITION] = self._keep(self.model.vectors["wpe.weight"])
        plan[at.MATRICES] = self._keep(self._matrix_table())
        plan[at.NORMS] = self._keep(self._norm_table())

    def _matrix_table(self) -> np.ndarray:
        """Each layer's four matrices, then the head, then the one that tokens are looked up in."""
        names = ["attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj"]
        every = [f"h.{layer}.{name}" for layer in range(self.config.n_layer) for name in names] + ["lm_head"]
        rows = [self._matrix_row(f"{name}.weight", f"{name}.bias") for name in every]
        look_up = "wte.weight" if "wte.weight" in self.model.matrices else "lm_head.weight"
        return np.array([*rows, self._matrix_row(look_up, "")], np.int64)

    def _matrix_row(self, name: str, bias: str) -> list[int]:
        matrix = self.model.matrices[name]
        blocks, columns = padded(matrix.rows, LANES) // LANES, padded(matrix.columns, GROUP)
        per = (matrix.group or columns) // GROUP
        offsets = np.zeros(blocks * LANES, np.float32)
        if bias in self.model.vectors:
            offsets[: matrix.rows] = self.model.vectors[bias]
        scales = 0 if matrix.scales is None else self._keep(matrix.scales)
        return [KINDS[matrix.kind], self._keep(matrix.data), scales, per, self._keep(offsets), blocks, columns]

    def _norm_table(self) -> np.ndarray:
        """Addresses of gain and bias: ln_1 and ln_2 of each layer, then ln_f."""
        names = [f"h.{layer}.{name}" for layer in range(self.config.n_layer) for name in ("ln_1", "ln_2")]
        none = np.zeros(self.config.n_embd, np.float32)
        vectors = self.model.vectors
        return np.array(
            [
                [self._keep(vectors[f"{name}.weight"]), self._keep(vectors.get(f"{name}.bias", none))]
                for name in [*names, "ln_f"]
            ],
            np.int64,
        )

    def _describe_adapters(self, adapters: Sequence[Adapter]) -> None:
        """Their matrices as kernels/low_rank.py reads them."""
        rows = [row for adapter in adapters for row in low_rank_rows(self.model, adapter)]
        if rows:
            widest = padded(max(rank for rank, _, _ in rows), LANES)
            table = [[rank, self._keep(a), self._keep(b)] for rank, a, b in rows]
            self._plan[at.ADAPTERS] = self._keep(np.array(table, np.int64))
            self._plan[at.NARROW] = self._keep(aligned((self.threads, widest), np.float32))
            self._plan[at.NARROW_STRIDE] = widest

    def _make_pool(self) -> None:
        """Pages of the layers that look back on everything, layer by layer, then those of banded ones."""
        config, plan = self.config, self._plan
        table = self._layer_table()
        shape = (int(table[-1, 0]), 2, config.n_head, padded(config.head_dim, LANES) * PAGE_SIZE)
        self._pool = aligned(shape, KV_DTYPES[self.kv])
        self._scales = aligned((*shape[:3], PAGE_SIZE), np.float32) if self.kv == "int8" else None
        plan[at.POOL], plan[at.LAYER_TABLE] = self._keep(self._pool), self._keep(table)
        plan[at.POOL_SCALES] = 0 if self._scales is None else self._keep(self._scales)
        plan[at.KV_KIND] = KINDS[self.kv]

    def _layer_table(self) -> np.ndarray:
        """What each layer's tokens see, and its first page; a last row has the count of all pages."""
        config, rings = self.config, self.rings
        layers = range(config.n_layer)
        table = np.zeros((len(layers) + 1, at.LAYER_WIDTH), np.int64)
        page = 0
        for layer in sorted(layers, key=lambda layer: config.window(layer) > 0):
            window = config.window(layer)
            table[layer] = [page, rings.each if window else 1 << 40, window, config.stride(layer)]
            page += rings.count if window else self.pages
        table[-1, at.FIRST_PAGE] = page
        return table

    def _parts(self, memory: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The pool, or its scales, as (layers, pages, ...): of layers that look back on everything, of banded ones."""
        config = self.config
        banded = sum(config.window(layer) > 0 for layer in range(config.n_layer))
        full, rest = config.n_layer - banded, memory.shape[1:]
        first = full * self.pages
        return (
            memory[:first].reshape(full, self.pages, *rest),
            memory[first:].reshape(banded, self.rings.count, *rest),
        )

    def _make_buffers(self) -> None:
        plan, tokens, threads = self._plan, self.max_tokens, self.threads
        widest = int(max(plan[at.WIDTH_PAD], plan[at.ATTENTION_PAD], plan[at.INNER_PAD]))
        # A line more than a context: banded layers look past it, and rows 4,096 bytes apart share places of a cache.
        stride = padded(self.config.context_length, LANES) + LANES
        head_pad = int(plan[at.HEAD_PAD])
        self._logits = aligned((self.max_outputs, int(plan[at.LOGIT_STRIDE])), np.float32)
        self.logits = self._logits[:0, : self.vocab_size]
        plan[at.LOGITS] = self._keep(self._logits)
        blocks = -(-self.vocab_size // BLOCK)
        peaks, tops = aligned((self.max_outputs, blocks), np.float32), aligned((self.max_outputs,), np.float32)
        self._survey = peaks, tops, aligned((self.max_outputs,), np.float64)
        plan[at.PEAKS], plan[at.TOPS], plan[at.NORMALISERS] = map(self._keep, self._survey)
        plan[at.SUMS_OF_BLOCKS] = self._keep(aligned((threads, blocks), np.float64))
        plan[at.VOCABULARY] = self.vocab_size
        floats = {
            at.X: (tokens, int(plan[at.WIDTH_PAD])),
            at.NORM: (tokens, int(plan[at.WIDTH_PAD])),
            at.QKV: (tokens * int(plan[at.QKV_STRIDE]) + head_pad,),  # a padded head reads past its end
            at.HEAD_OUT: (tokens, int(plan[at.ATTENTION_PAD])),
            at.MLP: (tokens, int(plan[at.INNER_PAD])),
            at.SCALES: (widest // GROUP, tokens),
            at.SCORES: (threads, ROWS, stride),
            at.SCRATCH: (threads, ROWS, head_pad),
        }
        for field, shape in floats.items():
            plan[field] = self._keep(aligned(shape, np.float32))
        if features.by_floats():  # see kernels/many.py
            plan[at.NEAR] = self._keep(aligned((threads, max(head_pad, SLOTS), LANES), np.float32))
        elif self.kv == "bfloat16":
            plan[at.WEIGHTS] = self._keep(aligned((threads, ROWS, stride), np.uint16))
        plan[at.BYTES] = self._keep(aligned((tokens, widest), np.uint16 if plan[at.SHORT] == BFLOAT16 else np.int8))
        plan[at.SUMS] = self._keep(aligned((widest // GROUP, tokens), np.int32))
        if plan[at.SHORT] == INT8 and features.by_avx2():  # see kernels/wide.py
            plan[at.SHORTS] = self._keep(aligned((tokens, widest), np.int16))
            plan[at.WIDENED] = self._keep(aligned((threads, widest, LANES), np.int16))
            plan[at.WIDEST] = widest
        plan[at.TOKENS_MOST], plan[at.SCORE_STRIDE] = tokens, stride
        self._tickets = aligned((self.config.n_layer, at.LINE), np.int64)
        plan[at.TICKETS] = self._keep(self._tickets)

    def _describe_step(self, spans: Sequence[Span]) -> None:
        plan = self._plan
        ids, positions, pages, wanted = self._check(spans)
        rows, first, page, output = [], 0, 0, 0
        ring = sum(len(span.pages) for span in spans)  # all spans' rings follow all their pages
        for span in spans:
            rows.append([first, len(span.tokens), span.start, page, ring, span.outputs, output])
            first, page, output = first + len(span.tokens), page + len(span.pages), output + span.outputs
            ring += len(span.ring)
        own = np.repeat([span.adapter for span in spans], [len(span.tokens) for span in spans]).astype(np.int32)
        adapters = [own, own[wanted]]
        self._step = [ids, positions, np.array(rows, np.int64), pages, wanted, *adapters]  # alive as long as the step
        addresses = [array.ctypes.data for array in self._step]
        plan[at.TOKEN_IDS], plan[at.POSITIONS], plan[at.SPAN_TABLE] = addresses[:3]
        plan[at.PAGE_TABLE], plan[at.OUTPUT_TOKENS] = addresses[3:5]
        plan[at.TOKEN_ADAPTERS], plan[at.OUTPUT_ADAPTERS] = addresses[5:] if own.any() else (0, 0)
        plan[at.TOKENS], plan[at.SPANS], plan[at.OUTPUTS] = first, len(spans), output
        self._tickets[:, 0] = 0

    def _check(self, spans: Sequence[Span]) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """All tokens, positions, pages and wanted rows. The kernels doubt none of them: they write where told."""
        ids: list[int] = []
        positions: list[int] = []
        pages: list[int] = []
        wanted: list[int] = []
        for span in spans:
            count, end = len(span.tokens), span.start + len(span.tokens)
            if not 0 <= span.adapter <= self.adapters:
                raise UserError(f"adapter {span.adapter}: the runner has {self.adapters}; 0 is none of them")
            if not count or span.start < 0 or not 0 <= span.outputs <= count:
                raise ValueError(f"a span of {count} tokens from {span.start} with {span.outputs} outputs")
            if end > self.config.context_length or end > len(span.pages) * PAGE_SIZE:
                raise ValueError(f"{end} tokens: {len(span.pages)} pages, context {self.config.context_length}")
            self.rings.check(span)
            ids.extend(span.tokens)
            positions.extend(range(span.start, end))
            pages.extend(span.pages)
            wanted.extend(range(len(ids) - span.outputs, len(ids)))
        if not 0 < len(ids) <= self.max_tokens or len(wanted) > self.max_outputs:
            raise ValueError(f"a step of {len(ids)} tokens and {len(wanted)} outputs; made for at most "
                             f"{self.max_tokens} and {self.max_outputs}")  # fmt: skip
        if min(pages) < 0 or max(pages) >= self.pages:
            raise ValueError(f"pages {min(pages)} to {max(pages)} of {self.pages}")
        if min(ids) < 0 or max(ids) >= self.config.vocab_size:
            raise ValueError(f"tokens {min(ids)} to {max(ids)}: the model has {self.config.vocab_size}")
        pages.extend(page for span in spans for page in span.ring)
        found = [np.array(numbers, np.int32) for numbers in (ids, positions, pages, wanted)]
        return found[0], found[1], found[2], found[3]

    def _keep(self, array: np.ndarray) -> int:
        """The array's address, good as long as the runner lives."""
        if not array.flags.c_contiguous:
            array = np.ascontiguousarray(array)
        self._kept.append(array)
        return int(array.ctypes.data)


def thread_count() -> int:
    """GPT2_THREADS, else the cores that this process may use."""
    text = os.environ.get("GPT2_THREADS", "")
    if text and not (text.isdigit() and int(text) > 0):
        raise UserError(f"GPT2_THREADS={text}: must be a whole number of at least 1")
    return int(text) if text else cores()
