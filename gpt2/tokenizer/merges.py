"""Merges and ranks: when one list of tokens says the same as one list of pairs.

tiktoken merges two neighbours if their bytes together are a token, lowest rank first. GPT-2 and Hugging Face merge the
pairs of a list, first pair first. The two agree on every text exactly if each token, encoded by itself, arises from
the pair that the list gives for it: then no other split of a token can ever lie side by side, since within its own
bytes merging goes the same way wherever the token stands. That is what this file checks and what it recovers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

Pair = tuple[bytes, bytes]


def meets(left: bytes, right: bytes, before: int, rank: Mapping[bytes, int], parts: Mapping[bytes, Pair]) -> bool:
    """Whether merges of rank below `before` leave `left` next to `right` when given their joined bytes.

    Walks back in time: the younger of the two neighbours is taken apart, and the piece at the border becomes the new
    neighbour. The two lay side by side until `before`; had their joined bytes a lower rank, they would have merged.
    """
    while True:
        across = rank.get(left + right)
        if across is not None and across < before:
            return False
        age_left, age_right = rank.get(left, -1), rank.get(right, -1)
        if age_left < 0 and age_right < 0:  # two single bytes: the beginning of time
            return True
        if age_left > age_right:
            before, left = age_left, parts[left][1]
        else:  # of two equal pairs the left one merges first, so here an equal rank across the border wins too
            before, right = age_right + 1, parts[right][0]


def first_unreachable(pairs: Sequence[Pair]) -> Pair | None:
    """The first pair whose token, encoded by itself, would not arise from it; None if merges and ranks agree."""
    rank = {a + b: n for n, (a, b) in enumerate(pairs)}
    parts = {a + b: (a, b) for a, b in pairs}
    return next(((a, b) for n, (a, b) in enumerate(pairs) if not meets(a, b, n, rank, parts)), None)


def recover_pairs(tokens: Sequence[bytes]) -> list[Pair] | bytes:
    """The pair that makes each token (two bytes or longer, lowest rank first), or the first token that none makes."""
    rank: dict[bytes, int] = {}
    parts: dict[bytes, Pair] = {}
    for n, token in enumerate(tokens):
        for cut in range(1, len(token)):
            left, right = token[:cut], token[cut:]
            known = (cut == 1 or left in parts) and (len(right) == 1 or right in parts)
            if known and meets(left, right, n, rank, parts):
                break
        else:
            return token
        rank[token], parts[token] = n, (left, right)
    return [parts[token] for token in tokens]
