"""LoRA adapters as PEFT keeps them: adapter_config.json and adapter_model.safetensors in a folder. Read without torch.

PEFT 0.21, `LoraConfig` and `save_pretrained`. In its file a matrix of GPT-2's is called
base_model.model.transformer.h.0.attn.c_attn, with .lora_A.weight (r, in) and .lora_B.weight (out, r) behind it. These
lie so for Conv1D too, whose own weight is (in, out), which `fan_in_fan_out` says. Settings that change what a model
computes and that are not ours are refused, also those that PEFT may learn yet.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from gpt2 import atomic
from gpt2.checkpoint.arrays import ArrayFile
from gpt2.checkpoint.names import plain_name
from gpt2.errors import UserError
from gpt2.model.config import GPTConfig
from gpt2.model.lora_config import TARGETS, LoRAConfig, check_fit, tensor_shapes

if TYPE_CHECKING:
    from torch import Tensor

    from gpt2.tokenizer.bpe import Tokenizer

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
# Settings that are read here, that only steer training or bookkeeping, and what others may be set to without effect.
READ = {
    "peft_type", "base_model_name_or_path", "r", "lora_alpha", "lora_dropout", "target_modules", "fan_in_fan_out",
    "use_rslora", "exclude_modules", "layers_to_transform", "layers_pattern",
}  # fmt: skip
SILENT = {"task_type", "inference_mode", "auto_mapping", "revision", "peft_version", "runtime_config", "eva_config"}
DEFAULTS = {"bias": "none", "megatron_core": "megatron.core", "qalora_group_size": 16, "init_lora_weights": True}
SAME_BASE = ("gaussian", "eva", "orthogonal")  # ways to begin that leave the base alone
CHOICES = ("exclude_modules", "layers_to_transform", "layers_pattern")
Floats = npt.NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class Adapter:
    """`config`, the tensors `state` ("h.0.attn.c_attn.lora_A" (r, in), "...lora_B" (out, r), float32), and what the
    adapter's folder says of its base: a folder or a Hugging Face id, or nothing."""

    config: LoRAConfig
    state: Mapping[str, Floats]
    base: str
    folder: Path | None = None

    @property
    def targets(self) -> list[str]:
        """The matrices that it changes: `h.0.attn.c_attn`."""
        return [name.removesuffix(".lora_A") for name in self.state if name.endswith(".lora_A")]

    def check(self, model: GPTConfig) -> None:
        """UserError, one line, unless it fits a base of this shape."""
        try:
            check_fit(tensor_shapes(self.config, model, self.config.targets(model)), self.state)
        except UserError as error:
            raise UserError(f"{self.folder or 'adapter'}: {error}; it was made for {self.base or 'another'}") from None

    def delta(self, target: str) -> Floats:
        """What it adds to that matrix (out, in)."""
        product: Floats = self.state[f"{target}.lora_B"] @ self.state[f"{target}.lora_A"]
        return product * np.float32(self.config.scale)

    def merged(self, name: str, weight: Floats) -> Floats:
        """A tensor of the base by its name (`h.0.attn.c_attn.weight`), in `nn.Linear` orientation, with the adapter in
        it; one that the adapter does not change comes back as it is."""
        target = name.removesuffix(".weight")
        return weight + self.delta(target) if f"{target}.lora_A" in self.state else weight


def is_adapter(folder: Path) -> bool:
    """Whether a folder holds an adapter, and no model of its own."""
    return (folder / CONFIG).is_file() and not (folder / "config.json").is_file()


def read_adapter(folder: Path) -> Adapter:
    """An adapter's two files; UserError for what is damaged, or set in a way that is not supported."""
    path = folder / CONFIG
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{folder}: not an adapter, it has no {CONFIG}") from None
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: not valid JSON: {error}") from None
    if not isinstance(values, dict):
        raise UserError(f"{path}: not a table of settings")
    check_settings(values, path)
    state = read_state(folder)
    config = config_from_peft(values, state, path)
    base = values.get("base_model_name_or_path") or ""
    if not isinstance(base, str):
        raise UserError(f"{path}: base_model_name_or_path is no text")
    return Adapter(config, state, base, folder)


def check_settings(values: Mapping[str, Any], path: Path) -> None:
    """UserError for the first setting that would make it compute something that we do not."""
    kind = values.get("peft_type")
    if kind != "LORA":
        raise UserError(f"{path}: peft_type is {kind!r}; only LORA adapters are supported")
    for name, value in values.items():
        if name in READ or name in SILENT or not value or value == DEFAULTS.get(name):
            continue
        if name == "init_lora_weights" and value in SAME_BASE:
            continue
        raise UserError(
            f"{path}: {name} = {json.dumps(value)[:60]} is not supported; plain LoRA on a block's matrices is"
        )


