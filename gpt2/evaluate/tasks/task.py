"""What a task is: a name, the forms of its data, and how each protocol asks it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from gpt2.evaluate.data import Form, Hub
from gpt2.evaluate.measures import Ask

Source = tuple[tuple[Form, ...], "Hub | None"]


@dataclass(frozen=True)
class Task:
    """`asks`: protocol (see protocols.py) -> way of asking.

    `note`: what the papers leave open, and what was chosen; `notes`: protocol -> what is to be said of that one alone.
    The first of `forms` is the set that is usually asked. `sources`: a protocol's own data, where it reads other data.
    """

    name: str
    title: str
    forms: tuple[Form, ...]
    asks: Mapping[str, Ask]
    hub: Hub | None = None
    note: str = ""
    folder: Path | None = None  # where the user's own task has its data
    table: Mapping[str, Any] = field(default_factory=dict)  # the user's own task as its file has it
    sources: Mapping[str, Source] = field(default_factory=dict)
    notes: Mapping[str, str] = field(default_factory=dict)

    def source(self, protocol: str) -> Source:
        """Forms and hub of what this protocol asks."""
        return self.sources.get(protocol, (self.forms, self.hub))

    def remark(self, protocol: str) -> str:
        """What a result of this protocol says of it; a paper's open questions are none of the harness's."""
        shared = "" if protocol == "harness" else self.note
        return " ".join(part for part in (shared, self.notes.get(protocol, "")) if part)
