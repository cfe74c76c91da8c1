"""GPT-3's recipe on two cores (configs/gpt3_nano.toml): banded layers by turns beside all-dense ones, and our recipe.

Three runs on the same text: the config as it is; the same with dense layers only, the same tokens; and what this
project trains small models with (Muon, short rows first, an untied head, as gpt2 demo does), dense, of the same shape,
in the time that the first took. Each is a run of its own in the folder: what is there already is not made again, what
was killed goes on.

    python benchmarks/nano.py FOLDER                    # half an hour on two cores, alone on the machine
    python benchmarks/nano.py FOLDER --only banded      # one of banded, dense, ours; the table has what is there
    python benchmarks/nano.py FOLDER --share 0.1        # a first try: a tenth of the tokens, the schedule with it
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from gpt2.cli.demo import RECIPE
from gpt2.data.prepare import prepare
from gpt2.model.sizes import parameters, training_flops_per_token
from gpt2.train.config import TrainConfig, compose
from gpt2.train.metrics import numbers, read_metrics
from gpt2.train.pretrain import pretrain, resume
from gpt2.train.runs import read_run

CONFIG = Path(__file__).resolve().parents[1] / "configs" / "gpt3_nano.toml"
VOCABULARY = 2048
DENSE: dict[str, Any] = {"attention_pattern": ("dense",), "band_width": 0}
NAMES = {
    "banded": "GPT-3's recipe, dense and banded layers by turns",
    "dense": "GPT-3's recipe, dense layers",
    "ours": "ours: Muon, short rows first, untied head; dense, the first one's time",
}


def nano(data: Path, out: Path, share: float, **model: Any) -> TrainConfig:
    """The config for this share of its tokens, everything that is counted in tokens with it."""
    config = compose(CONFIG, data=str(data), out=str(out), model=model)
    assert config.max_tokens is not None
    schedule = config.schedule
    assert schedule.warmup_tokens is not None and schedule.decay_tokens is not None
    warmup, decay = (round(share * tokens) for tokens in (schedule.warmup_tokens, schedule.decay_tokens))
    return replace(
        config,
        max_tokens=round(share * config.max_tokens),
        batch_ramp_tokens=round(share * config.batch_ramp_tokens),
        schedule=replace(schedule, warmup_tokens=warmup, decay_tokens=decay),
    )


def ours(data: Path, out: Path, seconds: float) -> TrainConfig:
    """This project's recipe for the same shape, layers dense, in rows of 128 for the first part of the run."""
    shape = compose(CONFIG, model=DENSE).model
    model = {name: getattr(shape, name) for name in ("n_layer", "n_head", "n_embd", "head_dim", "context_length")}
    changes = {"model": RECIPE["model"] | model, "short_length": 128, "max_seconds": seconds, "batch_tokens": 4096}
    return compose(data=str(data), out=str(out), **RECIPE | changes)


def train(config: TrainConfig) -> None:
    out = Path(config.out)
    if not (out / "config.toml").exists():
        pretrain(config)
    elif read_run(out).state != "done":
        resume(out)


def result(run: Path) -> Mapping[str, float] | None:
    """What a finished run's files say of it."""
    if not run.is_dir() or read_run(run).state != "done":
        return None
    lines = read_metrics(run)
    config = compose(run / "config.toml").model
    return {
        "bits per byte": numbers(lines, "val/bits_per_byte")[-1],
        "held-out tokens": numbers(lines, "val_targets")[-1],
        "tokens": numbers(lines, "tokens")[-1],
        "seconds": numbers(lines, "elapsed")[-1],
        "tokens/s, median": statistics.median(numbers(lines, "tokens_per_second")),
        "MFLOPs a token": training_flops_per_token(config) / 1e6,
        "parameters": parameters(config),
    }


def show(folder: Path) -> str:
    found = {name: values for name in NAMES if (values := result(folder / name))}
    if not found:
        return "no run is done yet"
    keys = list(next(iter(found.values())))
    rows = [f"| | {' | '.join(keys)} |", f"| --- |{' --- |' * len(keys)}"]
    for name, values in found.items():
        shown = [
            f"{values[key]:.4f}" if key == "bits per byte" else f"{values[key]:,.1f}".removesuffix(".0") for key in keys
        ]
        rows.append(f"| {NAMES[name]} | {' | '.join(shown)} |")
    if {"banded", "dense"} <= set(found):
        loss = found["banded"]["bits per byte"] / found["dense"]["bits per byte"] - 1
        speed = found["banded"]["tokens/s, median"] / found["dense"]["tokens/s, median"]
        rows.append(
            f"\nbanded against dense: {loss:+.2%} bits per byte (wanted: 1 % at most), {speed:.2f} of its speed"
        )
    return "\n".join(rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--only", choices=list(NAMES), help="this run alone")
    parser.add_argument("--share", type=float, default=1.0, help="of the config's tokens")
    parser.add_argument("--source", nargs="+", default=["stdlib:"], help="what gpt2 prepare reads")
    args = parser.parse_args()
    data = args.folder / "data"
    prepare(args.source, data, tokenizer=f"train:{VOCABULARY}")
    for name in [args.only] if args.only else list(NAMES):
        out = args.folder / name
        if name == "ours":
            first = result(args.folder / "banded")
            train(ours(data, out, first["seconds"] if first else 600.0 * args.share))
        else:
            train(nano(data, out, args.share, **(DENSE if name == "dense" else {})))
    print(show(args.folder))


if __name__ == "__main__":
    main()
