"""The end of a run on one page: loss.png and report.html, which needs nothing beside it."""

from __future__ import annotations

import base64
import io
from pathlib import Path
from typing import Any

from gpt2 import __version__, atomic
from gpt2 import config as settings
from gpt2.model.sizes import parameters
from gpt2.train.config import TrainConfig
from gpt2.train.live import clock
from gpt2.train.metrics import read_metrics

SPAN = 1 / 30  # of the run: what the moving average of the training loss looks back on


def write_report(run: Path, config: TrainConfig) -> Path | None:
    """Write both files from metrics.jsonl; returns the page's path, or None where nothing was measured yet."""
    lines = read_metrics(run)
    train = [line for line in lines if "train/loss" in line]
    if not train:
        return None
    picture = draw_losses(lines)
    atomic.write_bytes(run / "loss.png", picture)
    page = render(run, config, lines, base64.b64encode(picture).decode("ascii"))
    atomic.write_text(run / "report.html", page)
    return run / "report.html"


def draw_losses(lines: list[dict[str, Any]]) -> bytes:
    """PNG of training and validation loss (nats per token) against trained tokens."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 4.5), layout="constrained")
    axes = figure.add_subplot()
    train = [line for line in lines if "train/loss" in line]
    tokens = [line["tokens"] for line in train]
    losses = [line["train/loss"] for line in train]
    axes.plot(tokens, losses, color="tab:blue", alpha=0.25, linewidth=0.8)
    axes.plot(tokens, smooth(losses), color="tab:blue", label="training")
    val = [line for line in lines if "val/loss" in line]
    if val:
        points = [line["val/loss"] for line in val]
        axes.plot([line["tokens"] for line in val], points, "o-", color="tab:orange", label="validation", markersize=4)
    low = min(losses + [line["val/loss"] for line in val])
    axes.set_ylim(low - 0.1, max(smooth(losses)[:: max(1, len(losses) // 50)]) + 0.1)
    axes.set(xlabel="tokens trained on", ylabel="loss (nats per token)")
    axes.xaxis.set_major_formatter(lambda value, _: short(value))
    axes.grid(alpha=0.3)
    axes.legend()
    buffer = io.BytesIO()
    FigureCanvasAgg(figure).print_png(buffer)
    return buffer.getvalue()


def short(value: float) -> str:
    """`2.5M`, `250k`, `0`."""
    for unit, letter in ((1e9, "B"), (1e6, "M"), (1e3, "k")):
        if value >= unit:
            return f"{value / unit:g}{letter}"
    return f"{value:g}"


def smooth(values: list[float]) -> list[float]:
    """Exponential moving average without the start's bias."""
    out: list[float] = []
    total, weight = 0.0, 0.0
    keep = max(0.0, 1 - 1 / max(1.0, SPAN * len(values)))
    for value in values:
        total, weight = keep * total + (1 - keep) * value, keep * weight + (1 - keep)
        out.append(total / weight)
    return out


def render(run: Path, config: TrainConfig, lines: list[dict[str, Any]], picture: str) -> str:
    """The page as HTML; every text from outside is escaped."""
    import jinja2

    source = Path(__file__).with_name("report.html.j2").read_text(encoding="utf-8")
    template = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined).from_string(source)
    return template.render(
        name=run.resolve().name,
        picture=picture,
        facts=facts(config, lines),
        samples=[(line["step"], line["sample"]) for line in lines if "sample" in line],
        settings=settings.dump_toml(settings.to_tree(config)),
        resume=f"gpt2 train --resume {run}",
        generate=f'gpt2 generate --model {run} "..."',
        version=__version__,
    )


def facts(config: TrainConfig, lines: list[dict[str, Any]]) -> list[tuple[str, str]]:
    """What a reader wants to know first."""
    train = [line for line in lines if "train/loss" in line]
    val = [line for line in lines if "val/loss" in line]
    model, last = config.model, train[-1]
    speeds = sorted(line["tokens_per_second"] for line in train)
    found = [
        ("Parameters", f"{parameters(model) / 1e6:.2f}M: {model.n_layer} layers of {model.n_embd}"),
        ("Context and vocabulary", f"{model.context_length} tokens, {model.vocab_size:,} kinds"),
        ("Trained", f"{last['step']:,} of {config.max_steps:,} steps, {last['tokens']:,} tokens"),
        ("Time", f"{clock(last['elapsed'])} of training on {config.device} in {config.dtype}"),
        ("Speed (median)", f"{speeds[len(speeds) // 2]:,.0f} tokens/s, {last['mfu']:.0%} of peak at the end"),
        ("Training loss", f"{smooth([line['train/loss'] for line in train])[-1]:.4f} nats per token (smoothed)"),
    ]
    if val:
        end = val[-1]
        found.append(("Validation loss", f"{end['val/loss']:.4f} nats per token over {end['val_targets']:,} tokens"))
        found.append(("Perplexity", f"{end['val/perplexity']:.2f} per token"))
        if "val/bits_per_byte" in end:
            found.append(("Bits per byte", f"{end['val/bits_per_byte']:.4f}"))
    return found
