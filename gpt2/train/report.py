"""The end of a run on one page: loss.png and report.html, which needs nothing beside it."""

from __future__ import annotations

import base64
import functools
import statistics
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from shlex import quote
from typing import Any

from gpt2 import __version__, atomic
from gpt2 import config as settings
from gpt2.model.sizes import parameters
from gpt2.runtime import say
from gpt2.train import plots
from gpt2.train.config import TrainConfig
from gpt2.train.metrics import numbers, read_metrics
from gpt2.train.settings import RunSettings
from gpt2.train.words import clock, short

Lines = Sequence[Mapping[str, Any]]
Facts = list[tuple[str, str]]  # what a reader wants to know first: name and value


def write_report(
    run: Path, config: RunSettings, known: Callable[[Lines], Facts] | None = None, use: str | None = None
) -> Path | None:
    """Write both files from metrics.jsonl; the page's path, or None where nothing was measured yet.

    `known` makes the facts of another kind of run than pre-training, `use` is the command for what came of it.
    A page that cannot be made (a full disk, a folder that has gone) is one line on stderr: the run is what counts.
    """
    try:
        lines = read_metrics(run)
        if not numbers(lines, "train/loss"):
            return None
        atomic.write_bytes(run / "loss.png", plots.draw_loss(lines, "png"))
        atomic.write_text(run / "report.html", render(run, config, lines, known, use))
    except OSError as error:
        say(f"{run}: no report: {(error.strerror or str(error)).lower()}")
        return None
    return run / "report.html"


def render(
    run: Path,
    config: RunSettings,
    lines: Lines,
    known: Callable[[Lines], Facts] | None = None,
    use: str | None = None,
) -> str:
    """The page as HTML; every text from outside is escaped."""
    import jinja2

    if known is None:
        assert isinstance(config, TrainConfig)
        known = functools.partial(facts, config)

    source = Path(__file__).with_name("report.html.j2").read_text(encoding="utf-8")
    template = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined).from_string(source)
    return template.render(
        name=run.resolve().name,
        charts=charts(config, lines),
        facts=known(lines),
        samples=[(line["step"], line["sample"]) for line in lines if isinstance(line.get("sample"), str)],
        settings=settings.dump_toml(settings.to_tree(config)),
        resume=f"gpt2 {config.command} --resume {quote(str(run))}",
        use=use or f'gpt2 generate --model {quote(str(run))} "..."',
        version=__version__,
    )


def charts(config: RunSettings, lines: Lines) -> list[tuple[str, str]]:
    """(title, SVG as base64) of those that the run has numbers for."""
    drawn: list[tuple[str, str, Callable[[], bytes]]] = [
        ("Loss", "train/loss", lambda: plots.draw_loss(lines)),
        ("Throughput", "tokens_per_second", lambda: plots.draw_speed(lines)),
        ("Gradient norm", "grad_norm", lambda: plots.draw_norm(lines, config.grad_clip)),
        ("Learning rate", "learning_rate", lambda: plots.draw_rate(lines)),
    ]
    return [(title, base64.b64encode(draw()).decode("ascii")) for title, key, draw in drawn if numbers(lines, key)]


def facts(config: TrainConfig, lines: Lines) -> Facts:
    """What a reader wants to know first."""
    return [*model_facts(config), *loss_facts(lines), *progress_facts(config, lines), *machine_facts(config, lines)]


def model_facts(config: TrainConfig) -> Facts:
    model = config.model
    found = [
        ("Parameters", f"{parameters(model) / 1e6:.2f}M: {model.n_layer} layers of {model.n_embd}"),
        ("Context and vocabulary", f"{model.context_length} tokens, {model.vocab_size:,} kinds"),
    ]
    if config.init:
        found.append(("Continued from", config.init))
    return found


def progress_facts(config: TrainConfig, lines: Lines) -> Facts:
    """How far it came, on what, and in which batches."""
    step = max(line["step"] for line in lines)
    most = "" if config.max_steps is None else f" of {config.max_steps:,}"
    found = [("Trained", f"{step:,}{most} steps, {max(numbers(lines, 'tokens'), default=0):,.0f} tokens")]
    if seconds := numbers(lines, "elapsed"):
        found.append(("Time", f"{clock(seconds[-1])} of training on {config.device} in {config.dtype}"))
    rows = config.micro_batch_size
    split = "" if rows is None else f", {rows} rows at a time in each process"
    found.append(("Batch", f"{config.batch_tokens:,} tokens{split}"))
    if config.batch_ramp_tokens:
        ramp = f"from {config.batch_ramp_from:,} tokens, over the first {short(config.batch_ramp_tokens)} tokens"
        found.append(("Batch grows", ramp))
    if skipped := max(numbers(lines, "skipped"), default=0):
        found.append(("Skipped steps", f"{skipped:,.0f}"))
    return found + mixture_facts(config, lines)


def mixture_facts(config: TrainConfig, lines: Lines) -> Facts:
    """Sources with their weights, and how often each was gone through."""
    found = [("Mixture", ", ".join(config.mixture))] if config.mixture else []
    counts = [line["epochs"] for line in lines if isinstance(line.get("epochs"), Mapping)]
    passes: Mapping[str, Any] = counts[-1] if counts else {}
    counted = ", ".join(f"{source} {value:.2f}" for source, value in passes.items() if numbers([passes], source))
    return [*found, ("Passes over each source", counted)] if counted else found


def machine_facts(config: TrainConfig, lines: Lines) -> Facts:
    """How fast, and how the work was laid out where it was not the plain way."""
    found = speed_facts(lines)
    mesh = {"dp_replicate": config.dp_replicate, "dp_shard": config.dp_shard, "tp": config.tp}
    if any(size not in (None, 1) for size in mesh.values()):
        found.append(("Processes", " x ".join(f"{name} {size or 1}" for name, size in mesh.items())))
    extras = [f"recompute {config.recompute}"] * (config.recompute != "none") + [
        "products in 8 bits (MFU: of bfloat16's peak)"
    ] * config.fp8
    if extras:
        found.append(("Memory and speed", ", ".join(extras)))
    return found


def speed_facts(lines: Lines) -> Facts:
    speeds, mfu = numbers(lines, "tokens_per_second"), numbers(lines, "mfu")
    if not speeds:
        return []
    peak = f", {statistics.median(mfu):.0%} of peak" if mfu else ""
    return [("Speed (median)", f"{statistics.median(speeds):,.0f} tokens/s{peak}")]


def loss_facts(lines: Lines, per: str = "token") -> Facts:
    """Losses as means over each token, or text or pair."""
    found = [("Training loss", f"{plots.recent(numbers(lines, 'train/loss')):.4f} nats per {per} (mean of the last)")]
    val = [line for line in lines if numbers([line], "val/loss")]
    if not val:
        return found
    end, best = val[-1], min(val, key=lambda line: line["val/loss"])
    over = f" over {end['val_targets']:,} {per}s" if numbers([end], "val_targets") else ""
    found.append(("Validation loss", f"{end['val/loss']:.4f} nats per {per}{over}"))
    if best["step"] != end["step"]:
        found.append(("Best validation loss", f"{best['val/loss']:.4f} after step {best['step']:,}"))
    if numbers([end], "val/perplexity"):
        found.append(("Perplexity", f"{end['val/perplexity']:.2f} per token"))
    if numbers([end], "val/bits_per_byte"):
        found.append(("Bits per byte", f"{end['val/bits_per_byte']:.4f}"))
    return found
