"""A whole step of GPT-2 on a processor: every worker thread runs `forward` over its share, with barriers between.

All numbers that steer it lie in one table, `plan`: sizes, addresses of buffers, of matrices, of what the step reads.
Bits do not depend on how the work is shared: a matrix's rows and a sequence's heads are each one worker's, and the
order of every sum is fixed.

    T tokens of the step, of all sequences  C width  K columns, padded to 64
"""

from __future__ import annotations

import math
import sys
from typing import Any

import numba
import numpy as np
from numba import types

from gpt2.kernels import plan as at
from gpt2.kernels.attention import attention
from gpt2.kernels.cache import kernel, once
from gpt2.kernels.lanes import FLOAT32, GROUP
from gpt2.kernels.low_rank import low_rank
from gpt2.kernels.matrices import look_up, matmul, shorten, shorten_all
from gpt2.kernels.scalars import exp, floats, ints, share, words
from gpt2.kernels.survey import BLOCK, survey
from gpt2.kernels.words import atomic_add, atomic_load, atomic_store, pause, pointer

f32 = np.float32
ONE = f32(1.0)
GELU_A = f32(2.0 * math.sqrt(2.0 / math.pi))  # gelu_tanh(x) = x sigmoid(A (x + B x^3)), Hendrycks & Gimpel 2016
GELU_B = f32(0.044715)
SPINS = 1024  # waiting rounds (about 35 microseconds) before the processor is offered to others
PATIENCE = 400_000  # such offers before a worker counts as lost: ten seconds and more
_yield_processor = types.ExternalFunction("SwitchToThread" if sys.platform == "win32" else "sched_yield", types.int32())


