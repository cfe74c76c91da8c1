"""`gpt2 plan`: what a training run would hold, take and cost, here or on hardware that is not here."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import click

from gpt2.cli.inspect import table
from gpt2.errors import UserError

if TYPE_CHECKING:
    from gpt2.train.config import TrainConfig
    from gpt2.train.forecast import Devices

GPT2_VOCABULARY = 50_257
TOKENS_PER_PARAMETER = 20  # where nobody says how many: Hoffmann et al. 2022
DAY = 86_400
FAST_LINK = 50e9  # bytes per second and GPU of a good network (400 Gbit/s)
LABELS = {
    "base": "process",
    "weights": "weights",
    "gradients": "gradients",
    "optimizer": "optimizer",
    "gathered": "gathered weights",
    "activations": "activations",
    "working": "working space",
    "saving": "checkpoint's copy",
}


@click.command("plan", context_settings={"ignore_unknown_options": True, "allow_interspersed_args": True})
@click.argument("words", nargs=-1, type=click.UNPROCESSED, metavar="CONFIG.toml|PRESET [--KEY VALUE ...]")
@click.option("--gpus", type=click.IntRange(1), help="So many GPUs; without it and --gpu: this machine, one process.")
@click.option("--gpu", metavar="NAME", help="Their kind: h100 (if --gpus is given), a100, a100-40gb, 4090, ...")
@click.option("--mesh", metavar="RxSxT", help="dp_replicate x dp_shard x tp, as 1x128x8; else the one proposed.")
@click.option("--recompute", type=click.Choice(["none", "selective", "full"]), help="Activations computed again.")
@click.option(
    "--tokens", metavar="N", help="To train on, as 300B; else max_steps or max_tokens, GPT-3's 300B, or 20 N."
)
@click.option("--mfu", default=0.4, show_default=True, help="Share of the devices' peak that training will reach.")
@click.option(
    "--price", type=float, metavar="DOLLARS", help="Of a device-hour; else the table's, which says its source."
)
@click.option("--json", "as_json", is_flag=True, help="One JSON object instead of tables; bytes, seconds, FLOPs.")
def command(
    words: tuple[str, ...], gpus: int | None, gpu: str | None, mesh: str | None, as_json: bool, **flags: Any
) -> None:
    """Show what a training run would hold, take and cost, without its hardware.

    Memory of the process that holds most, for each level of recomputation; time and cost at a stated share of the
    devices' peak; and the mesh to train on. Any setting of gpt2 train may be given (--optimizer, --batch_tokens,
    --micro_batch_size, ...). A published size comes with its published batch. FLOPs count a causal half of attention.

    \b
    Examples:
      gpt2 plan medium                                        # this machine
      gpt2 plan gpt2-124m --gpus 8 --gpu a100 --tokens 10B
      gpt2 plan gpt3-175b --gpus 1024 --gpu h100 --optimizer adamw
      gpt2 plan gpt3-13b --gpus 64 --mesh 1x16x4 --micro_batch_size 2 --recompute selective
      gpt2 plan gpt3-125m --attention_pattern dense,banded --band_width 256
      gpt2 plan configs/shakespeare_char.toml --json
    """
    if not 0 < flags["mfu"] <= 1:
        raise UserError(f"--mfu {flags['mfu']}: a share of the peak, above 0 and at most 1")
    if not words or words[0].startswith("-"):
        raise UserError("name a CONFIG.toml or a PRESET first, as: gpt2 plan gpt2-124m; see gpt2 plan --help")
    config, preset, grow = read_settings(words)
    devices = remote(gpus or 1, gpu or "h100", config.dtype) if gpus or gpu else here(config)
    if flags["price"] is not None:
        devices = replace(devices, price=flags["price"], source="--price")
    from gpt2.train.forecast import forecast

    tokens = tokens_of(config, preset, flags["tokens"], flags["mfu"] * devices.peak * devices.count)
    found = forecast(config, devices, tokens, flags["mfu"], mesh, flags["recompute"], grow)
    report = {"name": preset or words[0], **found}
    click.echo(json.dumps(report) if as_json else render(report))


def read_settings(words: Sequence[str]) -> tuple[TrainConfig, str | None, bool]:
    """The run's settings; the preset's name if that was named; whether the batch is the published one."""
    from gpt2.config import parse_flags
    from gpt2.model.presets import PRESETS
    from gpt2.model.sizes import PUBLISHED_ROWS
    from gpt2.train.config import FROM_DATA, TrainConfig, compose

    first, flags = words[0], list(words[1:])
    preset = None if first.endswith(".toml") else first
    published = preset in PUBLISHED_ROWS and "batch_tokens" not in parse_flags(TrainConfig, flags)
    if preset is not None:
        flags += ["--preset", preset]
        if published:
            flags += ["--batch_tokens", str(PUBLISHED_ROWS[preset] * PRESETS[preset].context_length)]
    config = compose(None if preset else first, flags)
    if config.init is not None:
        from gpt2.checkpoint.find import find_folder
        from gpt2.checkpoint.hf_config import read_config

        config = replace(config, model=read_config(find_folder(config.init)))
    if config.model.vocab_size == FROM_DATA:
        config = replace(config, model=replace(config.model, vocab_size=vocabulary(config)))
    config.check_rows()
    return config, preset, published


def vocabulary(config: TrainConfig) -> int:
    """The data's, or GPT-2's where no data is named."""
    if not config.data:
        return GPT2_VOCABULARY
    from gpt2.data.shards import read_meta

    return read_meta(config.data).vocab_size


def remote(count: int, name: str, dtype: str) -> Devices:
    """GPUs of the table, as fast as they are in this number format."""
    from gpt2.hardware import find_gpu
    from gpt2.runtime import pick_dtype
    from gpt2.train.forecast import Devices

    gpu, dtype = find_gpu(name), dtype if dtype == "auto" else pick_dtype(dtype, "cuda")
    return Devices(gpu.name, "cuda", count, gpu.memory_bytes, gpu.peak_in(dtype), gpu.price, gpu.source)


def here(config: TrainConfig) -> Devices:
    """This machine's processor or GPU, as training would take it; what is free of its memory, its peak measured."""
    from gpt2 import hardware
    from gpt2.kernels.peak import device_peak
    from gpt2.runtime import Runtime
    from gpt2.train.forecast import Devices
    from gpt2.train.plan import free_memory

    runtime = Runtime.detect(config.device, config.dtype)
    if runtime.device.startswith("cuda"):
        import torch

        torch.set_float32_matmul_precision("high")  # as training has it
    peak = device_peak(runtime.device, runtime.dtype)
    if runtime.device.startswith("cuda"):
        import torch

        gpu = torch.cuda.get_device_properties(runtime.device)
        return Devices(gpu.name, "cuda", 1, torch.cuda.mem_get_info(runtime.device)[0], peak)
    return Devices(hardware.processor()[0], "cpu", 1, free_memory("cpu"), peak)


