"""Evaluation on a processor: our model inside lm-evaluation-harness beside its own Hugging Face backend, same weights.

Eight tasks of local files (GPT2_ASSETS), 200 items each, all sides in one run. The time is what the backend takes for
its requests, tokens and answers included; building prompts and metrics is the harness's own and the same for all.

    python benchmarks/evaluate.py --files FOLDER                  # 124M shape, random weights: speed
    python benchmarks/evaluate.py --model ENGLISH_FOLDER          # a model that knows English: item by item, accuracies
    python benchmarks/evaluate.py --only rolling --files FOLDER   # a long text in windows
    python benchmarks/evaluate.py --fast int8,bfloat16 --files FOLDER   # other short weights than int8, or several
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

EXACT = ("hf", "gpt2")  # in float32; then ours in short weights, "gpt2-int8"
METHODS = ("loglikelihood", "loglikelihood_rolling", "generate_until")
METRICS = ("acc", "acc_norm", "exact_match", "perplexity", "word_perplexity")
PARAGRAPH = 200  # bytes of an item of WikiText at least


def assets() -> Path:
    """The folder of test data."""
    return Path(os.environ.get("GPT2_ASSETS", Path(__file__).resolve().parents[2] / "shared" / "assets"))


def gather(folder: Path, items: int) -> Path:
    """The first items of each file; of WikiText its first paragraphs, each a document."""
    folder.mkdir(parents=True, exist_ok=True)
    source = assets() / "benchmarks"
    for path in source.glob("*.jsonl"):
        (folder / path.name).write_text("".join(path.open(encoding="utf-8").readlines()[:items]), encoding="utf-8")
    lines = (source / "wikitext2_valid.txt").read_text(encoding="utf-8").splitlines()
    pages = [line for line in lines if len(line) >= PARAGRAPH][:items]
    written = "".join(json.dumps({"page": page}) + "\n" for page in pages)
    (folder / "wikitext.jsonl").write_text(written, encoding="utf-8")
    return folder


def side(name: str, model: Path, tasks: Path, names: list[str], batch: int) -> dict[str, Any]:
    """One backend over the tasks: for each, seconds, metrics and what every item answered."""
    import datasets
    import lm_eval
    import torch
    from lm_eval.api.registry import get_model
    from lm_eval.tasks import TaskManager

    import gpt2.evaluate.lm_eval  # noqa: F401

    datasets.disable_progress_bars()
    torch.set_num_threads(os.cpu_count() or 1)
    if name == "hf":
        lm = get_model("hf")(pretrained=str(model), dtype="float32", device="cpu", batch_size=batch)
    else:
        lm = get_model("gpt2")(path=str(model), weights=name.partition("-")[2] or "float32", device="cpu")
    clock = Clock(lm)
    manager = TaskManager(include_path=str(tasks), include_defaults=False)
    settings: dict[str, Any] = {"task_manager": manager, "bootstrap_iters": 0, "verbosity": "ERROR"}
    lm_eval.simple_evaluate(model=lm, tasks=[names[0]], limit=2, **settings)  # what is compiled or read once
    found = {}
    for task in names:
        clock.seconds = 0.0
        results = lm_eval.simple_evaluate(model=lm, tasks=[task], **settings)
        found[task] = {
            "seconds": clock.seconds,
            "metrics": {key.partition(",")[0]: value for key, value in results["results"][task].items()},
            "items": [[item["filtered_resps"], item.get("acc", item.get("exact_match"))] for item in
                      sorted(results["samples"][task], key=lambda item: item["doc_id"])],
        }  # fmt: skip
        print(f"{name} {task} {clock.seconds:.1f} s", file=sys.stderr, flush=True)
    return found


class Clock:
    """Seconds spent in a backend's own methods."""

    def __init__(self, lm: Any) -> None:
        self.seconds = 0.0
        for method in METHODS:
            setattr(lm, method, self._timed(getattr(lm, method)))

    def _timed(self, method: Any) -> Any:
        def call(*args: Any, **kwargs: Any) -> Any:
            begun = time.perf_counter()
            try:
                return method(*args, **kwargs)
            finally:
                self.seconds += time.perf_counter() - begun

        return call


