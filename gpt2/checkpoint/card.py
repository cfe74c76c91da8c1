"""The README.md of a model folder: what the model is, where it came from, how to use it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from gpt2.model.config import GPTConfig
from gpt2.model.sizes import parameters

WRITES = """\
```sh
gpt2 generate --model . "Once upon a time"
```

It continues text in the manner of what it was trained on, and repeats what is wrong there too.
"""
CLASSIFIES = """\
```sh
gpt2 classify --model . texts.txt
```

It gives every text one of these labels, a text of another kind than those it was trained on too.
"""


def model_card(config: GPTConfig, notes: Mapping[str, Any], labels: Sequence[str] = ()) -> str:
    """Markdown with Hugging Face's header; `notes` are facts of the training run, one line each.

    With `labels` it is the card of a model that tells them apart.
    """
    task = "text-classification" if labels else "text-generation"
    facts = {
        "Parameters": f"{parameters(config):,}",
        "Layers x width": f"{config.n_layer} x {config.n_embd} ({config.n_head} heads of {config.head_dim})",
        "Context": f"{config.context_length} tokens",
        **({} if config.is_dense else {"Attention": config.describe_pattern()}),
        "Vocabulary": f"{config.vocab_size:,}",
        **({"Labels": ", ".join(labels)} if labels else {}),
        **{str(key): str(value) for key, value in notes.items()},
    }
    rows = "".join(f"| {key} | {value} |\n" for key, value in facts.items())
    return (
        f"---\nlibrary_name: transformers\npipeline_tag: {task}\ntags: [gpt2]\n---\n\n"
        "# A GPT-2 trained with `gpt2`\n\n"
        f"| | |\n| --- | --- |\n{rows}\n"
        f"{CLASSIFIES if labels else WRITES}"
    )
