"""LoRA adapters as PEFT keeps them: adapter_config.json and adapter_model.safetensors in a folder. Read without torch.

PEFT 0.21, `LoraConfig` and `save_pretrained`. In its file a matrix of GPT-2's is called
base_model.model.transformer.h.0.attn.c_attn, with .lora_A.weight (r, in) and .lora_B.weight (out, r) behind it. These
lie so for Conv1D too, whose own weight is (in, out), which `fan_in_fan_out` says. Settings that change what a model
computes and that are not ours are refused, also those that PEFT may learn yet.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from gpt2 import atomic
from gpt2.checkpoint.arrays import ArrayFile
from gpt2.checkpoint.find import find_folder
from gpt2.checkpoint.names import SCORE, has_weights, plain_name
from gpt2.errors import UserError
from gpt2.model.config import GPTConfig
from gpt2.model.lora_config import TARGETS, LoRAConfig, check_fit, ends_with, tensor_shapes

if TYPE_CHECKING:
    from torch import Tensor

    from gpt2.model.gpt import GPT
    from gpt2.tokenizer.bpe import Tokenizer

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
# Settings that are read here, that only steer training or bookkeeping, and what others may be set to without effect.
READ = {
    "peft_type", "base_model_name_or_path", "r", "lora_alpha", "lora_dropout", "target_modules", "fan_in_fan_out",
    "use_rslora", "exclude_modules", "layers_to_transform", "layers_pattern",
}  # fmt: skip
SILENT = {"task_type", "inference_mode", "auto_mapping", "revision", "peft_version", "runtime_config", "eva_config"}
DEFAULTS = {"bias": "none", "megatron_core": "megatron.core", "qalora_group_size": 16, "init_lora_weights": True}
HEADS = ("score", "classifier")  # modules kept whole: what PEFT lists for SEQ_CLS; of these GPT-2 has `score`
SAME_BASE = ("gaussian", "eva", "orthogonal")  # ways to begin that leave the base alone
CHOICES = ("exclude_modules", "layers_to_transform", "layers_pattern")
Floats = npt.NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class Adapter:
    """`config`, the tensors `state` ("h.0.attn.c_attn.lora_A" (r, in), "...lora_B" (out, r), float32), and what the
    adapter's folder says of its base: a folder or a Hugging Face id, or nothing.

    `head` (labels, width) is a classifier's, which PEFT keeps beside the products; see classifier.py.
    """

    config: LoRAConfig
    state: Mapping[str, Floats]
    base: str
    folder: Path | None = None
    head: Floats | None = None

    @property
    def files(self) -> list[Path]:
        """What it was read from."""
        return [self.folder / name for name in (CONFIG, WEIGHTS)] if self.folder else []

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


def merge_into(module: GPT, adapter: Adapter) -> None:
    """Fold an adapter into a model's plain matrices, in place; `check` it first."""
    import torch

    with torch.no_grad():
        for target in adapter.targets:
            weight = module.get_parameter(f"{target}.weight")
            weight.add_(torch.from_numpy(adapter.delta(target)).to(weight))


def base_folder(adapter: Adapter) -> Path:
    """Where the model lies that an adapter names as its base; UserError where it does not, or names another adapter.

    A folder is looked for from here, then from the adapter's own.
    """
    help_ = "name the base with --model and this adapter with --adapter"
    if not adapter.base:
        raise UserError(f"{adapter.folder}: does not say what model it belongs to; {help_}")
    beside = (adapter.folder or Path()) / adapter.base
    try:
        found = find_folder(beside if beside.is_dir() and not Path(adapter.base).is_dir() else adapter.base)
    except UserError as error:
        raise UserError(f"{adapter.folder}: its base is not here ({error}); {help_}") from None
    if is_adapter(found):
        raise UserError(f"{adapter.folder}: its base {found} is an adapter too; gpt2 merge makes a model of that")
    return found


def has_tokenizer(folder: Path) -> bool:
    """Whether a tokenizer lies beside the adapter, as where training added a chat template or tokens."""
    return any((folder / name).is_file() for name in ("tokenizer.json", "vocab.json"))


def is_adapter(folder: Path) -> bool:
    """Whether a folder holds an adapter, and no model of its own."""
    return (folder / CONFIG).is_file() and not has_weights(folder)


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
    head = state.pop(SCORE, None)
    config = config_from_peft(values, state, path)
    base = values.get("base_model_name_or_path") or ""
    if not isinstance(base, str):
        raise UserError(f"{path}: base_model_name_or_path is no text")
    return Adapter(config, state, base, folder, head)


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
        if name == "modules_to_save" and isinstance(value, list) and all(module in HEADS for module in value):
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
    if simple and named and found:  # PEFT passes over names that are no part of the model, where others are
        places = [*found, *(f"h.0.{part}" for part in TARGETS)]
        targets = [target for target in targets if any(ends_with(name, target) for name in places)] or targets
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
    if name == SCORE:
        return name
    match = re.fullmatch(rf"(h\.\d+\.(?:{'|'.join(map(re.escape, TARGETS))})\.lora_[AB])\.weight", name)
    return match[1] if match else None


def natural(name: str) -> tuple[int, str]:
    """Block by block: h.2 before h.10, then a head."""
    block = name.split(".")[1]
    return (int(block) if block.isdecimal() else sys.maxsize), name


def write_adapter(
    folder: Path,
    config: LoRAConfig,
    state: Mapping[str, Tensor],
    base: str,
    tokenizer: Tokenizer | None = None,
    notes: Mapping[str, Any] | None = None,
) -> None:
    """Write PEFT's two files, a README.md of `notes`, and the tokenizer's files; each is replaced atomically.

    `state` as `lora_parameters` names it, with score.weight where a head for labels was trained beside it. `base` is a
    folder or a Hugging Face id: PEFT's AutoPeftModel and our `load` look for the base there.
    """
    from safetensors.torch import save_file

    from gpt2.checkpoint.write_weights import writing

    folder.mkdir(parents=True, exist_ok=True)
    tensors = {peft_name(name): tensor.detach().float().cpu().contiguous() for name, tensor in state.items()}
    with writing(folder / WEIGHTS), atomic.replacing(folder / WEIGHTS) as temporary:
        save_file(tensors, temporary, metadata={"format": "pt"})
    if tokenizer is not None:
        from gpt2.tokenizer.files import save_tokenizer

        save_tokenizer(tokenizer, folder)
    atomic.write_text(folder / "README.md", adapter_card(config, base, len(state) // 2, notes or {}))
    values = config_to_peft(config, base)
    if SCORE in state:
        values |= {"task_type": "SEQ_CLS", "modules_to_save": ["score"]}
    atomic.write_text(folder / CONFIG, json.dumps(values, indent=2) + "\n")


def peft_name(name: str) -> str:
    return f"base_model.model.{SCORE}" if name == SCORE else f"base_model.model.transformer.{name}.weight"


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