def compare(model: Path, only: str, items: int, batch: int, fast: Sequence[str]) -> None:
    """All sides over all tasks, each side in a process of its own; a table of seconds, ratios and metrics."""
    from gpt2.evaluate.harness import write_tasks

    with tempfile.TemporaryDirectory() as scratch:
        names = write_tasks(gather(Path(scratch, "data"), items), Path(scratch, "tasks"))
        names = [name for name in names if not only or any(word in name for word in only.split(","))]
        found: dict[str, dict[str, Any]] = {}
        for name in (*EXACT, *(f"gpt2-{weights}" for weights in fast)):
            out = Path(scratch, f"{name}.json")
            command = [sys.executable, __file__, "--side", name, "--model", model, "--tasks", Path(scratch, "tasks"),
                       "--names", ",".join(names), "--out", out, "--batch", batch]  # fmt: skip
            environment = {**os.environ, "HF_DATASETS_OFFLINE": "1", "HF_HUB_OFFLINE": "1",
                           "HF_DATASETS_CACHE": scratch, "TOKENIZERS_PARALLELISM": "false"}  # fmt: skip
            subprocess.run([str(word) for word in command], check=True, env=environment)
            found[name] = json.loads(out.read_text())
    table(found, names)


def table(found: dict[str, dict[str, Any]], names: list[str]) -> None:
    """What was found, in Markdown."""
    sides = ["hf float32", "gpt2 float32", *(name.replace("-", " ") for name in found if name not in EXACT)]
    heads = ["task", "metric", *sides, *(f"{side}, s" for side in sides), "ratios", "items apart in float32"]
    print("|", " | ".join(heads), "|\n|", " | ".join(["---"] * len(heads)), "|")
    totals = dict.fromkeys(found, 0.0)
    for task in names:
        each = [one[task] for one in found.values()]
        for name, one in zip(found, each, strict=True):
            totals[name] += one["seconds"]
        metrics = [metric for metric in METRICS if metric in each[0]["metrics"]]
        apart = sum(one[1] != other[1] for one, other in zip(each[0]["items"], each[1]["items"], strict=True))
        seconds = row([one["seconds"] for one in each]) + f" | {apart}"
        for number, metric in enumerate(metrics):
            values = " | ".join(f"{one['metrics'][metric]:.6g}" for one in each)
            print(f"| {task} | {metric} | {values} | {seconds if number == 0 else '| ' * len(each) + '|'} |")
    print(f"| all | {'| ' * len(found)}| {row(list(totals.values()))} | |")


def row(seconds: list[float]) -> str:
    """Seconds of each, and how many times faster ours are."""
    theirs, *ours = seconds
    return f"{' | '.join(f'{one:.1f}' for one in seconds)} | {', '.join(f'{theirs / one:.2f}' for one in ours)}"


def rolling(model: Path, size: int) -> None:
    """Scored tokens a second of a long text, in int8."""
    from gpt2 import load
    from gpt2.evaluate.score import Scorer

    loaded = load(model, device="cpu", weights="int8")
    scorer = Scorer(loaded)
    texts = sorted((assets() / "text").glob("*.txt"))
    text = "".join(path.read_text(encoding="utf-8", errors="replace") for path in texts)[:size]
    ids = loaded.tokenizer.encode(text)
    scorer.rolling([ids[:200]])
    for stride in (scorer.context_length, scorer.context_length // 2):
        begun = time.perf_counter()
        (found,) = scorer.rolling([ids], stride=stride)
        seconds = time.perf_counter() - begun
        rate, bits = found.tokens / seconds, found.bits_per(len(text.encode()))
        speed = f"{found.tokens:,} tokens in {seconds:.1f} s, {rate:,.0f} a second"
        print(f"{len(text):,} characters, stride {stride}: {speed}, {bits:.4f} bits per byte", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--files", type=Path, default=Path("benchmark-files"), help="where the 124M model is kept")
    parser.add_argument("--model", type=Path, help="a model folder; default: the 124M shape with random weights")
    parser.add_argument("--only", default="", help="tasks by parts of their names, commas between; or rolling")
    parser.add_argument("--items", type=int, default=200)
    parser.add_argument("--fast", default="int8", help="short weights of ours, commas between")
    parser.add_argument("--batch", type=int, default=8, help="of the Hugging Face backend")
    parser.add_argument("--bytes", type=int, default=1_000_000, help="of the text that is rolled over")
    for hidden in ("--side", "--tasks", "--names", "--out"):
        parser.add_argument(hidden, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.side:
        found = side(args.side, args.model, Path(args.tasks), args.names.split(","), args.batch)
        Path(args.out).write_text(json.dumps(found))
        return
    model = args.model or args.files / "124M"
    if not (model / "config.json").is_file():
        from benchmarks.peers.model_folder import write_random

        write_random(model)
    if args.only != "rolling":
        compare(model, args.only, args.items, args.batch, args.fast.split(","))
    if args.only in ("", "rolling"):
        rolling(model, args.bytes)


if __name__ == "__main__":
    main()
