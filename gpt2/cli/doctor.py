"""`gpt2 doctor`: what this machine has, how fast it is, and what is missing."""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import shutil
from pathlib import Path
from typing import Any

import click

from gpt2 import __version__, hardware

Facts = dict[str, Any]

CORE = ("torch", "numpy", "tiktoken", "tokenizers", "safetensors", "huggingface-hub", "numba", "rich", "matplotlib")
OPTIONAL = {
    "pyarrow": "to read Parquet",
    "datasets": "to read data sets from the Hugging Face hub",
    "transformers": "to compare with Hugging Face's GPT-2",
}
SETTINGS = (
    "GPT2_CACHE",
    "GPT2_THREADS",
    "GPT2_VECTORS",
    "CUDA_VISIBLE_DEVICES",
    "OMP_NUM_THREADS",
    "HF_HOME",
    "HF_HUB_CACHE",
    "HF_HUB_OFFLINE",
    "HF_DATASETS_OFFLINE",
    "HF_ENDPOINT",
    "GPT2_TOKENIZER",
)
BYTES_124M = 124_439_808 * 4


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Print everything as one JSON object.")
@click.pass_context
def command(ctx: click.Context, as_json: bool) -> None:
    """Show what this machine has, how fast it is, and what is missing.

    Versions, device and number format that `auto` would choose, what writes (the processor's kernels, or torch and
    why), threads, memory bandwidth and matrix-multiply peaks (measured in about a second), settings of the
    environment, and how to get what is not there. The exit code is 2 if something is missing that gpt2 cannot do
    without.

    \b
    Examples:
      gpt2 doctor
      gpt2 doctor --json > machine.json
    """
    facts = examine()
    click.echo(json.dumps(facts, indent=2) if as_json else render(facts))
    if any(item["required"] for item in facts["missing"]):
        ctx.exit(2)


def examine() -> Facts:
    """Everything that the report shows, in plain types: bytes, bytes per second, FLOP per second."""
    versions: dict[str, str | None] = {"python": platform.python_version(), "gpt2": __version__}
    versions |= {name: version(name) for name in (*CORE, *OPTIONAL)}
    facts: Facts = {"versions": versions, "machine": machine()}
    try:
        facts["device"] = device()
        facts["speed"] = speed(facts["device"]["device"], facts["device"]["dtype"])
    except ImportError as error:  # no torch, or one that cannot load its libraries
        facts |= {"device": {"error": str(error)}, "speed": {}}
    facts["writing"] = writing(facts["device"].get("device", "cpu"))
    facts["settings"] = {name: os.environ.get(name) for name in SETTINGS}
    facts["missing"] = missing(facts)
    return facts


def version(distribution: str) -> str | None:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None


def machine() -> Facts:
    name, features = hardware.processor()
    total, free = hardware.memory()
    return {
        "system": platform.platform(),
        "processor": name,
        "features": features,
        "cores": hardware.cores(),
        "memory": total,
        "memory_free": free,
        "disk_free": shutil.disk_usage(Path.cwd()).free,
        "c_compiler": next((path for path in map(shutil.which, ("cc", "gcc", "clang", "cl")) if path), None),
        "nvidia_driver": bool(shutil.which("nvidia-smi")) or Path("/proc/driver/nvidia/version").exists(),
    }


def device() -> Facts:
    """What `--device auto --dtype auto` would take, and what else there is."""
    import torch

    from gpt2.runtime import Runtime

    runtime = Runtime.detect()
    gpus = [torch.cuda.get_device_properties(index) for index in range(torch.cuda.device_count())]
    return {
        "device": runtime.device,
        "dtype": runtime.dtype,
        "threads": torch.get_num_threads(),
        "torch_cuda": torch.version.cuda,
        "gpus": [
            {"name": gpu.name, "memory": gpu.total_memory, "capability": f"{gpu.major}.{gpu.minor}"} for gpu in gpus
        ],
        "mps": torch.backends.mps.is_available(),
    }


def speed(device: str, dtype: str) -> Facts:
    """Measured limits of the processor, and of the chosen device where that is another."""
    measured: Facts = {}
    for place in dict.fromkeys(("cpu", device)):
        measured[place] = {"memory_bandwidth": hardware.memory_bandwidth(place)}
        for kind in dict.fromkeys(("float32", "bfloat16" if place == "cpu" else dtype)):
            measured[place][kind] = hardware.gemm_peak(place, kind)
    from gpt2.kernels.peak import device_peak

    used = device_peak(device, dtype)
    if used > measured[device].get(dtype, 0.0) or device.startswith("cuda"):
        measured[device]["peak_used_for_shares"] = used
    return measured


def writing(device: str) -> Facts:
    """What `gpt2 generate` would write with here, and if it is not the processor's kernels, why not."""
    from gpt2.inference.runners import select

    reason = f"the device is {device}" if device != "cpu" else select.kernels_problem()
    if reason:
        return {"runner": "torch", "reason": reason}
    from gpt2.inference.runners.cpu import thread_count
    from gpt2.kernels import cache, features

    known = {"vnni": features.HAS_VNNI, "bf16": features.HAS_BF16}
    known["avx2"] = features.HAS_AVX2 and not any(known.values())
    return {
        "runner": "kernels",
        "instructions": [name for name, there in known.items() if there],
        "threads": thread_count(),
        "weights": select.DEFAULT,
        "cache": str(cache.folder()),
        "compiled": select.compiled(),
    }


