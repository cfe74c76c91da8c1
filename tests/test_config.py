"""Settings: defaults, then TOML, then flags; what is wrong is named with the nearest right name."""

from __future__ import annotations

import contextlib
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpt2.config import build, convert, dump_toml, leaves, load_toml, parse_flags, to_tree
from gpt2.errors import UserError


@dataclass(frozen=True)
class Model:
    n_layer: int = 2
    bias: bool = True
    kind: Literal["dense", "banded"] = "dense"


@dataclass(frozen=True)
class Run:
    model: Model = field(default_factory=Model)
    learning_rate: float = 1e-3
    name: str = "run"
    betas: tuple[float, ...] = (0.9, 0.95)
    limit: int | None = None
    bias: bool = False


def test_flags_win_over_the_file_and_the_file_over_the_defaults() -> None:
    file = {"learning_rate": 0.5, "model": {"n_layer": 3}}
    run = build(Run, file, parse_flags(Run, ["--n_layer", "4"]))
    assert (run.learning_rate, run.model.n_layer, run.model.kind) == (0.5, 4, "dense")


@pytest.mark.parametrize(
    ("words", "path", "value"),
    [
        (["--model.bias=false"], ("model", "bias"), False),
        (["--n-layer", "1_000"], ("model", "n_layer"), 1000),
        (["--learning_rate", "3"], ("learning_rate",), 3.0),
        (["--limit", "2M"], ("limit",), 2_000_000),
        (["--limit", "none"], ("limit",), None),
        (["--betas", "0.8,0.9"], ("betas",), (0.8, 0.9)),
        (["--name=--strange"], ("name",), "--strange"),
        (["--kind", "banded"], ("model", "kind"), "banded"),
    ],
)
def test_flag_is_read(words: list[str], path: tuple[str, ...], value: object) -> None:
    tree: object = parse_flags(Run, words)
    for key in path:
        assert isinstance(tree, dict)
        tree = tree[key]
    assert tree == value


def test_a_switch_needs_no_value_and_takes_no() -> None:
    @dataclass
    class One:
        fast: bool = False

    assert parse_flags(One, ["--fast"]) == {"fast": True}
    assert parse_flags(One, ["--no-fast"]) == {"fast": False}


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--n_layers", "4"], "did you mean 'n_layer'"),
        (["--n_layer", "many"], "whole number"),
        (["--n_layer", "1.5"], "whole number"),
        (["--kind", "sparse"], "dense or banded"),
        (["--name"], "needs a value"),
        (["stray"], "unexpected argument 'stray'"),
        (["--learning_rate", ""], "a number"),
    ],
)
def test_wrong_flag_is_named(words: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        parse_flags(Run, words)


def test_a_leaf_in_two_tables_needs_its_full_name() -> None:
    @dataclass
    class Two:
        left: Model = field(default_factory=Model)
        right: Model = field(default_factory=Model)

    with pytest.raises(UserError, match=r"--left.n_layer or --right.n_layer"):
        parse_flags(Two, ["--n_layer", "3"])
    assert parse_flags(Two, ["--right.n_layer", "3"]) == {"right": {"n_layer": 3}}


def test_the_outer_setting_goes_before_a_table_s_own_of_the_same_name() -> None:
    assert parse_flags(Run, ["--bias"]) == {"bias": True}


@pytest.mark.parametrize(
    ("tree", "message"),
    [
        ({"model": {"n_layr": 1}}, "n_layr.*did you mean 'n_layer'"),
        ({"model": 3}, "'model' is a table"),
        ({"learning_rate": True}, "a number"),
        ({"betas": [0.9, "x"]}, "a list"),
        ({"learning_rate": math.nan}, "a number"),
        ({"learning_rate": "inf"}, "a number"),
        ({"learning_rate": 10**400}, "a number"),
    ],
)
def test_wrong_file_is_named(tree: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=f"my.toml.*{message}"):
        build(Run, tree, origin="my.toml")


def test_toml_errors_name_the_file(tmp_path: Path) -> None:
    (tmp_path / "a.toml").write_text("x = = 1\n")
    with pytest.raises(UserError, match=r"a\.toml: not valid TOML.*line 1"):
        load_toml(tmp_path / "a.toml")
    with pytest.raises(UserError, match="no such configuration file"):
        load_toml(tmp_path / "b.toml")


def test_leaves_are_full_paths() -> None:
    assert {"model.n_layer", "learning_rate", "bias", "model.bias"} <= set(leaves(Run))
    assert "model" not in leaves(Run)


finite = st.floats(allow_nan=False, allow_infinity=False)
runs = st.builds(
    Run,
    model=st.builds(Model, n_layer=st.integers(), bias=st.booleans(), kind=st.sampled_from(["dense", "banded"])),
    learning_rate=finite,
    name=st.text(st.characters(exclude_categories=["Cs"])),
    betas=st.lists(finite, max_size=3).map(tuple),
    limit=st.none() | st.integers(),
)


@given(runs)
def test_what_is_dumped_is_read_back_the_same(tmp_path_factory: pytest.TempPathFactory, run: Run) -> None:
    path = tmp_path_factory.getbasetemp() / "dumped.toml"
    path.write_bytes(dump_toml(to_tree(run)).encode("utf-8"))
    assert build(Run, load_toml(path)) == run


@given(st.text())
def test_any_text_is_a_number_or_a_user_error(text: str) -> None:
    for hint in (int, float):
        with contextlib.suppress(UserError):
            assert isinstance(convert(text, hint, "x", "test"), hint)
