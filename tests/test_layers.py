"""Imports point down only (the levels of docs/tour.md), and the floors without torch stay without it."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
LEVELS = (
    {"", "__main__"},  # the package itself, whose public names point anywhere
    {"cli"},
    {"api", "train", "evaluate", "serve"},
    {"inference"},
    {"distributed"},
    {"checkpoint"},
    {"data"},
    {"model", "tokenizer"},
    {"kernels"},
    {"runtime", "config", "hardware"},
    {"errors", "atomic"},
)
LEVEL = {room: number for number, rooms in enumerate(LEVELS) for room in rooms}
MAY = {("evaluate", "api"), ("serve", "api"), ("__main__", "cli")}
MAY_NOT = {("train", "inference")}  # samples during a run are hooks that cli hands to the loop
FILES = sorted((ROOT / "gpt2").rglob("*.py"))
WITHOUT_TORCH = (
    "tokenizer",
    "data",
    "model/config.py",
    "model/presets.py",
    "model/sizes.py",
    "config.py",
    "cli",
    "inference/choose.py",
    "inference/engine.py",
    "inference/speculate.py",
)


def room_of(path: Path) -> str:
    """`gpt2/data/shards.py` -> data, `gpt2/api.py` -> api, `gpt2/__init__.py` -> the empty name."""
    name = path.relative_to(ROOT / "gpt2").parts[0].removesuffix(".py")
    return "" if name == "__init__" else name


def imported_rooms(path: Path) -> Iterator[tuple[str, int]]:
    """Every room that a file imports, inside functions and for types too, with the line."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: write the full name instead of a relative import"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        for name in names:
            first, _, rest = name.partition(".")
            if first == "gpt2" and rest != "__version__":
                room = rest.partition(".")[0]
                yield (room if room in LEVEL else ""), node.lineno


def allowed(here: str, there: str) -> bool:
    if (here, there) in MAY_NOT:
        return False
    return here == there or (here, there) in MAY or LEVEL[here] < LEVEL[there]


def test_every_room_has_a_level() -> None:
    assert {room_of(path) for path in FILES} <= set(LEVEL)


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_point_down_only(path: Path) -> None:
    here = room_of(path)
    wrong = [
        f"{path}:{line}: {here} imports {there}" for there, line in imported_rooms(path) if not allowed(here, there)
    ]
    assert not wrong, "\n".join(wrong)


def test_the_rule_would_be_broken_by_an_import_upwards_or_sideways() -> None:
    assert not allowed("model", "tokenizer") and not allowed("data", "train") and not allowed("train", "inference")
    assert (
        not allowed("cli", "") and not allowed("api", "train") and allowed("serve", "api") and allowed("cli", "errors")
    )


def test_tokenizer_data_shapes_and_commands_are_imported_without_torch() -> None:
    files = [path for path in FILES if path.relative_to(ROOT / "gpt2").as_posix().startswith(WITHOUT_TORCH)]
    modules = [".".join(path.relative_to(ROOT).with_suffix("").parts) for path in files]
    code = (
        f"import importlib, sys\nfor m in {modules}: importlib.import_module(m); assert 'torch' not in sys.modules, m"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
