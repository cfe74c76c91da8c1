"""`gpt2 demo`: tokenizer, shards, model and samples from the one corpus every user has, Python's own library."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from gpt2.train.drive import Finished

# Found by experiment on two cores (docs/log.md); the number of steps is measured on the machine at hand.
RECIPE: dict[str, Any] = {
    "max_seconds": 138.0,
    "batch_tokens": 2048,
    "short_length": 64,
    "grad_clip": 0.0,
    "eval_tokens": 16_384,
    "log_every": 10,
    "model": {
        "n_layer": 4,
        "n_head": 2,
        "n_embd": 128,
        "context_length": 256,
        "bias": False,
        "tie_head": False,
    },
    "optim": {"muon_lr": 0.02, "embedding_lr": 0.02, "head_lr": 0.008, "eps": 1e-10, "weight_decay": 0.0},
    "schedule": {"schedule": "trapezoid", "warmup_fraction": 0.02, "decay_fraction": 0.6},
}
VOCABULARY = 4096
PROMPTS = ("def read_", "class Test", "import os", '    """Return')


@click.command("demo")
@click.option("--out", default="gpt2-demo", show_default=True, help="Folder for tokens and run.")
@click.option("--seconds", type=float, default=RECIPE["max_seconds"], show_default=True, help="Time to train.")
def command(out: str, seconds: float) -> None:
    """Train a small model on this Python's library and let it write.

    No flags, no account, no network: the corpus is the standard library of the Python that runs, about ten
    megabytes of it. Interrupted, the same command goes on where it was.

    \b
    Examples:
      gpt2 demo
      gpt2 demo --out second-try --seconds 60
    """
    from gpt2.data.prepare import prepare
    from gpt2.runtime import say

    folder = Path(out)
    say("1/3  text to tokens")
    prepare(["stdlib:"], folder / "data", tokenizer=f"train:{VOCABULARY}")
    say("2/3  tokens to a model")
    finished = train(folder, seconds)
    if finished.stopped_by is not None:
        say(f"go on with: gpt2 demo --out {out}")
        raise click.exceptions.Exit(130 if finished.stopped_by == signal.SIGINT else 0)
    say("3/3  the model writes")
    write_samples(folder / "run")
    report(folder)


def train(folder: Path, seconds: float) -> Finished:
    """Start the run, or go on with one that was interrupted."""
    from gpt2.cli.train import short_settings, write_sample
    from gpt2.runtime import say
    from gpt2.train import pretrain
    from gpt2.train.config import compose

    run = folder / "run"
    if (run / "config.toml").exists():
        say(f"{run}: goes on as it was begun; for a new one: gpt2 demo --out ANOTHER")
        return pretrain.resume(run, sampler=write_sample)
    settings = RECIPE | {"max_seconds": seconds} | short_settings()
    return pretrain.pretrain(compose(data=str(folder / "data"), out=str(run), **settings), sampler=write_sample)


def write_samples(run: Path) -> None:
    """A continuation of each prompt, to stdout: this is what the demo is for."""
    from gpt2.api import load
    from gpt2.inference.generate import generate
    from gpt2.inference.sampling import SamplingParams

    model = load(run)
    params = SamplingParams(max_new_tokens=96, temperature=0.7, seed=1)
    for prompt, result in zip(PROMPTS, generate(model.module, model.tokenizer, list(PROMPTS), params), strict=True):
        click.echo(f"--- {prompt!r}\n{prompt}{result.text}\n")


def report(folder: Path) -> None:
    """What was reached, beside a compressor that knows nothing of language models, and what to type next."""
    from gpt2.runtime import say
    from gpt2.train.metrics import read_metrics

    run = folder / "run"
    lines = read_metrics(run)
    found = [line for line in lines if "val/bits_per_byte" in line][-1]
    seconds = [line for line in lines if "elapsed" in line][-1]["elapsed"]
    say(
        f"held-out text: {found['val/bits_per_byte']:.3f} bits per byte ({found['val_targets']:,} tokens) after "
        f"{seconds:.0f} s of training; xz -9e on the same bytes: {xz_bits_per_byte(folder):.3f}"
    )
    say(f"report:  {run / 'report.html'}")
    say("next:")
    say(f'  gpt2 generate --model {run} "def "                      let it write')
    say(f"  gpt2 prepare your.txt --out {folder}/mine                your own text (file or folder)")
    say(f"  gpt2 train --data {folder}/mine --out {folder}/my-run    your own model")
    say('  gpt2 generate --model openai-community/gpt2 "Hello"      OpenAI\'s GPT-2 (needs the network once)')


def xz_bits_per_byte(folder: Path) -> float:
    """`xz -9e` of the held-out text without its end-of-text marks."""
    import lzma

    from gpt2.data.shards import open_split
    from gpt2.tokenizer.files import load_tokenizer

    split = open_split(folder / "data", "val")
    tokens = split.tokens(0, len(split))
    tokens = tokens[tokens != split.meta.eot_id]
    text = load_tokenizer(folder / "data" / "tokenizer").decode_bytes(tokens.tolist())
    return 8 * len(lzma.compress(text, preset=9 | lzma.PRESET_EXTREME)) / len(text)
