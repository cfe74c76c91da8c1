"""`gpt2 merge`: an adapter and its base become one model folder."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from gpt2.cli.quantize import check_out
from gpt2.errors import UserError
from gpt2.runtime import say

if TYPE_CHECKING:
    from gpt2.checkpoint.adapters import Adapter


@click.command("merge")
@click.argument("adapter", metavar="ADAPTER")
@click.argument("out", metavar="OUT", type=click.Path(path_type=Path))
@click.option("--base", metavar="MODEL", help="The model to merge it into. [default: the one that the adapter names]")
def command(adapter: str, out: Path, base: str | None) -> None:
    """Make one model of an adapter and its base.

    ADAPTER is a LoRA adapter in PEFT's form, ours or PEFT's own, or a run's folder that ends in one. Writes the folder
    OUT, which must be new or empty: a Hugging Face model folder in float32, with a head for labels where the adapter
    has one. It computes what base and adapter compute together; both stay as they are.

    \b
    Examples:
      gpt2 merge runs/my-adapter merged
      gpt2 merge runs/my-adapter merged-anew --base gpt2
    """
    from gpt2.checkpoint.adapters import is_adapter, read_adapter
    from gpt2.checkpoint.find import find_folder

    check_out(out)
    folder = find_folder(adapter)
    if not is_adapter(folder):
        raise UserError(
            f"{adapter}: no adapter, it has no adapter_config.json of its own; a whole model needs no merging"
        )
    read = read_adapter(folder)
    merge(folder, read, out, base)
    say(f"{out}: {base or read.base}, with an adapter of rank {read.config.rank} in {len(read.targets)} matrices")


def merge(folder: Path, adapter: Adapter, out: Path, base: str | None) -> None:
    """Write the merged folder, with the head for labels if there is one."""
    from gpt2 import api
    from gpt2.checkpoint.classifier import read_classifier, write_classifier
    from gpt2.checkpoint.native import write_folder

    notes = {"Merged from": str(folder), "Base": base or adapter.base}
    model = api.load(folder) if base is None else api.load(base, adapter=folder)
    if adapter.head is None:
        write_folder(out, model.config, dict(model.module.named_parameters()), model.tokenizer, notes)
        return
    classifier = read_classifier(folder, model.folder)
    state = dict(classifier.module.named_parameters())
    write_classifier(out, model.config, state, classifier.labels, model.tokenizer, notes)
