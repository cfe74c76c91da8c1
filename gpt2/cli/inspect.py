"""`gpt2 inspect`: what a model is made of, and what it makes of a text."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from gpt2.cli.writing import SETTINGS, model_options
from gpt2.errors import UserError
from gpt2.runtime import say

if TYPE_CHECKING:
    from gpt2.api import Model
    from gpt2.inference.activations import Activations
    from gpt2.model.config import GPTConfig


@click.command(context_settings=SETTINGS)
@click.argument("text", required=False)
@model_options
@click.option("--top", default=10, show_default=True, metavar="K", help="So many likeliest next tokens.")
@click.option("--eot", is_flag=True, help="Put end-of-text before the text, so that its first token has a loss too.")
@click.option("--save", metavar="FILE.npz", help="Write hidden states and attention of the text to this file.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object instead of tables.")
def command(text: str | None, top: int, eot: bool, save: str | None, as_json: bool, **flags: Any) -> None:
    """Show what is inside a model: sizes, predictions, activations.

    Without a TEXT: the table of parameters. With one: the loss (nats) of each of its tokens given those before it,
    and the likeliest next tokens. --save writes numpy arrays: tokens (T), hidden_states (layers + 1, T, n_embd: the
    embeddings, then after each block, the last after the final layer norm), attention (layers, heads, T, T: query,
    key); numpy.load reads them.

    \b
    Examples:
      gpt2 inspect --model runs/my
      gpt2 inspect --model gpt2 "The capital of France is"
      gpt2 inspect --model gpt2 --save activations.npz "The capital of France is"
      gpt2 inspect --json "2 + 2 ="
    """
    if text is None and (save or eot):
        raise UserError(f"{'--save' if save else '--eot'}: there is no text to look at; add one in quotes")
    if save and not save.endswith(".npz"):
        raise UserError(f"--save {save}: the name must end in .npz")
    if top < 0:
        raise UserError(f"--top {top}: must be at least 0")
    from gpt2 import api

    model = api.load(flags["model"], flags["device"], flags["dtype"], adapter=flags["adapter"])
    report = describe(model)
    if text is not None:
        tokens = text_tokens(model, text, eot)
        seen = look(model, tokens)
        report |= reading(model, tokens, seen, top)
        if save:
            write_activations(Path(save), tokens, seen)
    click.echo(json.dumps(report) if as_json else as_tables(report))


def describe(model: Model) -> dict[str, Any]:
    """The model's shape and the sizes that follow from it; reads no weights."""
    from dataclasses import asdict

    from gpt2.model import sizes

    config = model.config
    return {
        "model": str(model.folder),
        "config": asdict(config),
        "parameters": sizes.parameters(config),
        "tensors": tensor_table(config),
        "training_flops_per_token": sizes.training_flops_per_token(config),
        "kv_cache_bytes_per_token": sizes.kv_cache_bytes(config, 1),
        "kv_cache_bytes": sizes.kv_cache_bytes(config, config.context_length),
    }


def tensor_table(config: GPTConfig) -> list[dict[str, Any]]:
    """A row for each kind of tensor, the layers' taken together: name, shape, how many, numbers in all."""
    from gpt2.checkpoint.names import expected_shapes

    rows: dict[str, dict[str, Any]] = {}
    for name, shape in expected_shapes(config).items():
        name = re.sub(r"^h\.\d+\.", "h.*.", name)
        row = rows.setdefault(name, {"name": name, "shape": list(shape), "count": 0, "parameters": 0})
        row["count"] += 1
        row["parameters"] += math.prod(shape)
    return list(rows.values())


def text_tokens(model: Model, text: str, eot: bool) -> list[int]:
    """The text's tokens, checked against the context."""
    tokens = model.tokenizer.encode(text)
    if eot:
        if model.tokenizer.eot_id is None:
            raise UserError("--eot: this model's vocabulary has no end-of-text token")
        tokens.insert(0, model.tokenizer.eot_id)
    if len(tokens) > model.config.context_length:
        raise UserError(
            f"the text has {len(tokens)} tokens, the model's context is {model.config.context_length}; shorten it"
        )
    return tokens