def missing(facts: Facts) -> list[Facts]:
    """What is not here, why that matters, and how to get it."""
    found: list[Facts] = []

    def need(what: str, how: str, required: bool = False) -> None:
        found.append({"what": what, "how": how, "required": required})

    for name in CORE:
        if facts["versions"][name] is None:
            need(name, f"pip install {name}", required=True)
    if "error" in facts["device"] and facts["versions"]["torch"]:
        need("a torch that loads", f"{facts['device']['error']}; install it again: pip install torch", required=True)
    for name, use in OPTIONAL.items():
        if facts["versions"][name] is None:
            need(f"{name}, {use}", f"pip install {name}")
    if facts["machine"]["nvidia_driver"] and "error" not in facts["device"] and not facts["device"]["gpus"]:
        how = (
            "this torch is built without CUDA; "
            if not facts["device"]["torch_cuda"]
            else "nvidia-smi shows its state; "
        )
        need("the use of the NVIDIA GPU", how + "pip install --force-reinstall torch takes the GPU build")
    if not facts["machine"]["c_compiler"]:
        need(
            "a C compiler, for torch.compile on the processor", "apt install build-essential, or xcode-select --install"
        )
    if not os.environ.get("GPT2_TOKENIZER") and not list(hub_cache().glob("models--*gpt2*")):
        need("GPT-2's vocabulary and weights", "gpt2 generate --model gpt2 fetches them when there is a network")
    return found


def hub_cache() -> Path:
    """Where Hugging Face keeps what it fetched; its own rules, without importing it."""
    home = os.environ.get("HF_HOME") or Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "huggingface"
    return Path(os.environ.get("HF_HUB_CACHE") or Path(home) / "hub").expanduser()


def render(facts: Facts) -> str:
    """The report as aligned text."""
    rows = [f"  {item['what']}{' (required)' if item['required'] else ''}: {item['how']}" for item in facts["missing"]]
    sections = {
        "versions": _aligned({name: text or "not installed" for name, text in facts["versions"].items()}),
        "machine": _aligned(_machine_rows(facts["machine"])),
        "device": _aligned(_device_rows(facts["device"])),
        "writing": _aligned(_writing_rows(facts["writing"])),
        "speed (measured now)": _aligned(_speed_rows(facts["speed"])),
        "settings": _aligned({name: value for name, value in facts["settings"].items() if value}) or ["  none set"],
        "missing": rows or ["  nothing"],
    }
    return "\n\n".join("\n".join([title, *lines]) for title, lines in sections.items() if lines)


def _machine_rows(facts: Facts) -> dict[str, str]:
    return {
        "system": facts["system"],
        "processor": facts["processor"],
        "features": " ".join(facts["features"]) or "unknown",
        "cores": str(facts["cores"]),
        "memory": f"{_gigabytes(facts['memory'])}, {_gigabytes(facts['memory_free'])} free",
        "disk here": f"{_gigabytes(facts['disk_free'])} free",
        "C compiler": facts["c_compiler"] or "none",
        "NVIDIA driver": "yes" if facts["nvidia_driver"] else "no",
    }


def _device_rows(facts: Facts) -> dict[str, str]:
    if "error" in facts:
        return {"torch": f"does not load: {facts['error']}"}
    rows = {"auto device": facts["device"], "auto dtype": facts["dtype"], "torch threads": str(facts["threads"])}
    for index, gpu in enumerate(facts["gpus"]):
        rows[f"cuda:{index}"] = f"{gpu['name']}, {_gigabytes(gpu['memory'])}, capability {gpu['capability']}"
    rows["CUDA in torch"] = facts["torch_cuda"] or "no (processor build)"
    rows["MPS"] = "yes" if facts["mps"] else "no"
    return rows


def _writing_rows(facts: Facts) -> dict[str, str]:
    if facts["runner"] == "torch":
        return {"runner": f"torch ({facts['reason']})"}
    names = " and ".join(name.upper() for name in facts["instructions"])
    return {
        "runner": f"the processor's kernels, {f'with {names}' if names else 'plain vectors (no AVX2, VNNI or BF16)'}",
        "auto weights": f"{facts['weights']} (of a packed folder what it holds), keys and values in bfloat16",
        "threads": str(facts["threads"]),
        "compiled": f"{'yes' if facts['compiled'] else 'not yet, the first text takes longer'}: {facts['cache']}",
    }


def _speed_rows(facts: Facts) -> dict[str, str]:
    rows = {}
    for place, found in facts.items():
        rate = found["memory_bandwidth"]
        limit = f"so 124M in float32 writes at most {rate / BYTES_124M:,.0f} tokens/s, one at a time"
        rows[f"{place} memory, reading"] = f"{rate / 1e9:,.1f} GB/s ({limit})"
        for kind in ("float32", "bfloat16", "float16"):
            if kind in found:
                rows[f"{place} matmul, {kind}"] = f"{found[kind] / 1e9:,.0f} GFLOP/s"
        if "peak_used_for_shares" in found:
            rows[f"{place} peak for shares"] = f"{found['peak_used_for_shares'] / 1e9:,.0f} GFLOP/s"
    return rows


def _aligned(rows: dict[str, str]) -> list[str]:
    width = max((len(name) for name in rows), default=0)
    return [f"  {name:<{width}}  {value}" for name, value in rows.items()]


def _gigabytes(count: int) -> str:
    return f"{count / 1e9:,.1f} GB" if count else "unknown"