@kernel
def barrier(plan: Any) -> Any:
    """Wait for all workers; True if the step is given up."""
    workers = plan[at.WORKERS]
    if workers == 1:
        return False
    place, abort = plan[at.BARRIER], plan[at.ABORT]
    mine = atomic_add(place, 1)
    target = (mine // workers + 1) * workers
    spins = 0
    while atomic_load(place) < target:
        spins += 1
        pause()
        if spins % SPINS == 0:
            _yield_processor()
            atomic_add(plan[at.WAITS], 1)
            if atomic_load(abort) != 0 or spins > SPINS * PATIENCE:
                atomic_store(abort, 1)
                return True
    return False


@kernel
def gelu(plan: Any, tokens: Any, worker: Any) -> None:
    """The MLP's hidden row through its non-linearity, in place, and in its short form."""
    columns = plan[at.INNER_PAD]
    groups = columns // GROUP
    pairs = (groups + 1) // 2
    first, last = share(tokens * pairs, worker, plan[at.WORKERS])
    for item in range(first, last):
        token, group = item // pairs, item % pairs * 2
        count = (min(group + 2, groups) - group) * GROUP
        row = plan[at.MLP] + token * columns * 4
        x = floats(row + group * GROUP * 4, count)
        if plan[at.ERF]:
            for i in range(count):
                x[i] = f32(0.5 * x[i] * (1.0 + math.erf(x[i] * 0.7071067811865476)))
        else:
            for i in range(count):
                v = x[i]
                x[i] = v / (ONE + exp(-GELU_A * v * (ONE + GELU_B * v * v)))
        shorten(plan, row, token, columns, group, min(group + 2, groups))


@kernel
def norm(plan: Any, index: Any, tokens: Any, worker: Any) -> None:
    """Layer norm of the residual stream, this worker's tokens."""
    table = words(plan[at.NORMS] + index * 16, 2)
    width, columns = plan[at.WIDTH], plan[at.WIDTH_PAD]
    gain, bias = floats(table[0], width), floats(table[1], width)
    epsilon = floats(plan[at.EPSILON], 1)[0]
    first, last = share(tokens, worker, plan[at.WORKERS])
    for token in range(first, last):
        x, out = floats(plan[at.X] + token * columns * 4, width), floats(plan[at.NORM] + token * columns * 4, width)
        total = f32(0.0)
        for i in range(width):
            total += x[i]
        mean = total / f32(width)
        total = f32(0.0)
        for i in range(width):
            total += (x[i] - mean) * (x[i] - mean)
        inverse = ONE / np.sqrt(total / f32(width) + epsilon)
        for i in range(width):
            out[i] = (x[i] - mean) * inverse * gain[i] + bias[i]
        shorten(plan, plan[at.NORM] + token * columns * 4, token, columns, 0, columns // GROUP)


@kernel
def embed(plan: Any, worker: Any) -> None:
    """x = wte[token] + wpe[position], this worker's tokens."""
    width, columns = plan[at.WIDTH], plan[at.WIDTH_PAD]
    matrix = words(plan[at.MATRICES] + (4 * plan[at.LAYERS] + 1) * at.MATRIX_WIDTH * 8, at.MATRIX_WIDTH)
    ids, positions = ints(plan[at.TOKEN_IDS], plan[at.TOKENS]), ints(plan[at.POSITIONS], plan[at.TOKENS])
    first, last = share(plan[at.TOKENS], worker, plan[at.WORKERS])
    for token in range(first, last):
        x = floats(plan[at.X] + token * columns * 4, width)
        look_up(matrix, np.int64(ids[token]), x)
        place = floats(plan[at.POSITION] + np.int64(positions[token]) * width * 4, width)
        for i in range(width):
            x[i] += place[i]


@kernel
def keep_wanted(plan: Any) -> None:
    """Move the residual rows whose logits are wanted to the front; none is overwritten before it has moved."""
    width = plan[at.WIDTH]
    wanted = ints(plan[at.OUTPUT_TOKENS], plan[at.OUTPUTS])
    for row in range(plan[at.OUTPUTS]):
        old = floats(plan[at.X] + np.int64(wanted[row]) * plan[at.WIDTH_PAD] * 4, width)
        new = floats(plan[at.X] + row * plan[at.WIDTH_PAD] * 4, width)
        for i in range(width):
            new[i] = old[i]


@once
def survey_logits(plan: Any, worker: Any) -> None:
    """What choosing tokens needs to know of this worker's rows of logits, while they are still near."""
    vocabulary = plan[at.VOCABULARY]
    blocks = (vocabulary + BLOCK - 1) // BLOCK
    first, last = share(plan[at.OUTPUTS], worker, plan[at.WORKERS])
    sums = numba.carray(pointer(plan[at.SUMS_OF_BLOCKS] + worker * blocks * 8), blocks, np.float64)
    normalisers = numba.carray(pointer(plan[at.NORMALISERS]), plan[at.OUTPUTS], np.float64)
    tops = floats(plan[at.TOPS], plan[at.OUTPUTS])
    for i in range(first, last):
        row = floats(plan[at.LOGITS] + i * plan[at.LOGIT_STRIDE] * 4, vocabulary)
        tops[i], normalisers[i] = survey(row, floats(plan[at.PEAKS] + i * blocks * 4, blocks), sums)


@once
def forward(plan: Any, worker: Any) -> bool:
    """The step that the plan describes, this worker's share of it. True if it was given up."""
    tokens, own = plan[at.TOKENS], plan[at.TOKEN_ADAPTERS]
    embed(plan, worker)
    for layer in range(plan[at.LAYERS]):
        norm(plan, 2 * layer, tokens, worker)
        if barrier(plan):
            return True
        matmul(plan, 4 * layer, plan[at.NORM], tokens, plan[at.QKV], plan[at.QKV_STRIDE], 0, worker)
        low_rank(plan, 4 * layer, own, plan[at.NORM], tokens, plan[at.QKV], plan[at.QKV_STRIDE], worker)
        if barrier(plan):
            return True
        if layer == plan[at.LAYERS] - 1:
            tokens, own = plan[at.OUTPUTS], plan[at.OUTPUT_ADAPTERS]
            if worker == 0:
                keep_wanted(plan)
        attention(plan, layer, worker)
        if barrier(plan):
            return True
        if tokens == 0:
            return False
        if plan[at.SHORT] != FLOAT32:
            shorten_all(plan, plan[at.HEAD_OUT], plan[at.ATTENTION_PAD], tokens, worker)
            if barrier(plan):
                return True
        matmul(plan, 4 * layer + 1, plan[at.HEAD_OUT], tokens, plan[at.X], plan[at.WIDTH_PAD], 1, worker)
        low_rank(plan, 4 * layer + 1, own, plan[at.HEAD_OUT], tokens, plan[at.X], plan[at.WIDTH_PAD], worker)
        if barrier(plan):
            return True
        norm(plan, 2 * layer + 1, tokens, worker)
        if barrier(plan):
            return True
        matmul(plan, 4 * layer + 2, plan[at.NORM], tokens, plan[at.MLP], plan[at.INNER_PAD], 0, worker)
        low_rank(plan, 4 * layer + 2, own, plan[at.NORM], tokens, plan[at.MLP], plan[at.INNER_PAD], worker)
        if barrier(plan):
            return True
        gelu(plan, tokens, worker)
        if barrier(plan):
            return True
        matmul(plan, 4 * layer + 3, plan[at.MLP], tokens, plan[at.X], plan[at.WIDTH_PAD], 1, worker)
        low_rank(plan, 4 * layer + 3, own, plan[at.MLP], tokens, plan[at.X], plan[at.WIDTH_PAD], worker)
        if barrier(plan):
            return True
    norm(plan, 2 * plan[at.LAYERS], tokens, worker)
    if barrier(plan):
        return True
    matmul(plan, 4 * plan[at.LAYERS], plan[at.NORM], tokens, plan[at.LOGITS], plan[at.LOGIT_STRIDE], 0, worker)
    if barrier(plan):
        return True
    survey_logits(plan, worker)
    return barrier(plan)


@kernel
def take_part(plan: Any, worker: Any, seen: Any, patience: Any) -> Any:
    """Do a worker's part of steps. Returns the last call that it served, and whether that was given up.

    Worker 0 publishes the plan as the next call and does its part of it: in one piece of native code, so that no Ctrl-C
    comes between. The others do every step after call number `seen`, waiting `patience` rounds for each. Who waited in
    vain leaves a 1 in PARKED and should look again some time, as a call may have come just then.

    All in one function: compiled twice, the step would take twice as long to compile.
    """
    parked = plan[at.PARKED] + worker * at.LINE * 8
    if worker > 0:
        atomic_store(parked, 0)
    while True:
        if worker == 0:  # in one word with their number, so that nobody takes part in a step by mistake
            atomic_store(plan[at.CALL], ((atomic_load(plan[at.CALL]) >> 8) + 1) << 8 | plan[at.WORKERS])
        spins = 0
        while worker > 0 and atomic_load(plan[at.CALL]) == seen:
            pause()
            spins += 1
            if spins >= patience:
                atomic_store(parked, 1)
                return seen, False
        seen = atomic_load(plan[at.CALL])
        given_up = worker < seen & 255 and forward(plan, worker)
        if worker == 0 or given_up:
            return seen, given_up
