"""Where a task's items come from: files that the user has, by their official names, or the Hugging Face hub."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
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
    them belong together. `train`: the same of the set that examples are drawn from. `split` is what the files hold.
    """

    files: tuple[str, ...]
    fields: Translate
    read: Reader = jsonl
    train: tuple[str, ...] = ()
    split: str = "validation"


@dataclass(frozen=True)
class Hub:
    """A set on the Hugging Face hub."""

    id: str
    fields: Translate
    config: str | None = None
    split: str = "validation"
    train: str = "train"


@dataclass(frozen=True)
class Items:
    """A set as it was read; the hash is of the files' bytes, or of the rows that the hub gave."""

    items: list[Fields]
    names: list[str]
    split: str
    sha256: str


@dataclass(frozen=True)
class Data:
    """What a task is asked (`test`), and what examples are drawn from: `train`, or None where there is no such file."""

    test: Items
    train: Items | None


def load(name: str, forms: Sequence[Form], hub: Hub | None, folders: Sequence[Path]) -> Data:
    """The task's data: the first of its forms that a folder holds, else from the hub.

    NoData, with all names that were looked for, if there is neither; UserError for a file that is there, but wrong.
    """
    for folder in folders:
        for form in forms:
            if paths := find(folder, name, form.files):
                train = find(folder, name, form.train) if form.train else None
                return Data(read(form, paths, form.split), read(form, train, "train") if train else None)
    if hub is not None:
        return fetch(name, hub, looked_for(forms, folders))
    raise NoData(f"{name}: no data; {looked_for(forms, folders)}")


def looked_for(forms: Sequence[Form], folders: Sequence[Path]) -> str:
    wanted = " or ".join(" with ".join(form.files) for form in forms)
    where = ", ".join(map(str, folders)) or "no folder; name one with --data"
    return f"looked for {wanted} in {where}"


def find(folder: Path, name: str, patterns: Sequence[str]) -> list[Path] | None:
    """For each pattern the files that fit, sorted; None unless each has some."""
    for base in (folder, folder / name):
        tries = [[pattern, Path(pattern).name] if base != folder else [pattern] for pattern in patterns]
        found = [next((hits for each in names if (hits := sorted(base.glob(each)))), []) for names in tries]
        if all(found):
            return [path for paths in found for path in paths]
    return None


def read(form: Form, paths: Sequence[Path], split: str) -> Items:
    """UserError, naming the file, for what is empty or not in this form."""
    items = list(translated(form.read(paths), form.fields))
    if not items:
        raise UserError(f"{paths[0]}: no items in it")
    digest = hashlib.sha256()
    for path in paths:
        digest.update(path.read_bytes())
    return Items(items, [path.name for path in paths], split, digest.hexdigest())


def translated(rows: Iterator[Row], fields: Translate) -> Iterator[Fields]:
    for row in rows:
        found = fields(row)
        for each in found if isinstance(found, list) else [found]:
            check(each, row.where)
            yield each


def check(item: Fields, where: str) -> None:
    """UserError where an item cannot be asked: no options or an empty one, a gold place that is none of them."""
    if "answers" in item and not any(item["answers"]):
        raise UserError(f"{where}: no answer that is a text")
    if "options" in item:
        if not item["options"] or not all(item["options"]):
            raise UserError(f"{where}: options {json.dumps(item['options'])[:60]}; expected some, none of them empty")
        gold = [item["gold"]] if isinstance(item["gold"], int) else item["gold"]
        if not all(0 <= place < len(item["options"]) for place in gold):
            raise UserError(f"{where}: the right one is {item['gold']}, but there are {len(item['options'])} options")


def fetch(name: str, hub: Hub, looked: str) -> Data:
    """From the hub, or its cache."""
    try:
        import datasets
    except ImportError:
        raise NoData(f"{name}: no data; {looked}; to fetch it as {hub.id}: pip install 'gpt2[data]'") from None
    try:
        sets = datasets.load_dataset(hub.id, hub.config)
    except Exception as error:  # the library raises whatever its many parts raise
        reason = str(error).strip().splitlines()[0][:160] if str(error).strip() else type(error).__name__
        raise NoData(f"{name}: no data; {looked}; {hub.id} cannot be fetched: {reason}") from None
    if hub.split not in sets:
        raise NoData(f"{name}: {hub.id} has no split '{hub.split}', it has {', '.join(sets)}")
    test = hub_items(hub, sets[hub.split], hub.split)
    return Data(test, hub_items(hub, sets[hub.train], hub.train) if hub.train in sets else None)


def hub_items(hub: Hub, rows: Any, split: str) -> Items:
    digest = hashlib.sha256()
    found = []
    for number, row in enumerate(rows, 1):
        digest.update(json.dumps(row, sort_keys=True, default=str).encode())
        found.append(Row(row, f"{hub.id} {split} row {number}"))
    return Items(list(translated(iter(found), hub.fields)), [hub.id], split, digest.hexdigest())