def look(model: Model, tokens: list[int]) -> Activations:
    """Let the model read the text, everything recorded."""
    from gpt2.inference.activations import record

    return record(model.module, tokens)


def reading(model: Model, tokens: list[int], seen: Activations, top: int) -> dict[str, Any]:
    """Each token's loss, their mean, and what the model expects next."""
    decode, logprobs = model.tokenizer.decode, seen.logits.log_softmax(-1)
    losses = [None, *(-logprobs[:-1].gather(1, _column(tokens[1:]))[:, 0]).tolist()]
    values, ids = logprobs[-1].topk(min(top, logprobs.size(-1)))
    known = [loss for loss in losses if loss is not None]
    return {
        "tokens": [{"token": t, "text": decode([t]), "loss": loss} for t, loss in zip(tokens, losses, strict=True)],
        "loss": sum(known) / len(known) if known else None,
        "next": [
            {"token": t, "text": decode([t]), "probability": math.exp(value)}
            for t, value in zip(ids.tolist(), values.tolist(), strict=True)
        ],
    }


def write_activations(path: Path, tokens: Sequence[int], seen: Activations) -> None:
    """The .npz that --help describes."""
    import numpy as np

    from gpt2 import atomic

    with atomic.replacing(path) as temporary, temporary.open("wb") as file:
        np.savez(
            file,
            tokens=np.asarray(tokens),
            hidden_states=seen.hidden_states.numpy(),
            attention=seen.attention.numpy(),
        )
    say(f"{path}: tokens, hidden_states {tuple(seen.hidden_states.shape)}, attention {tuple(seen.attention.shape)}")


def as_tables(report: dict[str, Any]) -> str:
    """The report for people."""
    parts = [_sizes(report)]
    if "tokens" in report:
        parts += [_losses(report), _next(report)]
    return "\n\n".join(parts)


def _sizes(report: dict[str, Any]) -> str:
    rows = [[t["name"], f"{t['count']} x {tuple(t['shape'])}", f"{t['parameters']:,}"] for t in report["tensors"]]
    tied = "(the head is wte)" if report["config"]["tie_head"] else ""
    rows.append(["all", tied, f"{report['parameters']:,}"])
    bands = " (banded layers their bands)" if report["config"]["band_width"] else ""
    cost = (
        f"{report['training_flops_per_token']:.3g} FLOPs to train on a token, "
        f"{report['kv_cache_bytes_per_token']:,} bytes to remember one (float32), "
        f"{report['kv_cache_bytes']:,} a full context{bands}"
    )
    return f"{report['model']}\n\n{table(['tensor', 'shape', 'parameters'], rows)}\n{cost}"


def _losses(report: dict[str, Any]) -> str:
    rows = [
        [str(t["token"]), repr(t["text"]), "-" if t["loss"] is None else f"{t['loss']:.4f}"] for t in report["tokens"]
    ]
    mean = "" if report["loss"] is None else f"\nmean loss {report['loss']:.4f} nats, perplexity {_exp(report['loss'])}"
    return table(["token", "text", "loss"], rows) + mean


def _next(report: dict[str, Any]) -> str:
    rows = [[str(t["token"]), repr(t["text"]), f"{t['probability']:.4f}"] for t in report["next"]]
    return table(["next", "text", "probability"], rows)


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Plain columns, the last one to the right."""
    widths = [max(map(len, column)) for column in zip(head, *rows, strict=True)]
    *left, last = [f"{{:<{width}}}" for width in widths]
    line = "  ".join([*left, last.replace("<", ">")])
    return "\n".join(line.format(*row) for row in [head, *rows])


def _column(values: Sequence[int]) -> Any:
    import torch

    return torch.tensor(values, dtype=torch.long)[:, None]


def _exp(loss: float) -> str:
    return f"{math.exp(loss):,.2f}" if loss < 100 else "inf"
