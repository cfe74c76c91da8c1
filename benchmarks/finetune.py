"""Claim: fine-tuning 124M on two cores: LoRA 1.5 times as many examples a second as transformers' Trainer with peft, at
60 % of its memory at most; all weights 1.3 times.

The same model (GPT-2's shape, random weights), the same examples (E2E, GPT-2's vocabulary), as many to a step, loss on
the completion only, AdamW at one constant rate, the same LoRA (rank 16 on every matrix of a block). The peer pads each
batch to its longest example, as its data collator does, in float32 (its default) and with bf16; ours packs. Turns of a
process each, alternating; medians of the steps' seconds, the first ones left out; the most that was resident.

    python benchmarks/finetune.py                # a quarter of an hour on two cores
    python benchmarks/finetune.py --rounds 1 --steps 4 --only lora

GPT2_TOKENIZER names a folder with GPT-2's vocabulary where Hugging Face's cache has none.
"""

from __future__ import annotations

import argparse
import itertools
import json
import random
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from english import assets
from peers.model_folder import gpt2_tokenizer, write_random

EXAMPLES, RATE, RANK, ALPHA, SEED = 16, 1e-4, 16, 32, 0  # of a step; AdamW's rate
LEFT_OUT = 2  # first steps: kernels are compiled, memory is mapped
WANTED = {"lora": 1.5, "full": 1.3}
SIDES = {"ours": "gpt2", "float32": "Trainer, float32", "bf16": "Trainer, bf16"}
MATRICES = ["c_attn", "c_proj", "c_fc"]


