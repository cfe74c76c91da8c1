"""Text to token shards, in four steps that each leave their result behind for a resumed run.

1. Read everything once: count it, and give each document its draw (`scan`).
2. Load the tokenizer that was named, or train one on the training side (`vocabulary`).
3. Read everything again and encode it in threads, in order (`encode`).
4. Move shards, tokenizer and meta.json into place (`resume`).
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gpt2.data.encode import Side, encode_parts
from gpt2.data.options import Errors, Options, SplitRule
from gpt2.data.parallel import Workers
from gpt2.data.readers import Corpus
from gpt2.data.resume import Work, refuse_strangers
from gpt2.data.scan import Scan, read_draws, scan_corpus
from gpt2.data.shards import META_VERSION, Format, Meta, SplitMeta, dtype_for, map_ids, read_meta
from gpt2.data.sources import expand, has_columns, spool_stdin
from gpt2.data.splitting import Part, by_document, by_position, threshold
from gpt2.data.vocabulary import auto_vocab_size, make_tokenizer
from gpt2.errors import UserError
from gpt2.runtime import say

if TYPE_CHECKING:
    from gpt2.tokenizer.bpe import Tokenizer

VAL_FRACTION, VAL_FRACTION_OF_ONE = 0.05, 0.1  # of many documents; of a single one, as nanoGPT's


def prepare(
    sources: Sequence[str | Path],
    out: str | Path,
    *,
    tokenizer: str = "auto",
    split: SplitRule = "auto",
    val_fraction: float | None = None,
    eot: bool | None = None,
    seed: int = 0,
    text_column: str | None = None,
    encoding: str | None = None,
    errors: Errors = "strict",
    workers: int | None = None,
    format: Format = "nanogpt",
    shard_tokens: int | None = None,
) -> Meta:
    """Write train and val shards, meta.json and tokenizer/ into the folder `out`. Arguments are the command's flags.

    Interrupted at any moment, the same call goes on and ends in the same bytes; done already, it does nothing.
    Raises UserError for bad input, naming the file and the place in it.
    """
    options = Options(
        tokenizer=tokenizer,
        split=split,
        val_fraction=val_fraction,
        eot=eot,
        seed=seed,
        text_column=text_column,
        encoding=encoding,
        errors=errors,
        format=format,
        shard_tokens=shard_tokens,
    )
    options.check()
    threads = _cores() if workers is None else workers
    if threads < 1:
        raise UserError(f"--workers {workers}: must be at least 1")
    with _disk_errors(Path(out)):
        return _prepare([str(source) for source in sources], Path(out), options, threads)


def _prepare(specs: list[str], out: Path, options: Options, threads: int) -> Meta:
    refuse_strangers(out)
    corpus = _open_corpus(specs, out, options)
    fingerprint = _fingerprint(corpus, options)
    old = _old_meta(out)
    if old is not None and old.fingerprint == fingerprint:
        say(f"{out}: already prepared from the same sources with the same arguments; nothing to do")
        _clean(out)
        return old
    if old is not None:
        say(f"{out}: holds data of other sources or arguments, which will be replaced")
    work = Work(out, fingerprint)
    try:
        with Workers(threads) as workers:
            job = Job(corpus, options, work, workers, " ".join(specs), fingerprint)
            meta = job.run() if work.read("publish") is None else read_meta(work.folder)
    except UserError:  # what is wrong with the arguments or sources stays wrong: nothing to resume
        _clean(out)
        raise
    work.publish([*_files(meta), "tokenizer"], _files(old))
    _clean(out)
    say(_summary(out, meta))
    return meta


@dataclass
class Job:
    """What the steps of one `prepare` share."""

    corpus: Corpus
    options: Options
    work: Work
    workers: Workers
    source: str
    fingerprint: str

    def run(self) -> Meta:
        """Do what an earlier run has not done yet, up to shards, tokenizer/ and meta.json in the working folder."""
        scan = self._scan()
        parts, rule, val_fraction = self._split(scan)
        tokenizer, name = self._tokenizer(parts, scan)
        eot_id = self._eot_id(tokenizer, one_document=rule == "position" and scan.documents == 1)
        sides = encode_parts(
            parts(), scan.text_bytes, tokenizer, eot_id, self.options, self.work, self.workers
        )  # fmt: skip
        dtype = dtype_for(tokenizer.vocab_size)
        last = int(map_ids(self.work.folder / sides["train"][0][-1], dtype)[-1])
        meta = Meta(
            format=self.options.format,
            dtype=dtype,
            vocab_size=tokenizer.vocab_size,
            tokenizer=name,
            tokenizer_hash=tokenizer.hash,
            eot_id=eot_id,
            bytes_per_token=scan.text_bytes / sum(side.tokens for _, side in sides.values()),
            source=self.source,
            split=rule,
            val_fraction=val_fraction,
            seed=self.options.seed,
            fingerprint=self.fingerprint,
            train=_split_meta(*sides["train"], preceding=eot_id),
            val=_split_meta(*sides["val"], preceding=last if rule == "position" else eot_id),
        )
        meta.save(self.work.folder)
        return meta

    def _scan(self) -> Scan:
        known = self.work.read("scan")
        if known is not None:
            return Scan(**known)
        scan = scan_corpus(self.corpus, self.workers, self.options.seed, self.work.folder / "draws.bin")
        if not scan.documents:
            raise UserError(f"{self.source}: empty, no text in it; name sources that hold some")
        self.work.write("scan", scan._asdict())
        return scan

    def _split(self, scan: Scan) -> tuple[Callable[[], Iterator[Part]], str, float]:
        """All text with its side (to be read more than once), the rule and the fraction that were chosen."""
        one, rule = scan.documents == 1, self.options.split
        if rule == "auto":
            rule = "position" if one else "document"
        fraction = self.options.val_fraction
        if fraction is None:
            fraction = VAL_FRACTION_OF_ONE if one else VAL_FRACTION
        if rule == "document":
            if one:
                raise UserError(f"--split document: {self.source} is a single document; use --split position")
            below = threshold(fraction, scan.lowest, scan.highest)
            draws = self.work.folder / "draws.bin"
            return lambda: by_document(self.corpus.pieces(), read_draws(draws), below), rule, fraction
        boundary = int(scan.chars * (1 - fraction))  # nanoGPT's rounding: data[:int(n * 0.9)]
        if not 0 < boundary < scan.chars:
            raise UserError(
                f"--val-fraction {fraction:g}: {scan.chars:,} characters leave nothing for one side; give more text"
            )
        if self.options.split == "auto":
            ended = "" if self.options.eot else " --no-eot"
            say(f"one single document, so: --split position --val-fraction {fraction:g}{ended} (its end is held out)")
        return lambda: by_position(self.corpus.pieces(), boundary), rule, fraction

    def _tokenizer(self, parts: Callable[[], Iterator[Part]], scan: Scan) -> tuple[Tokenizer, str]:
        """The tokenizer and its name. It lies in files before it is used, so that a resumed run has the same one."""
        from gpt2.tokenizer.files import load_tokenizer, save_tokenizer

        name = self.options.tokenizer
        if name == "auto":
            name = f"train:{auto_vocab_size(scan.text_bytes)}"
        if (self.work.folder / "tokenizer").exists():
            return load_tokenizer(self.work.folder / "tokenizer"), name
        tokenizer = make_tokenizer(name, parts(), scan.chars)
        save_tokenizer(tokenizer, self.work.fresh_folder("tokenizer"))
        self.work.keep("tokenizer")
        return tokenizer, name

    def _eot_id(self, tokenizer: Tokenizer, one_document: bool) -> int | None:
        """The id to end documents with, or None."""
        if self.options.eot and tokenizer.eot_id is None:
            raise UserError(f"--eot: the tokenizer '{self.options.tokenizer}' has no <|endoftext|>; use --no-eot")
        wanted = not one_document if self.options.eot is None else self.options.eot
        return tokenizer.eot_id if wanted else None


def _open_corpus(specs: list[str], out: Path, options: Options) -> Corpus:
    def spool() -> Path:
        out.mkdir(parents=True, exist_ok=True)
        return spool_stdin(out / ".prepare.stdin")

    items = expand(specs, spool)
    if options.text_column is not None and not has_columns(items):
        raise UserError(f"--text-column {options.text_column}: none of the sources has columns; leave it out")
    return Corpus(items, options.text_column or "text", options.encoding or "utf-8", options.errors)


def _fingerprint(corpus: Corpus, options: Options) -> str:
    """Changes with whatever changes the output: arguments, sources, and a tokenizer's files."""
    facts: list[Any] = [META_VERSION, asdict(options), [item.stamp for item in corpus.items]]
    path = Path(options.tokenizer)
    if options.tokenizer not in ("auto", "gpt2", "char", "byte") and path.exists():
        files = sorted(path.rglob("*")) if path.is_dir() else [path]
        facts.append([(str(file.resolve()), file.stat().st_size, file.stat().st_mtime_ns) for file in files])
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()


