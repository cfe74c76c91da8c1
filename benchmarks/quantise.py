"""Claim: int8 weights cost at most 0.5 % of loss and int4 at most 3 %, also where a few channels tower over the others.

Nats a token on the validation text of WikiText-2 (GPT2_ASSETS), each token seen once, in windows of the model's
context, by the processor's runner, with keys and values in each of their forms. Then the same with a copy of the model
in which three channels behind every LayerNorm are 30 times as large and the columns that read them 30 times as small:
real GPT-2s have such channels. The copy computes the same in float32 (its head is untied for that), which is checked.

    python benchmarks/quantise.py MODEL_FOLDER [--tokens N | --all]

A folder without a model is filled with the small English one of english.py, which takes five minutes.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
from english import assets, english_model

from gpt2.checkpoint.equalise import pairs
from gpt2.checkpoint.hf_config import read_config
from gpt2.checkpoint.packed import pack_folder, pack_state, unpack_state
from gpt2.inference.pages import pages_for
from gpt2.inference.runners.cpu import CpuRunner
from gpt2.inference.score import mean_loss, windows
from gpt2.model.config import GPTConfig
from gpt2.runtime import say
from gpt2.tokenizer.files import load_tokenizer

TEXT = "benchmarks/wikitext2_valid.txt"
TOKENS = 40_000
CHUNK = 256  # tokens in one step
CHANNELS, TIMES = 3, 30.0
# format of the weights -> forms of keys and values
TRIED = {
    "float32": ("float32", "bfloat16", "int8"),
    "bfloat16": ("bfloat16",),
    "int8": ("float32", "bfloat16", "int8"),
    "int4": ("float32", "bfloat16", "int8"),
    "int4-head": ("bfloat16", "int8"),
}
AT_MOST = {"int8": 0.005, "int4": 0.03, "int4-head": 0.03}  # times float32's loss
SAME = 1e-5  # so much may the copy's float32 loss differ: its numbers are rounded differently

State = dict[str, npt.NDArray[np.float32]]
Texts = Sequence[Sequence[int]]


@dataclass(frozen=True)
class Row:
    """One form of weights, keys and values: the loss of the model and of its copy with outliers."""

    weights: str
    kv: str
    losses: tuple[float, float]

    def cells(self, exact: float) -> str:
        """The row, against float32's loss."""
        ratios = [loss / exact - 1 for loss in self.losses]
        limit = AT_MOST.get(self.weights)
        verdict = "" if limit is None else "held" if max(ratios) <= limit else "MISSED"
        found = " | ".join(f"{loss:.4f} | {ratio:+.3%}" for loss, ratio in zip(self.losses, ratios, strict=True))
        return f"| {self.weights} | {self.kv} | {found} | {f'{limit:.1%}' if limit else ''} | {verdict} |"


def main() -> None:
    args = arguments()
    folder = english_model(args.folder)
    config = read_config(folder)
    texts = windows(read_tokens(folder, None if args.all else args.tokens), config.context_length)
    plain = dict(unpack_state(pack_folder(folder, config, "float32")))
    models = [(config, plain), with_outliers(config, plain)]
    rows = list(measure(models, texts))
    exact, copy = rows[0].losses
    if abs(copy / exact - 1) > SAME:
        raise SystemExit(f"the copy with outliers is another function: {copy} nats instead of {exact}")
    print(f"{sum(len(text) - 1 for text in texts):,} tokens of {TEXT}, {len(texts)} windows; nats a token\n")
    print("| weights | keys, values | loss | to float32 | loss with outliers | to float32 | at most | |")
    print("| --- | --- | --- | --- | --- | --- | --- | --- |")
    print("\n".join(row.cells(exact) for row in rows))


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="a model folder with float weights")
    parser.add_argument("--tokens", type=int, default=TOKENS, help=f"so much of the text [default: {TOKENS:,}]")
    parser.add_argument("--all", action="store_true", help="the whole text")
    return parser.parse_args()


def read_tokens(folder: Path, count: int | None) -> list[int]:
    """The beginning of the text, or all of it, as the model's tokens."""
    text = (assets() / TEXT).read_text(encoding="utf-8")
    return load_tokenizer(folder).encode(text)[: None if count is None else count + 1]


def with_outliers(config: GPTConfig, state: State) -> tuple[GPTConfig, State]:
    """The same function with CHANNELS large channels behind every norm; the head is a matrix of its own."""
    config = replace(config, tie_head=False)
    copy = {"lm_head.weight": state["wte.weight"]} | state
    channels = np.linspace(0, config.n_embd - 1, CHANNELS + 2, dtype=int)[1:-1]
    times = np.ones(config.n_embd, np.float32)
    times[channels] = TIMES
    for norm, matrix in pairs(config).items():
        copy[matrix] = copy[matrix] / times
        for name in (f"{norm}.weight", f"{norm}.bias"):
            if name in copy:
                copy[name] = copy[name] * times
    return config, copy


def measure(models: Sequence[tuple[GPTConfig, State]], texts: Texts) -> Iterator[Row]:
    """Every form that is tried, float32 first."""
    for weights, forms in TRIED.items():
        packed = [pack_state(config, state, weights) for config, state in models]
        for kv in forms:
            found = []
            for model in packed:
                pages = pages_for(model.config.context_length)
                runner = CpuRunner(model, pages, kv, max_tokens=CHUNK, max_outputs=CHUNK)
                found.append(mean_loss(runner, texts))
                runner.close()
            say(f"{weights}, keys and values {kv}: {found[0]:.4f} and with outliers {found[1]:.4f} nats a token")
            yield Row(weights, kv, (found[0], found[1]))


if __name__ == "__main__":
    main()
