"""`gpt2 overlap`: how much of a test set a training set holds."""

from __future__ import annotations

from pathlib import Path

import click

from gpt2.cli.writing import SETTINGS
from gpt2.errors import UserError


@click.command("overlap", context_settings=SETTINGS)
@click.argument("train", nargs=-1, required=True, metavar="TRAIN... TEST")
@click.option("--test", "more", multiple=True, metavar="FILE", help="A further test set; may be given several times.")
@click.option("--text-column", default="text", show_default=True, help="Of tables in TRAIN: the column of text.")
@click.option("--json", "as_json", is_flag=True, help="JSON instead of a table, with the places of dirty examples.")
def command(train: tuple[str, ...], more: tuple[str, ...], text_column: str, as_json: bool) -> None:
    """Tell how much of a test set a training set holds.

    Two figures: the share of the test set's 8-grams of words that are in the training set, by a Bloom filter, as
    GPT-2's Table 6 has it; and the share of examples that have any N-gram (N from 8 to 13, by their lengths) in
    common with it, as GPT-3's appendix C has it. TRAIN are files and folders as gpt2 prepare takes them; TEST is JSON
    lines, each an example with all its texts, or a text, each line an example.

    \b
    Examples:
      gpt2 overlap my.txt held-out.txt
      gpt2 overlap corpus essays held-out.txt --test prompts.jsonl --json
    """
    if len(train) < 2:
        raise UserError("give both: what was trained on, and last the test set")
    from gpt2.data.progress import progress
    from gpt2.data.readers import Corpus
    from gpt2.data.sources import expand
    from gpt2.evaluate.overlap import Hasher, measure, read_test
    from gpt2.evaluate.overlap import as_json as written

    def no_stdin() -> Path:
        raise UserError("-: standard input is read once only, and this reads twice; give a file")

    *sources, last = train
    hasher = Hasher()
    tests = [read_test(Path(name).expanduser(), hasher) for name in (last, *more)]
    corpus = Corpus(expand(sources, no_stdin), text_column)
    with progress("reading", corpus.size) as update:
        found = measure(corpus, tests, update)
    click.echo(written(found) if as_json else "\n\n".join(as_text(each.as_dict()) for each in found))


def as_text(found: dict[str, object]) -> str:
    return "\n".join(
        f"{key:20}  {value:,.2f}" if isinstance(value, float) else f"{key:20}  {value}" for key, value in found.items()
    )
