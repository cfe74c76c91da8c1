"""Preference pairs made from the E2E restaurant descriptions of the test data (GPT2_ASSETS), by a stated rule.

The prompt is a restaurant's facts. Chosen is a description that a person wrote of them; rejected is a description of
other facts, of a restaurant that shares the most fields with this one among a few that are drawn: like enough to read
well, and wrong. A tenth of the distinct prompts is held out. The seed decides all that is drawn.

    python benchmarks/preferences.py FOLDER     # train.jsonl, held-out.jsonl: {"prompt", "chosen", "rejected"} a line
    gpt2 finetune --model X --data FOLDER/train.jsonl --val FOLDER/held-out.jsonl --out RUN
"""

from __future__ import annotations

import argparse
import json
import os
import random
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path

from gpt2 import atomic

SOURCE = "finetune/e2e_valid.txt"
DRAWN = 5  # other restaurants among which the most alike is taken
HELD_OUT = 0.1

Descriptions = dict[str, list[str]]


def assets() -> Path:
    """The folder of test data."""
    return Path(os.environ.get("GPT2_ASSETS", Path(__file__).resolve().parents[2] / "shared" / "assets"))


def descriptions() -> Descriptions:
    """Facts -> what people wrote of them, in the file's order."""
    found: Descriptions = defaultdict(list)
    for line in (assets() / SOURCE).read_text(encoding="utf-8").splitlines():
        facts, bar, text = line.partition("||")
        if bar:
            found[facts.strip()].append(text.strip())
    return dict(found)


def shared_fields(one: str, other: str) -> int:
    """How many `name : value` fields two restaurants have in common."""
    first, second = ({field.strip() for field in facts.split("|")} for facts in (one, other))
    return len(first & second)


def pairs(of: Descriptions, prompts: list[str], dice: random.Random) -> Iterable[dict[str, str]]:
    """A pair for each description of these prompts; the rejected one is of another of them."""
    for facts in prompts:
        for text in of[facts]:
            others = [other for other in dice.sample(prompts, min(len(prompts), DRAWN + 1)) if other != facts]
            like = max(others, key=lambda other: shared_fields(facts, other))
            wrong = [other for other in of[like] if other not in of[facts]]  # one sentence may have been written twice
            if wrong:
                yield {"prompt": facts, "chosen": text, "rejected": dice.choice(wrong)}


def preference_set(seed: int = 0) -> tuple[list[dict[str, str]], list[dict[str, str]]]:
    """(to train on, held out), by distinct prompt."""
    of, dice = descriptions(), random.Random(seed)
    prompts = sorted(of)
    dice.shuffle(prompts)
    border = round((1 - HELD_OUT) * len(prompts))
    return list(pairs(of, prompts[:border], dice)), list(pairs(of, prompts[border:], dice))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    args.folder.mkdir(parents=True, exist_ok=True)
    for name, part in zip(("train", "held-out"), preference_set(args.seed), strict=True):
        path = args.folder / f"{name}.jsonl"
        atomic.write_text(path, "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in part))
        print(f"{path}: {len(part):,} pairs of {len({line['prompt'] for line in part}):,} prompts")


if __name__ == "__main__":
    main()
