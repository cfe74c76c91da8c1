"""Texts that a model writes for a task: greedily, by beam search, or by draws; and the likeliest next tokens."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING

from gpt2.errors import UserError
from gpt2.evaluate.asked import Writing
from gpt2.evaluate.prefixes import Ids
from gpt2.evaluate.score import Scorer, Scores
from gpt2.inference.sampling import SamplingParams
from gpt2.tokenizer.vocabulary import EOT

if TYPE_CHECKING:
    from gpt2.tokenizer.bpe import Tokenizer

AT_ONCE = 64  # prompts between two reports of progress
TOPS = 200  # likeliest tokens that are looked at: more than there are stop words near the top


def write(
    scores: Scores,
    prompts: Sequence[Ids],
    how: Writing,
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> list[str]:
    """The continuation of each prompt up to a stop string, which is not part of it."""
    texts: list[str] = []
    for part in parts(prompts):
        texts += _write(scores, part, how, seed + len(texts))
        if progress:
            progress(len(texts), len(prompts))
    return texts


def _write(scores: Scores, prompts: Sequence[Ids], how: Writing, seed: int) -> list[str]:
    if how.is_greedy:
        return scores.greedy(prompts, how.max_new_tokens, how.stop)
    if not isinstance(scores, Scorer):
        raise UserError("a server writes greedily only; what is written by beams or draws needs the model's files")
    if how.beams == 1:
        return scores.write(prompts, [how.params(seed)] * len(prompts))
    from gpt2.inference.beam import BeamParams, beam_search

    room = scores.context_length - how.max_new_tokens
    cut = [list(ids[-room:]) for ids in prompts]
    beams = BeamParams(how.beams, how.length_penalty)
    params = SamplingParams(max_new_tokens=how.max_new_tokens)
    results = beam_search(scores.runner, ending_at(scores.tokenizer, how.stop), cut, params, beams)
    return [cut_at(result.text, (*how.stop, EOT)) for result in results]  # which ends no beam where "\n" does


def ending_at(tokenizer: Tokenizer, stop: Sequence[str]) -> Tokenizer:
    """A tokenizer that takes a stop string of one token for end-of-text, so that beams are finished by it."""
    single = [ids[0] for mark in stop if len(ids := tokenizer.encode(mark)) == 1]
    if not single:
        return tokenizer
    changed = copy.copy(tokenizer)
    changed.eot_id = single[0]
    return changed


def cut_at(text: str, stop: Sequence[str]) -> str:
    """Up to the first stop string: beams may also run past one that is part of a token."""
    ends = [place for mark in stop if (place := text.find(mark)) >= 0]
    return text[: min(ends, default=len(text))]


def likeliest(scores: Scores, contexts: Sequence[Ids], count: int = TOPS) -> list[list[int]]:
    """The likeliest tokens after each context, best first."""
    if not isinstance(scores, Scorer):
        return scores.likeliest(contexts, count)  # type: ignore[attr-defined]
    from gpt2.inference.engine import Engine

    found: list[list[int]] = []
    params = SamplingParams(max_new_tokens=1, temperature=0.0, logprobs=min(count, scores.tokenizer.vocab_size))
    engine = Engine((scores.runner, scores.tokenizer))
    for part in parts(contexts):
        cut = [list(ids[-scores.context_length + 1 :]) for ids in part]
        found += [[token for token, _ in result.top_logprobs[0]] for result in engine.generate(cut, params)]
    return found


def parts(prompts: Sequence[Ids]) -> Iterator[Sequence[Ids]]:
    for start in range(0, len(prompts), AT_ONCE):
        yield prompts[start : start + AT_ONCE]
