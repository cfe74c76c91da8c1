"""Claim: writing on a processor ahead of transformers, CTranslate2 and llama.cpp, close to the machine's limit.

The same weights (GPT-2 124M's shape, random) go to every engine, each in a process of its own that sleeps between its
turns; rounds alternate, medians count. Prompts are new in every round. An engine that is not installed is left out
with a note (`pip install gpt2[bench]`).

    load     seconds from the file to the first token, the page cache warm
    prefill  a prompt of 512 tokens, tokens/s
    decode   one stream: 128 tokens after a prompt of 32, first to last, tokens/s
    streams  16 streams of the same, tokens/s in all, the reading of the prompts included
    mixed    64 requests of mixed length, in the mean that of `streams`, at most 16 at a time, through our engine alone

A second table gives bytes a token, GB/s, the share of the memory's own bandwidth (read between the turns) and of the
bfloat16 multiplication peak; a third the claims. `--quality FOLDER` scores every format on a text with that model.
`--only memory` and `--only startup` are those of footprint.py.

    python benchmarks/generate.py --quality ENGLISH_FOLDER
    python benchmarks/generate.py --only decode --formats int8,q8_0 --quick
"""

from __future__ import annotations

import argparse
import os
import random
import statistics
import sys
import tempfile
from collections import defaultdict
from pathlib import Path

from peers.claims import claims
from peers.engines import FORMATS, Format, Worker
from peers.limits import Limits, prefill_flops
from peers.model_folder import write_random

from gpt2.checkpoint.hf_config import read_config
from gpt2.hardware import cores, processor
from gpt2.model.config import GPTConfig
from gpt2.runtime import say

PARTS = ("load", "prefill", "decode", "streams", "mixed")
OTHER_PARTS = ("memory", "startup")
PROMPT, NEW, LONG_PROMPT, STREAMS, REQUESTS = 32, 128, 512, 16, 64
SCORED = 20_000  # tokens of the text, for --quality
ASSETS = Path(os.environ.get("GPT2_ASSETS", Path(__file__).resolve().parents[2] / "shared" / "assets"))

Values = dict[str, dict[Format, list[float]]]  # part -> format -> one value a round
Medians = dict[str, dict[Format, float]]


def main() -> None:
    args = arguments()
    with tempfile.TemporaryDirectory() as scratch:
        files = args.files or Path(scratch)
        files.mkdir(parents=True, exist_ok=True)
        folder = args.model or random_model(files)
        parts = [part for part in PARTS if part in args.only]
        if parts:
            compare(folder, files, parts, args)
        for part in OTHER_PARTS:
            if part in args.only:
                import footprint

                print("\n" + getattr(footprint, part)(folder, files, args.rounds))


def compare(folder: Path, files: Path, parts: list[str], args: argparse.Namespace) -> None:
    """The peers' tables, on stdout."""
    formats = chosen(args.formats)
    config = read_config(folder)
    paths = {format: written(format, folder, files) for format in formats}
    losses = quality(args.quality, files, formats) if args.quality else {}
    values = measure(paths, parts, args.rounds, config)
    medians = {part: {f: statistics.median(v) for f, v in found.items()} for part, found in values.items()}
    print(f"{processor()[0]}, {cores()} threads; medians of {args.rounds} alternating rounds\n")
    print(table(medians, parts, formats, losses))
    for format, rate in medians.get("forward", {}).items():
        print(f"\n{format}, scoring every position of the 512 (`forward_batch`): {rate:.0f}")
    print("\n" + limits_table(medians, formats, paths, folder))
    print("\n| claim | measured | at least | |\n| --- | --- | --- | --- |")
    print("\n".join(str(claim) for claim in claims(medians)))


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default=",".join(PARTS), help=f"parts, of {', '.join(PARTS + OTHER_PARTS)}")
    parser.add_argument("--formats", default="", help="words such as int8,q8_0 or gpt2 or CTranslate2; all by default")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--quick", action="store_true", help="one round: a look, not a result")
    parser.add_argument("--quality", type=Path, help="a small trained model: every format's loss on a text, beside")
    parser.add_argument("--model", type=Path, help="another model folder than 124M with random weights")
    parser.add_argument("--files", type=Path, help="keep the formats' files here, and use those that are there")
    args = parser.parse_args()
    args.only = args.only.split(",")
    if unknown := set(args.only) - {*PARTS, *OTHER_PARTS}:
        parser.error(f"--only {','.join(unknown)}: unknown; choose from {', '.join(PARTS + OTHER_PARTS)}")
    args.rounds = 1 if args.quick else args.rounds
    return args


