"""Claim: prompt lookup writes text that repeats its prompt 1.8 times as fast as plain decoding, and slows no other.

GPT-2 124M's shape in int8 through `Engine(..., drafter=PromptLookup())`; alternating rounds, medians count. The weights
are made by hand (peers/copier.py), since what counts is the text: edits of code by a model that copies with other
names, a summary with quotes, and pages of three books whose continuation repeats nothing but what English repeats.
In what repeats its prompt fewer than a fifth of the 8-grams may repeat an earlier one of the output itself. Tokens a
second from the first to the last, greedy; both ways must write the same tokens.

    python benchmarks/copying.py
    python benchmarks/copying.py --check     # the plain torch loop copies too, in float32; a minute

The books are those of the test data (GPT2_ASSETS).
"""

from __future__ import annotations

import argparse
import code
import inspect
import os
import statistics
import sys
import tempfile
import textwrap
import time
import urllib.parse
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from peers import copier
from peers.model_folder import Array, gpt2_tokenizer

from gpt2.checkpoint.packed import pack_state
from gpt2.hardware import cores, processor
from gpt2.inference.engine import Engine
from gpt2.inference.request import PAGE_SIZE
from gpt2.inference.runners.cpu import CpuRunner
from gpt2.inference.sampling import SamplingParams
from gpt2.inference.speculate import Drafter, PromptLookup
from gpt2.tokenizer.bpe import Tokenizer

ASSETS = Path(os.environ.get("GPT2_ASSETS", Path(__file__).resolve().parents[2] / "shared" / "assets"))
FASTER, NEVER_BELOW, REPEATED = 1.8, 0.95, 0.2
GRAM, EDITED, BOOK_PROMPT, BOOK = 8, 400, 300, 256  # tokens
RENAMED = {
    " prefix": " head",
    " dir": " place",
    " text": " binary",
    " source": " lines",
    " filename": " path",
    " symbol": " mode",
    " scheme": " kind",
    " url": " link",
    " result": " parts",
}
EDIT = "\n\n# The same with better names:\n"
SUMMARY = (  # own words, then the quote from ... to
    ("\n\nIn short: the tale opens on a riverbank, where", "Alice was beginning", "conversations in it,"),
    (" and soon there is something better to look at:", "when suddenly a White Rabbit", "close by her."),
    (" What surprises her is not that it talks. It is that", "the Rabbit actually TOOK", "to take out of it,"),
    (" So, the author tells us,", "burning with curiosity, she ran", "under the hedge."),
    (" Here comes the first joke about growing up, for she follows", "never once considering", "get out again."),
    (" The fall itself is slow enough for furniture;", "she looked at the sides of the well", "hung upon pegs."),
)  # fmt: skip


@dataclass(frozen=True)
class Case:
    """A text to be written, and the weights that write it."""

    name: str
    prompt: list[int]
    expected: list[int]
    weights: Callable[[], dict[str, Array]]
    repeats: bool  # its prompt


@dataclass(frozen=True)
class Written:
    """One text as the engine wrote it."""

    tokens: list[int]
    rate: float  # tokens a second
    drafted: int
    accepted: int


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--only", default="", help="words in the names of the texts to write")
    parser.add_argument("--check", action="store_true", help="write with the plain torch loop instead")
    args = parser.parse_args()
    tokenizer = gpt2_tokenizer()
    found = [case for case in cases(tokenizer) if any(word in case.name for word in args.only.split(","))]
    if args.check:
        check(found, tokenizer)
        return
    print(f"{processor()[0]}, {cores()} threads; int8, one stream; medians of {args.rounds} alternating rounds\n")
    heads = ("text", "tokens", "as expected", "8-grams repeated", "plain", "lookup", "ratio", "at least", "accepted")
    print(f"| {' | '.join(heads)} |\n{'| --- ' * len(heads)}|", flush=True)
    missed = [case.name for case in found if not measure(case, tokenizer, args.rounds)]
    if missed:
        sys.exit(f"missed: {', '.join(missed)}")


def cases(tokenizer: Tokenizer) -> list[Case]:
    """Every text; the edits and the summary repeat their prompts."""
    tale = " ".join((ASSETS / "text" / "carroll-alice.txt").read_text(encoding="utf-8").split())
    play = (ASSETS / "text" / "tinyshakespeare.txt").read_text(encoding="utf-8")
    lexicon = (ASSETS / "benchmarks" / "wikitext2_valid.txt").read_text(encoding="utf-8")
    return [
        edit("code edit, urlparse", urllib.parse.urlparse, tokenizer),
        edit("code edit, runsource", code.InteractiveInterpreter.runsource, tokenizer),
        edit("code edit, mkstemp", tempfile.mkstemp, tokenizer),
        summary("summary with quotes", tale[tale.index("Alice was beginning") :], tokenizer),
        book("tale", tale[10_000:], tokenizer),
        book("play", play, tokenizer),
        book("lexicon", lexicon, tokenizer),
    ]


def edit(name: str, function: Callable[..., object], tokenizer: Tokenizer) -> Case:
    """A function's code, and the same with other names; the model copies, the first eight tokens are given."""
    pairs = [(tokenizer.encode(old), tokenizer.encode(new)) for old, new in RENAMED.items()]
    rename = {old[0]: new[0] for old, new in pairs if len(old) == len(new) == 1}
    ids = tokenizer.encode(textwrap.dedent(inspect.getsource(function)))[:EDITED]
    prompt = [*ids, *tokenizer.encode(EDIT), *ids[:GRAM]]
    return Case(name, prompt, [rename.get(token, token) for token in ids[GRAM:]], lambda: copier.copier(rename), True)


