"""`gpt2 runs`: every run is found and told of, whatever state its folder is in."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from gpt2 import config as settings
from gpt2.train.config import compose
from gpt2.train.metrics import NAME
from gpt2.train.runs import DEPTH, HEADER, find_runs, read_run


def write_run(
    folder: Path, steps: int = 10, done: int | None = None, loss: float = 3.0, old: bool = False, **changes: Any
) -> Path:
    """A run as `gpt2 train` leaves it; `old`: by a version that knew fewer settings and wrote no times."""
    config = compose(data="data", out=str(folder), max_steps=steps, n_layer=2, n_head=2, n_embd=32, **changes)
    tree = settings.to_tree(config)
    if old:
        tree = {key: value for key, value in tree.items() if key not in ("async_save", "pack", "tensorboard")}
    folder.mkdir(parents=True)
    (folder / "config.toml").write_text(f"{HEADER.decode()}.\n{settings.dump_toml(tree)}", encoding="utf-8")
    lines: list[dict[str, Any]] = []
    for step in range(1, (steps if done is None else done) + 1):
        timed = {} if old else {"time": 1.75e9 + step}
        speeds = {"tokens_per_second": 500.0, "mfu": 0.5, "elapsed": 60.0 * step}
        lines.append({"step": step, "tokens": 1000 * step, "train/loss": loss + 1 / step, **speeds, **timed})
        if step % 5 == 0:
            lines.append(
                {"step": step, "tokens": 1000 * step, "val/loss": loss + step / 100, "val/bits_per_byte": loss / 2}
            )
    (folder / NAME).write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    return folder


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_runs_are_listed_best_validation_first(gpt2: Callable[..., Any], here: Path) -> None:
    write_run(here / "runs" / "poor", loss=4.0, learning_rate=1e-3)
    write_run(here / "runs" / "good", loss=2.0)
    write_run(here / "early", done=3, steps=2000, old=True)
    ran = gpt2("runs")
    assert (ran.code, ran.err) == (0, "")
    table, different = ran.out.strip().split("\n\n")
    head, *rows = [line.split() for line in table.splitlines()]
    assert head[:4] == ["run", "params", "steps", "tokens"]
    assert [row[0] for row in rows] == ["runs/good", "runs/poor", "early"]
    assert rows[0][1:11] == ["33.7k", "10/10", "10k", "2.1000", "2.0500", "1.0000", "500", "50%", "10:00", rows[0][10]]
    assert [row[-1] for row in rows] == ["done", "done", "unfinished"]
    assert rows[2][2] == "3/2,000" and rows[2][5] == "-"
    names = {line.split()[0] for line in different.splitlines()} | set(different.split("\n")[0].split())
    assert {"learning_rate", "max_steps"} <= names
    assert not {"out", "seed", "async_save", "tensorboard"} & names  # older runs had the default


def test_the_table_of_settings_takes_the_narrower_form(gpt2: Callable[..., Any], here: Path) -> None:
    for name in "abcdef":
        write_run(here / name, seed=ord(name))
    by_run = gpt2("runs").out.split("\n\n")[1].splitlines()
    assert by_run[0].split() == ["run", "seed"] and len(by_run) == 7
    write_run(here / "g", weight_decay=0.2, grad_clip=0.5, keep_last=9, log_every=3, eval_tokens=77)
    assert gpt2("runs", "a", "g").out.split("\n\n")[1].splitlines()[0].split() == ["run", "a", "g"]
    assert "\n\n" not in gpt2("runs", "a").out.strip()


def test_json_has_every_figure_and_setting(gpt2: Callable[..., Any], here: Path) -> None:
    write_run(here / "a", loss=2.0)
    (run,) = json.loads(gpt2("runs", "--json").out)
    assert run["name"] == "a" and run["state"] == "done"
    assert (run["step"], run["max_steps"], run["tokens"], run["seconds"]) == (10, 10, 10_000, 600.0)
    assert (run["val_loss"], run["best_step"], run["bits_per_byte"]) == (2.05, 5, 1.0)
    assert run["when"] == 1.75e9 + 10
    assert run["settings"]["optim.learning_rate"] == 5e-3
    assert json.loads(gpt2("runs", "a", "--json").out)[0]["name"] == "a"


@pytest.mark.parametrize(
    ("sort", "order"),
    [("name", "abc"), ("val", "bca"), ("tokens", "cab"), ("time", "cab"), ("train", "bca"), ("speed", "abc")],
)
def test_sorting(gpt2: Callable[..., Any], here: Path, sort: str, order: str) -> None:
    write_run(here / "a", loss=5.0)
    write_run(here / "b", loss=2.0, done=5)
    write_run(here / "c", loss=3.0, steps=20)
    rows = gpt2("runs", "--sort", sort).out.split("\n\n")[0].splitlines()[1:]
    assert "".join(row[0] for row in rows) == order


def test_a_plot_is_one_png_of_all_runs(gpt2: Callable[..., Any], here: Path) -> None:
    for name in "ab":
        write_run(here / name)
    (here / "c").mkdir()
    (here / "c" / "config.toml").write_bytes(HEADER)
    ran = gpt2("runs", "--plot", "out.png")
    assert ran.err == "out.png: 2 runs\n"
    assert ran.out.startswith("run")
    assert (here / "out.png").read_bytes().startswith(b"\x89PNG")


def damage_settings(run: Path) -> None:
    (run / "config.toml").write_bytes(HEADER + b"\n[[[\xff")


def damage_lines(run: Path) -> None:
    (run / NAME).write_bytes(b'{"step": 1, "train/loss": 2.5, "tokens": 9}\n\x00\xff\n[]\n{"step": "2"}\n')


@pytest.mark.parametrize(
    ("harm", "state"),
    [
        (damage_settings, "config.toml cannot be read"),
        (damage_lines, f"3 lines of {NAME} cannot be read"),
        (lambda run: (run / NAME).unlink(), f"no {NAME}"),
        (lambda run: (run / "config.toml").unlink(), "no config.toml"),
        (lambda run: (run / NAME).write_bytes(b""), "unfinished"),
        (lambda run: (run / NAME).write_bytes(b'{"step": 4, "tok'), "unfinished"),
        (lambda run: (run / "config.toml").write_text("model = 3\nmax_steps = 'x'"), "unfinished"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_damaged_run_is_listed_as_such(
    gpt2: Callable[..., Any], here: Path, harm: Callable[[Path], object], state: str
) -> None:
    write_run(here / "good")
    harm(write_run(here / "bad"))
    ran = gpt2("runs")
    assert ran.code == 0
    rows = ran.out.split("\n\n")[0].splitlines()
    assert {row.split()[0] for row in rows} == {"run", "good", "bad"}
    assert next(row for row in rows if row.startswith("bad")).endswith(state)
    assert gpt2("runs", "--json", "--plot", "x.png").code == 0


def test_random_damage_is_never_an_error(here: Path) -> None:
    dice = random.Random(3)
    run = write_run(here / "run")
    for name in ("config.toml", NAME):
        whole = (run / name).read_bytes()
        for _ in range(60):
            torn = bytearray(whole)
            for _ in range(dice.randint(1, 6)):
                torn[dice.randrange(len(torn))] = dice.randrange(256)
            (run / name).write_bytes(bytes(torn[: dice.randint(0, len(torn))]))
            assert read_run(run).figures()["name"] == "run"
        (run / name).write_bytes(whole)


def test_what_is_no_run_is_not_listed_and_none_is_listed_twice(here: Path) -> None:
    run = write_run(here / "deep" / "er" / "run")
    (run / "step_00000010").mkdir()
    (run / "step_00000010" / "config.toml").write_bytes(HEADER)
    (run / "last").symlink_to("step_00000010")
    (here / "again").symlink_to("deep")
    (here / "deep" / "loop").symlink_to(here)
    for other in ("cargo/config.toml", f"other/{NAME}", ".git/config.toml"):
        (here / other).parent.mkdir()
        (here / other).write_text("[build]\n", encoding="utf-8")
    write_run(here.joinpath(*"12345", "far"))
    assert DEPTH == 4
    assert [path.resolve() for path in find_runs([here, run, here])] == [run]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["nowhere"], "nowhere: no such folder"),
        (["--plot", "x.svg"], "--plot x.svg: the name must end in .png"),
        (["--plot", "x.png"], "--plot x.png: no run here has a training loss to draw"),
        (["--sort", "colour"], "--sort"),
    ],
)
def test_wrong_input_is_one_line_and_exit_code_2(
    gpt2: Callable[..., Any], here: Path, words: list[str], message: str
) -> None:
    ran = gpt2("runs", *words)
    assert (ran.code, ran.out) == (2, "")
    assert message in ran.err and len(ran.err.splitlines()) == 1


def test_without_runs_stdout_is_empty_and_stderr_says_so(gpt2: Callable[..., Any], here: Path) -> None:
    ran = gpt2("runs")
    assert (ran.code, ran.out) == (0, "")
    assert "no runs in this folder or below; gpt2 train makes one" in ran.err
    assert gpt2("runs", "--json").out.strip() == "[]"