def chosen(words: str) -> list[Format]:
    """Formats whose engine or kind is one of the words, without those that are not installed."""
    wanted = {word for word in words.split(",") if word}
    formats = [Format(engine, kind) for engine, kinds in FORMATS.items() for kind in kinds]
    formats = [f for f in formats if not wanted or f.engine in wanted or f.kind in wanted]
    for format in formats:
        if missing := format.missing():
            say(f"{format}: left out, not installed: {', '.join(missing)}")
    return [format for format in formats if not format.missing()]


def random_model(files: Path) -> Path:
    """GPT-2 124M's shape with random weights, below `files`."""
    folder = files / "model"
    return folder if (folder / "config.json").exists() else write_random(folder)


def written(format: Format, folder: Path, files: Path) -> Path:
    say(f"writing {format}")
    return format.write(folder, files)


def measure(paths: dict[Format, Path], parts: list[str], rounds: int, config: GPTConfig) -> Values:
    """Every part of every format, round after round; "bandwidth" comes with decode, "peak" and "forward" with prefill.

    In each round every part is measured on all formats in turn, in the other direction every second time.
    """
    limits = Limits(cores())
    workers = [Worker(format, path, cores()) for format, path in paths.items()]
    for worker in workers:
        warm_up(worker, config)
    values: Values = defaultdict(lambda: defaultdict(list))
    for number in range(rounds):
        for part in parts:
            for worker in workers[:: 1 if number % 2 == 0 else -1]:
                if part == "mixed" and worker.format.engine != "gpt2":
                    continue  # its measure is our own batch of 16
                dice = random.Random(f"{number} {part} {worker.format}")
                for name, value in turn(worker, part, dice, config.vocab_size, limits).items():
                    values[name][worker.format].append(value)
                    say(f"round {number + 1}: {name}, {worker.format}: {value:.4g}")
    for worker in workers:
        worker.close()
    return values


def warm_up(worker: Worker, config: GPTConfig) -> None:
    """Compilation, page cache, the choice of a cache: none of it is measured."""
    dice = random.Random(f"warm {worker.format}")
    worker("load")
    worker("prefill", ids(dice, LONG_PROMPT, config.vocab_size))
    worker("decode", ids(dice, PROMPT, config.vocab_size), 8)
    worker("streams", [ids(dice, PROMPT, config.vocab_size) for _ in range(STREAMS)], 4)


def turn(worker: Worker, part: str, dice: random.Random, vocab_size: int, limits: Limits) -> dict[str, float]:
    """One measurement: seconds for load, tokens a second for the others, and the machine's limit beside."""

    def prompts(*lengths: int) -> list[list[int]]:
        return [ids(dice, length, vocab_size) for length in lengths]

    if part == "load":
        return {part: worker("load")}
    if part == "prefill":
        rate, peak = worker("prefill", *prompts(LONG_PROMPT)), limits.gemm()
        found = {part: rate, "peak": peak, "prefill of peak": rate / peak}
        if worker.format.engine == "CTranslate2":
            found["forward"] = worker("forward", *prompts(LONG_PROMPT))
        return found
    if part == "decode":
        before = limits.bandwidth()
        rate = worker("decode", *prompts(PROMPT), NEW)
        bandwidth = (before + limits.bandwidth()) / 2
        return {part: rate, "bandwidth": bandwidth, "decode of bandwidth": rate / bandwidth}
    if part == "streams":
        return {part: worker("streams", prompts(*[PROMPT] * STREAMS), NEW)}
    return {part: worker("mixed", prompts(*spread(PROMPT, dice)), spread(NEW, dice))}


