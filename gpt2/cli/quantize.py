"""`gpt2 quantize`: a folder of small weights out of one of floats, and what that costs on a text."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from gpt2.errors import UserError
from gpt2.runtime import say

if TYPE_CHECKING:
    from gpt2.api import Model

SAY_EVERY = 10.0  # seconds


@click.command("quantize")
@click.argument("model", metavar="MODEL")
@click.argument("out", metavar="OUT", type=click.Path(path_type=Path))
@click.option(
    "--weights",
    default="int8",
    show_default=True,
    type=click.Choice(["int8", "int4", "int4-head", "bfloat16"]),
    help="int8; int4: the head (the embedding, where it is tied) in int8; int4-head: that too in int4; bfloat16.",
)
@click.option(
    "--text",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="What the loss is measured on, UTF-8. [default: the language reference that Python's help() shows]",
)
@click.option("--tokens", default=8192, show_default=True, metavar="N", help="The most tokens of it to read.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object instead of two lines.")
def command(model: str, out: Path, weights: str, text: Path | None, tokens: int, as_json: bool) -> None:
    """Make a folder with smaller weights, for writing on a processor.

    Writes the folder OUT, which must be new or empty: it loads at once, and `gpt2 generate --model OUT` writes with it.
    MODEL stays as it is: train, evaluate and convert that one. Then says how large both are and the loss of
    both on the text: MODEL computed in float32, OUT as it will be when it writes.

    \b
    Examples:
      gpt2 quantize gpt2 gpt2-int8
      gpt2 quantize runs/my my-int4 --weights int4
      gpt2 quantize runs/my my-int4-head --weights int4-head --text held-out.txt --tokens 50000
    """
    if tokens < 1:
        raise UserError(f"--tokens {tokens}: must be at least 1")
    from gpt2 import api

    check_out(out)
    before = api.load(model, device="cpu", weights="float32")
    check_in(before)
    texts = read_text(before, text, tokens)
    begun = time.monotonic()
    write(before, out, weights)
    say(f"{out}: written in {time.monotonic() - begun:.1f} s")
    report: dict[str, Any] = {
        "weights": weights,
        "tokens": sum(len(window) - 1 for window in texts),
        "before": measured(before, texts, "before"),
        "after": measured(api.load(out, device="cpu"), texts, "after"),
    }
    report["increase"] = report["after"]["loss"] / report["before"]["loss"] - 1
    click.echo(json.dumps(report) if as_json else render(report))


def check_out(out: Path) -> None:
    """UserError unless the folder is new or empty."""
    if out.exists() and not out.is_dir():
        raise UserError(f"{out}: a file; name a new folder to write")
    if out.is_dir() and any(out.iterdir()):
        raise UserError(f"{out}: exists and is not empty; name a new folder to write")


def check_in(model: Model) -> None:
    """UserError for a folder that holds packed weights: what they lost the first time would be lost again."""
    from gpt2.checkpoint.packed import is_packed, read_packed

    assert model.folder is not None
    if is_packed(model.folder):
        held = read_packed(model.folder).weights
        raise UserError(f"{model.folder}: holds {held} weights already; name the folder that it was made from")


def read_text(model: Model, path: Path | None, most: int) -> list[Sequence[int]]:
    """The text's first tokens in windows of the model's context; UserError if there is nothing in it to predict."""
    from gpt2.inference.score import windows

    if path is None:
        from pydoc_data.topics import topics

        text = "\n\n".join(topics.values())
    else:
        try:
            text = path.read_text(encoding="utf-8")
        except UnicodeDecodeError as error:
            raise UserError(f"--text {path}: not UTF-8 at byte {error.start:,}; convert it first") from None
    ids = model.tokenizer.encode(text)[: most + 1]
    if len(ids) < 2:
        raise UserError(f"--text {path}: {len(ids)} tokens; a loss needs at least 2")
    return windows(ids, model.config.context_length)


def write(model: Model, out: Path, weights: str) -> None:
    """The packed folder; what was written of it is removed again if that fails."""
    from gpt2.checkpoint.packed import pack_folder, write_packed

    assert model.folder is not None
    packed = pack_folder(model.folder, model.config, weights, adapter=model.adapter)
    try:
        write_packed(out, packed, model.tokenizer)
    except BaseException:
        for path in out.glob("*"):
            path.unlink()
        raise


def measured(model: Model, texts: Sequence[Sequence[int]], title: str) -> dict[str, Any]:
    """Bytes of the folder's weights and their loss (nats a token), with a line on the way now and then."""
    from gpt2.checkpoint.names import PACKED_WEIGHTS, weight_files
    from gpt2.inference.score import losses

    assert model.folder is not None
    packed = model.folder / PACKED_WEIGHTS
    files = [packed] if packed.exists() else weight_files(model.folder)
    every = sum(len(text) - 1 for text in texts)
    done, total, said = 0, 0.0, time.monotonic()
    for found in losses(model.runner(streams=1), texts):
        done, total = done + len(found), total + sum(found)
        if time.monotonic() - said > SAY_EVERY:
            said = time.monotonic()
            say(f"the loss {title}: {done:,} of {every:,} tokens, {total / done:.4f} so far")
    return {"bytes": sum(path.stat().st_size for path in files), "loss": total / done}


def render(report: dict[str, Any]) -> str:
    """Two lines: before, and after with its distance."""
    before, after = report["before"], report["after"]
    return (
        f"before  {before['bytes'] / 1e6:9.1f} MB  {before['loss']:.4f} nats a token\n"
        f"after   {after['bytes'] / 1e6:9.1f} MB  {after['loss']:.4f} nats a token, {report['increase']:+.2%}, "
        f"{report['weights']}, on {report['tokens']:,} tokens"
    )
