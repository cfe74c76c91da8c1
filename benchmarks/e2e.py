"""Claim: a small model, pre-trained on books in minutes, learns to describe restaurants from a file of examples.

E2E (Novikova et al. 2017): `name : ... | area : ...||description`, several descriptions an input. A hundred inputs are
held out with all of theirs. Everything is done by the commands that docs/finetune.md shows: a tokenizer and a model of
the books and stories among the test data (GPT2_ASSETS), then `gpt2 finetune`, all weights and LoRA, then `gpt2
generate`, greedy. BLEU is sacrebleu's (13a, case as given) over the corpus, against all descriptions of each input.
Beside them: the model before it, shown solved examples; the text of the nearest training input; and the same network
from random weights, tuned on the task alone for as many steps, at the best of three learning rates.

    python benchmarks/e2e.py FOLDER              # 20 minutes on two cores; what is there is not made again
    python benchmarks/e2e.py FOLDER --only full,lora
"""

from __future__ import annotations

import argparse
import json
import random
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from english import assets, gather

HELD_OUT, SEED = 100, 1
VOCABULARY, PRETRAIN = 4096, 270  # seconds
SHOTS, MOST = 3, 80  # solved examples before an item; tokens of an answer
LORA = ("--rank", "12", "--alpha", "24", "--epochs", "15")  # 4.4 % of the parameters; it learns more slowly
SCRATCH_RATES = (6e-4, 1.5e-3, 3e-3)
CONFIG = Path(__file__).resolve().parents[1] / "configs" / "english_small.toml"
WAYS = {
    "base": "before: the base model, {shots} solved examples in the prompt",
    "nearest": "the nearest training input's text",
    "scratch": "random weights, tuned for the same time",
    "full": "gpt2 finetune",
    "lora": "gpt2 finetune --method lora",
}

References = Mapping[str, Sequence[str]]


def split(folder: Path) -> tuple[References, References]:
    """Inputs with their descriptions: to learn from, and held out; written as files of the original form."""
    known: dict[str, list[str]] = {}
    for line in (assets() / "finetune" / "e2e_valid.txt").read_text(encoding="utf-8").splitlines():
        given, _, text = line.partition("||")
        known.setdefault(given, []).append(text.strip())
    inputs = sorted(known)
    random.Random(SEED).shuffle(inputs)
    parts = ({name: known[name] for name in inputs[HELD_OUT:]}, {name: known[name] for name in inputs[:HELD_OUT]})
    folder.mkdir(parents=True, exist_ok=True)
    for name, part in zip(("train.txt", "held-out.txt"), parts, strict=True):
        lines = [f"{given}||{text}\n" for given, texts in part.items() for text in texts]
        (folder / name).write_text("".join(lines), encoding="utf-8")
    write_prompts(folder / "prompts.jsonl", list(parts[1]))
    return parts


def write_prompts(path: Path, prompts: Sequence[str]) -> None:
    path.write_text("".join(json.dumps({"prompt": text}) + "\n" for text in prompts), encoding="utf-8")


def gpt2(*words: str | Path) -> float:
    """A command of ours; its seconds."""
    begin = time.perf_counter()
    print("$ gpt2", *words, file=sys.stderr, flush=True)
    subprocess.run([sys.executable, "-m", "gpt2", *map(str, words)], check=True)
    return time.perf_counter() - begin


def base(folder: Path) -> Path:
    """The run of the small English model."""
    run = folder / "base"
    if not (run / "best").exists():
        if not (folder / "books").exists():
            gather(folder / "books")
        gpt2("prepare", folder / "books", "--tokenizer", f"train:{VOCABULARY}", "--out", folder / "data")
        gpt2("train", CONFIG, "--data", folder / "data", "--out", run, "--max_seconds", str(PRETRAIN))
    return run


def tuned(folder: Path, name: str, model: Path, *flags: str) -> Path:
    """A finished fine-tuning; its seconds lie beside it."""
    run, mark = folder / name, folder / f"{name}.seconds"
    if not mark.exists():
        begun = (run / "config.toml").exists()
        words = ["--resume", run] if begun else ["--model", model, "--data", folder / "train.txt", "--out", run, *flags]
        mark.write_text(str(gpt2("finetune", *words)))
    return run


def write(folder: Path, name: str, model: Path, prompts: Path) -> list[str]:
    """What a model says to each prompt, up to the line's end."""
    out = folder / f"{name}.jsonl"
    if not out.exists():
        greedy = ("--temperature", "0", "--max-new-tokens", str(MOST), "--stop", r"\n", "--overflow", "stop")
        gpt2("generate", "--model", model, "--input", prompts, "--output", out, "--weights", "float32", *greedy)
    found = [json.loads(line) for line in out.read_text(encoding="utf-8").splitlines()]  # in the order they were done
    return [each["text"].strip() for each in sorted(found, key=lambda each: each["index"])]