def spread(mean: int, dice: random.Random) -> list[int]:
    """REQUESTS numbers from a quarter of the mean to seven quarters, evenly: in all, the work of fixed batches."""
    numbers = [round(mean * (0.25 + 1.5 * place / (REQUESTS - 1))) for place in range(REQUESTS)]
    return dice.sample(numbers, REQUESTS)


def ids(dice: random.Random, count: int, vocab_size: int) -> list[int]:
    return [dice.randrange(vocab_size - 1) for _ in range(count)]  # the last is end-of-text


def quality(model: Path, files: Path, formats: list[Format]) -> dict[Format, float]:
    """Nats a token of a small trained model in every format, on the same windows of the same text."""
    from gpt2.tokenizer.files import load_tokenizer

    config, there = read_config(model), files / "quality"
    there.mkdir(exist_ok=True)
    text = (ASSETS / "benchmarks" / "wikitext2_valid.txt").read_text(encoding="utf-8")
    tokens = load_tokenizer(model).encode(text[: 8 * SCORED])[:SCORED]
    windows = [tokens[start : start + config.context_length] for start in range(0, SCORED, config.context_length)]
    losses: dict[Format, float] = {}
    for format in formats:
        worker = Worker(format, format.write(model, there), cores())
        worker("load")
        total, count = worker("losses", windows)
        worker.close()
        losses[format] = total / count
        say(f"{format}: {losses[format]:.4f} nats a token over {count:,}")
    return losses


def table(medians: Medians, parts: list[str], formats: list[Format], losses: dict[Format, float]) -> str:
    """Tokens a second (load: seconds), a line for each format; the loss beside, and its distance from float32's."""
    names = {"load": "load, s", "prefill": "prefill 512", "decode": "decode", "streams": "16 streams", "mixed": "mixed"}
    heads = ["engine", "weights", *(names[part] for part in parts), *(["loss", "to float32"] if losses else [])]
    lines = [f"| {' | '.join(heads)} |", "| --- " * len(heads) + "|"]
    exact = next((loss for format, loss in losses.items() if format.kind in ("float32", "f32")), None)
    for format in formats:
        cells = [format.engine, format.kind]
        for part in parts:
            value = medians[part].get(format)
            cells.append("" if value is None else f"{value:.2f}" if part == "load" else f"{value:.0f}")
        if losses:
            cells.append(f"{losses[format]:.4f}")
            cells.append("" if exact is None else f"{100 * (losses[format] / exact - 1):+.2f} %")
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def limits_table(medians: Medians, formats: list[Format], paths: dict[Format, Path], folder: Path) -> str:
    """Decode as bytes a second against the memory's, prefill as FLOP/s against multiplication in bfloat16.

    Shares are medians of each turn's own: the limit drifts between them. Adds "share" to the medians, for the claims.
    """
    lines = [
        "| engine | weights | MB a token | GB/s | memory then, GB/s | share | prefill GFLOP/s | bf16 peak | share |"
    ]
    lines.append("| --- " * 9 + "|")
    flops = prefill_flops(read_config(folder), LONG_PROMPT) / LONG_PROMPT
    shares = medians.setdefault("share", {})
    for format in formats:
        cells = [format.engine, format.kind]
        size = format.streamed_bytes(folder, paths[format])
        cells.append(f"{size / 1e6:.0f}")
        cells += _against(medians, "decode", size, "bandwidth", format)
        if format in medians.get("decode", {}):
            shares[format] = medians["decode of bandwidth"][format] * size
        cells += _against(medians, "prefill", flops, "peak", format)
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _against(medians: Medians, part: str, each: float, limit: str, format: Format) -> list[str]:
    """Rate times `each` token's cost, the limit, and the share: three cells."""
    if format not in medians.get(part, {}):
        return ["", "", ""]
    rate, most = medians[part][format] * each, medians[limit][format]
    share = medians[f"{part} of {limit}"][format] * each
    return [f"{rate / 1e9:.1f}", f"{most / 1e9:.1f}", f"{100 * share:.0f} %"]


if __name__ == "__main__":
    sys.exit(main())