def tokens_of(config: TrainConfig, preset: str | None, given: str | None, speed: float) -> int:
    """How much is to be trained on, from the most to the least explicit; `speed` is in FLOP/s."""
    from gpt2.config import convert
    from gpt2.model.sizes import GPT3_TOKENS, parameters, training_flops_per_token

    if given is not None:
        tokens: int = convert(given, int, "tokens", "command line")
        if tokens < 1:
            raise UserError(f"--tokens {given}: must be at least 1")
        return tokens
    if config.max_steps is not None:
        return config.ramp.tokens_before(config.max_steps)
    if config.max_tokens is not None:
        return config.max_tokens
    if config.max_seconds is not None:
        return round(config.max_seconds * speed / training_flops_per_token(config.model))
    if config.data and not config.mixture:
        from gpt2.data.shards import open_split

        return round(config.epochs * len(open_split(config.data, "train")))
    if config.epochs != 1.0:
        raise UserError(f"--epochs {config.epochs:g}: of which text? name it with --data, or say --tokens")
    return GPT3_TOKENS if (preset or "").startswith("gpt3") else TOKENS_PER_PARAMETER * parameters(config.model)


def render(report: dict[str, Any]) -> str:
    """The report for people."""
    return "\n\n".join([_heading(report), _memory(report), _time(report), _proposal(report)])


