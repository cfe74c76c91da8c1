"""Where a task's items come from: files that the user has, by their official names, or the Hugging Face hub."""

from __future__ import annotations

import hashlib
import importlib.util
import json
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from gpt2.errors import UserError
from gpt2.evaluate.rows import Reader, Row, jsonl

Fields = dict[str, Any]
Translate = Callable[[Row], "Fields | list[Fields]"]  # a record as its publisher writes it -> fields of our templates


class NoData(UserError):
    """Neither a file nor the hub has a task's data."""


@dataclass(frozen=True)
class Form:
    """One form in which a set is published.

    `files`: patterns of names, below a folder of --data or below a folder in it that is named after the task; all of
    them belong together. A pattern is one file, or with `many` all that fit. `train`: the same of the set that examples
    are drawn from. `archive` is the folder that the publisher's archive unpacks into: files may lie in it or without
    it. `split` is what the files hold, `whole` how many items that has, where files may hold fewer.
    """

    files: tuple[str, ...]
    fields: Translate
    read: Reader = jsonl
    train: tuple[str, ...] = ()
    split: str = "validation"
    many: bool = False
    whole: int = 0
    archive: str = ""

    def places(self) -> list[tuple[tuple[str, ...], tuple[str, ...]]]:
        """Patterns of files and of training files: in the archive's folder, and without it."""
        tops = [f"{self.archive}/", ""] if self.archive else [""]
        return [(tuple(top + name for name in self.files), tuple(top + name for name in self.train)) for top in tops]

    @property
    def named(self) -> tuple[str, ...]:
        """Patterns of files, as the archive has them."""
        return self.places()[0][0]

    def part(self, items: int) -> str:
        """The split's name for files of so many items, which says so where they are not all."""
        return f"{self.split}, {items:,} of {self.whole:,}" if items < self.whole else self.split


@dataclass(frozen=True)
class Hub:
    """A set on the Hugging Face hub.

    `first`: so many of the training set's first rows stand for it, as it is too large to be fetched for a few examples.
    """

    id: str
    fields: Translate
    config: str | None = None
    split: str = "validation"
    train: str = "train"
    first: int = 0


@dataclass(frozen=True)
class Items:
    """A set as it was read; the hash is of the files' bytes, or of the hub's rows."""

    items: list[Fields]
    names: list[str]
    split: str
    sha256: str


@dataclass(frozen=True)
class Data:
    """What a task is asked (`test`), and what examples are drawn from: `train`, or None where there is no such set."""

    test: Items
    train: Items | None


def load(name: str, forms: Sequence[Form], hub: Hub | None, folders: Sequence[Path], examples: bool = True) -> Data:
    """The task's data: the first of its forms that a folder holds, else from the hub.

    Without `examples` training sets, which may be large, are not read. NoData, with all names that were looked for, if
    there is neither file nor hub; UserError for a file that is there, but wrong.
    """
    for folder in folders:
        for form in forms:
            for files, shown in form.places():
                if paths := find(folder, name, files, form.many):
                    train = find(folder, name, shown, form.many) if shown and examples else None
                    return Data(read(form, paths, form.split), read(form, train, "train") if train else None)
    if hub is not None:
        return fetch(name, hub, looked_for(forms, folders), examples)
    raise NoData(f"{name}: no data; {looked_for(forms, folders)}")


def reachable(name: str, forms: Sequence[Form], hub: Hub | None, folders: Sequence[Path]) -> bool:
    """Whether `load` may find something: there are files, or the hub can be asked. Nothing is read."""
    places = [(folder, files, form.many) for folder in folders for form in forms for files, _ in form.places()]
    if any(find(folder, name, files, many) for folder, files, many in places):
        return True
    return hub is not None and importlib.util.find_spec("datasets") is not None


def looked_for(forms: Sequence[Form], folders: Sequence[Path]) -> str:
    wanted = " or ".join(" with ".join(form.named) for form in forms)
    where = ", ".join(map(str, folders)) or "no folder; name one with --data"
    return f"looked for {wanted} in {where}"


def find(folder: Path, name: str, patterns: Sequence[str], many: bool = False) -> list[Path] | None:
    """For each pattern the file that fits, or with `many` all, sorted; None unless each has some.

    UserError where one file is wanted and several fit: they would be different sets, or parts of one.
    """
    for base in (folder, folder / name):
        tries = [[pattern, Path(pattern).name] if base != folder else [pattern] for pattern in patterns]
        found = [next((hits for each in names if (hits := fitting(base, each))), []) for names in tries]
        if not all(found):
            continue
        for pattern, paths in zip(patterns, found, strict=True):
            if len(paths) > 1 and not many:
                names = ", ".join(path.name for path in paths)
                raise UserError(f"{base}: {pattern} is to be one file, but {names} are there; leave one of them there")
        return [path for paths in found for path in paths]
    return None


