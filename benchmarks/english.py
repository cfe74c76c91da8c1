"""A small GPT-2 that knows English: the model on which the formats of weights are compared.

Trained as `gpt2 demo` trains, on the English texts of the test data (GPT2_ASSETS), in about five minutes on two cores.
Its shape is GPT-2's own, only smaller: tied head, biases, heads of 64; the width is a multiple of 256, as llama.cpp's
k-quants ask.

    python benchmarks/english.py FOLDER
"""

from __future__ import annotations

import argparse
import os
import tempfile
from pathlib import Path

TEXTS = (
    "text/tinystories_sample.txt",
    "text/tinyshakespeare.txt",
    "text/austen-persuasion.txt",
    "text/carroll-alice.txt",
    "text/chesterton-ball.txt",
    "bpe-training/corpus.en",
)
LATIN = ("text/chesterton-ball.txt",)  # the others are UTF-8
VOCABULARY = 4096
RECIPE = Path(__file__).resolve().parents[1] / "configs" / "english_small.toml"


def assets() -> Path:
    """The folder of test data."""
    return Path(os.environ.get("GPT2_ASSETS", Path(__file__).resolve().parents[2] / "shared" / "assets"))


def english_model(folder: Path, seconds: float = 270.0) -> Path:
    """The model folder; trained if it is not there yet, and there only when it is whole."""
    if not (folder / "config.json").is_file():
        from gpt2.api import load
        from gpt2.data.prepare import prepare
        from gpt2.train.config import compose
        from gpt2.train.pretrain import pretrain

        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder.parent) as scratch:
            data, run = Path(scratch, "data"), Path(scratch, "run")
            prepare([gather(Path(scratch, "texts"))], data, tokenizer=f"train:{VOCABULARY}", val_fraction=0.02)
            pretrain(compose(RECIPE, data=str(data), out=str(run), max_seconds=seconds))
            load(run, device="cpu").save(Path(scratch, "model"))
            Path(scratch, "model").rename(folder)
    return folder


def gather(folder: Path) -> Path:
    """The texts as one file of UTF-8: held out is a fiftieth of its documents, which are nearly all little stories."""
    folder.mkdir()
    parts = [(assets() / name).read_text(encoding="latin-1" if name in LATIN else "utf-8") for name in TEXTS]
    (folder / "english.txt").write_text("\n\n".join(parts), encoding="utf-8")
    return folder / "english.txt"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--seconds", type=float, default=270.0, help="time to train")
    args = parser.parse_args()
    print(english_model(args.folder, args.seconds))


if __name__ == "__main__":
    main()
