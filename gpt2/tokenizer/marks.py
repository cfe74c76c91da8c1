"""GPT-2's pattern without its look-ahead, for long texts.

Of white space before other text the pattern leaves the last character to what follows: `\\s+(?!\\S)`. That one
look-ahead makes tiktoken's regex engine backtrack, at 1.5 times the cost of a plain automaton. Here the places where
it would cut are found with numpy and marked in the text; PLAIN_PATTERN then needs no look-ahead, and gives the same
pieces. The mark is a special token to tiktoken, and its id is dropped.
"""

from __future__ import annotations

import numpy as np

# Unicode White_Space, the regex engine's \s. Python's own \s and strip() also take U+001C to U+001F.
WHITE_SPACE = "\t\n\v\f\r \x85\xa0\u1680" + "".join(map(chr, range(0x2000, 0x200B))) + "\u2028\u2029\u202f\u205f\u3000"
PLAIN_PATTERN = r" ?\p{L}+| ?\p{N}+|'(?:[sdmt]|ll|ve|re)| ?[^\s\p{L}\p{N}]+|\s+"
MARK = "<|cut|>"  # a text that holds it cannot be marked

_IS_SPACE = np.zeros(0x3002, dtype=bool)  # by code point; the last entry stands for all above
_IS_SPACE[[ord(char) for char in WHITE_SPACE]] = True


def mark_cuts(text: str) -> str:
    """`text` with MARK before the last character of each run of two or more white spaces that other text follows."""
    if text.isascii():
        spaces = _IS_SPACE[np.frombuffer(text.encode("ascii"), dtype=np.uint8)]
    else:
        points = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), dtype="<u4")
        spaces = _IS_SPACE[np.minimum(points, len(_IS_SPACE) - 1)]
    cuts = (np.flatnonzero(spaces[:-2] & spaces[1:-1] & ~spaces[2:]) + 1).tolist()
    return MARK.join([text[start:stop] for start, stop in zip([0, *cuts], [*cuts, len(text)], strict=True)])