@dataclass(frozen=True)
class Turn:
    """One process: examples a second, bytes resident at most, mean loss of its last steps."""

    rate: float
    peak: int
    loss: float


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--only", default="lora,full")
    parser.add_argument("--sides", default=",".join(SIDES))
    parser.add_argument("--child", nargs=4, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        side, method, folder, steps = args.child
        print(json.dumps(child(side, method, Path(folder), int(steps))))
        return
    with tempfile.TemporaryDirectory(prefix="gpt2-finetune-") as name:
        folder = Path(name)
        write_random(folder / "model")
        write_examples(folder / "train.txt", EXAMPLES * args.steps)
        for method in args.only.split(","):
            print(compare(method, folder, args), end="\n\n", flush=True)


def write_examples(path: Path, count: int) -> None:
    """So many lines of E2E, drawn with a seed."""
    lines = (assets() / "finetune" / "e2e_valid.txt").read_text(encoding="utf-8").splitlines()
    path.write_text("\n".join(random.Random(SEED).sample(lines, count)) + "\n", encoding="utf-8")


def compare(method: str, folder: Path, args: argparse.Namespace) -> str:
    """Alternating turns of all sides; a table."""
    sides = args.sides.split(",")
    turns: dict[str, list[Turn]] = {side: [] for side in sides}
    for number in range(args.rounds):
        for side in sides if number % 2 == 0 else sides[::-1]:
            command = [sys.executable, __file__, "--child", side, method, str(folder), str(args.steps)]
            done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
            found = json.loads(done.stdout.splitlines()[-1])  # libraries print too
            turns[side].append(Turn(**found))
            print(f"{method} {side}: {turns[side][-1]}", file=sys.stderr, flush=True)
    lines = [f"{method}, {EXAMPLES} examples a step, medians of {args.rounds} rounds (wanted: {WANTED[method]})\n"]
    lines += ["| | examples/s | ours / it | peak, GB | ours / it | loss at the end |", "| --- " * 6 + "|"]
    for side, found in turns.items():
        pairs = list(zip(turns.get("ours", found), found, strict=True))
        faster = statistics.median(a.rate / b.rate for a, b in pairs)
        smaller = statistics.median(a.peak / b.peak for a, b in pairs)
        middle = [statistics.median(getattr(turn, key) for turn in found) for key in ("rate", "peak", "loss")]
        cells = (f"{middle[0]:.2f}", f"{faster:.2f}", f"{middle[1] / 1e9:.2f}", f"{smaller:.0%}", f"{middle[2]:.3f}")
        lines.append(f"| {SIDES[side]} | {' | '.join(cells)} |")
    return "\n".join(lines)


def child(side: str, method: str, folder: Path, steps: int) -> dict[str, Any]:
    """One side's turn, in this process."""
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        run = ours if side == "ours" else trainer
        seconds, losses = run(method, folder, Path(scratch), steps, side)
    rate = EXAMPLES / statistics.median(seconds[LEFT_OUT:])
    return {"rate": rate, "peak": most(), "loss": statistics.fmean(losses[-3:])}


def ours(method: str, folder: Path, scratch: Path, steps: int, side: str) -> tuple[list[float], list[float]]:
    """`gpt2 finetune`: seconds and losses of its steps."""
    from gpt2.train.finetune import finetune

    adapter = {"rank": RANK, "alpha": float(ALPHA)} if method == "lora" else {}
    finetune(
        model=str(folder / "model"), data=str(folder / "train.txt"), out=str(scratch / "run"), method=method,
        max_steps=steps, batch_examples=EXAMPLES, val_share=0.0, learning_rate=RATE, schedule="constant",
        warmup_fraction=0.0, weight_decay=0.0, betas=(0.9, 0.999), device="cpu", quiet=True, **adapter,
        eval_every=steps, save_every=steps,  # one checkpoint, at the end: the peer writes none
    )  # fmt: skip
    lines = [json.loads(line) for line in (scratch / "run" / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    steps_taken = [line for line in lines if "train/loss" in line]
    elapsed = [0.0, *(line["elapsed"] for line in steps_taken)]
    return [b - a for a, b in itertools.pairwise(elapsed)], [line["train/loss"] for line in steps_taken]


def trainer(method: str, folder: Path, scratch: Path, steps: int, side: str) -> tuple[list[float], list[float]]:
    """transformers' Trainer, with peft for LoRA: seconds and losses of its steps."""
    from transformers import (
        DataCollatorForSeq2Seq,
        GPT2LMHeadModel,
        GPT2TokenizerFast,
        Trainer,
        TrainerCallback,
        TrainingArguments,
    )

    model: Any = GPT2LMHeadModel.from_pretrained(folder / "model")
    tokenizer = GPT2TokenizerFast.from_pretrained(folder / "model")
    tokenizer.pad_token = tokenizer.eos_token
    if method == "lora":
        from peft import LoraConfig, get_peft_model

        config = LoraConfig(r=RANK, lora_alpha=ALPHA, target_modules=MATRICES, fan_in_fan_out=True)
        model = get_peft_model(model, config)
    seconds: list[float] = []
    losses: list[float] = []

    class Clock(TrainerCallback):  # type: ignore[misc]
        def on_step_begin(self, *_: Any, **__: Any) -> None:
            self.begin = time.perf_counter()

        def on_step_end(self, *_: Any, **__: Any) -> None:
            seconds.append(time.perf_counter() - self.begin)

        def on_log(self, *_: Any, logs: dict[str, float], **__: Any) -> None:
            losses.extend([logs["loss"]] if "loss" in logs else [])

    arguments = TrainingArguments(
        output_dir=str(scratch), max_steps=steps, per_device_train_batch_size=EXAMPLES, learning_rate=RATE,
        lr_scheduler_type="constant", weight_decay=0.0, max_grad_norm=1.0, bf16=side == "bf16", use_cpu=True,
        logging_steps=1, save_strategy="no", report_to=[], disable_tqdm=True, seed=SEED,
    )  # fmt: skip
    collator = DataCollatorForSeq2Seq(tokenizer, label_pad_token_id=-100)
    data = encoded(folder / "train.txt")
    sys.stdout, keep = sys.stderr, sys.stdout  # it prints its losses
    Trainer(model, arguments, train_dataset=data, data_collator=collator, callbacks=[Clock()]).train()  # type: ignore[arg-type]
    sys.stdout = keep
    return seconds, losses


def encoded(path: Path) -> list[dict[str, list[int]]]:
    """The examples as `gpt2 finetune` reads them, for a collator that pads."""
    tokenizer, rows = gpt2_tokenizer(), []
    for line in path.read_text(encoding="utf-8").splitlines():
        given, _, text = line.partition("||")
        prompt = tokenizer.encode(given)
        answer = [*tokenizer.encode(f" {text}"), tokenizer.eot_id]
        ids = prompt + answer
        rows.append({"input_ids": ids, "attention_mask": [1] * len(ids), "labels": [-100] * len(prompt) + answer})
    return rows


def most() -> int:
    """Bytes resident at most, so far."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) * 1024


if __name__ == "__main__":
    main()
