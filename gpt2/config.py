"""Settings: dataclass defaults <- TOML file <- command line. Knows no particular configuration.

A configuration is a dataclass; its fields may be dataclasses too (a TOML table each). On the command line a
field is named by its leaf (`--n_layer 4`, hyphens allowed) or by its full path (`--model.n_layer 4`).
"""

from __future__ import annotations

import dataclasses
import json
import sys
import types
import typing
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from gpt2.errors import UserError, did_you_mean

T = TypeVar("T")
Tree = dict[str, Any]


def setting(default: Any, about: str) -> Any:
    """A dataclass field with the line that `--help` shows for it."""
    return dataclasses.field(default=default, metadata={"about": about})


def load_toml(path: str | Path) -> Tree:
    """Read a TOML file; errors name the file and, for syntax, the line."""
    if sys.version_info >= (3, 11):
        import tomllib
    else:
        import tomli as tomllib
    try:
        return tomllib.loads(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path}: no such configuration file") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: not valid TOML: {error}") from None


def build(cls: type[T], *layers: Mapping[str, Any], origin: str = "configuration") -> T:
    """Make a `cls` from nested mappings, the later ones winning; unknown keys and wrong types raise UserError."""
    hints = typing.get_type_hints(cls)
    fields = {f.name: hints[f.name] for f in dataclasses.fields(cls)}  # type: ignore[arg-type]
    values: Tree = {}
    for name, hint in fields.items():
        given = [layer[name] for layer in layers if name in layer]
        if dataclasses.is_dataclass(hint):
            for table in given:
                if not isinstance(table, Mapping):
                    raise UserError(f"{origin}: '{name}' is a table of settings, not {table!r}")
            values[name] = build(typing.cast("type[Any]", hint), *given, origin=origin)
        elif given:
            values[name] = convert(given[-1], hint, name, origin)
    for layer in layers:
        for key in layer:
            if key not in fields:
                raise UserError(f"{origin}: unknown key '{key}'{did_you_mean(key, leaves(cls))}")
    return cls(**values)


def leaves(cls: type[Any], prefix: str = "") -> dict[str, Any]:
    """Full dotted path -> type of every setting that is not itself a table."""
    hints = typing.get_type_hints(cls)
    found: dict[str, Any] = {}
    for field in dataclasses.fields(cls):
        hint = hints[field.name]
        if dataclasses.is_dataclass(hint):
            found.update(leaves(typing.cast("type[Any]", hint), f"{prefix}{field.name}."))
        else:
            found[prefix + field.name] = hint
    return found


def describe(cls: type[Any], whose: str | None = None) -> list[tuple[str, str]]:
    """(flag, what it is with its default) of every setting, for `--help`; `whose` stands in for the defaults."""
    rows: list[tuple[str, str]] = []
    for field in dataclasses.fields(cls):
        hint = typing.get_type_hints(cls)[field.name]
        if dataclasses.is_dataclass(hint):
            rows += describe(typing.cast("type[Any]", hint), field.metadata.get("whose"))
        else:
            shown = ",".join(map(str, field.default)) if isinstance(field.default, tuple) else field.default
            default = whose or ("" if shown is None else str(shown))
            rows.append((f"--{field.name}", field.metadata.get("about", "") + (f" [{default}]" if default else "")))
    return rows


def parse_flags(cls: type[Any], arguments: Sequence[str]) -> Tree:
    """Turn `--key value`, `--key=value`, `--flag` and `--no-flag` into nested mappings for `build`."""
    tree: Tree = {}
    rest = list(arguments)
    while rest:
        word = rest.pop(0)
        if not word.startswith("--") or word == "--":
            raise UserError(f"unexpected argument '{word}': settings are given as --key value")
        name, equals, value = word[2:].partition("=")
        path, hint, negated = _find(cls, name)
        is_switch = bool in _members(hint)
        if equals:
            if negated:
                raise UserError(f"--{name}: takes no value")
        elif negated:
            value = "false"
        elif is_switch and (not rest or rest[0].lower() not in _WORDS):
            value = "true"
        elif rest and not rest[0].startswith("--"):
            value = rest.pop(0)
        else:
            raise UserError(f"--{name}: needs a value")
        _put(tree, path, convert(value, hint, name, "command line"))
    return tree


def nest(cls: type[Any], flat: Mapping[str, Any]) -> Tree:
    """Keyword arguments as nested mappings: `n_layer=4` goes into its table, `model={...}` stays what it is."""
    tree: Tree = {}
    paths = {path.rpartition(".")[2]: path for path in leaves(cls)}
    for key, value in flat.items():
        if isinstance(value, Mapping):
            tree[key] = tree.get(key, {}) | dict(value)
        else:
            _put(tree, paths.get(key, key), value)
    return tree


