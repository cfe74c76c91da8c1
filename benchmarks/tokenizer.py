"""Speed of encoding with GPT-2's vocabulary: ours, tiktoken by itself, and Hugging Face `tokenizers`; and of training.

    python benchmarks/tokenizer.py VOCABULARY TEXT...

VOCABULARY is a folder or file in any form. All run in this process on one thread, in turn, several rounds; the best
round counts. Prints a table: MB of UTF-8 a second, and the ratio to ours.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Callable
from pathlib import Path

os.environ["TOKENIZERS_PARALLELISM"] = "false"  # one thread each


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("vocabulary", help="folder or file of GPT-2's vocabulary")
    parser.add_argument("texts", nargs="+", type=Path, help="UTF-8 text files")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--vocab-size", type=int, default=4096, help="for the training comparison")
    options = parser.parse_args()
    texts = [path.read_bytes().decode() for path in options.texts]
    megabytes = sum(len(text.encode()) for text in texts) / 1e6
    for title, runs in (
        ("encode", encoders(options.vocabulary, texts)),
        (f"train {options.vocab_size}", trainers(texts, options.vocab_size)),
    ):
        best = dict.fromkeys(runs, float("inf"))
        for _ in range(options.rounds):
            for name, run in runs.items():
                start = time.perf_counter()
                run()
                best[name] = min(best[name], time.perf_counter() - start)
        ours = next(iter(best.values()))
        print(f"\n| {title}, {megabytes:.1f} MB | MB/s | against ours |\n| --- | --- | --- |")
        for name, seconds in best.items():
            print(f"| {name} | {megabytes / seconds:.2f} | {ours / seconds:.2f} |")


def encoders(vocabulary: str, texts: list[str]) -> dict[str, Callable[[], object]]:
    """The same vocabulary in the three libraries, checked to give the same ids."""
    import tiktoken
    import tokenizers

    from gpt2.tokenizer.bpe import PATTERN
    from gpt2.tokenizer.files import load_tokenizer
    from gpt2.tokenizer.vocabulary import to_printable

    ours = load_tokenizer(vocabulary)
    tokens, pairs = ours.vocabulary.tokens, ours.vocabulary.merge_pairs
    raw = tiktoken.Encoding("raw", pat_str=PATTERN, mergeable_ranks=tokens, special_tokens=ours.special_tokens)
    merges = [(to_printable(a), to_printable(b)) for a, b in pairs]
    peer = tokenizers.ByteLevelBPETokenizer({to_printable(data): id for data, id in tokens.items()}, merges)
    sample = texts[0][:100_000]
    assert ours.encode(sample) == raw.encode_ordinary(sample) == peer.encode(sample).ids
    return {
        "ours, encode_array": lambda: [ours.encode_array(text) for text in texts],
        "ours, encode": lambda: [ours.encode(text) for text in texts],
        "tiktoken, encode_to_numpy": lambda: [raw.encode_to_numpy(text, disallowed_special=()) for text in texts],
        "tiktoken, encode_ordinary": lambda: [raw.encode_ordinary(text) for text in texts],
        "tokenizers, encode": lambda: [peer.encode(text).ids for text in texts],
    }


def trainers(texts: list[str], vocab_size: int) -> dict[str, Callable[[], object]]:
    from tokenizers import ByteLevelBPETokenizer

    from gpt2.tokenizer.train import train_bpe

    def peer() -> None:
        ByteLevelBPETokenizer().train_from_iterator(texts, vocab_size - 1, show_progress=False)

    return {"ours, train_bpe": lambda: train_bpe(texts, vocab_size), "tokenizers, BpeTrainer": peer}


if __name__ == "__main__":
    main()