def fitting(base: Path, pattern: str) -> list[Path]:
    """The files of this pattern, sorted; where the name without the pattern's stars is there, that one alone."""
    plain = base / pattern.replace("*", "")
    return [plain] if "*" in pattern and plain.is_file() else sorted(base.glob(pattern))


def read(form: Form, paths: Sequence[Path], split: str) -> Items:
    """UserError, naming the file, for what is empty or not in this form."""
    items = list(translated(form.read(paths), form.fields))
    if not items:
        raise UserError(f"{paths[0]}: no items in it")
    digest = hashlib.sha256()
    for path in paths:
        digest.update(path.read_bytes())
    named = form.part(len(items)) if split == form.split else split
    return Items(items, [path.name for path in paths], named, digest.hexdigest())


def translated(rows: Iterator[Row], fields: Translate) -> Iterator[Fields]:
    for row in rows:
        found = fields(row)
        for each in found if isinstance(found, list) else [found]:
            check(each, row.where)
            yield each


def check(item: Fields, where: str) -> None:
    """UserError where an item cannot be asked: no options or a blank one, a gold place that is none of them."""
    if "answers" in item and not any(item["answers"]):
        raise UserError(f"{where}: no answer that is a text")
    if "options" in item:
        if not item["options"] or not all(option.strip() for option in item["options"]):
            raise UserError(f"{where}: options {json.dumps(item['options'])[:60]}; expected some, none of them blank")
        gold = [item["gold"]] if isinstance(item["gold"], int) else item["gold"]
        if not all(0 <= place < len(item["options"]) for place in gold):
            raise UserError(f"{where}: the right one is {item['gold']}, but there are {len(item['options'])} options")


def fetch(name: str, hub: Hub, looked: str, examples: bool = True) -> Data:
    """From the hub, or its cache."""
    missing = f"{name}: no data; {looked}"
    sets = opened(hub, missing)
    if hub.split not in sets:
        raise NoData(f"{name}: {hub.id} has no split '{hub.split}', it has {', '.join(sets)}")
    test = hub_items(hub, fetched(hub, sets, hub.split, missing), hub.split)
    if not examples or hub.train not in sets:
        return Data(test, None)
    rows = fetched(hub, sets, hub.train, missing)
    part = f"{hub.train}, the first {hub.first:,} rows" if hub.first else hub.train
    try:
        return Data(test, hub_items(hub, islice(rows, hub.first or None), part))
    finally:
        rows.close()  # here, and not when the process ends: a stream that is left open may then hang


def opened(hub: Hub, missing: str) -> Any:
    """The hub's set by split. `datasets` keeps all of it; one with a large training set is read as it is fetched,
    and only what is asked for, unless it is in the cache."""
    try:
        import datasets
    except ImportError:
        raise NoData(f"{missing}; to fetch it as {hub.id}: pip install 'gpt2[data]'") from None
    try:
        if hub.first:
            builder = datasets.load_dataset_builder(hub.id, hub.config)
            if not Path(builder.cache_dir).is_dir():
                return builder.as_streaming_dataset()
        return datasets.load_dataset(hub.id, hub.config)
    except Exception as error:  # the library raises whatever its many parts raise
        raise unfetched(hub, missing, error) from None


def fetched(hub: Hub, sets: Any, split: str, missing: str) -> Generator[Any, None, None]:
    """A split's rows: what is read as it is fetched fails on the way."""
    try:
        yield from sets[split]
    except Exception as error:
        raise unfetched(hub, missing, error) from None


def unfetched(hub: Hub, missing: str, error: Exception) -> NoData:
    reason = str(error).strip().splitlines()[0][:160] if str(error).strip() else type(error).__name__
    return NoData(f"{missing}; {hub.id} cannot be fetched: {reason}")


def hub_items(hub: Hub, rows: Iterable[Any], split: str) -> Items:
    """Items of rows, and a hash of the set's names and of the rows: the same from the cache and as they are fetched."""
    digest = hashlib.sha256(f"{hub.id} {hub.config} {split}".encode())

    def hashed() -> Iterator[Row]:
        for number, row in enumerate(rows, 1):
            digest.update(json.dumps(row, sort_keys=True, default=str).encode())
            yield Row(row, f"{hub.id} {split} row {number}")

    items = list(translated(hashed(), hub.fields))
    return Items(items, [hub.id], split, digest.hexdigest())
