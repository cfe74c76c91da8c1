"""The frame of the command line: what is found, what is said when something is wrong, and what is not imported."""

from __future__ import annotations

import errno
import importlib
import io
import os
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import pytest

from gpt2.cli import main as frame
from gpt2.errors import UserError

HEAVY = {"torch", "numpy", "rich", "tokenizers", "tiktoken", "matplotlib", "huggingface_hub", "pyarrow", "numba"}
NAMES = list(frame.COMMANDS)


def command_that(monkeypatch: pytest.MonkeyPatch, action: Callable[[], Any]) -> None:
    """Make `gpt2 doctor` do `action`."""
    monkeypatch.setattr(frame.LazyGroup, "get_command", lambda *_: click.Command("doctor", callback=action))


def raiser(error: BaseException) -> Callable[[], None]:
    def action() -> None:
        raise error

    return action


@pytest.mark.parametrize("name", NAMES)
def test_summary_is_the_command_s_own(name: str) -> None:
    module, summary = frame.COMMANDS[name]
    command = importlib.import_module(module).command
    assert isinstance(command, click.Command)
    assert command.get_short_help_str(limit=1000).rstrip(".") == summary


@pytest.mark.parametrize("words", [[], *([name] for name in NAMES)], ids=lambda words: " ".join(words) or "gpt2")
def test_help_shows_examples(words: list[str], gpt2: Callable[..., Any]) -> None:
    ran = gpt2(*words, "--help")
    assert ran.code == 0
    assert "Examples:\n" in ran.out
    assert f"gpt2 {' '.join(words)}".strip() in ran.out.split("Examples:")[1]


@pytest.mark.parametrize("words", [["--help"], *([name, "--help"] for name in NAMES)], ids=" ".join)
def test_help_imports_nothing_heavy(words: list[str]) -> None:
    code = f"import sys; from gpt2.cli.main import main; main({words}); print(sorted({HEAVY} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.splitlines()[-1] == "[]", done.stderr


def test_listing_imports_no_command() -> None:
    code = "import sys; from gpt2.cli.main import main; main([]); print([m for m in sys.modules if 'gpt2.cli.' in m])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.splitlines()[-1] == "['gpt2.cli.main']"


def test_no_words_show_help(gpt2: Callable[..., Any]) -> None:
    assert gpt2() == gpt2("--help")


def test_version(gpt2: Callable[..., Any]) -> None:
    import gpt2 as package

    assert gpt2("--version").out == f"gpt2 {package.__version__}\n"


@pytest.mark.parametrize(
    ("words", "is_prompt"),
    [
        (["Once upon a time"], True),
        (["Once upon a time", "--n", "2"], True),
        (["Once upon", "a time"], True),
        (["train well"], True),
        (["Hello"], True),
        (["Hello", "--n", "2"], True),
        ([""], True),
        (["Once", "upon"], False),
        (["trian"], False),
        (["trian", "--data", "x"], False),
        (["generat", "hello"], False),
    ],
)
def test_what_is_taken_for_a_prompt(words: list[str], is_prompt: bool) -> None:
    assert frame.is_prompt(words) is is_prompt


def test_a_prompt_goes_to_generate_with_its_options(monkeypatch: pytest.MonkeyPatch, gpt2: Callable[..., Any]) -> None:
    @click.command()
    @click.argument("prompt")
    @click.option("--n", type=int)
    def generate(prompt: str, n: int) -> None:
        click.echo(f"{prompt!r} {n}")

    monkeypatch.setattr(importlib.import_module("gpt2.cli.generate"), "command", generate)
    assert gpt2("Once upon a time", "--n", 2).out == "'Once upon a time' 2\n"


