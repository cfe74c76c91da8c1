"""What the named fields of a row mean: which are the prompt, which is to be learned."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

from gpt2.errors import UserError, did_you_mean

Form = Literal["text", "completion", "instruction", "messages", "label", "preference"]


@dataclass(frozen=True)
class Shape:
    """Fields that make an example: role -> the file's name for it. `absent`: those that later rows may still have."""

    form: Form
    roles: Mapping[str, str]
    optional: Mapping[str, str]
    absent: tuple[str, ...] = ()

    def describe(self) -> str:
        """`instruction, input, output`, with a file's own names behind the roles."""
        every = {role: {**self.roles, **self.optional}.get(role) for role in ORDER}
        return ", ".join(role if role == name else f"{role} (its {name})" for role, name in every.items() if name)


def _shape(form: Form, *roles: str, optional: tuple[str, ...] = (), **named: str) -> Shape:
    return Shape(form, {**{role: role for role in roles}, **named}, {role: role for role in optional})


# In this order: a row with more fields than it needs is what it has most of. (Stanford's Alpaca has `text` too.)
SHAPES = (
    _shape("preference", "prompt", "chosen", "rejected"),
    _shape("messages", "messages"),
    _shape("instruction", "instruction", "output", optional=("input",)),
    _shape("completion", "prompt", "completion"),
    _shape("completion", prompt="prompt", completion="response"),
    _shape("completion", prompt="question", completion="answer"),
    _shape("completion", prompt="input", completion="output"),
    _shape("label", "text", "label"),
    _shape("text", "text"),
)
KNOWN = "text; text, label; prompt, completion; instruction, input, output; messages; prompt, chosen, rejected"
ORDER = ("prompt", "completion", "chosen", "rejected", "instruction", "input", "output", "messages", "text", "label")


def has_shape(names: Iterable[str]) -> bool:
    """Whether fields of these names make an example."""
    stripped = {name.strip().lower() for name in names}
    return any(stripped >= set(shape.roles.values()) for shape in SHAPES)


def find_shape(names: Iterable[str], columns: Mapping[str, str], where: str) -> Shape:
    """What fields of these names mean, or what `columns` (role -> name) says that they do.

    Raises UserError that says which fields there are and which would be understood.
    """
    own = {name.strip().lower(): name for name in names}
    if columns:
        return _named_shape(columns, list(own.values()), where)
    for shape in SHAPES:
        if own.keys() >= set(shape.roles.values()):
            roles = {role: own[name] for role, name in shape.roles.items()}
            optional = {role: own[name] for role, name in shape.optional.items() if name in own}
            return replace(shape, roles=roles, optional=optional, absent=tuple(shape.optional.keys() - optional.keys()))
    found = ", ".join(own.values()) or "none"
    raise UserError(f"{where}: expected fields {KNOWN}; found {found} (--columns ROLE=NAME names them)")


def _named_shape(columns: Mapping[str, str], names: list[str], where: str) -> Shape:
    for role, name in columns.items():
        if role not in ORDER:
            raise UserError(
                f"--columns {role}={name}: no such role{did_you_mean(role, ORDER)}; roles: {', '.join(ORDER)}"
            )
        if name not in names:
            near = did_you_mean(name, names)
            raise UserError(f"{where}: expected a field {name!r} ({role}){near}; found {', '.join(names) or 'none'}")
    for shape in SHAPES:
        if set(shape.roles) <= set(columns) <= {*shape.roles, *shape.optional}:
            optional = {role: name for role, name in columns.items() if role in shape.optional}
            return Shape(shape.form, {role: columns[role] for role in shape.roles}, optional)
    raise UserError(f"--columns {', '.join(columns)}: these roles make no example together; expected {KNOWN}")


def as_text(value: Any, name: str, where: str) -> str:
    """A field's value that must be text; a number will do, as labels are such."""
    if isinstance(value, str):
        return value
    if isinstance(value, int | float) and not isinstance(value, bool):
        return str(value)
    found = "nothing" if value is None else type(value).__name__
    raise UserError(f"{where}: expected text in field {name!r}, found {found}")