def few_shot(folder: Path, train: References, held_out: References) -> list[str]:
    """The base model behind solved examples, drawn anew for each item, one a line."""
    from gpt2.api import load

    model, dice = load(base(folder)), random.Random(SEED)
    room, prompts = model.config.context_length - MOST, []
    for given in held_out:
        shots: list[str] = []
        for name in dice.sample(sorted(train), SHOTS):
            longer = [*shots, f"{name} = {dice.choice(list(train[name]))}\n"]
            if len(model.tokenizer.encode("".join(longer) + f"{given} =")) <= room:
                shots = longer
        prompts.append("".join(shots) + f"{given} =")
    write_prompts(folder / "few-shot.jsonl", prompts)
    return write(folder, "base-answers", base(folder), folder / "few-shot.jsonl")


def fields(given: str) -> frozenset[str]:
    return frozenset(part.strip() for part in given.split("|"))


def nearest(folder: Path, train: References, held_out: References) -> list[str]:
    """A description of the training input that shares most fields (Jaccard)."""

    def closeness(name: str, wanted: frozenset[str]) -> float:
        mine = fields(name)
        return len(mine & wanted) / len(mine | wanted)

    return [train[max(sorted(train), key=lambda name: closeness(name, fields(given)))][0] for given in held_out]


def scratch(folder: Path, train: References, held_out: References) -> list[str]:
    """As many steps of the same network as `full` takes, which is the same time; the best of its learning rates.

    By BLEU on the held-out inputs themselves: in its favour.
    """
    answers = []
    for rate in SCRATCH_RATES:
        name = f"scratch-{rate:g}"
        run = tuned(folder, name, blank(folder), "--learning_rate", str(rate), "--patience", "0")
        answers.append(write(folder, f"{name}-answers", run, folder / "prompts.jsonl"))
    return max(answers, key=lambda texts: bleu(texts, held_out))


def blank(folder: Path) -> Path:
    """The base model's shape and tokenizer with random weights."""
    path = folder / "blank"
    if not path.exists():
        import torch

        from gpt2.api import Model, load
        from gpt2.model.gpt import GPT

        torch.manual_seed(SEED)
        model = load(base(folder))
        Model(model.config, model.tokenizer, GPT(model.config)).save(path)
    return path


def full(folder: Path, train: References, held_out: References) -> list[str]:
    return write(folder, "full-answers", tuned(folder, "full", base(folder)), folder / "prompts.jsonl")


def lora(folder: Path, train: References, held_out: References) -> list[str]:
    run = tuned(folder, "lora", base(folder), "--method", "lora", *LORA)
    return write(folder, "lora-answers", run, folder / "prompts.jsonl")


def bleu(texts: Sequence[str], held_out: References) -> float:
    """sacrebleu over the corpus; an input without as many descriptions as another has none there."""
    import sacrebleu

    most = max(map(len, held_out.values()))
    columns: list[list[str | None]] = [
        [texts_of[place] if place < len(texts_of) else None for texts_of in held_out.values()] for place in range(most)
    ]
    return float(sacrebleu.corpus_bleu(list(texts), columns, tokenize="13a").score)  # type: ignore[arg-type]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--only", default=",".join(WAYS))
    args = parser.parse_args()
    train, held_out = split(args.folder)
    doers: dict[str, Callable[..., list[str]]] = {
        "base": few_shot,
        "nearest": nearest,
        "scratch": scratch,
        "full": full,
        "lora": lora,
    }
    rows: list[tuple[str, float, float, Any]] = []
    for name in args.only.split(","):
        texts = doers[name](args.folder, train, held_out)
        took = args.folder / f"{name}.seconds"
        rows.append((name, bleu(texts, held_out), float(took.read_text()) if took.exists() else 0.0, texts[0]))
    print(f"{len(train)} inputs to learn from, {len(held_out)} held out; the first of these:\n{next(iter(held_out))}\n")
    print("| | BLEU | seconds of fine-tuning | the first answer |\n| --- | --- | --- | --- |")
    for name, score, seconds, text in rows:
        shown = f"{seconds:.0f}" if seconds else ""
        print(f"| {WAYS[name].format(shots=SHOTS)} | {score:.1f} | {shown} | {text} |")


if __name__ == "__main__":
    main()