@pytest.mark.parametrize(
    ("words", "parts"),
    [
        (["trian", "--data", "x"], ["no such command 'trian'", "did you mean 'train'"]),
        (["Once", "upon", "a", "time"], ["no such command 'Once'", "quotes"]),
        (["doctor", "--jsn"], ["no such option '--jsn'", "did you mean '--json'", "gpt2 doctor --help"]),
        (["doctor", "extra"], ["extra", "gpt2 doctor --help"]),
        (["doctor", "--json=3"], ["--json"]),
        (["--modl", "x"], ["no such option '--modl'", "after the command"]),
    ],
)
def test_misuse_is_one_line_and_code_2(words: list[str], parts: list[str], gpt2: Callable[..., Any]) -> None:
    ran = gpt2(*words)
    assert (ran.code, ran.out) == (2, "")
    assert ran.err.startswith("gpt2: ") and ran.err.count("\n") == 1
    assert all(part in ran.err for part in parts), ran.err


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (UserError("n_layer = 0:\n  must be at least 1"), 2, "gpt2: n_layer = 0: must be at least 1"),
        (FileNotFoundError(errno.ENOENT, "No such file or directory", "a.txt"), 2, "a.txt: no such file or directory"),
        (PermissionError(errno.EACCES, "Permission denied", "b"), 2, "gpt2: b: permission denied"),
        (OSError(errno.ENOSPC, "No space left on device"), 2, "gpt2: no space left on device"),
        (ModuleNotFoundError("No module named 'pyarrow'", name="pyarrow"), 2, "'pyarrow' is not installed"),
        (click.BadParameter("too small", param_hint="--n"), 2, "Invalid value for --n: too small"),
        (ValueError("odd"), 1, "gpt2: ValueError: odd; for the traceback run it again as: gpt2 --debug ..."),
        (ModuleNotFoundError("No module named 'gpt2.x'", name="gpt2.x"), 1, "ModuleNotFoundError"),
        (OSError("socket"), 1, "OSError: socket"),
        (KeyboardInterrupt(), 130, "gpt2: interrupted"),
        (click.Abort(), 130, "gpt2: interrupted"),
        (click.exceptions.Exit(7), 7, ""),
        (BrokenPipeError(errno.EPIPE, "Broken pipe"), 141, ""),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, BaseException) else "",
)
def test_each_failure_has_its_line_and_code(
    error: BaseException, code: int, line: str, monkeypatch: pytest.MonkeyPatch, gpt2: Callable[..., Any]
) -> None:
    command_that(monkeypatch, raiser(error))
    monkeypatch.setattr(frame, "_let_go_of_stdout", lambda: None)
    ran = gpt2("doctor")
    assert ran.code == code
    assert line in ran.err and ran.err.count("\n") == bool(line)


def test_a_checkpoint_in_the_making_does_not_hold_an_interrupted_process() -> None:
    # Were the thread one of torch's C++, Python's own end would abort the process.
    script = """
import sys, threading, time
from gpt2.cli import main as frame
def interrupted(words):
    threading.Thread(target=time.sleep, args=(60,), name=frame.SAVING).start()
    raise KeyboardInterrupt
frame._run = interrupted
sys.exit(frame.main(["train"]))
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=30)
    assert (done.returncode, done.stderr) == (130, "gpt2: interrupted\n")


def test_the_thread_that_saves_has_the_name_that_is_looked_for() -> None:
    from gpt2.train.background import Background

    names: list[str] = []
    thread = Background()
    thread.start(lambda: names.append(threading.current_thread().name))
    assert thread.join() is None
    assert names == [frame.SAVING]


@pytest.mark.parametrize("by_flag", [True, False])
def test_debug_shows_the_traceback(by_flag: bool, monkeypatch: pytest.MonkeyPatch, gpt2: Callable[..., Any]) -> None:
    command_that(monkeypatch, raiser(UserError("wrong")))
    if not by_flag:
        monkeypatch.setenv("GPT2_DEBUG", "1")
    ran = gpt2(*["--debug"] * by_flag, "doctor")
    assert ran.code == 2
    assert "Traceback" in ran.err and ran.err.endswith("gpt2: wrong\n")


def test_a_command_s_number_is_the_exit_code(monkeypatch: pytest.MonkeyPatch, gpt2: Callable[..., Any]) -> None:
    command_that(monkeypatch, lambda: 3)
    assert gpt2("doctor").code == 3
    command_that(monkeypatch, lambda: "text")
    assert gpt2("doctor").code == 0


def test_a_console_that_is_not_utf8_shows_question_marks(monkeypatch: pytest.MonkeyPatch) -> None:
    console = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    monkeypatch.setattr(sys, "stdout", console)
    command_that(monkeypatch, lambda: print("naïve — ok"))
    assert frame.main(["doctor"]) == 0
    assert console.buffer.getvalue() == b"na?ve ? ok\n"  # type: ignore[attr-defined]


@pytest.mark.skipif(os.name == "nt", reason="needs a POSIX shell")
@pytest.mark.parametrize("reader", ["head -c 1", "true"])
def test_a_reader_that_leaves_early_is_no_error(reader: str) -> None:
    line = f"'{sys.executable}' -m gpt2 --help | {reader}"
    done = subprocess.run(line, shell=True, capture_output=True, text=True)
    assert done.stderr == ""


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_full_disk_behind_stdout_is_one_line() -> None:
    with Path("/dev/full").open("w") as full:
        done = subprocess.run([sys.executable, "-m", "gpt2", "--help"], stdout=full, stderr=subprocess.PIPE, text=True)
    assert done.stderr == "gpt2: no space left on device\n"
    assert done.returncode == 2
