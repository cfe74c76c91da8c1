"""The sizes in which training works through what would not fit whole: the memory model reads them too."""

STORED_ATTENTION = 512  # tokens up to which attention keeps T x T probabilities, where flash.py's tiles do not fit
QUERIES = 64  # a thread's queries whose scores exist at a time in flash.py; of a block in banded.py
BAND_SCORES = 81_920  # numbers, for each thread, that exist at a time in banded.py
HEAD_ROWS = 1024  # tokens whose logits exist at a time in training, on a processor
EVALUATED_ROWS = 256  # the same without gradient, in float32
GPU_HEAD_ROWS = 8192  # the same on a GPU, which wants larger matrices
NARROW = 256  # a bfloat16 product with a side below this is torch's: packing would cost more than it gains
