"""The fields of the plan: one table of 64-bit integers that steers a step of the writing kernels.

First the model's shape and buffers, fixed; then what each step sets; then what the threads say to each other.
"""

(
    LAYERS, HEADS, HEAD_DIM, HEAD_PAD, WIDTH, WIDTH_PAD, ATTENTION_PAD, INNER_PAD, QKV_STRIDE, LOGIT_STRIDE,
    BY_LAYER, ERF, EPSILON, SHORT, KV_KIND, TILE_BYTES, LAYER_TABLE,
    MATRICES, NORMS, POSITION, POOL, POOL_SCALES, ZEROS,
    X, NORM, QKV, HEAD_OUT, MLP, LOGITS, BYTES, SHORTS, WIDENED, WIDEST,
    SCALES, SUMS, TOKENS_MOST, SCORES, SCORE_STRIDE, WEIGHTS, SCRATCH, NEAR,
    VOCABULARY, PEAKS, TOPS, NORMALISERS, SUMS_OF_BLOCKS, ADAPTERS, NARROW, NARROW_STRIDE,
    TOKENS, TOKEN_IDS, POSITIONS, SPANS, SPAN_TABLE, PAGE_TABLE, OUTPUTS, OUTPUT_TOKENS,
    TOKEN_ADAPTERS, OUTPUT_ADAPTERS,
    WORKERS, BARRIER, ABORT, CALL, TICKETS, WAITS, PARKED, FIELDS,
) = range(67)  # fmt: skip
FIRST_PAGE, TURN, WINDOW, STRIDE, LAYER_WIDTH = range(5)  # of each layer: its pages in the pool, what its tokens see
KIND, DATA, SCALE, PER, BIAS, BLOCKS, COLUMNS, MATRIX_WIDTH = range(8)
RANK, LOW_A, LOW_B, LOW_WIDTH = range(4)  # of each adapter and matrix; a rank of 0: it leaves that alone
FIRST, COUNT, START, PAGES, RING_PAGES, WANTED, FIRST_OUTPUT, SPAN_WIDTH = range(8)
LINE = 8  # 64-bit numbers in a cache line: counters that several cores write stand so far apart