def _old_meta(out: Path) -> Meta | None:
    return read_meta(out) if (out / "meta.json").exists() else None


def _files(meta: Meta | None) -> list[str]:
    return [] if meta is None else [*meta.train.files, *meta.val.files]


def _split_meta(files: list[str], side: Side, preceding: int | None) -> SplitMeta:
    return SplitMeta(tuple(files), side.tokens, side.documents, side.text_bytes, preceding)


def _summary(out: Path, meta: Meta) -> str:
    def describe(name: str, side: SplitMeta) -> str:
        documents = f" in {side.documents:,} documents" if meta.split == "document" else ""
        return f"{name} {side.tokens:,} tokens{documents}"

    sides = "; ".join((describe("train", meta.train), describe("val", meta.val)))
    return f"{out}: {sides}; {meta.bytes_per_token:.2f} bytes per token, vocabulary of {meta.vocab_size:,}"


def _clean(out: Path) -> None:
    """Remove what a run leaves beside its results, and the folder if there is nothing else in it."""
    shutil.rmtree(out / ".prepare", ignore_errors=True)
    (out / ".prepare.stdin").unlink(missing_ok=True)
    with suppress(OSError):
        out.rmdir()


@contextmanager
def _disk_errors(out: Path) -> Iterator[None]:
    """A full disk is the user's to mend."""
    names = ("ENOSPC", "EDQUOT", "EROFS")
    try:
        yield
    except OSError as error:
        if error.errno not in {getattr(errno, name, None) for name in names}:
            raise
        raise UserError(f"{out}: {error.strerror}; make room and run the same command again: it goes on") from error


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
