"""`gpt2 prepare`: text in, shards of tokens out."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click


@click.command("prepare")
@click.argument("sources", nargs=-1, required=True, metavar="SOURCE...")
@click.option(
    "--out", required=True, type=click.Path(path_type=Path), metavar="DIR", help="The folder to write; may exist."
)
@click.option(
    "--tokenizer",
    default="auto",
    show_default=True,
    metavar="NAME",
    help="auto: train a byte-level BPE on the training side, one entry for 2,500 bytes of text (512 to 32,768, a power "
    "of two); train:N: one of N entries; gpt2: OpenAI's; char: the text's characters, as nanoGPT; byte; or a path.",
)
@click.option(
    "--split",
    default="auto",
    show_default=True,
    type=click.Choice(["auto", "document", "position"]),
    help="What is held out: some documents (near-identical ones stay together), or the end. auto: the end only if "
    "there is one single document.",
)
@click.option(
    "--val-fraction",
    type=float,
    metavar="F",
    help="How much to hold out, of the documents or of the characters. [default: 0.05; of a single document 0.1]",
)
@click.option(
    "--eot/--no-eot",
    default=None,
    help="End each document in <|endoftext|>. [default: yes; no for one document split by position and with char]",
)
@click.option("--seed", default=0, show_default=True, help="Decides with the content which documents are held out.")
@click.option("--text-column", metavar="NAME", help="The column of text in tables. [default: text]")
@click.option("--encoding", metavar="NAME", help="The encoding of text, JSONL and CSV files. [default: utf-8]")
@click.option(
    "--errors",
    default="strict",
    show_default=True,
    type=click.Choice(["strict", "replace", "ignore"]),
    help="What becomes of bytes that are not of the encoding: an error, U+FFFD, nothing.",
)
@click.option("--workers", type=int, metavar="N", help="Threads. [default: one for each core]")
@click.option(
    "--format",
    default="nanogpt",
    show_default=True,
    type=click.Choice(["nanogpt", "llmc"]),
    help="nanogpt: bare ids, uint16 where they fit, else uint32. llmc: the same behind llm.c's header.",
)
@click.option(
    "--shard-tokens",
    type=int,
    metavar="N",
    help="Begin a new file after so many tokens. [default: nanogpt one file a side; llmc 100,000,000]",
)
def command(sources: tuple[str, ...], out: Path, **flags: Any) -> None:
    """Turn text into shards of tokens.

    A SOURCE is a text file, a table of texts (.jsonl, .ndjson, .csv, .tsv, .parquet), a folder of such (all below it;
    of text .txt .text .md .markdown .rst .tex .org and common source code; hidden ones not), a pattern in quotes,
    - for standard input, stdlib: for this Python's own library, or hf:NAME for a Hugging Face dataset.

    A text file is one document, or several if it has lines that are <|endoftext|>; a row of a table is one.
    Interrupted, the same command goes on where it stopped; done, it does nothing.

    \b
    Examples:
      gpt2 prepare my.txt --out data
      gpt2 prepare stdlib: --out data
      gpt2 prepare essays/ "archive/**/*.jsonl" --text-column body --out data
      gpt2 prepare shakespeare.txt --tokenizer char --out data
      gpt2 prepare corpus/ --tokenizer gpt2 --format llmc --out data
      zcat dump.txt.gz | gpt2 prepare - --out data
      gpt2 prepare hf:roneneldan/TinyStories --out data   # needs network
    """
    from gpt2.data.prepare import prepare

    prepare(sources, out, **flags)