def _heading(report: dict[str, Any]) -> str:
    devices, length = report["devices"], report["config"]["context_length"]
    where = (
        f"{devices['count']:,} x {devices['name']}"
        if devices["kind"] == "cuda"
        else f"this machine ({devices['name']})"
    )
    mesh = "" if devices["count"] == 1 else f"mesh {_mesh(report)} (dp_replicate x dp_shard x tp), "
    return (
        f"{report['name']}: {report['parameters']:,} parameters, {report['flops_per_token']:.3g} FLOPs a token"
        f"{_pattern(report['config'])}\n"
        f"{where}: {mesh}{report['dtype']}, {report['optimizer']}\n"
        f"a step of {report['batch_tokens']:,} tokens: {report['micro_steps']:,} micro-steps of "
        f"{report['micro_batch_size']:,} x {length:,} tokens in each process"
    )


def _pattern(config: dict[str, Any]) -> str:
    """The layers' kinds, where they are not all dense."""
    from gpt2.model.config import GPTConfig

    model = GPTConfig(**config)
    return "" if model.is_dense else f"\nattention: {model.describe_pattern()}"


def _memory(report: dict[str, Any]) -> str:
    levels = report["bytes"]
    rows = [
        [LABELS[term], *(_gigabytes(levels[level][term]) for level in levels)]
        for term in LABELS
        if any(levels[level][term] for level in levels)
    ]
    rows.append(["in all", *(_gigabytes(levels[level]["total"]) for level in levels)])
    rows.append(["fits", *("yes" if report["fits"][level] else "no" for level in levels)])
    head = ["GB of a process, by recompute", *(f"{level}{' *' * (level == report['recompute'])}" for level in levels)]
    held = report["held"]
    checked = f", as counted on the sharded model: {held['counted']:,} parameters" if held["counted"] else ""
    if held["counted"] not in (None, held["computed"]):
        checked = f", but the sharded model counts {held['counted']:,} parameters, not {held['computed']:,}"
    room = f"room: {_gigabytes(report['room'])} of {_gigabytes(report['devices']['memory'])} GB{checked}"
    return f"{table(head, rows)}\n{room}"


def _time(report: dict[str, Any]) -> str:
    time, devices = report["time"], report["devices"]
    rows = {
        "tokens": f"{time['tokens']:,} in {time['steps']:,} steps, {time['flops']:.3g} FLOPs",
        "step": f"{_seconds(time['step_seconds'])} at {time['mfu']:.0%} of {_flops(devices['peak'])}",
        "speed": f"{time['tokens_per_second']:,.0f} tokens/s",
        "in all": f"{_seconds(time['days'] * DAY)}, {time['device_hours']:,.0f} device-hours",
        "cost": "not known: name a --price"
        if time["cost"] is None
        else f"${time['cost']:,.0f} at ${devices['price']:.2f} a device-hour ({devices['source']})",
    }
    if time["sent_bytes_per_step"]:
        sent, needed = _gigabytes(time["sent_bytes_per_step"]), time["bandwidth_needed"]
        slow = "; more than a good network gives, so expect a lower --mfu" if needed > FAST_LINK else ""
        rows["network"] = f"{sent} GB sent by each process in a step, {needed / 1e9:,.1f} GB/s{slow}"
    width = max(map(len, rows))
    return "\n".join(f"{name:<{width}}  {text}" for name, text in rows.items())


def _proposal(report: dict[str, Any]) -> str:
    found = report["proposed"]
    if found is None:
        return "proposed: nothing fits; take more devices, larger ones, or a smaller --micro_batch_size"
    words = [f"--{name} {found[name]}" for name in ("micro_batch_size", "recompute")]
    if report["devices"]["count"] > 1:
        words = [f"--{name} {found[name]}" for name in ("dp_replicate", "dp_shard", "tp")] + words
    return f"proposed: {' '.join(words)}\nbecause: {found['reason']}"


def _mesh(layout: dict[str, Any]) -> str:
    return " x ".join(f"{layout[name]:,}" for name in ("dp_replicate", "dp_shard", "tp"))


def _gigabytes(count: int) -> str:
    return f"{count / 1e9:,.2f}"


def _flops(speed: float) -> str:
    size, unit = (1e12, "TFLOP/s") if speed >= 1e12 else (1e9, "GFLOP/s")
    return f"{speed / size:,.4g} {unit} a device"


def _seconds(seconds: float) -> str:
    for size, unit in ((DAY, "days"), (3600, "hours"), (60, "minutes")):
        if seconds >= 2 * size:
            return f"{seconds / size:,.1f} {unit}"
    return f"{seconds:,.3g} s"