def summary(name: str, tale: str, tokenizer: Tokenizer) -> Case:
    """A page, and what a reader might say of it in his own words and the author's."""
    text = ""
    for own, first, last in SUMMARY:
        start = tale.index(first)
        text += f'{own} "{tale[start : tale.index(last, start) + len(last)]}"'
    return _given(name, tokenizer.encode(tale)[:550], tokenizer.encode(text), repeats=True)


def book(name: str, text: str, tokenizer: Tokenizer) -> Case:
    """Some pages, and how they go on."""
    ids = tokenizer.encode(text[: 8 * (BOOK_PROMPT + BOOK)])
    return _given(name, ids[:BOOK_PROMPT], ids[BOOK_PROMPT : BOOK_PROMPT + BOOK], repeats=False)


def _given(name: str, prompt: list[int], text: list[int], repeats: bool) -> Case:
    return Case(name, prompt, text, lambda: copier.prompter(text, len(prompt)), repeats)


def measure(case: Case, tokenizer: Tokenizer, rounds: int) -> bool:
    """A line of the table; whether the claims hold."""
    plain, lookup = alternate(case, tokenizer, rounds)
    assert all(one.tokens == plain[0].tokens for one in plain + lookup), f"{case.name}: guesses have changed the text"
    before, after = (statistics.median(one.rate for one in each) for each in (plain, lookup))
    ratio, least, repeated = after / before, FASTER if case.repeats else NEVER_BELOW, repeated_grams(plain[0].tokens)
    cells = [case.name, str(len(case.expected)), f"{100 * share(plain[0].tokens, case.expected):.0f} %"]
    cells += [
        f"{100 * repeated:.0f} %",
        f"{before:.0f}",
        f"{after:.0f}",
        f"{ratio:.2f}",
        f"{least}",
        acceptance(lookup[0]),
    ]
    print(f"| {' | '.join(cells)} |", flush=True)
    return ratio >= least and (repeated < REPEATED or not case.repeats)


def alternate(case: Case, tokenizer: Tokenizer, rounds: int) -> tuple[list[Written], list[Written]]:
    """The text written both ways in turn, each time in the other order: without guesses, and with them."""
    model, pages = pack_state(copier.CONFIG, case.weights(), "int8"), 2 * copier.CONFIG.context_length // PAGE_SIZE
    ways = (None, PromptLookup())
    writers = [Writer(CpuRunner(model, pages), tokenizer, drafter) for drafter in ways]
    for writer in writers:
        writer.write(case.prompt, 2 * GRAM)
    found: tuple[list[Written], list[Written]] = ([], [])
    for number in range(rounds):
        for which in (0, 1) if number % 2 == 0 else (1, 0):
            found[which].append(writers[which].write(case.prompt, len(case.expected)))
    for writer in writers:
        writer.runner.close()
    return found


def acceptance(written: Written) -> str:
    """How the guesses fared."""
    if not written.drafted:
        return "none made"
    return f"{written.accepted} of {written.drafted}, {100 * written.accepted / written.drafted:.0f} %"


class Writer:
    """An engine, and a clock that starts at the first token."""

    def __init__(self, runner: CpuRunner, tokenizer: Tokenizer, drafter: Drafter | None) -> None:
        self.runner = runner
        self.engine = Engine((runner, tokenizer), max_streams=1, drafter=drafter)

    def write(self, prompt: Sequence[int], count: int) -> Written:
        """Greedy, exactly `count` tokens."""
        before = self.engine.stats.tokens, self.engine.stats.drafted, self.engine.stats.accepted
        job = self.engine.add(list(prompt), SamplingParams(max_new_tokens=count, temperature=0.0, ignore_eot=True))
        while self.engine.stats.tokens == before[0]:
            self.engine.step()
        start, at_start = time.perf_counter(), self.engine.stats.tokens
        while self.engine.step():
            pass
        rate = (self.engine.stats.tokens - at_start) / (time.perf_counter() - start)
        result = job.inbox[-1]
        assert not isinstance(result, Exception) and result.result
        stats = self.engine.stats
        return Written(result.result.tokens, rate, stats.drafted - before[1], stats.accepted - before[2])


def share(tokens: Sequence[int], expected: Sequence[int]) -> float:
    """How many tokens are as expected, place by place."""
    return statistics.fmean(token == wanted for token, wanted in zip(tokens, expected, strict=True))


def repeated_grams(tokens: Sequence[int]) -> float:
    """The share of 8-grams that stood in the text before."""
    grams = [tuple(tokens[place : place + GRAM]) for place in range(len(tokens) - GRAM + 1)]
    return 1 - len(set(grams)) / len(grams)


def check(found: Sequence[Case], tokenizer: Tokenizer) -> None:
    """What the plain torch loop writes with the same weights in float32: they are a model's, and the model copies."""
    import torch

    from gpt2.inference.generate import generate
    from gpt2.model.gpt import GPT

    torch.set_num_threads(cores())
    module = GPT(copier.CONFIG).eval()
    for case in found:
        module.load_state_dict(
            {name: torch.from_numpy(array) for name, array in copier.in_memory(case.weights()).items()}
        )
        params = SamplingParams(max_new_tokens=len(case.expected), temperature=0.0, ignore_eot=True)
        tokens = generate(module, tokenizer, [case.prompt], params)[0].tokens
        print(
            f"{case.name}: {100 * share(tokens, case.expected):.1f} % of {len(tokens)} tokens as expected", flush=True
        )


if __name__ == "__main__":
    main()