def config_from_peft(values: Mapping[str, Any], state: Mapping[str, Floats], path: Path) -> LoRAConfig:
    """PEFT's settings as ours. Targets are read off the tensors where a pattern or a choice of layers names them."""
    numbers = {
        name: values.get(name, default) for name, default in (("r", 8), ("lora_alpha", 8), ("lora_dropout", 0.0))
    }
    for name, number in numbers.items():
        if type(number) not in (int, float) or (name == "r" and type(number) is not int):
            raise UserError(f"{path}: {name} = {number!r}: must be a number")
    named = values.get("target_modules")
    simple = isinstance(named, list) and not any(values.get(name) for name in CHOICES)
    found = [name.removesuffix(".lora_A") for name in state if name.endswith(".lora_A")]
    targets = [plain_name(str(name)) for name in named] if simple and named else found
    config = LoRAConfig(
        rank=numbers["r"],
        alpha=float(numbers["lora_alpha"]),
        dropout=float(numbers["lora_dropout"] or 0.0),
        target_modules=tuple(sorted(targets)),
        rslora=bool(values.get("use_rslora", False)),
    )
    if "fan_in_fan_out" in values and not isinstance(values["fan_in_fan_out"], bool):
        raise UserError(f"{path}: fan_in_fan_out must be true or false")
    return config


def read_state(folder: Path) -> dict[str, Floats]:
    """The adapter's tensors under our names, in float32."""
    path = folder / WEIGHTS
    if not path.is_file():
        old = folder / "adapter_model.bin"
        hint = f"it has {old.name}, a pickle: load it in PEFT and save it again" if old.is_file() else "fetch it again"
        raise UserError(f"{folder}: {WEIGHTS} is missing beside {CONFIG}; {hint}")
    state: dict[str, Floats] = {}
    for stored, tensor in ArrayFile(path):
        name = our_name(stored)
        if name is None:
            raise UserError(f"{path}: {stored} is not supported; plain LoRA on a block's matrices is")
        if tensor.dtype not in ("F32", "F16", "BF16", "F64"):
            raise UserError(f"{path}: {stored} is of type {tensor.dtype}; an adapter's tensors are floats")
        state[name] = tensor.floats().copy()
        if not np.isfinite(state[name]).all():
            raise UserError(f"{path}: {stored} holds numbers that are not finite; its training went wrong")
    return {name: state[name] for name in sorted(state, key=natural)}


def our_name(stored: str) -> str | None:
    """`base_model.model.transformer.h.0.attn.c_attn.lora_A.weight` -> `h.0.attn.c_attn.lora_A`; None for others."""
    name = plain_name(stored.removeprefix("base_model.model."))
    match = re.fullmatch(rf"(h\.\d+\.(?:{'|'.join(map(re.escape, TARGETS))})\.lora_[AB])\.weight", name)
    return match[1] if match else None


def natural(name: str) -> tuple[int, str]:
    """Block by block: h.2 before h.10."""
    return int(name.split(".")[1]), name


def write_adapter(
    folder: Path,
    config: LoRAConfig,
    state: Mapping[str, Tensor],
    base: str,
    tokenizer: Tokenizer | None = None,
    notes: Mapping[str, Any] | None = None,
) -> None:
    """Write PEFT's two files, a README.md of `notes`, and the tokenizer's files; each is replaced atomically.

    `state` as `lora_parameters` names it. `base` is a folder or a Hugging Face id: PEFT's AutoPeftModel and our
    `load` look for the base there.
    """
    from safetensors.torch import save_file

    from gpt2.checkpoint.native import writing

    folder.mkdir(parents=True, exist_ok=True)
    tensors = {peft_name(name): tensor.detach().float().cpu().contiguous() for name, tensor in state.items()}
    with writing(folder / WEIGHTS), atomic.replacing(folder / WEIGHTS) as temporary:
        save_file(tensors, temporary, metadata={"format": "pt"})
    if tokenizer is not None:
        from gpt2.tokenizer.files import save_tokenizer

        save_tokenizer(tokenizer, folder)
    atomic.write_text(folder / "README.md", adapter_card(config, base, len(state) // 2, notes or {}))
    atomic.write_text(folder / CONFIG, json.dumps(config_to_peft(config, base), indent=2) + "\n")


def peft_name(name: str) -> str:
    return f"base_model.model.transformer.{name}.weight"


def config_to_peft(config: LoRAConfig, base: str) -> dict[str, Any]:
    """What PEFT's LoraConfig reads."""
    return {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base,
        "inference_mode": True,
        "r": config.rank,
        "lora_alpha": int(config.alpha) if config.alpha == int(config.alpha) else config.alpha,
        "lora_dropout": config.dropout,
        "target_modules": list(config.target_modules),
        "fan_in_fan_out": True,
        "bias": "none",
        "use_rslora": config.rslora,
        "use_dora": False,
        "modules_to_save": None,
        "init_lora_weights": True,
    }


def adapter_card(config: LoRAConfig, base: str, matrices: int, notes: Mapping[str, Any]) -> str:
    """Markdown with Hugging Face's header; `notes` are facts of the training run, one line each."""
    facts = {
        "Base": base,
        "Rank and alpha": f"{config.rank}, {config.alpha:g}",
        "Matrices": f"{matrices} ({', '.join(config.target_modules)})",
        **{str(key): str(value) for key, value in notes.items()},
    }
    rows = "".join(f"| {key} | {value} |\n" for key, value in facts.items())
    return (
        "---\nlibrary_name: peft\npipeline_tag: text-generation\ntags: [gpt2, lora]\n---\n\n"
        f"# A LoRA adapter trained with `gpt2`\n\n| | |\n| --- | --- |\n{rows}\n"
        '```sh\ngpt2 generate --model . "Once upon a time"\ngpt2 merge . merged\n```\n'
    )