def convert(value: Any, hint: Any, name: str, origin: str) -> Any:
    """Check a TOML value, or read a command-line string, as the annotated type."""
    members = _members(hint)
    if value is None and type(None) in members:
        return None
    if isinstance(value, str) and type(None) in members and value.lower() == "none":
        return None
    for member in members:
        converted = _convert_one(value, member)
        if converted is not _NO:
            return converted
    raise UserError(f"{origin}: {name} = {value!r}: expected {_describe(members)}")


def to_tree(config: Any) -> Tree:
    """The nested mapping that `build` reads back; settings that are None are left out, as TOML has none."""
    tree: Tree = {}
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if dataclasses.is_dataclass(value):
            tree[field.name] = to_tree(value)
        elif value is not None:
            tree[field.name] = list(value) if isinstance(value, tuple) else value
    return tree


def dump_toml(tree: Mapping[str, Any], prefix: str = "") -> str:
    """Write nested mappings of strings, numbers, booleans and lists as TOML (JSON's forms of these are TOML's)."""
    plain = [f"{k} = {_toml_value(v)}\n" for k, v in tree.items() if not isinstance(v, Mapping)]
    tables = [f"\n[{prefix}{k}]\n" + dump_toml(v, f"{prefix}{k}.") for k, v in tree.items() if isinstance(v, Mapping)]
    return "".join(plain + tables)


_NO = object()
LARGEST = sys.float_info.max
_WORDS = {"true": True, "false": False, "yes": True, "no": False, "on": True, "off": False, "1": True, "0": False}
_SUFFIXES = {"k": 10**3, "m": 10**6, "b": 10**9}


def _members(hint: Any) -> list[Any]:
    is_union = typing.get_origin(hint) in (typing.Union, types.UnionType)
    return list(typing.get_args(hint)) if is_union else [hint]


def _convert_one(value: Any, member: Any) -> Any:
    origin = typing.get_origin(member)
    if origin is typing.Literal:
        return value if value in typing.get_args(member) else _NO
    if origin in (tuple, list):
        items = value.split(",") if isinstance(value, str) else value
        if not isinstance(items, (list, tuple)):
            return _NO
        converted = [_convert_one(item, typing.get_args(member)[0]) for item in items]
        return _NO if _NO in converted else origin(converted)
    if member is bool:
        return value if isinstance(value, bool) else _WORDS.get(str(value).lower(), _NO)
    if member in (int, float):
        return _number(value, member)
    if member is str:
        return value if isinstance(value, str) else _NO
    return _NO


def _number(value: Any, member: type) -> Any:
    """Finite numbers as people write them: 1e6, 1_000_000, 500k, 300M."""
    if isinstance(value, bool):
        return _NO
    if isinstance(value, str):
        digits, scale = value.replace("_", ""), 1
        if digits[-1:].lower() in _SUFFIXES and digits[:-1]:
            digits, scale = digits[:-1], _SUFFIXES[digits[-1].lower()]
        try:
            value = int(digits) * scale if digits.lstrip("+-").isdigit() else float(digits) * scale
        except ValueError:
            return _NO
    if not isinstance(value, (int, float)):
        return _NO
    if value != value or not -LARGEST <= value <= LARGEST:
        return _NO  # no setting is infinite, and comparisons let NaN through
    if member is int:
        return int(value) if value == int(value) else _NO
    return float(value)


def _describe(members: list[Any]) -> str:
    names = []
    for member in members:
        if typing.get_origin(member) is typing.Literal:
            names.append(" or ".join(str(choice) for choice in typing.get_args(member)))
        elif typing.get_origin(member) in (tuple, list):
            names.append("a list")
        elif member is not type(None):
            names.append({int: "a whole number", float: "a number", bool: "true or false", str: "text"}[member])
    return " or ".join(names)


def _find(cls: type[Any], name: str) -> tuple[str, Any, bool]:
    """The full path and type that a flag names, and whether it was negated (`--no-bias`)."""
    known = leaves(cls)
    key = name.replace("-", "_")
    for candidate, negated in ((key, False), (key.removeprefix("no_"), True)):
        if negated and candidate == key:
            continue
        paths = [p for p in known if p == candidate] or [p for p in known if p.rpartition(".")[2] == candidate]
        if len(paths) > 1:
            raise UserError(f"--{name}: could be {' or '.join('--' + p for p in paths)}; write the full name")
        if paths and (not negated or bool in _members(known[paths[0]])):
            return paths[0], known[paths[0]], negated
    names = [p.rpartition(".")[2] for p in known] + list(known)
    raise UserError(f"--{name}: unknown setting{did_you_mean(key, names)}")


def _put(tree: Tree, path: str, value: Any) -> None:
    *tables, leaf = path.split(".")
    for table in tables:
        tree = tree.setdefault(table, {})
    tree[leaf] = value


def _toml_value(value: Any) -> str:
    if isinstance(value, (list, tuple)):
        return "[" + ", ".join(_toml_value(item) for item in value) + "]"
    if isinstance(value, float):
        text = repr(value)
        return text if text in ("inf", "-inf", "nan") or "." in text or "e" in text else text + ".0"
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")  # TOML knows no surrogate pairs
