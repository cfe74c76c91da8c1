"""The sizes in which training works through what would not fit whole: the memory model reads them too."""

STORED_ATTENTION = 512  # tokens a row up to which attention keeps its T x T probabilities for backward
QUERIES = 256  # beyond that: queries whose scores exist at a time, forward and again in backward
HEAD_ROWS = 1024  # tokens whose logits exist at a time, on a processor
GPU_HEAD_ROWS = 8192  # the same on a GPU, which wants larger matrices
